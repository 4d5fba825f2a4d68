"""Front door: prompts in, images out."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh
from PIL import Image

from jaxspec.config.orders import Order
from jaxspec.errors import ConfigError
from jaxspec.pipeline.acceptance import warn_of_low_acceptance
from jaxspec.pipeline.bundle import Bundle, load_bundle
from jaxspec.pipeline.decoding import decode_images
from jaxspec.pipeline.drafters import drafter_of
from jaxspec.pipeline.encoding import encode_images
from jaxspec.pipeline.generation import GenerationResult, generate, join_batches
from jaxspec.pipeline.loaded_drafter import LoadedDrafter
from jaxspec.pipeline.orders import with_order
from jaxspec.pipeline.preview import Preview, generate_previews
from jaxspec.pipeline.prompt_inputs import ClassLabel, resolve_prefix, resolve_prompts
from jaxspec.pipeline.save import save_bundle
from jaxspec.pipeline.settings import resolve_config
from jaxspec.pipeline.timing import Timing
from jaxspec.pipeline.tree_choice import AUTO, TreeChoice, choose_tree
from jaxspec.pipeline.verifiers import parse_verifier
from jaxspec.pipeline.vocabulary import vocabulary_of
from jaxspec.speculative.trees.dynamic import DynamicTree
from jaxspec.speculative.trees.tree import Tree
from jaxspec.speculative.verify import Verifier
from jaxspec.typing import Array


@dataclass(frozen=True)
class PipelineOutput:
    """Result of a pipeline.

    Attributes:
      bundle: models.
      stats: tokens, counters and timings.
      choice: tree that was chosen automatically, and why; None if one was given.
    """

    bundle: Bundle = field(repr=False)
    stats: GenerationResult = field(repr=False)
    choice: TreeChoice | None = field(default=None, repr=False)

    @property
    def tokens(self) -> np.ndarray:
        """Tokens of each sequence, int32 [B, T]; -1 beyond its length. Those of a
        continuous model are float32 [B, T, C]."""
        return self.stats.tokens

    @cached_property
    def images(self) -> list[Image.Image]:
        """Images, decoded when they are first asked for.

        Raises:
          ConfigError: the model generates text.
        """
        images = decode_images(self.bundle, self.tokens)
        return [Image.fromarray(image) for image in images]

    @property
    def texts(self) -> list[str] | list[bytes]:
        """Generated texts; bytes of a model whose tokens are bytes.

        Raises:
          ConfigError: the model generates images.
        """
        if self.bundle.prior.config.condition != "none":
            raise ConfigError(f"bundle '{self.bundle.name}' generates images, no text")
        rows = [row[row >= 0] for row in self.tokens]
        vocabulary = vocabulary_of(self.bundle)
        if vocabulary is None:
            return [bytes(row.astype(np.uint8)) for row in rows]
        return [vocabulary.decode(row) for row in rows]


@dataclass(frozen=True)
class Pipeline:
    """Models of one folder, ready to generate; make it with `load_pipeline`.

    Programs are compiled when they are first needed and kept: the second call with
    settings that differ only in numbers does not compile.

    Attributes:
      bundle: models.
      loaded: drafter; None for plain decoding.
    """

    bundle: Bundle = field(repr=False)
    loaded: LoadedDrafter | None = field(repr=False)
    _programs: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)
    _warned: list[str] = field(default_factory=list, repr=False, compare=False)
    _costs: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)

    def __repr__(self) -> str:
        name = repr(self.loaded.name) if self.loaded else None
        return f"Pipeline({self.bundle!r}, drafter={name})"

    @property
    def class_names(self) -> list[str]:
        """Names of the classes that `class_labels` may name."""
        return self.bundle.class_names

    def encode(
        self, images: Sequence[Image.Image | np.ndarray | Path | str] | np.ndarray
    ) -> np.ndarray:
        """Encodes images as tokens int32 [B, T], in their order; see `encode_images`.

        Args:
          images: Pillow images, files, arrays of unsigned integers or of floats in
            [-1, 1]; resized and cropped to the model's image size.

        Raises:
          ConfigError: there is no image, or a single one that is not in a list.
          DataError: an image cannot be read, or floats are outside of [-1, 1].
        """
        return encode_images(self.bundle, images)

    def __call__(
        self,
        class_labels: Sequence[ClassLabel] | None = None,
        prompts: Sequence[str] | None = None,
        *,
        chat: bool | None = None,
        prefix: np.ndarray | Array | None = None,
        prefix_rows: int | None = None,
        tree: Tree | DynamicTree | str | None = None,
        verifier: Verifier | str = "coupled",
        callback: Callable[[Preview], object] | None = None,
        callback_rounds: int = 8,
        **settings: Any,
    ) -> PipelineOutput:
        """Generates one sequence for each class label or prompt.

        Args:
          class_labels: numbers or names of classes, of a class-conditional model; or
            weights by these, such as `{"Apple 10": 0.5, "Tomato 3": 0.5}`, by which the
            embeddings of classes are mixed.
          prompts: captions, of a text-to-image model; or texts to continue, or
            messages to answer, of a model of text.
          chat: whether texts are messages to answer; None for what the model was
            trained for.
          prefix: first tokens of each image, ints [B, P], such as those of `encode`,
            which are continued. With key and settings of an image, its first tokens are
            continued to the same image.
          prefix_rows: number of rows of `prefix` that are kept, or of token maps of a
            next-scale model; None for all.
          tree: shape of the drafts, as an object or by name, see `trees.parse_tree`; by
            default "auto", the fastest on this device or plain decoding, see
            `choose_tree`. "root" decodes plainly.
          verifier: acceptance criterion, as an object or by name, see
            `parse_verifier`.
          callback: function that is called with a `Preview` every few rounds.
          callback_rounds: target calls between two calls of `callback`.
          **settings: fields of `GenerationConfig`, such as `seed`, `cfg_scale`,
            `temperature` and `batch_size`. Sampling settings that are None or not
            given are those recorded with the checkpoint, see `resolve_config`.

        Raises:
          ConfigError: prompts, settings and models do not go together.
          NonFiniteError: the model gave NaN.

        Warns:
          AcceptanceWarning: the target accepts far less of the drafter's tokens than
            its training measured, see `pipeline.acceptance`; once for a pipeline.
        """
        resolved, choice = self._resolve(
            class_labels, prompts, chat, prefix, prefix_rows, tree, verifier, settings
        )
        if callback is None:
            result = generate(
                self.bundle, *resolved, loaded=self.loaded, programs=self._programs
            )
            warn_of_low_acceptance(self.loaded, result, resolved[1], self._warned)
            return PipelineOutput(self.bundle, result, choice)
        ends: list[Preview] = []
        for preview in self._previews(resolved, callback_rounds):
            callback(preview)
            ends += [preview] if preview.done else []
        result = join_batches(
            self.bundle,
            [end.result for end in ends],
            resolved[0],
            Timing.of([ends[-1].seconds]),
            ends[-1].compile_seconds,
        )
        warn_of_low_acceptance(self.loaded, result, resolved[1], self._warned)
        return PipelineOutput(self.bundle, result, choice)

    def save(self, path: str | os.PathLike) -> None:
        """Writes tokenizer, prior, drafter and text encoder as a folder to load.

        Args:
          path: folder; parts that exist there are replaced.

        Raises:
          CheckpointError: the folder cannot be written.
          ConfigError: the pipeline was loaded for a mesh or in int8.
        """
        save_bundle(self.bundle, path)

    def stream(
        self,
        class_labels: Sequence[ClassLabel] | None = None,
        prompts: Sequence[str] | None = None,
        *,
        chat: bool | None = None,
        prefix: np.ndarray | Array | None = None,
        prefix_rows: int | None = None,
        tree: Tree | DynamicTree | str | None = None,
        verifier: Verifier | str = "coupled",
        rounds: int = 8,
        **settings: Any,
    ) -> Iterator[Preview]:
        """Iterates over what has been generated, every few rounds.

        The last preview of each batch is complete, and its tokens are those of a call
        with the same arguments.

        Args:
          class_labels: numbers or names of classes, or weights by these.
          prompts: captions, or texts, as for `__call__`.
          chat: whether texts are messages to answer, as for `__call__`.
          prefix: first tokens of each image, as for `__call__`.
          prefix_rows: number of rows of `prefix` that are kept, as for `__call__`.
          tree: shape of the drafts, as for `__call__`.
          verifier: acceptance criterion, as for `__call__`.
          rounds: target calls between two previews.
          **settings: fields of `GenerationConfig`.

        Raises:
          ConfigError: prompts, settings and models do not go together.
          NonFiniteError: the model gave NaN.
        """
        resolved, _ = self._resolve(
            class_labels, prompts, chat, prefix, prefix_rows, tree, verifier, settings
        )
        return self._previews(resolved, rounds)

    def _previews(self, resolved, rounds: int) -> Iterator[Preview]:
        return generate_previews(
            self.bundle,
            *resolved,
            loaded=self.loaded,
            rounds=rounds,
            programs=self._programs,
        )

    def _resolve(
        self, class_labels, prompts, chat, prefix, prefix_rows, tree, verifier, settings
    ):
        """Prompts, settings and tree of a call, and the automatic choice if any."""
        if isinstance(verifier, str):
            verifier = parse_verifier(verifier)
        if not isinstance(tree, Tree | DynamicTree | str | None):
            raise ConfigError(f"tree={tree!r} is no tree; use a name or Tree.named")
        if self.loaded is None and tree not in (None, AUTO, "root", Tree.root()):
            raise ConfigError("this pipeline has no drafter; load it with one")
        config = resolve_config(self.bundle, {**settings, "verifier": verifier})
        resolved = resolve_prompts(self.bundle, class_labels, prompts, chat=chat)
        resolved = resolve_prefix(self.bundle, resolved, prefix, prefix_rows)
        choice = None
        if self.loaded is None:
            shape = Tree.root()
        elif tree is None or tree == AUTO:
            choice = choose_tree(
                self.bundle, resolved, config, self.loaded, self._costs
            )
            shape = choice.tree
        else:
            shape = self.loaded.tree(tree) if isinstance(tree, str) else tree
        return (resolved, config, shape), choice


def load_pipeline(
    path: str | os.PathLike | None = None,
    *,
    drafter: str | None = "own",
    dtype: Any = None,
    mesh: Mesh | None = None,
    int8: bool = False,
    order: Order | None = None,
) -> Pipeline:
    """Loads a folder of models, or the embedded ones.

    Args:
      path: folder with `tokenizer/`, `prior/` and, if there is one, `drafter/`.
      drafter: name of a drafter, see `load_drafter`, or None for plain decoding. "own"
        is the folder's; if it has none, an untrained one: "jacobi" for images token by
        token, "prompt-lookup" for text, none for models that generate in another way.
      dtype: dtype of the parameters of prior and drafter; by default as saved.
      mesh: mesh on which the parameters of prior and drafter are placed.
      int8: whether matrices of prior and drafter are held in eight bits.
      order: order in which a model of any order generates the tokens of an image, see
        `config.orders`; None for that of its configuration.

    Raises:
      CheckpointError: something is missing, damaged or does not belong together.
      ConfigError: there is no such drafter, dtype or order.
      NonFiniteError: a parameter is NaN or infinite.
    """
    bundle = load_bundle(path, dtype=dtype, mesh=mesh, int8=int8)
    bundle = bundle if order is None else with_order(bundle, order)
    return Pipeline(bundle, drafter_of(drafter, bundle))
