"""Sampling settings, filters, guidance and noise."""

import itertools
import math

import jax
import jax.extend.random
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from jaxspec.core.logits import apply_cfg, process_logits
from jaxspec.core.noise import batch_keys, position_noise
from jaxspec.core.numbers import LARGEST_SCALE
from jaxspec.core.sampling import Sampling, active_steps
from jaxspec.core.threefry import threefry
from jaxspec.errors import ConfigError

logits_rows = hnp.arrays(
    np.float32,
    (2, 3, 11),
    # Multiples of 1/8: sums of their exponentials tie only where logits tie.
    elements=st.integers(-40, 40).map(lambda i: np.float32(i / 8)),
)


@given(logits_rows, st.integers(0, 12))
def test_top_k_keeps_what_a_sort_keeps_with_ties(logits, k):
    sampling = Sampling.create(2, top_k=k)
    out = np.asarray(process_logits(jnp.asarray(logits), sampling, ("top_k",)))
    kth = np.sort(logits, -1)[..., ::-1][..., min(k or 11, 11) - 1]
    np.testing.assert_array_equal(np.isfinite(out), logits >= kth[..., None])
    np.testing.assert_array_equal(out[np.isfinite(out)], logits[np.isfinite(out)])


@given(logits_rows, st.sampled_from([0.05, 0.3, 0.5, 0.9, 0.999, 1.0]))
def test_top_p_keeps_the_smallest_set_that_reaches_p(logits, p):
    sampling = Sampling.create(2, top_p=p)
    out = np.asarray(process_logits(jnp.asarray(logits), sampling, ("top_p",)))
    probabilities = np.asarray(jax.nn.softmax(jnp.asarray(logits), axis=-1), np.float64)
    for index in np.ndindex(logits.shape[:-1]):
        kept = np.isfinite(out[index])
        row, chance = logits[index], probabilities[index]
        smallest = row[kept].min()
        assert (row[~kept] < smallest).all()
        if p == 1.0:
            assert kept.all()
            continue
        assert chance[kept].sum() >= p - 1e-5
        assert chance[row > smallest].sum() < p + 1e-5


def test_filters_run_in_the_given_order():
    logits = jnp.log(jnp.array([[0.5, 0.3, 0.15, 0.05]]))
    sampling = Sampling.create(1, top_k=2, top_p=0.6)
    kept = {
        order: np.isfinite(process_logits(logits, sampling, order))[0].tolist()
        for order in [("top_k", "top_p"), ("top_p", "top_k")]
    }
    # After top-k the best token has 0.625 of the remaining probability: enough alone.
    assert kept["top_k", "top_p"] == [True, False, False, False]
    assert kept["top_p", "top_k"] == [True, True, False, False]


def test_only_the_steps_in_use_are_compiled():
    assert active_steps(Sampling.create(2)) == ("temperature",)
    both = Sampling.create(2, top_k=[0, 5], top_p=[0.9, 1.0])
    assert active_steps(both) == ("temperature", "top_k", "top_p")


