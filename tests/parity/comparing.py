"""Moving numbers between the frameworks, and comparing them."""

import jax.numpy as jnp
import numpy as np


def as_jax(x):
    """A PyTorch tensor as a JAX array; ids become int32."""
    x = x.detach().cpu().numpy()
    return jnp.asarray(x, jnp.int32 if x.dtype == np.int64 else x.dtype)


def assert_close(ours, theirs, atol=3e-5):
    """No element differs by more than `atol`; there is no relative allowance."""
    theirs = theirs.detach().cpu().numpy()
    np.testing.assert_allclose(np.asarray(ours), theirs, rtol=0, atol=atol)
