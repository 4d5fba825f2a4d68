"""Tokens of several sub-codes."""

import jax
import jax.numpy as jnp
import numpy as np
from numpy.testing import assert_allclose, assert_array_equal

from jaxspec.nn.factors import joint_scores, split_codes

SIZES = (3, 2, 4)


def test_the_joint_law_is_the_product_of_the_laws_of_the_sub_codes():
    rng = np.random.default_rng(0)
    scores = [jnp.float32(3 * rng.standard_normal((5, n))) for n in SIZES]
    joint = jax.nn.softmax(joint_scores(scores))
    first, second, third = (np.float64(jax.nn.softmax(x)) for x in scores)
    for token in range(24):
        a, b, c = np.unravel_index(token, SIZES)
        product = first[:, a] * second[:, b] * third[:, c]
        assert_allclose(joint[:, token], product, rtol=1e-5)


def test_sub_codes_are_digits_of_a_token():
    tokens = jnp.arange(24).reshape(4, 6)
    found = split_codes(tokens, SIZES)
    assert_array_equal(found, np.unravel_index(np.arange(24).reshape(4, 6), SIZES))
