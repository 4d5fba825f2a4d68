"""How many bytes each device of a mesh holds while a model generates."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.checkpoint import abstract_params, named_leaves
from jaxspec.config import TransformerConfig
from jaxspec.errors import ConfigError
from jaxspec.models.kv_groups import copy_kv_heads, needed_copies
from jaxspec.nn.quantize import SCALE, quantized
from jaxspec.sharding import SHARDING_RULES, ShardingRules, spec_of

# Memory of one device in bytes, as its maker says.
DEVICES = {
    "TPU v5e": 16e9,
    "TPU v6e": 32e9,
    "A100 40 GB": 40e9,
    "A100 80 GB": 80e9,
    "H100 80 GB": 80e9,
}
# What a program may use of it: runtime, fragmentation and collectives need the rest.
USABLE = 0.9


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes of one device, by what they are for.

    Attributes:
      weights: of the target.
      cache: keys and values of all streams, prompt, tokens and tree.
      drafter: its own weights and what it keeps between rounds.
      tree: scores of all nodes, and the noise that ranks them, float32; an estimate.
      workspace: activations of one pass over the tree, at its widest layer; an
        estimate, since what the compiler keeps is its own affair.
    """

    weights: int
    cache: int
    drafter: int
    tree: int
    workspace: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.weights + self.cache + self.drafter + self.tree + self.workspace

    def fits(self) -> dict[str, bool]:
        """Whether it fits into each of `DEVICES`."""
        return {name: self.total <= USABLE * size for name, size in DEVICES.items()}


def params_bytes(
    kind: str,
    config: Any,
    sizes: Mapping[str, int],
    itemsize: int,
    rules: ShardingRules = SHARDING_RULES,
    int8: bool = False,
) -> int:
    """Bytes of a model's parameters on one device of a mesh."""
    total, params = 0, abstract_params(kind, config)
    if int8:
        params = jax.eval_shape(quantized, params)
    for path, x in named_leaves(params):
        spec = spec_of(path, x.shape, dict(sizes), rules)
        axes = [a for part in spec if part for a in np.atleast_1d(part)]
        parts = math.prod(sizes.get(axis, 1) for axis in axes)
        kept = int8 and (x.dtype == jnp.int8 or path.endswith(SCALE))
        total += x.size * (x.dtype.itemsize if kept else itemsize) // parts
    return total


def plan_memory(
    config: TransformerConfig,
    *,
    sizes: Mapping[str, int],
    batch: int,
    nodes: int = 58,
    itemsize: int = 2,
    guided: bool = True,
    drafter: tuple[str, Any] | None = None,
    kept_width: int = 0,
    int8: bool = False,
) -> MemoryPlan:
    """The plan of one device; rows lie along "data", heads and tables along "model".

    Args:
      config: of the target.
      sizes: devices along "data" and "model".
      batch: rows on all devices together.
      nodes: of the tree, its root included.
      itemsize: bytes of a weight, a key or a value.
      guided: two streams a row.
      drafter: kind and drafter, if one is used.
      kept_width: numbers that the drafter keeps of each position and stream.
      int8: matrices in eight bits.

    Raises:
      ConfigError: there is no row for each device along "data".
    """
    data, model = sizes.get("data", 1), sizes.get("model", 1)
    if batch < data:
        raise ConfigError(
            f"batch {batch} leaves devices idle: the mesh has {data} along 'data'"
        )
    rows = -(-batch // data)
    streams = rows * (2 if guided else 1)
    config = copy_kv_heads(config, {}, needed_copies(config, model))[0]
    # Heads that do not divide are kept whole by every device.
    heads = config.num_kv_heads
    heads = heads // model if heads % model == 0 else heads
    slots = config.prefix_length + config.sequence_length + nodes
    cache = config.layers * 2 * streams * heads * slots * config.head_size * itemsize
    wide = -(-config.vocab_size // model)
    own = 0
    if drafter is not None:
        own = params_bytes(*drafter, sizes, itemsize, int8=int8)
        own += streams * slots * kept_width * itemsize
    widest = max(2 * config.ffn_size, config.heads * config.head_size * 3) // model
    work = streams * nodes * (2 * config.width + widest) * itemsize
    work += streams * nodes * slots * max(config.heads // model, 1) * 4  # scores
    return MemoryPlan(
        weights=params_bytes("prior", config, sizes, itemsize, int8=int8),
        cache=cache,
        drafter=own,
        tree=(streams + 2 * rows) * nodes * wide * 4,
        workspace=work,
    )


def plan_table(plan: MemoryPlan, title: str) -> str:
    """The plan for people."""
    lines = [title]
    for name in ("weights", "cache", "drafter", "tree", "workspace", "total"):
        about = "about" if name in ("tree", "workspace", "total") else ""
        lines.append(f"  {name:10} {about:5} {getattr(plan, name):>16,} bytes a device")
    lines.append("")
    for name, fits in plan.fits().items():
        lines.append(f"  {name:10} {'fits' if fits else 'does not fit'}")
    return "\n".join(lines)


def kept_width(drafter: Any) -> int:
    """Numbers that a drafter keeps of each position: keys and values of its layers."""
    config = getattr(drafter, "config", drafter)
    heads = getattr(config, "num_kv_heads", 0)
    return 2 * getattr(config, "layers", 1) * heads * getattr(config, "head_size", 0)
