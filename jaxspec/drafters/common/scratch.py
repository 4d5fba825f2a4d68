"""KV caches of drafters that write the nodes of a draft behind the committed tokens."""

from dataclasses import dataclass, field, replace

import jax.numpy as jnp
from jax.tree_util import register_dataclass

from jaxspec.core.branches import repeat_branches
from jaxspec.core.kv_cache import KVCache, Layers, tree_mask
from jaxspec.typing import Array, Bool, Int, Mask


@register_dataclass
@dataclass(frozen=True)
class ScratchCache:
    """Cache of committed tokens, with the nodes of one draft in scratch slots.

    The scratch slots follow the committed ones and are free again in the next round.

    Attributes:
      cache: keys and values; its `lengths` counts committed slots alone.
      used: number of scratch slots that hold nodes; None until the root's children are
        drafted.
      slots: number of scratch slots; static.
    """

    cache: KVCache
    used: int | Int[Array, ""] | None
    slots: int = field(metadata={"static": True})

    def reserve(
        self, ancestors: Bool[Array, "B M slots"], width: int = 1
    ) -> tuple[Bool[Array, "B M slots"], Mask, KVCache]:
        """Reserves the next free slots for new nodes.

        Args:
          ancestors: scratch slots of the ancestors of each of `M` new nodes.
          width: number of slots, and of queries, for each node.

        Returns:
          The same with the slots of the nodes themselves; the attention mask of their
          queries [R, M width, S]; and the cache with `lengths` at the reserved slots.
        """
        used = self.used
        assert used is not None
        number = used // width + jnp.arange(ancestors.shape[1])[:, None]
        ancestors = ancestors | (jnp.arange(self.slots)[None] // width == number)[None]
        branches = len(self.cache.lengths) // len(ancestors)
        window = repeat_branches(jnp.repeat(ancestors, width, axis=1), branches)
        at_slots = replace(self.cache, lengths=self.cache.lengths + used)
        return ancestors, tree_mask(self.cache, window), at_slots

    def store(self, layers: Layers, count: int) -> "ScratchCache":
        """Takes over the layers after a pass that wrote `count` reserved slots."""
        assert self.used is not None
        cache = replace(self.cache, layers=layers)
        return replace(self, cache=cache, used=self.used + count)


def insert_root(
    tokens: Int[Array, "B T"], root: Int[Array, "B"], index: Int[Array, "B"]
) -> Int[Array, "B T"]:
    """Replaces the token at `index`, the last that was committed, by the root."""
    is_root = jnp.arange(tokens.shape[1])[None] == index[:, None]
    return jnp.where(is_root, root[:, None], tokens)
