"""The bytes and operations that a pass cannot do without, by formula."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax

from jaxspec.bench.roofline.ceilings import Ceilings
from jaxspec.checkpoint import abstract_params, named_leaves
from jaxspec.config import TransformerConfig
from jaxspec.drafters.block_diffusion import DFlash
from jaxspec.nn.quantize import SCALE, quantized

# Tables of which a pass reads a few rows.
_LOOKED_UP = ("embedding", "null_caption")


@dataclass(frozen=True)
class Work:
    """What must be done at least.

    Attributes:
      bytes: read and written, each input and each output once.
      flops: multiplications and additions.
    """

    bytes: float
    flops: float

    def __add__(self, other: "Work") -> "Work":
        return Work(self.bytes + other.bytes, self.flops + other.flops)

    def __mul__(self, times: float) -> "Work":
        return Work(self.bytes * times, self.flops * times)

    def bound(self, ceilings: Ceilings) -> float:
        """Seconds below which no program can do it."""
        moving = self.bytes / ceilings.bytes_per_second
        return max(moving, self.flops / ceilings.flops_per_second)


def matrix_sizes(
    config: TransformerConfig, itemsize: int, int8: bool = False
) -> tuple[int, int]:
    """Numbers in, and bytes of, the parameters that every pass reads whole."""
    params = abstract_params("prior", config)
    if int8:
        params = jax.eval_shape(quantized, params)
    count = size = 0
    for path, x in named_leaves(params):
        if any(word in path for word in _LOOKED_UP) and not config.tied_head:
            continue
        if "classes" in path or "caption" in path:
            continue
        kept = int8 and (x.dtype.itemsize == 1 or path.endswith(SCALE))
        size += x.size * (x.dtype.itemsize if kept else itemsize)
        count += x.size if x.ndim >= 2 and not path.endswith(SCALE) else 0
    return count, size


def pass_work(
    config: TransformerConfig,
    *,
    rows: int,
    nodes: int,
    filled: float,
    itemsize: int,
    int8: bool = False,
) -> Work:
    """One pass of `nodes` tokens in each of `rows` streams behind a filled cache.

    Every matrix is read once for all rows, the filled slots of every row once; new
    keys and values and float32 logits are written.

    Args:
      config: of the model.
      rows: `R`, both streams of a guided row count.
      nodes: `T`.
      filled: slots in use before, on average.
      itemsize: bytes of a weight, a key and a value.
      int8: matrices are held in eight bits.
    """
    count, size = matrix_sizes(config, itemsize, int8)
    slot = 2 * config.layers * config.num_kv_heads * config.head_size * itemsize
    tokens = rows * nodes
    moved = size + rows * slot * (filled + nodes)
    moved += tokens * (config.width * itemsize + 4 * config.vocab_size)
    heads = config.layers * config.heads * config.head_size
    attended = 4 * tokens * heads * (filled + nodes)
    return Work(moved, 2 * count * tokens + attended)


def training_work(config: TransformerConfig, *, rows: int, tokens: int) -> Work:
    """One training step on whole sequences: three times the operations of a pass.

    Recomputation, where there is any, is not counted: these are the model's own
    operations, as model-FLOPs utilization means them. Causal attention counts half.
    """
    count, _ = matrix_sizes(config, 4)
    heads = config.layers * config.heads * config.head_size
    forward = 2 * count * rows * tokens + 2 * rows * heads * tokens**2
    return Work(0.0, 3.0 * forward)


def block_training_work(
    drafter: DFlash, *, rows: int, tokens: int, anchors: int
) -> Work:
    """One training step of a block drafter: its own, and its frozen target's forward.

    Every matrix of the drafter counts three times, for the positions it is applied to:
    the context's, the blocks', or both; the target's head, which has no gradient of its
    own, twice.

    Args:
      drafter: with its target.
      rows: sequences.
      tokens: of each.
      anchors: blocks in each sequence.
    """
    config, target = drafter.config, drafter.target
    context, block = rows * tokens, rows * anchors * config.block_size
    own = jax.eval_shape(drafter.init_params, jax.random.key(0))
    total = 0.0
    for path, x in named_leaves(own):
        if x.ndim < 2 or path in ("markov_in", "mask_rows"):
            continue
        both = "/key/" in path or "/value/" in path
        places = context if "project" in path else block + both * context
        total += 6.0 * x.size * places
    total += 4.0 * target.width * target.vocab_size * block
    visible = tokens / 2 + config.block_size / 2
    total += 12.0 * block * visible * config.layers * config.heads * config.head_size
    forward = training_work(target, rows=rows, tokens=tokens).flops / 3
    return Work(0.0, total + forward)


def counted(compiled: Any) -> dict[str, float]:
    """Bytes and operations that the compiler counts in its program, where it does.

    A loop's body counts once, however often it runs; bytes count again what a fused
    kernel reads from another.
    """
    costs = compiled.cost_analysis()
    costs = costs[0] if isinstance(costs, list) else costs
    if not isinstance(costs, Mapping):
        return {}
    names = {"bytes accessed": "counted_bytes", "flops": "counted_flops"}
    return {new: float(costs[old]) for old, new in names.items() if old in costs}
