"""Schedules of masked generation."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxspec.core.unmasking import SHAPES
from jaxspec.errors import ConfigError
from jaxspec.masked import MaskingSchedule


def test_maskgit_s_numbers_of_tokens_in_eight_steps():
    schedule = MaskingSchedule(256, 8)
    assert (-np.diff(schedule.masked)).tolist() == [5, 15, 24, 31, 39, 45, 48, 49]
    assert (-np.diff(MaskingSchedule(256, 12).masked)).max() == 33


def test_every_shape_by_hand():
    """Masked tokens of 1,000 after a quarter and three quarters of the steps."""
    counts = {
        "cosine": (923, 382),  # cos(pi r / 2)
        "arccos": (839, 460),  # 2 arccos(r) / pi
        "linear": (750, 250),
        "square": (937, 437),  # 1 - r^2
        "cubic": (984, 578),
        "root": (500, 133),  # 1 - sqrt(r)
    }
    assert counts.keys() == SHAPES.keys()
    for shape, (first, last) in counts.items():
        masked = MaskingSchedule(1000, 4, shape).masked
        assert (masked[1], masked[3]) == (first, last), shape


@given(st.integers(1, 64), st.data(), st.sampled_from(list(SHAPES)))
def test_every_step_makes_a_token_known_and_the_last_one_all(tokens, data, shape):
    steps = data.draw(st.integers(1, tokens))
    masked = MaskingSchedule(tokens, steps, shape).masked
    assert masked[0] == tokens and masked[-1] == 0 and len(masked) == steps + 1
    assert (np.diff(masked) < 0).all()


def test_guidance_grows_linearly_to_its_scale():
    schedule = MaskingSchedule(16, 4, guidance="linear")
    scales = [schedule.scale(np.float32([3.0]), np.array([i]))[0] for i in range(4)]
    np.testing.assert_allclose(scales, [1.5, 2, 2.5, 3])


@pytest.mark.parametrize(
    "settings", [{"steps": 0}, {"steps": 17}, {"shape": "round"}, {"guidance": "no"}]
)
def test_impossible_schedules_are_refused(settings):
    with pytest.raises(ConfigError, match="choose"):
        MaskingSchedule(16, **settings)
