"""Texts that get longer or shorter while they are filled in (rho-EOS)."""

from dataclasses import dataclass, replace
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from jaxspec.core.generator import generate
from jaxspec.core.noise import batch_keys
from jaxspec.core.sampling import Sampling
from jaxspec.core.stopping import StoppingCriteria
from jaxspec.errors import ConfigError
from jaxspec.masked import (
    Blocks,
    Confidence,
    ContextCache,
    LengthControl,
    MaskedGenerator,
    MaskedVariables,
    MaskingSchedule,
    Revision,
    Threshold,
)
from jaxspec.masked.length import masked_before, moved
from jaxspec.models.masked_lm.model import MaskedDiffusion
from jaxspec.models.transformer.model import Transformer
from tests.masked.models import CONFIG, MODEL
from tests.models.tiny import random_params

TEXT = replace(CONFIG, condition="none", rope="sequence", max_length=64, classes=1000)
STOP, SIZE = 0, 48


@dataclass(frozen=True)
class Dictation:
    """Stands for a network that knows a text of as many tokens as its prompt has."""

    model = SimpleNamespace(
        config=SimpleNamespace(condition="none", sequence_length=99)
    )
    mask_token = 7

    def score(self, params, prompt, tokens, *, lengths=None):
        """Logits of the text, the stop token after it, and less sure far ahead."""
        count = jnp.sum(prompt >= 0, axis=1)[:, None]
        index = jnp.arange(tokens.shape[1])[None]
        wanted = jnp.where(index < count, 1 + index % 5, STOP)
        known = jnp.sum(jnp.cumprod(tokens != self.mask_token, axis=1), axis=1)
        ahead = (index - known[:, None]).astype(jnp.float32)
        return (9.0 - ahead / 16)[..., None] * jax.nn.one_hot(wanted, 6)


def prompts(*counts):
    """Prompts of some numbers of tokens."""
    width = max(counts)
    return jnp.array([[1] * n + [-1] * (width - n) for n in counts])


GENERATOR = MaskedGenerator(
    Dictation(),
    MaskingSchedule(SIZE, SIZE),
    Blocks(Threshold(0.9), 8),
    cfg=False,
    length=LengthControl(initial_length=8, step=2),
)


@partial(jax.jit, static_argnums=0)
def run(generator, prompt):
    batch = len(prompt)
    stopping = StoppingCriteria.create(batch, max_new_tokens=SIZE, stop_tokens=[STOP])
    settings = {"sampling": Sampling.create(temperature=0.0), "stopping": stopping}
    keys = batch_keys(0, batch)
    return generate(generator, MaskedVariables({}), prompt, keys=keys, **settings)


@partial(jax.jit, static_argnums=0)
def lengths_of(generator, prompt):
    """Lengths after each step, and the final state."""
    stopping = StoppingCriteria.create(max_new_tokens=SIZE, stop_tokens=[STOP])
    state = generator.init(
        MaskedVariables({}),
        prompt,
        sampling=Sampling.create(temperature=0.0),
        keys=batch_keys(0, len(prompt)),
        stopping=stopping,
    )

    def step(state, _):
        state = generator.step(MaskedVariables({}), state)
        return state, state.length

    return jax.lax.scan(step, state, length=SIZE)


def test_a_text_gets_the_room_that_it_needs():
    """Whole texts, where a fixed length of the same start would cut them."""
    prompt = prompts(3, 20, 30)
    out = run(GENERATOR, prompt)
    for tokens, count in zip(np.asarray(out.tokens), (3, 20, 30), strict=True):
        right = [1 + i % 5 for i in range(count)] + [STOP]
        assert_array_equal(tokens, right + [-1] * (SIZE - count - 1))
    # Little more than was needed, where the longest text sets a fixed length.
    state, _ = lengths_of(GENERATOR, prompt)
    used = np.asarray(state.length)
    assert (used >= [4, 21, 31]).all() and (used <= [8, 30, 42]).all()
    cut = replace(GENERATOR, length=LengthControl(initial_length=8, low=0.0, high=1.0))
    assert (np.asarray(run(cut, prompt).tokens)[1:] >= 0).sum(1).tolist() == [8, 8]


def test_lengths_change_by_the_share_of_stop_tokens():
    control = LengthControl()
    masked = jnp.ones((1, 100), bool)

    def change(share):
        predicted = jnp.arange(100)[None] < round(100 * share)
        return int(control.change(predicted, masked)[0])

    shares = [0.0, 0.1, 0.2, 0.3, 0.35, 0.4, 0.5, 0.6, 0.65, 0.7, 0.8, 0.9, 1.0]
    rule = [64, 32, 16, 8, 8, 0, 0, 0, -8, -8, -16, -32, -64]
    assert [change(x) for x in shares] == rule
    # Only masked tokens are counted; without any nothing changes.
    some = jnp.arange(100)[None] < 50
    assert int(control.change(jnp.arange(100)[None] < 25, some)[0]) == 0
    assert int(control.change(some, jnp.zeros((1, 100), bool))[0]) == 0


