"""Policies: the tokens that each makes known, computed by hand."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.core.noise import batch_keys
from jaxspec.errors import ConfigError
from jaxspec.masked import (
    Bernoulli,
    Confidence,
    FixedOrder,
    RandomOrder,
    Revision,
    Threshold,
    View,
    halton_order,
)

ROWS, LENGTH, SIZE = 4, 12, 5


def view(known=4, left=5, seed=0, rows=ROWS):
    """A step after which 5 of 12 tokens are masked; 4 were known before it."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (rows, LENGTH, SIZE)).astype(np.float32)
    tokens = rng.integers(0, SIZE, (rows, LENGTH)).astype(np.int32)
    log_p = np.asarray(jax.nn.log_softmax(logits))
    log_p = np.take_along_axis(log_p, tokens[..., None], axis=-1)[..., 0]
    mask = np.argsort(rng.random((rows, LENGTH)), axis=1) < known
    return View(
        tokens=jnp.asarray(tokens),
        known=jnp.asarray(mask),
        log_p=jnp.asarray(log_p),
        logits=jnp.asarray(logits),
        step=jnp.full(rows, 3, jnp.int32),
        before=jnp.full(rows, LENGTH - known, jnp.int32),
        left=jnp.full(rows, left, jnp.int32),
        progress=jnp.full(rows, 0.5, jnp.float32),
        keys=batch_keys(seed, rows),
    )


def best_of(step, scores):
    """Known tokens and the best of the others, as many as the schedule asks."""
    expected = np.array(step.known)
    for row, left in enumerate(np.asarray(step.left)):
        others = [i for i in np.argsort(-scores[row]) if not expected[row, i]]
        expected[row, others[: LENGTH - int(left) - int(expected[row].sum())]] = True
    return expected


MEASURES = {
    "sampled": lambda step, p: np.asarray(step.log_p),
    "likeliest": lambda step, p: p.max(-1),
    "margin": lambda step, p: np.sort(p)[..., -1] - np.sort(p)[..., -2],
    "entropy": lambda step, p: (p * np.log(p)).sum(-1),
}


@pytest.mark.parametrize("measure", MEASURES)
def test_the_most_certain_tokens_become_known(measure):
    step = view()
    p = np.asarray(jax.nn.softmax(step.logits), np.float64)
    known = Confidence(measure, temperature=0.0).reveal(step)
    np.testing.assert_array_equal(known, best_of(step, MEASURES[measure](step, p)))


def test_noise_of_the_choice_falls_with_the_steps():
    step = view()
    noise = np.asarray(step.gumbel())
    scores = np.asarray(step.log_p) + 4.5 * 0.5 * noise
    np.testing.assert_array_equal(Confidence().reveal(step), best_of(step, scores))
    constant = np.asarray(step.log_p) + 4.5 * noise
    known = Confidence(anneals=False).reveal(step)
    np.testing.assert_array_equal(known, best_of(step, constant))
    assert (best_of(step, constant) != best_of(step, scores)).any()


def test_orders_do_not_depend_on_the_tokens():
    step = view()
    order = tuple(np.random.default_rng(5).permutation(LENGTH).tolist())
    rank = -np.argsort(np.array(order)).astype(float)
    known = FixedOrder(order).reveal(step)
    np.testing.assert_array_equal(known, best_of(step, np.tile(rank, (ROWS, 1))))
    other = replace(step, tokens=step.tokens * 0, log_p=-step.log_p)
    for policy in (FixedOrder(order), RandomOrder()):
        np.testing.assert_array_equal(policy.reveal(step), policy.reveal(other))
    # A random order is that of its key in every step.
    counts = []
    for left in range(LENGTH, -1, -1):
        empty = view(known=0, left=left)
        counts.append(np.asarray(RandomOrder().reveal(empty)))
    assert not counts[0].any() and counts[-1].all()
    for earlier, later in zip(counts, counts[1:], strict=False):
        assert (later | ~earlier).all() and (later.sum(1) == earlier.sum(1) + 1).all()


def test_a_halton_order_spreads_its_first_cells():
    def nearest(order, count):
        """Mean distance of the first cells to the nearest other one."""
        cells = np.array([divmod(i, 16) for i in order[:count]])
        apart = np.linalg.norm(cells[:, None] - cells, axis=-1)
        np.fill_diagonal(apart, np.inf)
        return apart.min(1).mean()

    order = halton_order(16, 16)
    assert sorted(order) == list(range(256))
    chance = np.random.default_rng(0)
    random = [nearest(chance.permutation(256), 32) for _ in range(200)]
    assert nearest(order, 32) > np.quantile(random, 0.98)


def test_every_token_above_the_threshold_becomes_known_and_always_one():
    step = view()
    p = np.exp(np.asarray(step.log_p))
    known = np.asarray(Threshold(0.5).reveal(step))
    masked = ~np.asarray(step.known)
    best = masked & (p == np.where(masked, p, -1).max(1, keepdims=True))
    expected = np.asarray(step.known) | (masked & (p >= 0.5)) | best
    np.testing.assert_array_equal(known, expected)
    assert (np.asarray(Threshold(1.0).reveal(step)).sum(1) == 5).all()


def test_coins_make_the_scheduled_share_known():
    """8 of 12 are masked before and 5 after; of 4,000 x 8 coins three eighths fall."""
    step = view(rows=4000)
    known = np.asarray(Bernoulli().reveal(step))
    new = known & ~np.asarray(step.known)
    assert (known | ~np.asarray(step.known)).all()
    assert new.sum() / (4000 * 8) == pytest.approx(3 / 8, abs=0.01)


def test_a_revision_masks_the_least_certain_known_tokens_again():
    step = view(known=6, left=5)
    policy = Revision(Confidence(temperature=0.0), share=0.5, temperature=0.0)
    known, before = np.asarray(policy.reveal(step)), np.asarray(step.known)
    assert (known.sum(1) == LENGTH - 5).all()
    for row in range(ROWS):
        places = np.flatnonzero(before[row])
        worst = places[np.argsort(np.asarray(step.log_p)[row, places])[:3]]
        assert sorted(np.flatnonzero(before[row] & ~known[row])) == sorted(worst)
    # Nothing is masked again where nothing stays masked.
    assert np.asarray(policy.reveal(view(known=6, left=0))).all()


@pytest.mark.parametrize(
    "make",
    [
        lambda: Confidence("mean"),
        lambda: Confidence(temperature=-1.0),
        lambda: FixedOrder((0, 2)),
        lambda: FixedOrder(tuple(range(5))).reveal(view()),
        lambda: Threshold(1.5),
        lambda: Revision(Confidence(), share=1.0),
        lambda: Revision(Confidence(), temperature=float("nan")),
    ],
)
def test_impossible_policies_are_refused(make):
    with pytest.raises(ConfigError):
        make()
