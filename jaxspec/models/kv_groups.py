"""More key/value heads than a model was trained with, for meshes that need them."""

from dataclasses import replace

import jax
import jax.numpy as jnp

from jaxspec.config import TransformerConfig
from jaxspec.typing import Array, Params


def needed_copies(config: TransformerConfig, devices: int) -> int:
    """How often each key/value head must be there so that `devices` divide them.

    1 where nothing has to be done, or where nothing helps: query heads that do not
    divide either stay whole on every device.
    """
    heads, kv = config.heads, config.num_kv_heads
    if kv % devices == 0 or devices % kv or heads % devices:
        return 1
    return devices // kv


def copy_kv_heads(
    config: TransformerConfig, params: Params, copies: int
) -> tuple[TransformerConfig, Params]:
    """The same function with every key/value head `copies` times.

    Each copy serves its share of the query heads that shared the original, so that
    devices can each hold some. The cache grows as the heads do.

    Args:
      config: grouped heads; `copies` divides the queries of a group.
      params: of the model; `[..., g + 2, K, F]` at "qkv".
      copies: 1 returns what was given.
    """
    if copies == 1:
        return config, params

    def fused(x: Array) -> Array:
        *lead, width, kv, size = x.shape
        each = (width - 2) // copies
        queries = x[..., :-2, :, :].reshape(*lead, copies, each, kv, size)
        # Head h = k g + j: its group is k, of the copies of k the one that j falls to.
        queries = jnp.moveaxis(queries, len(lead), -2)
        queries = queries.reshape(*lead, each, kv * copies, size)
        keys = jnp.repeat(x[..., -2:, :, :], copies, axis=-2)
        return jnp.concatenate([queries, keys], axis=-3)

    def change(path, x):
        names = [str(getattr(key, "key", "")) for key in path]
        if "qkv" in names:
            return fused(x)
        if "k_norm" in names and x.ndim == 2:  # a norm for each head, [K, F]
            return jnp.repeat(x, copies, axis=0)
        return x

    changed = jax.tree_util.tree_map_with_path(change, params)
    return replace(config, kv_heads=config.num_kv_heads * copies), changed
