"""Precision of matrix products, and of types."""

from contextlib import AbstractContextManager
from functools import wraps

import jax


def full_precision(function):
    """Computes float32 products in full float32 precision on every device."""

    @wraps(function)
    def run(*arguments, **options):
        with jax.default_matmul_precision("highest"):
            return function(*arguments, **options)

    return run


def use_x64(enabled: bool = True) -> AbstractContextManager[None]:
    """Context manager for 64-bit types; JAX before 0.8 has it elsewhere."""
    if hasattr(jax, "enable_x64"):
        return jax.enable_x64(enabled)
    from jax.experimental import enable_x64  # pyright: ignore

    return enable_x64(enabled)
