"""Choices by blocks are those of the whole vocabulary."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.core.vocab_parallel import (
    argmax_with_margin,
    sample_by_inverse_cdf,
    vocab_top_k,
)

SIZES = [5, 511, 512, 700, 16384]


def with_ties(vocab):
    """Scores of few values, some -inf."""
    x = jax.random.randint(jax.random.key(vocab), (3, 2, vocab), -3, 4)
    return jnp.where(x == -3, -jnp.inf, x.astype(jnp.float32))


@pytest.mark.variants(2)
@pytest.mark.parametrize("vocab", SIZES)
def test_the_best_tokens_are_those_of_a_full_search_ties_included(vocab):
    for scores in (with_ties(vocab), jax.random.normal(jax.random.key(1), (3, vocab))):
        for count in (1, 4, min(vocab, 300)):
            best, tokens = jax.jit(vocab_top_k, static_argnums=1)(scores, count)
            wanted, ids = jax.lax.top_k(scores, count)
            np.testing.assert_array_equal(best, wanted)
            there = np.isfinite(best)  # which of the missing ones is not defined
            np.testing.assert_array_equal(
                np.where(there, tokens, -1), np.where(there, ids, -1)
            )
        first, lead = argmax_with_margin(scores)
        np.testing.assert_array_equal(first, jnp.argmax(scores, axis=-1))
        two, _ = jax.lax.top_k(scores, 2)
        np.testing.assert_array_equal(lead, two[..., 0] - two[..., 1])


@pytest.mark.parametrize("vocab", SIZES)
def test_shares_of_the_mass_are_inverted(vocab):
    weights = jnp.exp(with_ties(vocab))
    shares = jnp.concatenate([jnp.linspace(0.0, 1.0, 40), jnp.array([1 - 2.0**-24])])
    shares = jnp.broadcast_to(shares, (3, 2, 41))
    tokens = np.asarray(jax.jit(sample_by_inverse_cdf)(weights, shares))
    assert np.take_along_axis(np.asarray(weights), tokens, axis=-1).min() > 0
    total = np.cumsum(np.asarray(weights, np.float64), axis=-1)
    total /= total[..., -1:]
    upto = np.take_along_axis(total, tokens, axis=-1)
    before = upto - np.take_along_axis(np.diff(total, prepend=0.0), tokens, axis=-1)
    assert (before <= shares + 1e-5).all() and (shares - 1e-5 <= upto).all()
