"""A bundle: tokenizer, prior and drafter that belong together, in one folder."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxspec.checkpoint import (
    Checkpoint,
    Placement,
    checkpoint_of,
    digest_of,
    load_checkpoint,
    named_leaves,
)
from jaxspec.config import (
    MARConfig,
    NextScaleConfig,
    TransformerConfig,
)
from jaxspec.config.checks import whole_number
from jaxspec.config.token_kinds import same_tokens, tokens_of
from jaxspec.drafters.registry import DRAFTERS
from jaxspec.errors import CheckpointError, ConfigError
from jaxspec.io.hub import LOCATION, download_folder
from jaxspec.models.masked_lm.model import MASKED_OBJECTIVES
from jaxspec.models.transformer.kv_groups import copy_kv_heads, needed_copies
from jaxspec.nn.quantize import quantized
from jaxspec.pipeline.embedded import find_folder
from jaxspec.pipeline.manifest import check_manifest
from jaxspec.sharding import SHARDING_RULES, ShardingRules, check_mesh, placement
from jaxspec.typing import Params

# Kinds of checkpoints in the folders of a bundle.
TOKENIZERS = (
    "tokenizer",
    "multi_scale_tokenizer",
    "kl_tokenizer",
    "maskgit_tokenizer",
    "one_d_tokenizer",
    "flow_tokenizer",
    "residual_tokenizer",
)
PRIORS = ("prior", "next_scale", "mar")
HUB = "hf://"
PriorConfig = TransformerConfig | NextScaleConfig | MARConfig
_FAMILIES = {
    TransformerConfig: "autoregressive",
    NextScaleConfig: "next_scale",
    MARConfig: "mar",
}


@dataclass(frozen=True)
class Bundle:
    """Models that belong together, loaded from one folder.

    Attributes:
      name: name of the folder.
      image_tokenizer: image tokenizer; None for a model of text .
      prior: target model.
      drafter: drafter that was trained for the prior; None without one.
      text_encoder: folder of the text encoder, which is loaded when captions are read.
      mesh: mesh of the parameters of prior and drafters; None for one device.
      trained: configuration of the prior on disk, which drafters name as their target.
        On a mesh the prior may have more key/value heads.
      int8: whether matrices of prior and drafters are held in eight bits.
      place: sharding of each parameter; None for one device.
      vocabulary: file of the vocabulary of a model of text; None if tokens are bytes.
    """

    name: str
    image_tokenizer: Checkpoint | None
    prior: Checkpoint
    drafter: Checkpoint | None
    text_encoder: Path | None = None
    mesh: Mesh | None = None
    trained: PriorConfig | None = None
    int8: bool = False
    place: Placement = None
    vocabulary: Path | None = None

    def __repr__(self) -> str:
        parts = {"tokenizer": self.image_tokenizer, "prior": self.prior}
        parts["drafter"] = self.drafter
        words = [f"{name}={part!r}" for name, part in parts.items() if part is not None]
        return ",\n  ".join([f"Bundle({self.name!r}, {words[0]}", *words[1:]]) + ")"

    @property
    def tokenizer(self) -> Checkpoint:
        """The image tokenizer, on one device of this process.

        Raises:
          ConfigError: there is none.
        """
        if self.image_tokenizer is None:
            raise ConfigError(f"bundle '{self.name}' makes text, no images")
        return self.image_tokenizer

    @property
    def family(self) -> str:
        """Way of generating: "autoregressive", "masked", "next_scale" or "mar"."""
        masked = self.prior.metadata.get("objective") in MASKED_OBJECTIVES
        return "masked" if masked else _FAMILIES[type(self.prior.config)]

    @property
    def class_names(self) -> list[str]:
        """Names of the prior's classes; decimal numbers where it has none."""
        count = self.prior.config.classes
        return self.prior.metadata.get("class_names") or [str(i) for i in range(count)]

    @property
    def examples(self) -> list[str]:
        """Captions to try, of a model of captions; empty where none are recorded."""
        return list(map(str, self.prior.metadata.get("examples", ())))

    @property
    def names(self) -> dict[str, str]:
        """Words for characters of captions, such as emoji; mostly none."""
        return self.prior.metadata.get("names", {})

    @property
    def styles(self) -> list[str]:
        """Words that captions may end with; empty where none are recorded."""
        return list(map(str, self.prior.metadata.get("styles", ())))


