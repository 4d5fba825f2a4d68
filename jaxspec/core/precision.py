"""Precision of matrix products."""

from functools import wraps

import jax


def full_precision(function):
    """Computes float32 products in full float32 precision on every device."""

    @wraps(function)
    def run(*arguments, **options):
        with jax.default_matmul_precision("highest"):
            return function(*arguments, **options)

    return run
