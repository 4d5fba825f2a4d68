"""Measured costs of a step of plain decoding, and of rounds of a few tree sizes."""

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import MappingProxyType

import jax

from jaxspec.models.transformer.model import Transformer
from jaxspec.pipeline.bundle import Bundle
from jaxspec.pipeline.config import GenerationConfig
from jaxspec.pipeline.engine import bundle_for, make_engine
from jaxspec.pipeline.interleaved import time_interleaved
from jaxspec.pipeline.loaded_drafter import LoadedDrafter
from jaxspec.pipeline.prompts import Prompts
from jaxspec.pipeline.timing import MAX_SPREAD, Timing
from jaxspec.pipeline.tree_choice.compiling import Program, local_compiler
from jaxspec.pipeline.tree_choice.programs import (
    ITERATIONS,
    half_of,
    pass_program,
    room_of,
    round_program,
)
from jaxspec.speculative.trees.tree import Tree

# Time in which programs are compiled, in seconds: a further tree size is left out if
# compilation, at the duration of the last one, would end later.
BUDGET = 1.6
# Fewest passes of a timed program; batches need no more.
LEAST_ITERATIONS = 2
# Timed runs of each program, and the time after which there are no more, in seconds.
RUNS, RUN_SECONDS = 9, 0.3


@dataclass(frozen=True)
class RoundCosts:
    """Costs of rounds on one device, for one batch size.

    Attributes:
      step: time of the target's pass in a step of plain decoding, in seconds.
      rounds: time of a draft and the target's pass over it, by number of nodes, in
        seconds.
      steady: whether repeated timings were within `timing.MAX_SPREAD` of each other.
      estimated: numbers of nodes whose time was not measured.
    """

    step: float
    rounds: Mapping[int, float]
    steady: bool = True
    estimated: tuple[int, ...] = ()

    def __post_init__(self):
        object.__setattr__(self, "rounds", MappingProxyType(dict(self.rounds)))


def measure_costs(
    bundle: Bundle,
    prompts: Prompts,
    config: GenerationConfig,
    loaded: LoadedDrafter,
    sizes: Sequence[int],
    batch: int,
) -> RoundCosts:
    """Measures the costs of rounds for full batches, half way through a generation.

    All programs take turns, so that they meet the same load.

    Args:
      bundle: models.
      prompts: prompts, of which only shapes matter.
      config: generation settings.
      loaded: drafter.
      sizes: tree sizes, the most important first; the others are left out if they
        would take compilation beyond `BUDGET`.
      batch: number of sequences.

    Raises:
      ConfigError: the drafter cannot fill a tree.
    """
    began = time.perf_counter()
    iterations = max(ITERATIONS // batch, LEAST_ITERATIONS)
    target = bundle_for(bundle, loaded).prior
    model = Transformer(target.config, config.attention)
    plain = make_engine(bundle, config, Tree.root(), prompt_length=prompts.length)

    def round_of(nodes: int) -> Program:
        tree = loaded.tree(f"optimal-{nodes}")
        return round_program(bundle, prompts, config, tree, loaded, batch, iterations)

    # The two programs that every choice needs are compiled at the same time.
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(round_of, sizes[0])
        step = pass_program(
            model,
            target.params,
            batch,
            Tree.root(),
            half_of(plain, prompts, target.config),
            iterations,
            local_compiler(),
            cfg=config.cfg_scale != 1.0,
            capacity=room_of(plain, prompts, target.config),
        )
        calls = {1: step, sizes[0]: first.result()}
    previous = began
    for nodes in sizes[1:]:
        now = time.perf_counter()
        if (now - began) + (now - previous) > BUDGET:
            break
        calls[nodes], previous = round_of(nodes), now
    times = _timings(calls)
    steady = all(
        t.upper_quartile <= MAX_SPREAD * t.lower_quartile for t in times.values()
    )
    seconds = {nodes: t.per(iterations).median for nodes, t in times.items()}
    return RoundCosts(seconds.pop(1), seconds, steady)


def _timings(calls: Mapping[int, Program]) -> dict[int, Timing]:
    """Times programs in turns: `RUNS` each, or fewer if they take long."""
    began = time.perf_counter()
    for call in calls.values():
        jax.block_until_ready(call())
    once = max(time.perf_counter() - began, 1e-9)
    runs = min(RUNS, max(3, int(RUN_SECONDS / once)))
    return time_interleaved(calls, runs, warm_up=False)
