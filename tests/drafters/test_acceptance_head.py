"""Acceptance heads of SpecDec++, trained and used as a cutoff."""

from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxspec.drafters.combine.adaptive import ConfidenceCutoff
from jaxspec.drafters.dflash.acceptance_head import AcceptanceHead
from jaxspec.speculative.draft import Draft
from jaxspec.speculative.trees.tree import Tree
from tests.drafters.policies import cut


def separation(confidence, accepted):
    """Probability that an accepted token has more confidence than a rejected one."""
    yes, no = confidence[accepted], confidence[~accepted]
    return float((yes[:, None] > no).mean() + (yes[:, None] == no).mean() / 2)


@lru_cache
def trainer(head, steps, rate=0.01):
    def train(params, hidden, accept, use):
        optimizer = optax.adam(rate)

        def step(carry, _):
            params, state = carry
            loss, slope = jax.value_and_grad(head.loss)(params, hidden, accept, use)
            change, state = optimizer.update(slope, state)
            return (optax.apply_updates(params, change), state), loss

        carry = params, optimizer.init(params)
        (params, _), losses = jax.lax.scan(step, carry, length=steps)
        return params, losses

    return jax.jit(train)


def hidden_states(seed, rows):
    """States, and whether a token is accepted: where two coordinates agree in sign."""
    hidden = np.random.default_rng(seed).normal(size=(rows, 6)).astype(np.float32)
    return hidden, hidden[:, 0] * hidden[:, 1] > 0


@pytest.mark.parametrize("shared", [True, False])
def test_a_trained_head_separates_accepted_from_rejected(shared):
    """No linear map of the states could. Half of the labels are wrong and unused."""
    head = AcceptanceHead(6, shared=shared)
    params = head.init_params(jax.random.key(0))
    hidden, accepted = hidden_states(0, 2000)
    use = np.arange(2000) % 2 == 0
    accept = np.where(accepted, 0.9, 0.1)
    accept = np.where(use, accept, np.where(accepted, np.nan, 1.0))
    trained, losses = trainer(head, 400)(params, hidden, accept, use)
    assert np.isfinite(losses).all() and losses[-1] < 0.7 * losses[0]
    fresh, truth = hidden_states(1, 1000)
    before, after = (
        separation(np.asarray(head.confidence(x, jnp.asarray(fresh))), truth)
        for x in (params, trained)
    )
    assert abs(before - 0.5) < 0.2 and after > 0.95


def test_a_trained_head_and_a_cutoff_find_the_first_rejected_token():
    """SpecDec++ as a whole: a head for `Draft.confidence`, and a threshold of .7."""
    head, (hidden, accepted) = AcceptanceHead(6), hidden_states(0, 2000)
    params = head.init_params(jax.random.key(0))
    use = np.ones(len(hidden), bool)
    trained, _ = trainer(head, 400)(params, hidden, accepted.astype(np.float32), use)
    tree = Tree.chain(5)
    hidden, accepted = hidden_states(2, 300 * tree.size)
    hidden = hidden.reshape(300, tree.size, -1)
    accepted = accepted.reshape(300, tree.size)[:, 1:]
    length = np.cumprod(accepted, axis=1).sum(axis=1)
    expected = np.minimum(length + 1, tree.depth)  # the token that failed is kept

    def share(params):
        draft = Draft(
            jnp.zeros((300, tree.size), jnp.int32),
            jnp.ones((300, tree.size), bool),
            confidence=head.confidence(params, hidden),
        )
        short = cut(draft, tree, ConfidenceCutoff(0.7, "head"))
        return (np.asarray(short.valid).sum(axis=1) - 1 == expected).mean()

    assert share(trained) > 0.75 and share(params) < 0.6


def test_rejections_weigh_six_times_in_the_loss():
    head, rng = AcceptanceHead(5), np.random.default_rng(0)
    params = jax.tree.map(lambda x: x + 0.3, head.init_params(jax.random.key(0)))
    hidden, accept = rng.normal(size=(3, 4, 5)), rng.random((3, 4))
    use = rng.random((3, 4)) < 0.6
    c = np.asarray(head.confidence(params, hidden), np.float64)
    each = -(accept * np.log(c) + 6 * (1 - accept) * np.log(1 - c))
    loss = jax.jit(partial(head.loss, params, hidden))
    np.testing.assert_allclose(loss(accept), each.mean(), rtol=1e-5)
    np.testing.assert_allclose(loss(accept, use), each[use].mean(), rtol=1e-5)
    even = -(accept * np.log(c) + (1 - accept) * np.log(1 - c))
    np.testing.assert_allclose(loss(accept, reject_weight=1.0), even.mean(), rtol=1e-5)
    assert loss(accept, np.zeros((3, 4), bool)) == 0


def test_a_head_without_information_learns_the_weighted_share():
    """With states of zero only biases remain: `a / (a + 6 (1 - a))` is best."""
    head = AcceptanceHead(3)
    hidden, use = np.zeros((10, 3), np.float32), np.ones(10, bool)
    accept = np.where(np.arange(10) < 8, 1.0, 0.0)
    params = head.init_params(jax.random.key(0))
    trained, _ = trainer(head, 400, 0.05)(params, hidden, accept, use)
    np.testing.assert_allclose(head.confidence(trained, hidden), 0.4, atol=1e-3)


@pytest.mark.slow
def test_a_shared_block_equals_copies_of_it():
    shared, own = AcceptanceHead(4, 3), AcceptanceHead(4, 3, shared=False)
    params = shared.init_params(jax.random.key(0))
    assert set(params) == {"block", "head"}
    copies = {f"block_{i}": params["block"] for i in range(3)}
    copies["head"] = params["head"]
    assert jax.tree.structure(copies) == jax.tree.structure(
        own.init_params(jax.random.key(0))
    )
    hidden = jax.random.normal(jax.random.key(1), (7, 4))
    np.testing.assert_array_equal(
        shared.confidence(params, hidden), own.confidence(copies, hidden)
    )
    h = np.asarray(hidden, np.float64)  # the published head, in numpy
    for _ in range(3):
        x = h @ np.asarray(params["block"]["kernel"]) + params["block"]["bias"]
        h = h + x / (1 + np.exp(-x))
    logits = h @ np.asarray(params["head"]["kernel"]) + params["head"]["bias"]
    expected = 1 / (1 + np.exp(logits[:, 0] - logits[:, 1]))
    np.testing.assert_allclose(shared.confidence(params, hidden), expected, atol=1e-5)
