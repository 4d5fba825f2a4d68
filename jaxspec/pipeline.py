"""From a bundle and settings to pictures: compile, run in batches, time, compare."""

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
from jaxspec.helpers import Helper, own_helper
from jaxspec.images import to_bytes
from jaxspec.models.target import make_target
from jaxspec.models.tokenizer import Tokenizer
from jaxspec.models.transformer import Transformer, activation_dtype
from jaxspec.rules import rule_params
from jaxspec.sharding import over_rows
from jaxspec.spec.envelopes import Envelope
from jaxspec.spec.loop import generate
from jaxspec.spec.noise import check_seed, row_keys
from jaxspec.spec.numbers import whole
from jaxspec.spec.sampling import Sampling, active_steps, make_sampling
from jaxspec.spec.state import Engine
from jaxspec.spec.tree import Tree
from jaxspec.spec.verify import Coupled, Rule
from jaxspec.timing import Timing
from jaxspec.typing import PyTree

Progress = Callable[[int], object]


@dataclass(frozen=True)
class Settings:
    """What to draw and how.

    Attributes:
      classes: class id of each picture; of text, what tells its sequences apart.
      texts: what each sequence goes on from, as bytes, for a model of text.
      captions: what each picture shows, for a prior that reads captions.
      length: tokens of each sequence; None: as many as the model makes.
      seed: picture `i` uses key `fold_in(key(seed), i)`.
      temperature: 0 is greedy.
      top_k: 0 keeps all codes.
      top_p: 1 keeps all codes.
      guidance: classifier-free guidance scale; 1 runs no unconditional stream.
      guidance_interval: see `spec.sampling.make_sampling`.
      batch: most pictures side by side.
      rule: verification rule.
      phases: see `Engine`.
      attention: how the prior attends over its cache, see `Transformer`.
    """

    classes: tuple[int, ...]
    seed: int = 0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    guidance: float = 2.0
    guidance_interval: int = -1
    batch: int = 8
    rule: Rule = Coupled()
    texts: tuple[bytes, ...] = ()
    captions: Captions | None = None
    length: int | None = None
    phases: int = 1
    attention: str = "xla"

    def __post_init__(self):
        if not self.classes:
            raise ConfigError("there is no picture to draw; ask for at least one")
        positive = {"phases": self.phases, "batch": self.batch}
        positive |= {} if self.length is None else {"length": self.length}
        for name, value in positive.items():
            whole(name, value)
        whole("classes", self.classes, 0)
        check_seed(self.seed)
        if self.texts and (len(self.texts) != len(self.classes) or not all(self.texts)):
            raise ConfigError("each sequence needs a text of at least one byte")
        if self.captions and len(self.captions.texts) != len(self.classes):
            raise ConfigError("each picture needs a caption")
        self.sampling(1)

    def prompts(self) -> PyTree:
        """Of all pictures: what the model is told of each, on the host.

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
            guidance=self.guidance,
            guidance_interval=self.guidance_interval,
        )


def spread_classes(classes: int, count: int) -> tuple[int, ...]:
    """`count` class ids, evenly spread over `classes`."""
    return tuple(i * classes // count % classes for i in range(count))


@dataclass(frozen=True)
class Run:
    """One way of drawing all pictures.

    Attributes:
      tokens: int32 [n, T].
      calls: int [n], target calls of each picture, its prefill included.
      accepted: int [n, A], rounds by accepted tokens.
      hits: int [n, A - 1, W], accepted tokens by depth and rank.
      proposed: int [n], drafted tokens that were verified.
      rescored: near-ties that were decided again, in all pictures.
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
    tree: Tree | Envelope,
    helper: Helper | None = None,
) -> Engine:
    """The engine that draws with `tree`; its root alone decodes plainly.

    Args:
      bundle: models.
      settings: what to draw.
      tree: shape of the drafts.
      helper: who drafts; by default the bundle's own drafter.

    Raises:
      ConfigError: the tree does not suit the drafter, or there is no drafter.
    """
    bundle = bundle_for(bundle, helper)
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
        helper = helper or own_helper(bundle)
        helper.check_tree(tree)
    else:
        helper = None
    reads = {}
    if helper:
        reads = {"taps": helper.taps, "caption_padding": helper.caption_padding}
    return Engine(
        target=make_target(model, guided=settings.guidance != 1.0, **reads),
        max_tokens=room if settings.length is None else min(room, settings.length),
        drafter=helper.drafter if helper else None,
        tree=tree,
        rule=rule_in_use(settings, tree),
        order=active_steps(settings.sampling(1)),
        tie_margin=Engine.tie_margin if exact else 0.0,
        phases=settings.phases,
    )