def test_tokens_move_as_in_a_list():
    rng = np.random.default_rng(0)
    values = rng.integers(1, 99, (40, 12))
    place = rng.integers(0, 13, 40)
    count = rng.integers(-3, 5, 40)
    count = np.maximum(count, -place)
    found = moved(jnp.asarray(values), jnp.asarray(place), jnp.asarray(count), 0)
    for row, at, n, after in zip(values, place, count, np.asarray(found), strict=True):
        right = list(row)
        if n > 0:
            right[at:at] = [0] * n
        else:
            del right[at + n : at]
        assert_array_equal(after, (right + [0] * 12)[:12])
    known = jnp.array([[True, False, False, True, False]] * 4)
    found = masked_before(known, jnp.array([0, 1, 3, 5]))
    assert_array_equal(found, [0, 0, 2, 1])


def test_room_is_made_before_the_first_stop_token():
    """Tokens after it move along, and known ones before it stay."""
    state, lengths = lengths_of(
        replace(GENERATOR, policy=Confidence("likeliest", 0.0)), prompts(20)
    )
    # More room than was needed at first, and then exactly enough.
    assert int(lengths.max()) > int(lengths[-1, 0]) == 21
    tokens = np.asarray(state.tokens)[0]
    assert_array_equal(tokens[:21], [1 + i % 5 for i in range(20)] + [STOP])
    few = replace(
        GENERATOR, length=LengthControl(initial_length=8, step=2, max_changes=2)
    )
    state, _ = lengths_of(few, prompts(20))
    assert int(state.changes[0]) == 2


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_the_last_step_of_the_schedule_ends_every_text(steps):
    generator = replace(GENERATOR, schedule=MaskingSchedule(SIZE, steps))
    assert int(run(generator, prompts(40)).stats.calls[0]) <= steps


def test_a_length_needs_a_stop_token():
    settings = {"sampling": Sampling.create(temperature=0.0), "keys": batch_keys(0, 1)}
    with pytest.raises(ConfigError, match="by a stop token"):
        GENERATOR.init(MaskedVariables({}), prompts(3), **settings)


def test_tokens_do_not_depend_on_the_batch():
    out = run(GENERATOR, prompts(3, 20, 30))
    one = run(GENERATOR, jnp.pad(prompts(20), ((0, 0), (0, 10)), constant_values=-1))
    assert_array_equal(one.tokens[0], out.tokens[1])
    assert one.stats.calls[0] == out.stats.calls[1]


@pytest.mark.slow
def test_a_network_reads_nothing_behind_the_length():
    """Its logits are those of a shorter text."""
    model = MaskedDiffusion(Transformer(TEXT))
    params = random_params(TEXT)
    tokens = jax.random.randint(jax.random.key(0), (2, 12), 0, 11)
    prompt = jnp.array([[3, 4, 5], [6, -1, -1]])
    for given in (None, prompt):
        short = model.score(params, given, tokens[:, :7])
        lengths = jnp.array([7, 7])
        found = model.score(params, given, tokens, lengths=lengths)[:, :7]
        assert_allclose(found, short, atol=1e-5)
        assert abs(model.score(params, given, tokens)[:, :7] - short).max() > 1e-3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LengthControl(initial_length=0), "initial_length"),
        (lambda: LengthControl(low=0.7, high=0.6), "low <= high"),
        (lambda: LengthControl(low="a"), "low"),
        (lambda: LengthControl(step=2.5), "step"),
        (
            lambda: replace(GENERATOR, length=LengthControl(initial_length=49)),
            "at the start",
        ),
        (
            lambda: replace(GENERATOR, policy=Revision(Confidence(), 0.1)),
            "mask no token again",
        ),
        (
            lambda: MaskedGenerator(
                MODEL, MaskingSchedule(16, 4), Threshold(), length=LengthControl(8)
            ),
            "models of texts",
        ),
        (
            lambda: MaskedGenerator(
                MaskedDiffusion(Transformer(TEXT)),
                MaskingSchedule(16, 4),
                Threshold(),
                context=ContextCache(),
                length=LengthControl(8),
            ),
            "without a context",
        ),
        (
            lambda: MODEL.score({}, None, jnp.zeros((1, 16)), lengths=jnp.ones(1)),
            "models of texts",
        ),
    ],
)
def test_impossible_settings_are_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
