"""Schedules of unmasking, and orders of tokens."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxspec.core.noise import batch_keys
from jaxspec.core.unmasking import random_order
from jaxspec.errors import ConfigError
from jaxspec.mar.schedule import UnmaskingSchedule


@given(st.integers(1, 300), st.data())
def test_every_step_makes_a_token_known_and_the_last_leaves_none(tokens, data):
    steps = data.draw(st.integers(1, tokens))
    masked = UnmaskingSchedule(tokens, steps).masked
    assert masked[0] == tokens and masked[-1] == 0 and len(masked) == steps + 1
    assert (np.diff(masked) < 0).all()


@given(st.integers(1, 40), st.data())
def test_the_most_tokens_of_several_steps(tokens, data):
    steps, count = data.draw(st.integers(1, tokens)), data.draw(st.integers(1, 9))
    schedule = UnmaskingSchedule(tokens, steps)
    left = [*schedule.masked, *[0] * count]
    most = max(left[i] - left[i + count] for i in range(steps))
    assert schedule.most_of(count) == most


@pytest.mark.parametrize(("steps", "most"), [(64, 7), (256, 1), (32, 13)])
def test_published_numbers_of_tokens_a_step(steps, most):
    schedule = UnmaskingSchedule(256, steps)
    assert schedule.most_of(1) == most
    assert schedule.masked[1] == max(int(256 * np.cos(np.pi / 2 / steps)), 0)


def test_guidance_grows_with_the_known_tokens():
    schedule, scale = UnmaskingSchedule(256, 64), jnp.full(3, 4.0)
    found = schedule.scale(scale, jnp.array([0, 31, 63]))
    # The last step counts one as masked.
    known = (256 - np.maximum(schedule.masked[[1, 32, 64]], 1)) / 256
    np.testing.assert_allclose(found, 1 + 3 * known, rtol=1e-6)
    constant = UnmaskingSchedule(256, 64, "constant").scale(scale, jnp.zeros(3, int))
    np.testing.assert_array_equal(constant, scale)


def test_orders_are_permutations_of_their_keys_alone():
    orders = np.asarray(random_order(batch_keys(3, 5), 9))
    assert (np.sort(orders, axis=1) == np.arange(9)).all()
    assert len({tuple(order) for order in orders}) == 5
    np.testing.assert_array_equal(orders[:2], random_order(batch_keys(3, 2), 9))


def test_impossible_schedules_are_refused():
    for change in ({"steps": 0}, {"steps": 17}, {"guidance": "cosine"}):
        with pytest.raises(ConfigError, match=next(iter(change))):
            UnmaskingSchedule(16, **{"steps": 6, **change})
