"""Matrix product precision of the engine."""

from functools import wraps

import jax


def full_precision(function):
    """Computes float32 products in float32, also where a device offers shorter ones."""

    @wraps(function)
    def run(*arguments, **options):
        with jax.default_matmul_precision("highest"):
            return function(*arguments, **options)

    return run
