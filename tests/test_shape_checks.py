"""Array annotations, which the suite checks while it runs."""

import jax
import jax.numpy as jnp
import pytest
from jaxtyping import Float, TypeCheckError, jaxtyped

from tests.shape_checks import EVERY, FIRST, check_shapes


def test_first_calls_and_every_tenth_later_one_are_checked():
    @jaxtyped(typechecker=check_shapes)
    def doubled(x: Float[jax.Array, "3"]) -> Float[jax.Array, "3"]:
        return 2 * x

    wrong = jnp.zeros(4)
    for i in range(FIRST + 2 * EVERY):
        if i < FIRST or i % EVERY == 0:
            with pytest.raises(TypeCheckError):
                doubled(wrong)
        else:
            assert doubled(wrong).shape == (4,)
