"""Random parameters of networks, made without compiling anything."""

import jax
import jax.numpy as jnp
import numpy as np


def random_like(init, spread=0.1, seed=0):
    """Random arrays of the shapes that `init` has for a key.

    Scales are near 1, logarithms of attention's factors near that of 4.
    """
    rng = np.random.default_rng(seed)

    def leaf(path, x):
        mean = {"scale": 1.0, "log_scale": float(np.log(4))}.get(path[-1].key, 0.0)
        return jnp.asarray(mean + spread * rng.standard_normal(x.shape), x.dtype)

    shapes = jax.eval_shape(init, jax.random.key(0))
    return jax.tree_util.tree_map_with_path(leaf, shapes)
