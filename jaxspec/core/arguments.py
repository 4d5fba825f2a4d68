"""Checks of arguments that several entry points share."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

from jaxspec.errors import ConfigError
from jaxspec.typing import Array, PyTree


def check_keys(keys: Any) -> None:
    """Checks that keys are an array of typed threefry keys, one a sequence.

    Keys of other generators yield samples that depend on the batch.

    Raises:
      ConfigError: the keys are raw words, a single key, or of another generator.
    """
    remedy = "make them with batch_keys(seed, batch)"
    dtype = getattr(keys, "dtype", None)
    if dtype is None or not jnp.issubdtype(dtype, jax.dtypes.prng_key):
        raise ConfigError(
            f"keys are an array of {dtype or type(keys).__name__}, not of typed keys; "
            f"{remedy}, or wrap raw words with jax.random.wrap_key_data(words, "
            "impl='threefry2x32')"
        )
    if jnp.ndim(keys) != 1:
        raise ConfigError(
            f"keys have shape {list(jnp.shape(keys))}; give one for each sequence, "
            f"[B]: {remedy}"
        )
    if jax.random.key_impl(keys) != "threefry2x32":
        raise ConfigError(
            f"keys are of the kind {jax.random.key_impl(keys)}; {remedy}, or use "
            "jax.random.key(seed, impl='threefry2x32')"
        )


def batch_size(prompt: PyTree, keys: Any) -> int:
    """Number of sequences, from the keys, or from the prompts if there is one key.

    Raises:
      ConfigError: there is one key, and the prompts have no batch axis.
    """
    if getattr(keys, "ndim", 0):
        return keys.shape[0]
    leaves = jax.tree.leaves(prompt)
    if not leaves or not jnp.ndim(leaves[0]):
        raise ConfigError(
            "a single key needs prompts with one entry per sequence: an array such as "
            "jnp.array([0, 3]), no list or number"
        )
    return jnp.shape(leaves[0])[0]


def broadcast_to_batch(name: str, x: Array, batch: int) -> Array:
    """Broadcasts an array `[]` or `[B]` to `[B]`.

    Raises:
      ConfigError: the array has another shape.
    """
    if jnp.shape(x) not in ((), (batch,)):
        raise ConfigError(
            f"{name} has shape {jnp.shape(x)}; give one number, or one for each of the "
            f"{batch} sequences"
        )
    return jnp.broadcast_to(x, (batch,))


def check_batch(batch: int, **arguments: PyTree) -> None:
    """Checks that all arrays of some arguments have `batch` as their first axis.

    Raises:
      ConfigError: an array has another first axis.
    """
    for name, value in arguments.items():
        for leaf in jax.tree.leaves(value):
            shape = jnp.shape(leaf)
            if shape[:1] != (batch,):
                raise ConfigError(
                    f"{name} has an array of shape {shape}, but there are {batch} "
                    "sequences; the first axis must be the batch"
                )


def known_to_hold(condition: Array | bool) -> bool:
    """Whether a condition is known and holds; under `jit` it may be unknown: False."""
    return not isinstance(condition, Tracer) and bool(condition)
