"""Random inputs of attention over a KV cache."""

import jax
import jax.numpy as jnp


def arrays(batch, length, groups, kv_heads, slots, size, dtype="float32", seed=0):
    """Fused projection, angles, mask (no query fully masked), cache and start slots."""
    keys = jax.random.split(jax.random.key(seed), 6)
    shape = (batch, length, groups + 2, kv_heads, size)
    fused = jax.random.normal(keys[0], shape, dtype)
    radians = 6 * jax.random.uniform(keys[1], (batch, length, size // 2))
    angles = jnp.stack([jnp.cos(radians), jnp.sin(radians)], axis=-1)
    cache = tuple(
        jax.random.normal(key, (batch, kv_heads, slots, size), dtype)
        for key in keys[2:4]
    )
    starts = jax.random.randint(keys[4], (batch,), 0, slots - length + 1)
    mask = jax.random.bernoulli(keys[5], 0.3, (batch, length, slots))
    return fused, angles, mask.at[:, :, 0].set(True), cache, starts