def _room(config: TransformerConfig, settings: Settings) -> int:
    """Tokens that the model can make."""
    if (config.condition == "none") != bool(settings.texts):
        raise ConfigError(
            "a model of text goes on from texts; one of pictures does not"
        )
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


def bundle_for(bundle: Bundle, helper: Helper | None) -> Bundle:
    """The bundle with the prior that a drafter brings, if it brings one."""
    if helper is None or helper.prior is None:
        return bundle
    return replace(bundle, prior=helper.prior)


def rule_in_use(settings: Settings, tree: Tree | Envelope) -> Rule:
    """The rule of `settings`, where there is anything to judge."""
    return settings.rule if tree.size > 1 else Coupled()


def draw(
    bundle: Bundle,
    settings: Settings,
    tree: Tree | Envelope,
    *,
    helper: Helper | None = None,
    repeats: int = 1,
    warm_up: bool = False,
    progress: Progress = lambda count: None,
) -> Run:
    """Draws all pictures' codes; `tree` of one node is plain decoding.

    Args:
      bundle: models.
      settings: what to draw.
      tree: shape of the drafts.
      helper: who drafts; by default the bundle's own drafter. One that needs another
        prior brings it, also to plain decoding.
      repeats: timed runs; `seconds` is their median.
      warm_up: run once before the timed runs.
      progress: called with the number of pictures done.

    Raises:
      ConfigError: settings, tree and models do not go together.
      NonFiniteError: the model gave NaN.
    """
    if helper is None and tree.size > 1:
        helper = own_helper(bundle)
    bundle = bundle_for(bundle, helper)
    engine = make_engine(bundle, settings, tree, helper)
    count = len(settings.classes)
    batches, rows = batches_of(bundle, settings)
    order = np.resize(np.arange(count), (batches, rows))
    prompts = settings.prompts()
    padded = [jax.tree.map(lambda x: x[some], prompts) for some in order]  # noqa: B023
    keys = row_keys(settings.seed, rows * batches).reshape(batches, rows)
    sampling = settings.sampling(rows)
    params = bundle.prior.params
    drafter_params = helper.params if helper and engine.drafter else None

    began = time.perf_counter()
    for_rule = rule_params(engine.rule, bundle)

    all_rows = partial(generate, engine)
    if bundle.mesh:
        all_rows = over_rows(bundle.mesh, all_rows)

    def draw_rows(params, drafter_params, for_rule, classes, sampling, keys):
        return all_rows(
            params, drafter_params, classes, sampling, keys, rule_params=for_rule
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


def decode_pictures(
    bundle: Bundle, tokens: np.ndarray, batch: int | None = None
) -> np.ndarray:
    """Codes `[n, T]` to pictures `uint8 [n, H, W, 3]`.

    In groups of `batch`, the last one filled up: one shape is compiled. By default 16,
    or all if there are fewer.
    """
    decode = _decoder(Tokenizer(bundle.pictures.config))
    params = bundle.pictures.params
    batch = min(16, len(tokens)) if batch is None else batch
    padded = np.resize(tokens, (-(-len(tokens) // batch) * batch, tokens.shape[1]))
    parts = [
        to_bytes(decode(params, padded[i : i + batch]))
        for i in range(0, len(padded), batch)
    ]
    return np.concatenate(parts)[: len(tokens)]