def test_guidance_merges_branches_up_to_its_interval():
    conditional, unconditional = jnp.ones((2, 4, 3)), jnp.zeros((2, 4, 3))
    stacked = jnp.concatenate([conditional, unconditional])
    index = jnp.broadcast_to(jnp.arange(4), (2, 4))
    always = apply_cfg(stacked, Sampling.create(2, cfg_scale=3.0), index)
    np.testing.assert_array_equal(always, 3.0)
    # LlamaGen guides the first token and those of steps 0 .. interval.
    some = apply_cfg(stacked, Sampling.create(2, cfg_scale=3.0, cfg_interval=1), index)
    np.testing.assert_array_equal(some[0, :, 0], [3, 3, 3, 1])
    alone = apply_cfg(conditional, Sampling.create(2, cfg_scale=3.0), index)
    np.testing.assert_array_equal(alone, conditional)


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": -1.0},
        {"temperature": 1e-4},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"cfg_scale": -0.5},
        {"cfg_interval": -2},
        # Numbers that int32 or float32 cannot hold, or not as they are.
        {"top_k": (1 << 32) + 1},
        {"top_k": 1 << 80},
        {"top_k": 2.5},
        {"top_k": np.uint32(1 << 31)},
        {"cfg_interval": (1 << 32) + 1},
        {"cfg_scale": 1e39},
        {"cfg_scale": 1e30},
        {"temperature": 1e39},
        {"top_p": 1e-45},
        *(
            {name: bad}
            for name in ("temperature", "top_k", "top_p", "cfg_scale")
            for bad in (math.nan, math.inf, -math.inf, "1", None, [1, math.nan])
        ),
    ],
    ids=str,
)
def test_impossible_settings_are_named(settings):
    (name,) = settings
    with pytest.raises(ConfigError, match=f"^{name}=.* is impossible; use ") as error:
        Sampling.create(2, **settings)
    assert len(str(error.value)) < 120 and "\n" not in str(error.value)


def test_settings_have_one_number_or_one_for_each_sequence():
    with pytest.raises(ConfigError, match=r"top_k has shape \(3,\); give one"):
        Sampling.create(2, top_k=[1, 2, 3])


def test_the_largest_settings_give_numbers():
    """Scales and filters at the ends of their ranges make no NaN."""
    logits = jnp.asarray(np.random.default_rng(0).normal(0, 100, (4, 50)), jnp.float32)
    ends = {
        "cfg_scale": [0.0, LARGEST_SCALE],
        "temperature": [0.001, LARGEST_SCALE],
        "top_k": [1, (1 << 31) - 1],
        "top_p": [float(np.finfo(np.float32).tiny), 1.0],
    }
    values = np.array(list(itertools.product(*ends.values()))).T
    rows = values.shape[1]
    settings = Sampling.create(rows, **dict(zip(ends, values, strict=True)))
    logits = logits.repeat(rows // 2, axis=0)
    found = process_logits(
        apply_cfg(logits, settings, jnp.zeros(rows, jnp.int32)), settings
    )
    assert not np.isnan(found).any() and (found.max(axis=-1) > -np.inf).all()


def test_noise_depends_on_sequence_and_position_only():
    keys = batch_keys(7, 5)
    positions = jnp.arange(20).reshape(5, 4)
    noise = position_noise(keys, positions, 16)
    one = position_noise(keys[3:4], positions[3:4, 2:3], 16)
    np.testing.assert_array_equal(noise[3, 2], one[0, 0])
    assert (keys[:2] == batch_keys(7, 2)).all()
    assert len(np.unique(np.asarray(noise[..., 0]))) == 20


def test_noise_comes_from_the_published_generator():
    key, counts = jax.random.key(7), jnp.arange(20, dtype=jnp.uint32)
    wanted = jax.extend.random.threefry_2x32(jax.random.key_data(key), counts)
    words = threefry(tuple(jax.random.key_data(key)), (counts[:10], counts[10:]))
    np.testing.assert_array_equal(jnp.concatenate(words), wanted)


def test_noise_of_other_generators_is_refused():
    keys = jax.random.split(jax.random.key(0, impl="rbg"), 2)
    with pytest.raises(ConfigError, match="of the kind rbg; make them with batch_keys"):
        position_noise(keys, jnp.zeros((2, 1), jnp.int32), 8)


def test_noise_is_gumbel_with_its_whole_tail():
    key = batch_keys(0, 64)
    noise = position_noise(key, jnp.arange(4)[None].repeat(64, 0), 1 << 16)
    assert float(noise.mean()) == pytest.approx(0.5772, abs=2e-3)
    assert float(noise.var()) == pytest.approx(np.pi**2 / 6, rel=5e-3)
    # A default float32 sample cannot exceed 15.95; 16.7 M samples of the true
    # distribution do, with probability 1 - exp(-16.7e6 * exp(-15.95)) = 0.87. The seed
    # is fixed.
    assert float(noise.max()) > 15.95
