"""Generation of any number of sequences, batch by batch, with timings."""

import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np

from jaxspec.core.generator import Generator
from jaxspec.core.generator import generate as generate_batch
from jaxspec.core.noise import batch_keys
from jaxspec.core.result import Generation, present
from jaxspec.errors import NonFiniteError
from jaxspec.pipeline.bundle import Bundle
from jaxspec.pipeline.config import GenerationConfig
from jaxspec.pipeline.drafters import load_drafter
from jaxspec.pipeline.engine import bundle_for
from jaxspec.pipeline.generators import make_generator
from jaxspec.pipeline.loaded_drafter import LoadedDrafter
from jaxspec.pipeline.prompts import Prompts
from jaxspec.pipeline.timing import Timing
from jaxspec.sharding import over_batch
from jaxspec.speculative.trees.dynamic import DynamicTree
from jaxspec.speculative.trees.tree import Tree
from jaxspec.typing import BatchKeys, PyTree

Progress = Callable[[int], object]


@dataclass(frozen=True)
class GenerationResult:
    """Tokens and counters of one run over all prompts.

    Attributes:
      tokens: int32 [B, T], given tokens of a prefix included; float32 [B, T, C] of a
        continuous model.
      calls: int [B], target calls of each sequence, its prefill included.
      accepted: int [B, A], rounds by number of accepted tokens.
      hits: int [B, A - 1, W], accepted tokens by depth and rank.
      proposed: int [B], drafted tokens that were verified.
      rescored: number of near-ties that were resolved, over all sequences.
      timing: wall-clock time of all batches, without compilation.
      compile_seconds: time of tracing and compiling, in seconds.
      prefix_length: number of given tokens of each sequence.
    """

    tokens: np.ndarray
    calls: np.ndarray
    accepted: np.ndarray
    hits: np.ndarray
    proposed: np.ndarray
    rescored: int
    timing: Timing
    compile_seconds: float
    prefix_length: int = 0

    def __repr__(self) -> str:
        return (
            f"GenerationResult({self.new_tokens} tokens of {len(self.tokens)} "
            f"sequences, {self.tokens_per_call:.2f} per call, {self.seconds:.2f} s)"
        )

    @property
    def seconds(self) -> float:
        """Median of the timed runs, in seconds."""
        return self.timing.median

    @property
    def new_tokens(self) -> int:
        """Number of generated tokens of all sequences."""
        return int(present(self.tokens[:, self.prefix_length :]).sum())

    @property
    def tokens_per_call(self) -> float:
        """Number of generated tokens over number of all target calls."""
        return self.new_tokens / int(self.calls.sum())


