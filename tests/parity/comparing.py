"""Conversion and comparison of arrays of both frameworks."""

import jax.numpy as jnp
import numpy as np


def as_jax(x):
    """A PyTorch tensor as a JAX array; ids become int32."""
    x = x.detach().cpu().numpy()
    return jnp.asarray(x, jnp.int32 if x.dtype == np.int64 else x.dtype)


def assert_close(actual, reference, atol=3e-5):
    """Asserts that no element differs by more than `atol`."""
    reference = reference.detach().cpu().numpy()
    np.testing.assert_allclose(np.asarray(actual), reference, rtol=0, atol=atol)
