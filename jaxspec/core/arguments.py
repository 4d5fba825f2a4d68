"""Checks of the arguments that all entry points of the engine share."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxspec.errors import ConfigError
from jaxspec.typing import Array, PyTree


def check_keys(keys: Any) -> None:
    """Refuses what is no array of typed keys, one for each row.

    Raises:
      ConfigError: raw words, a single key, or keys of another generator, whose draws
        depend on the batch that they are part of.
    """
    wanted = "make them with batch_keys(seed, rows)"
    dtype = getattr(keys, "dtype", None)
    if dtype is None or not jnp.issubdtype(dtype, jax.dtypes.prng_key):
        raise ConfigError(
            f"row keys are an array of {dtype or type(keys).__name__}, not of typed "
            f"keys; {wanted}, or wrap raw words with jax.random.wrap_key_data(words, "
            "impl='threefry2x32')"
        )
    if jnp.ndim(keys) != 1:
        raise ConfigError(
            f"row keys have shape {list(jnp.shape(keys))}; every row needs one of its "
            f"own, [B]: {wanted}"
        )
    if jax.random.key_impl(keys) != "threefry2x32":
        raise ConfigError(
            f"row keys are of the kind {jax.random.key_impl(keys)}; {wanted}, or with "
            "jax.random.key(seed, impl='threefry2x32')"
        )


def batch_size(prompt: PyTree, keys: Any) -> int:
    """Number of sequences: that of the keys, or of the prompts for a single key."""
    if getattr(keys, "ndim", 0):
        return keys.shape[0]
    leaves = jax.tree.leaves(prompt)
    if not leaves or not jnp.ndim(leaves[0]):
        raise ConfigError("a single key needs prompts with one entry a sequence")
    return jnp.shape(leaves[0])[0]


def broadcast_to_batch(name: str, x: Array, batch: int) -> Array:
    """An array `[]` or `[B]` as `[B]`.

    Raises:
      ConfigError: the array has another shape.
    """
    if jnp.shape(x) not in ((), (batch,)):
        raise ConfigError(
            f"{name} has shape {jnp.shape(x)}; give one number, or one for each of "
            f"{batch} sequences"
        )
    return jnp.broadcast_to(x, (batch,))


def check_rows(rows: int, **arguments: PyTree) -> None:
    """Refuses arguments whose arrays do not have `rows` rows.

    Raises:
      ConfigError: names the argument.
    """
    for name, value in arguments.items():
        for leaf in jax.tree.leaves(value):
            shape = jnp.shape(leaf)
            if shape[:1] != (rows,):
                raise ConfigError(
                    f"{name} holds an array of shape {shape}, but there are {rows} "
                    "rows; every row needs one of each"
                )
