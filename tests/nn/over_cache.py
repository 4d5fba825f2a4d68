"""What a layer that attends over a cache is given, drawn at random."""

import jax
import jax.numpy as jnp


def arrays(rows, length, groups, kv_heads, slots, size, dtype="float32", seed=0):
    """A fused map's results and where they go, of a cache that anyone may look at."""
    keys = jax.random.split(jax.random.key(seed), 6)
    shape = (rows, length, groups + 2, kv_heads, size)
    fused = jax.random.normal(keys[0], shape, dtype)
    radians = 6 * jax.random.uniform(keys[1], (rows, length, size // 2))
    angles = jnp.stack([jnp.cos(radians), jnp.sin(radians)], axis=-1)
    cache = tuple(
        jax.random.normal(key, (rows, kv_heads, slots, size), dtype)
        for key in keys[2:4]
    )
    starts = jax.random.randint(keys[4], (rows,), 0, slots - length + 1)
    mask = jax.random.bernoulli(keys[5], 0.3, (rows, length, slots))
    return fused, angles, mask.at[:, :, 0].set(True), cache, starts
