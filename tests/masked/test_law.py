"""Law of what masked models generate, from networks that know their law exactly."""

from functools import partial

import jax
import numpy as np
import pytest

from jaxspec.core.generator import generate
from jaxspec.core.noise import batch_keys
from jaxspec.core.sampling import Sampling
from jaxspec.masked import (
    Bernoulli,
    Blocks,
    Confidence,
    FixedOrder,
    MaskedGenerator,
    MaskedVariables,
    MaskingSchedule,
    RandomOrder,
    Revision,
    halton_order,
)
from tests.masked.models import Joint, random_joint

COUNT, LENGTH, SIZE = 60_000, 4, 2
LAW = random_joint(LENGTH, SIZE)
ONE = MaskingSchedule(LENGTH, LENGTH, "linear")


def distance(policy, schedule=ONE):
    """Total variation between generated sequences and the joint distribution."""
    generator = MaskedGenerator(Joint(LENGTH, SIZE), schedule, policy, cfg=False)
    run = jax.jit(partial(generate, generator))
    options = {"sampling": Sampling.create(), "keys": batch_keys(3, COUNT)}
    out = run(MaskedVariables(LAW), None, **options)
    tokens = np.asarray(out.tokens)
    assert ((tokens >= 0) & (tokens < SIZE)).all()
    numbers = tokens @ SIZE ** np.arange(LENGTH)[::-1]
    found = np.bincount(numbers, minlength=SIZE**LENGTH) / COUNT
    return np.abs(found - np.asarray(LAW).reshape(-1)).sum() / 2


# Of 60,000 samples of 16 outcomes, the mean distance of a true sample is .005.
TRUE = 0.01


@pytest.mark.variants(2)
@pytest.mark.parametrize(
    "policy",
    [
        RandomOrder(),
        FixedOrder((2, 0, 3, 1)),
        Confidence("entropy", temperature=0.0),
        Confidence("margin", temperature=2.0),
        Confidence("likeliest", temperature=0.0),
        FixedOrder(halton_order(2, 2)),
        FixedOrder(tuple(range(LENGTH))),
        Blocks(RandomOrder(), 3),
    ],
    ids=[
        "random",
        "fixed",
        "entropy",
        "margin",
        "likeliest",
        "halton",
        "raster",
        "blocks",
    ],
)
def test_one_token_a_step_has_the_law_of_the_model(policy):
    """Also in orders that depend on the known tokens."""
    assert distance(policy) < TRUE


@pytest.mark.variants(2)
@pytest.mark.parametrize(
    ("policy", "schedule"),
    [
        (Confidence("sampled", temperature=0.0), ONE),
        (RandomOrder(), MaskingSchedule(LENGTH, 1)),
        (Revision(RandomOrder(), share=0.5, temperature=0.0), ONE),
        (Bernoulli(), ONE),
    ],
    ids=["sampled", "all at once", "revised", "coins"],
)
def test_a_choice_by_the_samples_and_several_tokens_a_step_have_not(policy, schedule):
    """The controls: these are approximations."""
    assert distance(policy, schedule) > 2 * TRUE
