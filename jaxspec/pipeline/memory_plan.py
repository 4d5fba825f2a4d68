"""Memory plan: bytes on each device of a mesh during generation."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.checkpoint import Checkpoint, abstract_params, named_leaves
from jaxspec.config import MARConfig, NextScaleConfig, TransformerConfig
from jaxspec.errors import ConfigError
from jaxspec.models.transformer.kv_groups import copy_kv_heads, needed_copies
from jaxspec.nn.quantize import SCALE, quantized
from jaxspec.sharding import SHARDING_RULES, ShardingRules, spec_of

# Nominal memory of one device, in bytes.
DEVICES = {
    "TPU v5e": 16e9,
    "TPU v6e": 32e9,
    "A100 40 GB": 40e9,
    "A100 80 GB": 80e9,
    "H100 80 GB": 80e9,
}
# Usable fraction of it: runtime, fragmentation and collectives need the rest.
USABLE = 0.9


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes on one device, by purpose.

    Attributes:
      weights: parameters of the target.
      cache: keys and values of the target, of all CFG branches, for the prompt, the
        generated tokens and the tree.
      drafter: parameters of the drafter and its state between rounds.
      tree: float32 logits of all nodes and the noise that is added to them; an
        estimate.
      workspace: activations of one pass over the tree at its widest layer; an estimate,
        since the compiler decides which buffers exist at the same time.
    """

    weights: int
    cache: int
    drafter: int
    tree: int
    workspace: int

    @property
    def total(self) -> int:
        """Sum of all parts."""
        return self.weights + self.cache + self.drafter + self.tree + self.workspace

    def fits(self) -> dict[str, bool]:
        """Whether the total fits into the usable memory of each of `DEVICES`."""
        return {name: self.total <= USABLE * size for name, size in DEVICES.items()}


def params_bytes(
    kind: str,
    config: Any,
    sizes: Mapping[str, int],
    itemsize: int,
    rules: ShardingRules = SHARDING_RULES,
    int8: bool = False,
    target: TransformerConfig | None = None,
) -> int:
    """Bytes of a model's parameters on one device of a mesh.

    Args:
      kind: key of `jaxspec.checkpoint.KINDS`.
      config: configuration of that kind.
      sizes: devices along each axis of the mesh, by name.
      itemsize: bytes of one parameter that is not quantized.
      rules: sharding rules.
      int8: whether matrices are held as int8 with one scale per column.
      target: configuration of a drafter's target.
    """
    total, params = 0, abstract_params(kind, config, target)
    if int8:
        params = jax.eval_shape(quantized, params)
    for path, x in named_leaves(params):
        spec = spec_of(path, x.shape, dict(sizes), rules)
        axes = [a for part in spec if part for a in np.atleast_1d(part)]
        parts = math.prod(sizes.get(axis, 1) for axis in axes)
        fixed = int8 and (x.dtype == jnp.int8 or path.endswith(SCALE))
        total += x.size * (x.dtype.itemsize if fixed else itemsize) // parts
    return total


def plan_memory(
    config: TransformerConfig | NextScaleConfig | MARConfig,
    *,
    sizes: Mapping[str, int],
    batch: int,
    nodes: int = 58,
    itemsize: int = 2,
    cfg: bool = True,
    drafter: Checkpoint | None = None,
    drafter_cache_width: int = 0,
    int8: bool = False,
    masked: bool = False,
) -> MemoryPlan:
    """Plans the memory of one device.

    Sequences are divided along "data"; heads, widths and the vocabulary along "model".

    Args:
      config: configuration of the target.
      sizes: devices along "data" and "model".
      batch: number of sequences on all devices together.
      nodes: number of nodes of the tree, including its root. A next-scale model has no
        tree; its widest pass is that over the last token map. That of a masked model
        (MAR) is over all tokens, and it has no cache.
      itemsize: bytes of a parameter, key or value.
      cfg: whether classifier-free guidance doubles the sequences of a pass.
      drafter: checkpoint of the drafter, whose parameters are not read; or None.
      drafter_cache_width: numbers in the drafter's cache per position and branch; see
        `drafter_cache_width`.
      int8: whether matrices are held as int8.
      masked: whether the model fills in masked tokens: each pass is over all of them,
        without a cache.

    Raises:
      ConfigError: `batch` is smaller than the number of devices along "data".
    """
    data, model = sizes.get("data", 1), sizes.get("model", 1)
    if batch < data:
        raise ConfigError(
            f"batch {batch} leaves devices idle: the mesh has {data} along 'data'"
        )
    sequences = -(-batch // data)
    branches = sequences * (2 if cfg else 1)
    kept, outputs = 0, 0
    if isinstance(config, MARConfig):
        kind, heads, hidden = "mar", config.heads, config.ffn_size
        nodes = slots = config.buffer + config.sequence_length
    elif isinstance(config, NextScaleConfig):
        kind, heads, nodes = "next_scale", config.heads, config.grid**2
        slots, hidden = config.sequence_length, config.ffn_size
        kept, slots = (0, nodes) if config.attends == "own" else (slots, slots)
        outputs = config.vocab_size
    else:
        config = copy_kv_heads(config, {}, needed_copies(config, model))[0]
        kind, heads, hidden = "prior", config.num_kv_heads, 2 * config.ffn_size
        kept = slots = config.prefix_length + config.sequence_length + nodes
        if masked:
            kept, nodes = 0, config.prefix_length + config.sequence_length
            slots = nodes
        outputs = config.vocab_size
    # Heads that do not divide evenly are replicated.
    heads = heads // model if heads % model == 0 else heads
    layers = 0 if isinstance(config, MARConfig) else config.layers
    cache = layers * 2 * branches * heads * kept * config.head_size * itemsize
    vocab = -(-outputs // model)
    drafter_bytes = 0
    if drafter is not None:
        drafter_bytes = params_bytes(
            drafter.kind,
            drafter.config,
            sizes,
            itemsize,
            int8=int8,
            target=drafter.target,
        )
        drafter_bytes += branches * slots * drafter_cache_width * itemsize
    widest = max(hidden, config.heads * config.head_size * 3) // model
    workspace = branches * nodes * (2 * config.width + widest) * itemsize
    # Attention scores in float32.
    workspace += branches * nodes * slots * max(config.heads // model, 1) * 4
    return MemoryPlan(
        weights=params_bytes(kind, config, sizes, itemsize, int8=int8),
        cache=cache,
        drafter=drafter_bytes,
        tree=(branches + 2 * sequences) * nodes * vocab * 4,
        workspace=workspace,
    )


def plan_table(plan: MemoryPlan, title: str) -> str:
    """Formats a plan as text, one line per part and per device type."""
    lines = [title]
    for name in ("weights", "cache", "drafter", "tree", "workspace", "total"):
        about = "about" if name in ("tree", "workspace", "total") else ""
        size = f"{getattr(plan, name):>16,}"
        lines.append(f"  {name:10} {about:5} {size} bytes per device")
    lines.append("")
    for name, fits in plan.fits().items():
        lines.append(f"  {name:10} {'fits' if fits else 'does not fit'}")
    return "\n".join(lines)


def drafter_cache_width(drafter: Any) -> int:
    """Numbers in a drafter's cache per position: keys and values of all its layers."""
    config = getattr(drafter, "config", drafter)
    heads = getattr(config, "num_kv_heads", 0)
    return 2 * getattr(config, "layers", 1) * heads * getattr(config, "head_size", 0)
