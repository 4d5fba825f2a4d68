"""Minimum bytes and FLOPs of forward passes and training steps, by formula."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax

from jaxspec.bench.roofline.ceilings import Ceilings
from jaxspec.checkpoint import abstract_params, named_leaves
from jaxspec.config import TransformerConfig
from jaxspec.drafters.dflash.drafter import DFlash
from jaxspec.nn.quantize import SCALE, quantized
from jaxspec.pipeline.timing import Timing, ratio_fields

# Embedding tables, of which a pass reads only the entries of its tokens.
_LOOKED_UP = ("embedding", "null_caption")


@dataclass(frozen=True)
class Work:
    """Minimum work of a computation.

    Attributes:
      bytes: Bytes read and written, each input and each output once.
      flops: FLOPs; a multiply-add is two.
    """

    bytes: float
    flops: float

    def __add__(self, other: "Work") -> "Work":
        return Work(self.bytes + other.bytes, self.flops + other.flops)

    def __mul__(self, times: float) -> "Work":
        return Work(self.bytes * times, self.flops * times)

    def bound(self, ceilings: Ceilings) -> float:
        """Lower bound of the time in seconds, by the roofline model."""
        moving = self.bytes / ceilings.bytes_per_second
        return max(moving, self.flops / ceilings.flops_per_second)


def bound_fields(work: Work, ceilings: Ceilings, timing: Timing) -> dict[str, Any]:
    """Fields of a report: work, its roofline bound, and "achieved", bound over time."""
    bound = work.bound(ceilings)
    return {
        "bytes": work.bytes,
        "flops": work.flops,
        "bound_seconds": bound,
        **ratio_fields(achieved=(Timing.exact(bound), timing)),
    }


def matrix_sizes(
    config: TransformerConfig, itemsize: int, int8: bool = False
) -> tuple[int, int]:
    """Count of weights in, and bytes of, the parameters that every pass reads fully.

    Embedding tables are excluded unless the output head is tied to them.
    """
    params = abstract_params("prior", config)
    if int8:
        params = jax.eval_shape(quantized, params)
    count = size = 0
    for path, x in named_leaves(params):
        if any(word in path for word in _LOOKED_UP) and not config.tied_head:
            continue
        if "classes" in path or "caption" in path:
            continue
        quantized_leaf = int8 and (x.dtype.itemsize == 1 or path.endswith(SCALE))
        size += x.size * (x.dtype.itemsize if quantized_leaf else itemsize)
        count += x.size if x.ndim >= 2 and not path.endswith(SCALE) else 0
    return count, size


def pass_work(
    config: TransformerConfig,
    *,
    sequences: int,
    nodes: int,
    filled: float,
    itemsize: int,
    int8: bool = False,
) -> Work:
    """Work of one forward pass of `nodes` tokens per sequence, with filled caches.

    Every weight matrix is read once for all sequences, and the filled cache slots of
    each sequence once; new keys and values and float32 logits are written.

    Args:
      config: Config of the model.
      sequences: Number of CFG branches times sequences, `R`.
      nodes: Number of tokens `T`.
      filled: Mean number of cache slots in use before the pass.
      itemsize: Bytes of a weight, a key and a value.
      int8: Whether weight matrices are quantized to int8.
    """
    count, size = matrix_sizes(config, itemsize, int8)
    slot = 2 * config.layers * config.num_kv_heads * config.head_size * itemsize
    tokens = sequences * nodes
    moved = size + sequences * slot * (filled + nodes)
    moved += tokens * (config.width * itemsize + 4 * config.vocab_size)
    heads = config.layers * config.heads * config.head_size
    attended = 4 * tokens * heads * (filled + nodes)
    return Work(moved, 2 * count * tokens + attended)


def training_work(config: TransformerConfig, *, batch: int, tokens: int) -> Work:
    """FLOPs of one training step on whole sequences: three forward passes.

    Recomputation is not counted, by the definition of model FLOPs. Causal attention
    counts half.

    Args:
      config: Config of the model.
      batch: Number of sequences.
      tokens: Tokens per sequence.
    """
    count, _ = matrix_sizes(config, 4)
    heads = config.layers * config.heads * config.head_size
    forward = 2 * count * batch * tokens + 2 * batch * heads * tokens**2
    return Work(0.0, 3.0 * forward)


def block_training_work(
    drafter: DFlash, *, batch: int, tokens: int, anchors: int
) -> Work:
    """FLOPs of one training step of a block drafter, with its target's forward pass.

    Every weight matrix of the drafter counts three times, for the positions that it is
    applied to: those of the context, of the blocks, or both. The target's head, which
    is frozen, counts twice.

    Args:
      drafter: Block drafter with its target.
      batch: Number of sequences.
      tokens: Tokens per sequence.
      anchors: Blocks per sequence.
    """
    config, target = drafter.config, drafter.target
    assert isinstance(target, TransformerConfig)  # whose work is known
    context, block = batch * tokens, batch * anchors * config.block_size
    params = jax.eval_shape(drafter.init_params, jax.random.key(0))
    total = 0.0
    for path, x in named_leaves(params):
        if x.ndim < 2 or path in ("markov_in", "mask_rows"):
            continue
        both = "/key/" in path or "/value/" in path
        positions = context if "project" in path else block + both * context
        total += 6.0 * x.size * positions
    total += 4.0 * target.width * target.vocab_size * block
    visible = tokens / 2 + config.block_size / 2
    total += 12.0 * block * visible * config.layers * config.heads * config.head_size
    forward = training_work(target, batch=batch, tokens=tokens).flops / 3
    return Work(0.0, total + forward)


def compiler_counts(compiled: Any) -> dict[str, float]:
    """Bytes and FLOPs by the compiler's cost analysis, where it has one.

    The body of a loop counts once, whatever its trip count. Bytes that one fused kernel
    writes and another reads count for both.
    """
    costs = compiled.cost_analysis()
    costs = costs[0] if isinstance(costs, list) else costs
    if not isinstance(costs, Mapping):
        return {}
    names = {"bytes accessed": "counted_bytes", "flops": "counted_flops"}
    return {new: float(costs[old]) for old, new in names.items() if old in costs}
