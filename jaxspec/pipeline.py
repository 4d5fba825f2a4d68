"""From a bundle and settings to images: compile, run in batches, time, compare."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.bundle import Bundle
from jaxspec.captions import Captions
from jaxspec.config import TransformerConfig
from jaxspec.errors import ConfigError, NonFiniteError
from jaxspec.helpers import LoadedDrafter, bundled_drafter
from jaxspec.images import to_bytes
from jaxspec.models.target import make_target
from jaxspec.models.tokenizer import Tokenizer
from jaxspec.models.transformer import Transformer, activation_dtype
from jaxspec.rules import verifier_params
from jaxspec.sharding import over_rows
from jaxspec.spec.envelopes import DynamicTree
from jaxspec.spec.loop import generate
from jaxspec.spec.noise import batch_keys, check_seed
from jaxspec.spec.numbers import whole
from jaxspec.spec.sampling import Sampling, active_steps, make_sampling
from jaxspec.spec.state import Engine
from jaxspec.spec.tree import Tree
from jaxspec.spec.verify import Coupled, Verifier
from jaxspec.timing import Timing
from jaxspec.typing import PyTree

Progress = Callable[[int], object]


@dataclass(frozen=True)
class Settings:
    """What to draw and how.

    Attributes:
      classes: class id of each image; of text, what tells its sequences apart.
      texts: what each sequence goes on from, as bytes, for a model of text.
      captions: what each image shows, for a prior that reads captions.
      length: tokens of each sequence; None: as many as the model makes.
      seed: image `i` uses key `fold_in(key(seed), i)`.
      temperature: 0 is greedy.
      top_k: 0 keeps all codes.
      top_p: 1 keeps all codes.
      cfg_scale: classifier-free guidance scale; 1 runs no unconditional stream.
      cfg_interval: see `spec.sampling.make_sampling`.
      batch: most images side by side.
      verifier: acceptance criterion of the drafts.
      cache_stages: see `Engine`.
      attention: how the prior attends over its cache, see `Transformer`.
    """

    classes: tuple[int, ...]
    seed: int = 0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    cfg_scale: float = 2.0
    cfg_interval: int = -1
    batch: int = 8
    verifier: Verifier = Coupled()
    texts: tuple[bytes, ...] = ()
    captions: Captions | None = None
    length: int | None = None
    cache_stages: int = 1
    attention: str = "xla"

    def __post_init__(self):
        if not self.classes:
            raise ConfigError("there is no image to draw; ask for at least one")
        positive = {"cache_stages": self.cache_stages, "batch": self.batch}
        positive |= {} if self.length is None else {"length": self.length}
        for name, value in positive.items():
            whole(name, value)
        whole("classes", self.classes, 0)
        check_seed(self.seed)
        if self.texts and (len(self.texts) != len(self.classes) or not all(self.texts)):
            raise ConfigError("each sequence needs a text of at least one byte")
        if self.captions and len(self.captions.texts) != len(self.classes):
            raise ConfigError("each image needs a caption")
        self.sampling(1)

    def prompts(self) -> PyTree:
        """Of all images: what the model is told of each, on the host.

        Classes int32 [n], a `Caption`, or texts int32 [n, P] with -1 behind shorter
        ones.
        """
        if self.captions:
            return self.captions.features
        if not self.texts:
            return np.array(self.classes, np.int32)
        longest = max(map(len, self.texts))
        rows = [np.frombuffer(text, np.uint8).astype(np.int32) for text in self.texts]
        pads = [(0, longest - len(row)) for row in rows]
        return np.stack(
            [np.pad(r, p, constant_values=-1) for r, p in zip(rows, pads, strict=True)]
        )

    def sampling(self, rows: int) -> Sampling:
        """The same settings for `rows` rows; checked."""
        return make_sampling(
            rows,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            cfg_scale=self.cfg_scale,
            cfg_interval=self.cfg_interval,
        )


def spread_classes(classes: int, count: int) -> tuple[int, ...]:
    """`count` class ids, evenly spread over `classes`."""
    return tuple(i * classes // count % classes for i in range(count))


@dataclass(frozen=True)
class Run:
    """One way of drawing all images.

    Attributes:
      tokens: int32 [n, T].
      calls: int [n], target calls of each image, its prefill included.
      accepted: int [n, A], rounds by accepted tokens.
      hits: int [n, A - 1, W], accepted tokens by depth and rank.
      proposed: int [n], drafted tokens that were verified.
      rescored: near-ties that were decided again, in all images.
      timing: wall-clock time of all batches, compilation excluded.
      compile_seconds: time of tracing and compiling.
    """

    tokens: np.ndarray
    calls: np.ndarray
    accepted: np.ndarray
    hits: np.ndarray
    proposed: np.ndarray
    rescored: int
    timing: Timing
    compile_seconds: float

    @property
    def seconds(self) -> float:
        """The median of the timed runs."""
        return self.timing.median

    @property
    def tokens_per_call(self) -> float:
        """All tokens over all target calls."""
        return self.tokens.size / int(self.calls.sum())


def make_engine(
    bundle: Bundle,
    settings: Settings,
    tree: Tree | DynamicTree,
    loaded: LoadedDrafter | None = None,
) -> Engine:
    """The engine that draws with `tree`; its root alone decodes plainly.

    Args:
      bundle: models.
      settings: what to draw.
      tree: shape of the drafts.
      loaded: who drafts; by default the bundle's own drafter.

    Raises:
      ConfigError: the tree does not suit the drafter, or there is no drafter.
    """
    bundle = bundle_for(bundle, loaded)
    model = Transformer(bundle.prior.config, settings.attention)
    room = _room(model.config, settings)
    wrong = [c for c in settings.classes if not 0 <= c < model.config.classes]
    if wrong and model.config.condition == "class":
        raise ConfigError(
            f"unknown class {wrong[0]}; this prior has 0 to {model.config.classes - 1}"
        )
    # Passes in bfloat16 differ by too much for near-ties to be rare.
    exact = activation_dtype(bundle.prior.params) == jnp.float32
    if tree.size > 1:
        loaded = loaded or bundled_drafter(bundle)
        loaded.check_tree(tree)
    else:
        loaded = None
    reads = {}
    if loaded:
        reads = {
            "feature_layers": loaded.feature_layers,
            "caption_padding": loaded.caption_padding,
        }
    return Engine(
        target=make_target(model, guided=settings.cfg_scale != 1.0, **reads),
        max_new_tokens=room if settings.length is None else min(room, settings.length),
        drafter=loaded.drafter if loaded else None,
        tree=tree,
        verifier=verifier_in_use(settings, tree),
        order=active_steps(settings.sampling(1)),
        tie_margin=Engine.tie_margin if exact else 0.0,
        cache_stages=settings.cache_stages,
    )


def _room(config: TransformerConfig, settings: Settings) -> int:
    """Tokens that the model can make."""
    if (config.condition == "none") != bool(settings.texts):
        raise ConfigError("a model of text goes on from texts; one of images does not")
    if (config.condition == "caption") != bool(settings.captions):
        wants = {"class": "classes", "caption": "captions: --prompt"}
        raise ConfigError(f"this prior draws from {wants[config.condition]}")
    room = config.sequence_length - max(map(len, settings.texts), default=0)
    if room < 1:
        raise ConfigError(f"the text fills the model's {config.sequence_length} places")
    return room


def batches_of(bundle: Bundle, settings: Settings) -> tuple[int, int]:
    """How many batches `draw` makes, and the rows of each: few, and even."""
    groups = bundle.mesh.shape["data"] if bundle.mesh else 1
    count, most = len(settings.classes), settings.batch + -settings.batch % groups
    batches = -(-count // most)
    rows = -(-count // batches)
    return batches, rows + -rows % groups


def bundle_for(bundle: Bundle, loaded: LoadedDrafter | None) -> Bundle:
    """The bundle with the prior that a drafter brings, if it brings one."""
    if loaded is None or loaded.prior is None:
        return bundle
    return replace(bundle, prior=loaded.prior)


def verifier_in_use(settings: Settings, tree: Tree | DynamicTree) -> Verifier:
    """The verifier of `settings`, where there is anything to judge."""
    return settings.verifier if tree.size > 1 else Coupled()


def draw(
    bundle: Bundle,
    settings: Settings,
    tree: Tree | DynamicTree,
    *,
    loaded: LoadedDrafter | None = None,
    repeats: int = 1,
    warm_up: bool = False,
    progress: Progress = lambda count: None,
) -> Run:
    """Draws all images' codes; `tree` of one node is plain decoding.

    Args:
      bundle: models.
      settings: what to draw.
      tree: shape of the drafts.
      loaded: who drafts; by default the bundle's own drafter. One that needs another
        prior brings it, also to plain decoding.
      repeats: timed runs; `seconds` is their median.
      warm_up: run once before the timed runs.
      progress: called with the number of images done.

    Raises:
      ConfigError: settings, tree and models do not go together.
      NonFiniteError: the model gave NaN.
    """
    if loaded is None and tree.size > 1:
        loaded = bundled_drafter(bundle)
    bundle = bundle_for(bundle, loaded)
    engine = make_engine(bundle, settings, tree, loaded)
    count = len(settings.classes)
    batches, rows = batches_of(bundle, settings)
    order = np.resize(np.arange(count), (batches, rows))
    prompts = settings.prompts()
    padded = [jax.tree.map(lambda x: x[some], prompts) for some in order]  # noqa: B023
    keys = batch_keys(settings.seed, rows * batches).reshape(batches, rows)
    sampling = settings.sampling(rows)
    params = bundle.prior.params
    drafter_params = loaded.params if loaded and engine.drafter else None

    began = time.perf_counter()
    for_rule = verifier_params(engine.verifier, bundle)

    all_rows = partial(generate, engine)
    if bundle.mesh:
        all_rows = over_rows(bundle.mesh, all_rows)

    def draw_rows(params, drafter_params, for_rule, classes, sampling, keys):
        return all_rows(
            params, drafter_params, classes, sampling, keys, verifier_params=for_rule
        )

    arguments = (params, drafter_params, for_rule, padded[0], sampling, keys[0])
    run = jax.jit(draw_rows).lower(*arguments).compile()
    compile_seconds = time.perf_counter() - began
    times = []
    for _ in range(repeats + warm_up):
        parts, began = [], time.perf_counter()
        for i in range(batches):
            part = run(params, drafter_params, for_rule, padded[i], sampling, keys[i])
            parts.append(jax.block_until_ready(part))
            progress(max(min(rows, count - i * rows), 0))
        times.append(time.perf_counter() - began)
    times = times[warm_up:]

    if not all(bool(part.finite.all()) for part in parts):
        raise NonFiniteError(
            f"the prior of bundle '{bundle.name}' gave NaN or only -inf logits; its "
            "weights are unusable, fetch or train it again"
        )

    def joined(pick):
        return np.concatenate([np.asarray(pick(part)) for part in parts])[:count]

    return Run(
        tokens=joined(lambda p: p.tokens),
        calls=joined(lambda p: p.stats.calls),
        accepted=joined(lambda p: p.stats.accepted),
        hits=joined(lambda p: p.stats.hits),
        proposed=joined(lambda p: p.stats.proposed),
        rescored=int(joined(lambda p: p.stats.rescored).sum()),
        timing=Timing.of(times),
        compile_seconds=compile_seconds,
    )


@lru_cache(maxsize=8)
def _decoder(tokenizer: Tokenizer):
    return jax.jit(tokenizer.decode)


def decode_images(
    bundle: Bundle, tokens: np.ndarray, batch: int | None = None
) -> np.ndarray:
    """Codes `[n, T]` to images `uint8 [n, H, W, 3]`.

    In groups of `batch`, the last one filled up: one shape is compiled. By default 16,
    or all if there are fewer.
    """
    decode = _decoder(Tokenizer(bundle.tokenizer.config))
    params = bundle.tokenizer.params
    batch = min(16, len(tokens)) if batch is None else batch
    padded = np.resize(tokens, (-(-len(tokens) // batch) * batch, tokens.shape[1]))
    parts = [
        to_bytes(decode(params, padded[i : i + batch]))
        for i in range(0, len(padded), batch)
    ]
    return np.concatenate(parts)[: len(tokens)]
