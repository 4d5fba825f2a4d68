"""Results that are rounded to values of bfloat16."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.checkpoint import Checkpoint, save
from jaxspec.train.run import rounded
from tests.models.tiny import random_params
from tests.train.tiny import get_config


def test_rounded_parameters_are_float32_and_half_as_large_on_disk(tmp_path):
    config = get_config().prior
    params = random_params(config)
    params["more"] = jax.random.normal(jax.random.key(0), (1000, 100))
    sizes = []
    for name, values in (("whole", params), ("rounded", rounded(params))):
        save(tmp_path / name, Checkpoint("prior", config, values))
        files = (tmp_path / name / "params").rglob("*")
        sizes.append(sum(f.stat().st_size for f in files if f.is_file()))
    assert sizes[1] < 0.62 * sizes[0]
    again = rounded(params)
    assert all(x.dtype == np.float32 for x in jax.tree.leaves(again))
    jax.tree.map(np.testing.assert_array_equal, rounded(again), again)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2**-8), again, params
    )
    assert (jnp.asarray(again["more"]) != params["more"]).any()