def batches_of(bundle: Bundle, count: int, batch_size: int) -> tuple[int, int]:
    """Number of batches for `count` sequences, and sequences of each: few, and even."""
    groups = bundle.mesh.shape["data"] if bundle.mesh else 1
    most = batch_size + -batch_size % groups
    batches = -(-count // most)
    size = -(-count // batches)
    return batches, size + -size % groups


def generate(
    bundle: Bundle,
    prompts: Prompts,
    config: GenerationConfig,
    tree: Tree | DynamicTree,
    *,
    loaded: LoadedDrafter | None = None,
    repeats: int = 1,
    warm_up: bool = False,
    progress: Progress = lambda count: None,
    programs: dict[Any, Any] | None = None,
) -> GenerationResult:
    """Generates the tokens of all prompts.

    Args:
      bundle: models.
      prompts: prompts of the sequences.
      config: generation settings.
      tree: shape of the drafts; the root alone for plain decoding.
      loaded: drafter; None for the bundle's own. One that needs another prior brings
        it, also for plain decoding.
      repeats: number of timed runs; `seconds` is their median.
      warm_up: whether to run once before the timed runs.
      progress: callback with the number of sequences that ended since the last call;
        0 once programs are compiled.
      programs: compiled programs of earlier calls, which are used and added to.

    Raises:
      ConfigError: settings, prompts, tree and models do not go together.
      NonFiniteError: the model gave NaN.
    """
    if loaded is None and tree.size > 1:
        loaded = load_drafter("own", bundle)
    prompts.check(bundle_for(bundle, loaded).prior.config)
    began = time.perf_counter()
    generator, variables = make_generator(
        bundle, config, tree, loaded, prompt_length=prompts.length
    )
    count = len(prompts)
    batches, size = batches_of(bundle, count, config.batch_size)
    indices = np.resize(np.arange(count), (batches, size))
    keys = batch_keys(config.seed, size * batches).reshape(batches, size)
    sampling = config.sampling(size)

    first = prompts.take(indices[0])
    settings = {
        "sampling": sampling,
        "stopping": config.stopping(generator.max_new_tokens),
    }
    run = _compiled(bundle, generator, variables, first, settings, keys[0], programs)
    compile_seconds = time.perf_counter() - began
    progress(0)
    times, parts = [], []
    for _ in range(repeats + warm_up):
        parts, began = [], time.perf_counter()
        for i in range(batches):
            part = run(variables, prompts.take(indices[i]), **settings, keys=keys[i])
            parts.append(jax.block_until_ready(part))
            progress(max(min(size, count - i * size), 0))
        times.append(time.perf_counter() - began)
    timing = Timing.of(times[warm_up:])
    return join_batches(bundle, parts, prompts, timing, compile_seconds)


def _compiled(
    bundle: Bundle,
    generator: Generator[Any],
    variables: Any,
    prompt: PyTree,
    settings: dict[str, Any],
    keys: BatchKeys,
    programs: dict[Any, Any] | None = None,
) -> Any:
    """Compiles a generator for a batch, unless that has been done before."""
    programs = {} if programs is None else programs
    key = generator, "generate", shapes_of(prompt), shapes_of(settings), keys.shape
    if key not in programs:
        function = partial(generate_batch, generator)
        if bundle.mesh:
            function = over_batch(bundle.mesh, function)
        lowered = jax.jit(function).lower(variables, prompt, **settings, keys=keys)
        programs[key] = lowered.compile()
    return programs[key]


def shapes_of(prompt: PyTree) -> Hashable:
    """Structure, shapes and dtypes of prompts, on which a compiled program depends."""
    leaves, structure = jax.tree.flatten(prompt)
    return structure, tuple((x.shape, str(x.dtype)) for x in leaves)


def check_finite(bundle: Bundle, finite: Any) -> None:
    """Refuses results of a model that gave NaN.

    Raises:
      NonFiniteError: an entry of `finite` is False.
    """
    if not np.asarray(finite).all():
        raise NonFiniteError(
            f"the prior of bundle '{bundle.name}' gave NaN or only -inf logits; its "
            "weights are unusable, fetch or train it again"
        )


def join_batches(
    bundle: Bundle,
    parts: list[Generation],
    prompts: Prompts,
    timing: Timing,
    compile_seconds: float,
) -> GenerationResult:
    """Result of all batches, without the sequences that pad the last one."""
    count = len(prompts)
    for part in parts:
        check_finite(bundle, part.finite)

    def join(pick):
        return np.concatenate([np.asarray(pick(part)) for part in parts])[:count]

    return GenerationResult(
        tokens=after_prefix(prompts.prefix, join(lambda p: p.tokens)),
        calls=join(lambda p: p.stats.calls),
        accepted=join(lambda p: p.stats.accepted),
        hits=join(lambda p: p.stats.hits),
        proposed=join(lambda p: p.stats.proposed),
        rescored=int(join(lambda p: p.stats.rescored).sum()),
        timing=timing,
        compile_seconds=compile_seconds,
        prefix_length=0 if prompts.prefix is None else prompts.prefix.shape[1],
    )


def after_prefix(prefix: np.ndarray | None, tokens: np.ndarray) -> np.ndarray:
    """Tokens of whole sequences: those of the prefix, if there is one, then others."""
    return tokens if prefix is None else np.concatenate([prefix, tokens], axis=1)