def load_bundle(
    path: str | os.PathLike | None = None,
    *,
    dtype: Any = None,
    mesh: Mesh | None = None,
    rules: ShardingRules = SHARDING_RULES,
    int8: bool = False,
) -> Bundle:
    """Loads a bundle folder, or the embedded default.

    Args:
      path: folder with `tokenizer/`, `prior/` and, if there is one, `drafter/`; or the
        working folder of a training, the name of an embedded bundle, or
        "hf://OWNER/NAME[@REVISION]" for a repository of the hub that holds such a
        folder.
      dtype: dtype of the parameters of prior and drafter; None for that on disk. The
        tokenizer stays float32.
      mesh: mesh of the parameters of prior and drafter; None for one device. Key/value
        heads that "model" does not divide are copied, see
        `models.transformer.kv_groups`.
      rules: sharding rules.
      int8: whether to hold matrices of prior and drafters in eight bits, see
        `nn.quantize`.

    Raises:
      CheckpointError: something is missing, damaged or does not belong together.
      ConfigError: `dtype` is no floating-point dtype.
      DataError: the repository cannot be fetched.
      NonFiniteError: a parameter holds NaN or infinity.
    """
    check_dtype(dtype)
    folder = checkpoint_of(_local_folder(path))
    check_manifest(folder)
    mesh = check_mesh(mesh) if mesh is not None else None
    place = placement(mesh, rules) if mesh else None
    prior, tokenizer = load_prior(folder / "prior", place), None
    prior = replace(prior, metadata={**prior.metadata, "digest": digest_of(prior)})
    if prior.config.condition != "none":
        if not (folder / "tokenizer").is_dir():
            raise CheckpointError(
                f"'{folder}' has a prior and no tokenizer/: train one, or convert the "
                "one that the prior was made for into the same folder"
            )
        tokenizer = load_tokenizer(folder / "tokenizer")
        if getattr(tokenizer.config, "text_length", 0):
            raise CheckpointError(
                f"'{folder / 'tokenizer'}' decodes with vectors of a text, which a "
                "bundle has none of: use it by itself, `jaxspec.load(folder)`"
            )
    drafter = None
    if (folder / "drafter").is_dir():
        drafter = load_checkpoint(folder / "drafter", sharding=place)
        if drafter.kind not in DRAFTERS:
            raise CheckpointError(f"'{folder / 'drafter'}' holds a {drafter.kind}")
        digest = digest_of(prior)
        trained_for = drafter.metadata.get("target_digest", digest)
        if (drafter.target, trained_for) != (prior.config, digest):
            raise CheckpointError(
                f"'{folder / 'drafter'}' was trained for another prior than "
                f"'{folder / 'prior'}'; train it again"
            )
    if tokenizer is not None and not same_tokens(prior.config, tokenizer.config):
        made, read = tokens_of(tokenizer.config), tokens_of(prior.config)
        raise CheckpointError(
            f"'{folder}': the prior is over {read}, the tokenizer makes {made}"
        )
    if dtype is not None:
        drafter = drafter and replace(
            drafter, params=cast_floats(drafter.params, dtype)
        )
    encoder = folder / "text_encoder"
    reads, trained = prior.config.condition == "caption", prior.config
    prior = prepared(prior, dtype=dtype, mesh=mesh, place=place, int8=int8)
    working = folder.name == "checkpoint" and folder.resolve().parent.name
    return Bundle(
        working or folder.name,
        tokenizer,
        prior,
        drafter,
        encoder if reads and encoder.is_dir() else None,
        mesh,
        trained,
        int8,
        place,
        _vocabulary(folder / "prior", trained),
    )


def token_by_token(bundle: Bundle) -> Bundle:
    """The bundle, if its model generates token by token.

    Raises:
      ConfigError: it does not.
    """
    if bundle.family != "autoregressive":
        raise ConfigError(
            f"bundle '{bundle.name}' does not generate token by token; this is for "
            "models that do"
        )
    return bundle


def load_tokenizer(path: Path) -> Checkpoint:
    """Loads an image tokenizer of any kind.

    Raises:
      CheckpointError: it cannot be read, or is of another kind.
    """
    found = load_checkpoint(path)
    if found.kind not in TOKENIZERS:
        raise CheckpointError(f"'{path}' holds a {found.kind}, not a tokenizer")
    return found


def _vocabulary(folder: Path, config: PriorConfig) -> Path | None:
    """File of the vocabulary beside a model of text."""
    file = folder / "tokenizer.json"
    return file if config.condition == "none" and file.is_file() else None


