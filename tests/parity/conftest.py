"""Both sides of every comparison run in float32, without shortcuts."""

import jax
import pytest


@pytest.fixture(autouse=True)
def full_precision():
    with jax.default_matmul_precision("highest"):
        yield
