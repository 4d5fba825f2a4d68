"""Replication of key/value heads, for meshes with more devices than heads."""

from dataclasses import replace

import jax
import jax.numpy as jnp

from jaxspec.config import TransformerConfig
from jaxspec.typing import Array, Params


def needed_copies(config: TransformerConfig, devices: int) -> int:
    """Number of copies of each key/value head with which `devices` divides the heads.

    Args:
      config: configuration of the model.
      devices: devices that share the heads.

    Returns:
      1 if `devices` already divides the heads, or if copies would not help because it
      does not divide the query heads: those stay whole on every device.
    """
    heads, kv = config.heads, config.num_kv_heads
    if kv % devices == 0 or devices % kv or heads % devices:
        return 1
    return devices // kv


def copy_kv_heads(
    config: TransformerConfig, params: Params, copies: int
) -> tuple[TransformerConfig, Params]:
    """Repeats every key/value head, without changing the function of the model.

    The query heads of a key/value head are divided among its copies, so that several
    devices can share them. The KV cache grows by the factor `copies`.

    Args:
      config: configuration of the model; `copies` divides the queries of a group.
      params: parameters of the model, with arrays `[..., H / K + 2, K, F]` at "qkv".
      copies: copies of each head; with 1 config and parameters are returned unchanged.

    Returns:
      The configuration with more heads, and its parameters.
    """
    if copies == 1:
        return config, params

    def copy_fused(x: Array) -> Array:
        *lead, parts, kv, size = x.shape
        queries_per_copy = (parts - 2) // copies
        queries = x[..., :-2, :, :].reshape(*lead, copies, queries_per_copy, kv, size)
        # Of the queries of head k, copy c serves numbers c * queries_per_copy onward.
        queries = jnp.moveaxis(queries, len(lead), -2)
        queries = queries.reshape(*lead, queries_per_copy, kv * copies, size)
        keys_values = jnp.repeat(x[..., -2:, :, :], copies, axis=-2)
        return jnp.concatenate([queries, keys_values], axis=-3)

    def change(path, x):
        names = [str(getattr(key, "key", "")) for key in path]
        if "qkv" in names:
            return copy_fused(x)
        if "k_norm" in names and x.ndim == 2:  # one norm per head, [K, F]
            return jnp.repeat(x, copies, axis=0)
        return x

    changed = jax.tree_util.tree_map_with_path(change, params)
    return replace(config, kv_heads=config.num_kv_heads * copies), changed
