"""Measured costs of a round: passes over a few tree sizes, and a draft."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import jax

from jaxspec.config import TransformerConfig
from jaxspec.errors import ConfigError
from jaxspec.models.transformer.model import Transformer
from jaxspec.pipeline.bundle import Bundle
from jaxspec.pipeline.config import GenerationConfig
from jaxspec.pipeline.engine import bundle_for
from jaxspec.pipeline.interleaved import time_interleaved
from jaxspec.pipeline.loaded_drafter import LoadedDrafter
from jaxspec.pipeline.prompts import Prompts
from jaxspec.pipeline.timing import MAX_SPREAD, Timing
from jaxspec.pipeline.tree_choice.compiling import Program, local_compiler
from jaxspec.pipeline.tree_choice.programs import (
    ITERATIONS,
    draft_program,
    pass_program,
)
from jaxspec.speculative.draft import num_extra_queries
from jaxspec.speculative.trees.tree import Tree

# Layers of the target that are timed. A pass takes the same share of a step in a target
# of two layers as in one of many, and compiles in a fraction of the time.
TIMED_LAYERS = 2
# Measuring stops at the first program that would start later than this, in seconds.
BUDGET = 1.6
# Timed runs of each program, and the time after which there are no more, in seconds.
RUNS, RUN_SECONDS = 9, 0.25


@dataclass(frozen=True)
class RoundCosts:
    """Costs of the parts of a round on one device, for one batch size.

    Attributes:
      passes: time of a forward pass of the target by number of nodes, with the extra
        queries of the drafter, in seconds; 1 is a step of plain decoding.
      draft: time of a draft, in seconds.
      steady: whether repeated timings were within `timing.MAX_SPREAD` of each other.
    """

    passes: Mapping[int, float]
    draft: float
    steady: bool = True

    def __post_init__(self):
        object.__setattr__(self, "passes", MappingProxyType(dict(self.passes)))

    @property
    def step(self) -> float:
        """Time of a step of plain decoding, in seconds."""
        return self.passes[1]


def measure_costs(
    bundle: Bundle,
    prompts: Prompts,
    config: GenerationConfig,
    loaded: LoadedDrafter,
    sizes: Sequence[int],
    batch: int,
) -> RoundCosts:
    """Measures the costs of rounds for full batches, half way through a generation.

    Passes are timed with the first `TIMED_LAYERS` layers of the target and scaled by
    the number of weights. All programs take turns, so that they meet the same load.

    Args:
      bundle: models.
      prompts: prompts, of which only shapes matter.
      config: generation settings.
      loaded: drafter.
      sizes: tree sizes, the most important first; later ones are left out once
        compilation has taken `BUDGET`.
      batch: number of sequences.

    Raises:
      ConfigError: the drafter cannot fill a tree.
    """
    began = time.perf_counter()
    target = bundle_for(bundle, loaded).prior
    short, scale = _shortened(target.config)
    filled = short.prefix_length + short.sequence_length // 2

    def target_pass(queries: int) -> Program:
        return pass_program(
            Transformer(short, config.attention),
            target.params,
            batch,
            Tree.chain(queries - 1) if queries > 1 else Tree.root(),
            filled,
            ITERATIONS,
            local_compiler(),
            cfg=config.cfg_scale != 1.0,
        )

    trees = {nodes: loaded.tree(f"optimal-{nodes}") for nodes in sizes}
    calls: dict[int | str, Program] = {
        1: target_pass(1),
        "draft": draft_program(bundle, prompts, config, trees[sizes[0]], loaded, batch),
    }
    for nodes, tree in trees.items():
        if len(calls) > 2 and time.perf_counter() - began > BUDGET:
            break
        calls[nodes] = target_pass(tree.size + num_extra_queries(loaded.drafter, tree))
    times = _timings(calls)
    steady = all(
        t.upper_quartile <= MAX_SPREAD * t.lower_quartile for t in times.values()
    )
    seconds = {name: t.per(ITERATIONS).median for name, t in times.items()}
    draft = seconds.pop("draft")
    return RoundCosts({int(n): scale * s for n, s in seconds.items()}, draft, steady)


def _timings(calls: Mapping[int | str, Program]) -> dict[int | str, Timing]:
    """Times programs in turns: `RUNS` each, or fewer if they take long."""
    began = time.perf_counter()
    for call in calls.values():
        jax.block_until_ready(call())
    once = max(time.perf_counter() - began, 1e-9)
    runs = min(RUNS, max(3, int(RUN_SECONDS / once)))
    return time_interleaved(calls, runs, warm_up=False)


def _shortened(config: TransformerConfig) -> tuple[TransformerConfig, float]:
    """A target of the first layers, and its time's factor to that of all layers."""
    if not isinstance(config, TransformerConfig):
        raise ConfigError(f"{type(config).__name__} has no draft trees")
    layers = min(config.layers, TIMED_LAYERS)
    heads = config.heads + 2 * config.num_kv_heads
    attention = config.width * config.head_size * (heads + config.heads)
    layer = attention + 3 * config.width * config.ffn_size
    head = config.width * config.vocab_size
    scale = (config.layers * layer + head) / (layers * layer + head)
    return replace(config, layers=layers), scale
