"""Passes of a masked model over some positions, the others from a cache."""

import jax
import jax.numpy as jnp

from jaxspec.core.kv_cache import KVCache, Layers
from jaxspec.models.transformer.model import Transformer
from jaxspec.typing import Array, Bool, Float, Int, Params


def empty_layers(model: Transformer, rows: int, length: int, dtype) -> Layers:
    """Empty keys and values of all positions, and as many slots for those of a pass.

    Args:
      model: network.
      rows: branches times sequences, `R`.
      length: number of positions, `Y`: condition or prompt, and tokens.
      dtype: dtype of keys and values.
    """
    c = model.config
    shape = (rows, c.num_kv_heads, 2 * length, c.head_size)
    return tuple(
        (jnp.zeros(shape, dtype), jnp.zeros(shape, dtype)) for _ in range(c.layers)
    )


def partial_pass(
    model: Transformer,
    params: Params,
    x: Float[Array, "R Y D"],
    positions: Int[Array, "R Y"],
    exists: Bool[Array, "R Y"],
    layers: Layers,
    computed: Bool[Array, "R Y"],
    capacity: int,
) -> tuple[Float[Array, "R Y V"], Layers]:
    """Logits of some positions, which attend to each other and to cached ones.

    Args:
      model: network, without causality.
      params: parameters.
      x: embeddings of all positions.
      positions: their rotary positions, int32.
      exists: positions that exist; the others are padding.
      layers: keys and values from earlier passes, see `empty_layers`.
      computed: positions that are computed, at most `capacity` a sequence.
      capacity: number of positions of the pass; static.

    Returns:
      Logits float32, 0 where a position was not computed, and the keys and values of
      all positions after the pass.
    """
    rows, length, _ = x.shape
    computed = computed & exists
    places = jnp.argsort(~computed, axis=1, stable=True)[:, :capacity]
    places = places.astype(jnp.int32)
    used = jnp.take_along_axis(computed, places, axis=1)
    chosen = jnp.take_along_axis(x, places[..., None], axis=1)
    spots = jnp.take_along_axis(positions, places, axis=1)
    room = ((0, 0), (0, length - capacity))
    seen = jnp.concatenate([exists & ~computed, jnp.pad(used, room)], axis=1)
    mask = jnp.broadcast_to(seen[:, None], (rows, capacity, 2 * length))
    cache = KVCache(layers, jnp.full(rows, length, jnp.int32), jnp.ones_like(seen))
    # The other kinds of attention read what is before a token alone.
    plain = Transformer(model.config)
    logits, layers = plain.pass_over(params, chosen, spots, mask, cache)
    row = jnp.arange(rows)[:, None]
    # Where nothing was computed: a place outside, which is dropped.
    places = jnp.where(used, places, 2 * length)

    def keep(buffer):
        new = jnp.swapaxes(buffer[:, :, length : length + capacity], 1, 2)
        return buffer.at[row, :, places].set(new, mode="drop")

    empty = jnp.zeros((rows, length, logits.shape[-1]), logits.dtype)
    logits = empty.at[row, places].set(logits, mode="drop")
    return logits, jax.tree.map(keep, layers)
