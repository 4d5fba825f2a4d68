"""Key/value caches: explicit, one pair of buffers a layer, heads first."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from jax.tree_util import register_dataclass

from jaxspec.core.dtypes import widest
from jaxspec.typing import Array, Bool, Float, Int

# A pair `k, v` of `[R, K, S, F]` for each layer.
Layers = tuple[tuple[Array, Array], ...]


@register_dataclass
@dataclass(frozen=True)
class KVCache:
    """Keys and values of the committed tokens of every row.

    Attributes:
      layers: a pair `k, v` of `[R, K, S, F]` for each layer. Slots at or beyond a
        row's length hold garbage. What is written is rounded to their dtype.
      lengths: int32 [R], filled slots.
      visible: bool [R, S], False at filled slots that nobody may attend to (padding
        of a caption).
    """

    layers: Layers
    lengths: Int[Array, "R"]
    visible: Bool[Array, "R S"]

    @property
    def capacity(self) -> int:
        """`S`."""
        return self.visible.shape[1]


def init_cache(
    layers: int, rows: int, kv_heads: int, capacity: int, head_dim: int, dtype
) -> KVCache:
    """An empty cache of zeros."""
    shape = (rows, kv_heads, capacity, head_dim)
    return KVCache(
        tuple(
            (jnp.zeros(shape, dtype), jnp.zeros(shape, dtype)) for _ in range(layers)
        ),
        jnp.zeros(rows, jnp.int32),
        jnp.ones((rows, capacity), bool),
    )


def extend_cache(cache: KVCache, slots: int) -> KVCache:
    """The same cache with so many empty slots more."""
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
    """Writes `new` at slots `starts[r] ..` of each row, in the buffer's dtype.

    Wider numbers are rounded: a cache in bfloat16 holds bfloat16 keys whatever the
    layer computes in. float16 also has a smaller range.

    `starts + T` must not exceed the capacity: a start too large is clamped and would
    overwrite committed slots, so allocate capacity for the longest output plus `T`.

    Raises:
      ConfigError: the dtypes differ, and one of them is not floating-point.
    """
    if new.dtype != buffer.dtype:
        widest(**{"the cache": buffer, "what is written to it": new})
    new = new.astype(buffer.dtype)
    given = buffer, new, starts
    if len(starts) > _FEW_ROWS:
        return _write_at_once(*given)
    return jax.lax.platform_dependent(*given, tpu=_write_by_row, default=_write_at_once)


# A TPU scatters in a loop; up to this number, sequences are written one after another.
# A batch that the compiler divides among devices would be moved; use `over_batch`.
_FEW_ROWS = 32


def _write_at_once(buffer, new, starts):
    def put(b, x, start):
        zero = jnp.zeros_like(start)  # of one dtype with it, also under x64
        return jax.lax.dynamic_update_slice(b, x, (zero, start, zero))

    return jax.vmap(put)(buffer, new, starts)


def _write_by_row(buffer, new, starts):
    for row in range(len(starts)):
        start = starts[row]
        zero = jnp.zeros_like(start)
        place = jnp.full_like(start, row), zero, start, zero
        buffer = jax.lax.dynamic_update_slice(buffer, new[row : row + 1], place)
    return buffer


def gather_path(
    layers: Layers, lengths: Int[Array, "R"], nodes: int, path: Int[Array, "R A"]
) -> Layers:
    """Moves slots `lengths + path` of all layers to slots `lengths ..`.

    Args:
      layers: keys and values.
      lengths: where the window begins.
      nodes: its slots.
      path: int32, not descending, below `nodes`.
    """

    def rows(buffer, start, row_path):
        heads, _, size = buffer.shape
        zero = jnp.zeros_like(start)
        window = jax.lax.dynamic_slice(
            buffer, (zero, start, zero), (heads, nodes, size)
        )
        return window[:, row_path]

    def move(buffer):
        return write(buffer, jax.vmap(rows)(buffer, lengths, path), lengths)

    return jax.tree.map(move, layers)


def commit_path(
    cache: KVCache,
    nodes: int,
    path: Int[Array, "R A"],
    counts: Int[Array, "R"],
    move: Callable[..., Layers] = gather_path,
) -> KVCache:
    """Moves an accepted path's rows behind the committed ones.

    The tree of the last round lies at slots `lengths ..`, one slot a node. Its rows on
    `path` are moved to the front of that window, and `counts` of them are committed.
    All `A` rows are moved whatever `counts` is: what is beyond is garbage anyway.

    Done on entry to a round, before the new tree is written: then XLA keeps every
    buffer in place.

    Args:
      cache: of the last round.
      nodes: of its tree.
      path: int32, not descending.
      counts: int32, at most `A`.
      move: how, as `gather_path`.
    """
    layers = cache.layers
    if path.shape[1] > 1:  # the root alone is in place
        layers = move(layers, cache.lengths, nodes, path)
    return replace(cache, layers=layers, lengths=cache.lengths + counts)


def tree_mask(cache: KVCache, window: Bool[Array, "... T T"]) -> Bool[Array, "R T S"]:
    """Who rows written at slots `lengths ..` may see: the past, and each other.

    Args:
      cache: its lengths say where the window begins.
      window: `[T, T]` or `[R, T, T]`: `[t, u]` says that row t may see row u; for a
        tree, its table of ancestors.
    """
    size = window.shape[-1]
    slot = jnp.arange(cache.capacity)[None] - cache.lengths[:, None]  # [R, S]
    past = (slot < 0) & cache.visible
    inside = (slot >= 0) & (slot < size)
    place = jnp.clip(slot, 0, size - 1)
    if window.ndim == 2:
        own = jnp.asarray(window).T[place].swapaxes(1, 2)  # [R, T, S]
    else:
        own = jax.vmap(lambda table, at: table[:, at])(window, place)
    return past[:, None, :] | (inside[:, None, :] & own)