def _local_folder(path: str | os.PathLike | None) -> Path:
    """The folder, see `find_folder`, or the downloaded copy of a repository."""
    text = "" if path is None else os.fspath(path)
    if not text.startswith(HUB):
        return find_folder(path)
    match = LOCATION.fullmatch(text.removeprefix(HUB))
    if match is None or match["file"]:
        raise CheckpointError(f"'{text}' is no repository; write {HUB}OWNER/NAME")
    return download_folder(match["repo"], match["revision"])


def prepared(
    prior: Checkpoint,
    *,
    dtype: Any = None,
    mesh: Mesh | None = None,
    place: Any = None,
    int8: bool = False,
) -> Checkpoint:
    """Casts, shards and quantizes a target.

    Args:
      prior: checkpoint of the target.
      dtype: dtype of floating-point parameters; None keeps it.
      mesh: mesh whose "model" axis divides the key/value heads, which are copied if
        there are too few; None for one device.
      place: sharding of each parameter on the mesh.
      int8: whether to round matrices to eight bits, see `nn.quantize`.
    """
    config, params = prior.config, prior.params
    grouped = isinstance(config, TransformerConfig)
    if dtype is not None:
        params = cast_floats(params, dtype)
    copies = 1
    if mesh is not None and grouped:
        copies = needed_copies(config, mesh.shape["model"])
    if copies > 1:

        def change(params):
            return copy_kv_heads(config, params, copies)[1]

        shapes = jax.eval_shape(change, params)
        where = [place(path, x.shape) for path, x in named_leaves(shapes)]
        where = jax.tree.unflatten(jax.tree.structure(shapes), where)
        params = jax.jit(change, out_shardings=where)(params)
    if int8:
        params = quantized(params)
    if grouped:
        config, _ = copy_kv_heads(config, {}, copies)
    return replace(prior, config=config, params=params)


def load_prior(path: Path, sharding: Placement = None) -> Checkpoint:
    """Loads a model that generates.

    Raises:
      CheckpointError: it cannot be read, or was trained for something else.
    """
    prior = load_checkpoint(path, sharding=sharding)
    if prior.kind not in PRIORS:
        raise CheckpointError(f"'{path}' holds a {prior.kind}, not a prior")
    objective = prior.metadata.get("objective", "next")
    generating = ("next", "any_order", "sorted", "tidar", *MASKED_OBJECTIVES)
    if objective not in generating:
        raise CheckpointError(
            f"'{path}' was trained for {objective!r}: it drafts for another model "
            "(--drafter), but does not generate on its own"
        )
    return prior


def check_dtype(dtype: Any) -> None:
    """Checks a dtype that parameters are cast to; None keeps that on disk.

    Raises:
      ConfigError: it is no floating-point dtype.
    """
    try:
        known = dtype is None or jnp.issubdtype(jnp.dtype(dtype), jnp.floating)
    except TypeError:
        known = False
    if not known:
        raise ConfigError(
            f"dtype={dtype!r} is no dtype of parameters; use 'float32', 'bfloat16' or "
            "'float16'"
        )


def cast_floats(params: Params, dtype: Any) -> Params:
    """Casts floating-point parameters; integers keep their dtype."""

    def cast(x):
        return x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x

    return jax.tree.map(cast, params)


def resolve_classes(bundle: Bundle, names: Sequence[str | int]) -> list[int]:
    """Class ids of names or numbers.

    Args:
      bundle: models.
      names: ids as integers; or texts, which are names, or ids if no class has such a
        name.

    Raises:
      ConfigError: a class is unknown.
    """
    known = bundle.class_names
    lower = {name.lower(): i for i, name in enumerate(known)}
    ids = []
    for name in names:
        text = str(name).strip()
        is_id = isinstance(name, int | np.integer) and not isinstance(name, bool)
        if text.lower() in lower and not is_id:
            ids.append(lower[text.lower()])
        elif (number := whole_number(text)) is not None and number < len(known):
            ids.append(number)
        else:
            shown = text if len(text) <= 40 else f"{text[:40]}..."
            near = ", ".join(map(repr, _similar(text, known) or known[:1]))
            raise ConfigError(
                f"unknown class {shown!r}; use a number from 0 to {len(known) - 1} or "
                f"a name that `jaxspec info FOLDER` lists, such as {near}"
            )
    return ids


def _similar(text: str, known: list[str]) -> list[str]:
    """At most three names that contain a text, or that are spelled like it."""
    lower = {name.lower(): name for name in known}
    found = [name for key, name in lower.items() if text and text.lower() in key]
    found += [lower[key] for key in get_close_matches(text[:40].lower(), lower)]
    return list(dict.fromkeys(found))[:3]
