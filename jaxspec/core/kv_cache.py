"""KV caches: one pair of key and value buffers per layer, heads before slots."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from jax.tree_util import register_dataclass

from jaxspec.core.dtypes import widest
from jaxspec.typing import Array, Bool, Float, Int

# Pair `k, v` of arrays [R, K, S, F] for each layer.
Layers = tuple[tuple[Array, Array], ...]


@register_dataclass
@dataclass(frozen=True)
class KVCache:
    """Keys and values of the committed tokens of every sequence.

    Attributes:
      layers: pair `k, v` of arrays [R, K, S, F] for each layer. Slots from the length
        of a sequence on hold arbitrary numbers. Numbers are rounded to the dtype of the
        cache when they are written.
      lengths: int32 [R], number of committed slots.
      visible: bool [R, S], False at committed slots that are masked for all queries
        (padding of a caption).
    """

    layers: Layers
    lengths: Int[Array, "R"]
    visible: Bool[Array, "R S"]

    @property
    def capacity(self) -> int:
        """Number of slots, `S`."""
        return self.visible.shape[1]


def init_cache(
    layers: int, batch: int, kv_heads: int, capacity: int, head_dim: int, dtype
) -> KVCache:
    """Makes an empty cache; `batch` counts branches x sequences, `R`."""
    shape = (batch, kv_heads, capacity, head_dim)
    return KVCache(
        tuple(
            (jnp.zeros(shape, dtype), jnp.zeros(shape, dtype)) for _ in range(layers)
        ),
        jnp.zeros(batch, jnp.int32),
        jnp.ones((batch, capacity), bool),
    )


def extend_cache(cache: KVCache, slots: int) -> KVCache:
    """Adds `slots` empty slots to a cache."""
    if not slots:
        return cache
    layers = jax.tree.map(
        lambda x: jnp.pad(x, ((0, 0), (0, 0), (0, slots), (0, 0))), cache.layers
    )
    visible = jnp.pad(cache.visible, ((0, 0), (0, slots)), constant_values=True)
    return KVCache(layers, cache.lengths, visible)


def write(
    buffer: Float[Array, "R K S F"],
    new: Float[Array, "R K T F"],
    starts: Int[Array, "R"],
) -> Float[Array, "R K S F"]:
    """Writes `new` to the slots from `starts` on, in the dtype of the buffer.

    `starts + T` must not exceed the capacity: a larger start is clamped, which would
    overwrite committed slots. Allocate capacity for the longest output plus `T`.

    Args:
      buffer: keys or values of one layer.
      new: keys or values of `T` tokens. Wider numbers are rounded to the dtype of the
        buffer; float16 also has a smaller range.
      starts: int32, first slot of each sequence.

    Raises:
      ConfigError: the dtypes differ, and one of them is not floating-point.
    """
    if new.dtype != buffer.dtype:
        widest(**{"the cache": buffer, "what is written to it": new})
    new = new.astype(buffer.dtype)
    arguments = buffer, new, starts
    if len(starts) > _MAX_UNROLLED:
        return _write_batched(*arguments)
    return jax.lax.platform_dependent(
        *arguments, tpu=_write_unrolled, default=_write_batched
    )


# Largest batch whose sequences are written one after another on a TPU, where a scatter
# is a loop. If the compiler divided the batch among devices, each write would move it;
# `over_batch` avoids that.
_MAX_UNROLLED = 32


def _write_batched(buffer, new, starts):
    def write_one(buffer, new, start):
        zero = jnp.zeros_like(start)  # has the dtype of `start`, also under x64
        return jax.lax.dynamic_update_slice(buffer, new, (zero, start, zero))

    return jax.vmap(write_one)(buffer, new, starts)


def _write_unrolled(buffer, new, starts):
    for i in range(len(starts)):
        start = starts[i]
        zero = jnp.zeros_like(start)
        offsets = jnp.full_like(start, i), zero, start, zero
        buffer = jax.lax.dynamic_update_slice(buffer, new[i : i + 1], offsets)
    return buffer


def gather_path(
    layers: Layers, lengths: Int[Array, "R"], nodes: int, path: Int[Array, "R A"]
) -> Layers:
    """Moves slots `lengths + path` of all layers to the slots from `lengths` on.

    Args:
      layers: keys and values.
      lengths: int32, first slot of the tree of each sequence.
      nodes: number of slots of the tree.
      path: int32, nodes of the path in non-descending order, below `nodes`.
    """

    def gather_one(buffer, start, path):
        heads, _, size = buffer.shape
        zero = jnp.zeros_like(start)
        window = jax.lax.dynamic_slice(
            buffer, (zero, start, zero), (heads, nodes, size)
        )
        return window[:, path]

    def move(buffer):
        return write(buffer, jax.vmap(gather_one)(buffer, lengths, path), lengths)

    return jax.tree.map(move, layers)


def commit_path(
    cache: KVCache,
    nodes: int,
    path: Int[Array, "R A"],
    counts: Int[Array, "R"],
    move: Callable[..., Layers] = gather_path,
) -> KVCache:
    """Commits the nodes of an accepted path to the cache.

    The tree of the last round occupies the slots from `lengths` on, one per node. The
    keys and values of `path` are moved to the first of these slots, and `lengths` grows
    by `counts`. All `A` nodes are moved, also those beyond `counts`.

    Call it at the start of a round, before the new tree is written: then XLA updates
    all buffers in place.

    Args:
      cache: cache after the last round.
      nodes: number of nodes of the tree of the last round.
      path: int32, nodes of the path in non-descending order.
      counts: int32, number of nodes to commit, at most `A`.
      move: function that moves the nodes, with the arguments of `gather_path`.
    """
    layers = cache.layers
    if path.shape[1] > 1:  # the root alone is in place
        layers = move(layers, cache.lengths, nodes, path)
    return replace(cache, layers=layers, lengths=cache.lengths + counts)


def tree_mask(cache: KVCache, window: Bool[Array, "... T w"]) -> Bool[Array, "R T S"]:
    """Attention mask of queries whose keys are written from slot `lengths` on.

    Every query attends to the committed slots that are visible, and to those of the `w`
    slots behind them that `window` allows.

    Args:
      cache: cache before the queries are committed.
      window: bool [T, w] or [R, T, w], entry `[t, u]` is True if query `t` attends to
        slot `u` behind the committed ones; for a tree, its table of ancestors.
    """
    size = window.shape[-1]
    slot = jnp.arange(cache.capacity)[None] - cache.lengths[:, None]  # [R, S]
    past = (slot < 0) & cache.visible
    inside = (slot >= 0) & (slot < size)
    query = jnp.clip(slot, 0, size - 1)
    if window.ndim == 2:
        allowed = jnp.asarray(window).T[query].swapaxes(1, 2)  # [R, T, S]
    else:
        allowed = jax.vmap(lambda table, query: table[:, query])(window, query)
    return past[:, None, :] | (inside[:, None, :] & allowed)


def causal_mask(cache: KVCache, count: int) -> Bool[Array, "R T S"]:
    """Attention mask of `count` adjacent tokens, see `tree_mask`."""
    return tree_mask(cache, jnp.tril(jnp.ones((count, count), bool)))
