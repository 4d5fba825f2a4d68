"""Optimal acceptance against a linear program and closed forms."""

from itertools import permutations, product
from math import comb

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.core.precision import use_x64
from jaxspec.errors import ConfigError
from jaxspec.speculative.verify.acceptance import optimal_acceptance
from tests.speculative.verify.transport import transport

DRAWINGS = pytest.mark.parametrize("with_replacement", [True, False])
LARGE = 16384


def draft_sets(q, k, with_replacement):
    """Probability of each set of tokens as the draft, from all ordered samples."""
    support = [int(x) for x in np.flatnonzero(q)]
    draws = (
        product(support, repeat=k)
        if with_replacement
        else permutations(support, min(k, len(support)))
    )
    sets = {}
    for draw in draws:
        chance, drawn = 1.0, []
        for x in draw:
            others = [q[y] for y in support if y not in drawn]
            chance *= q[x] if with_replacement else q[x] / sum(others)
            drawn.append(x)
        sets[frozenset(draw)] = sets.get(frozenset(draw), 0.0) + chance
    return sets


def pairs(vocab_size, seed):
    """Targets and drafters: smooth, tied, with zeros, one-hot, equal and disjoint."""
    rng = np.random.default_rng(seed)

    def coarse():
        x = rng.integers(0, 3, vocab_size)
        x[rng.integers(vocab_size)] += 1
        return x / x.sum()

    def one_hot():
        return np.eye(vocab_size)[rng.integers(vocab_size)]

    def smooth():
        return rng.dirichlet(np.ones(vocab_size))

    kinds = (smooth, coarse, one_hot)
    found = [(p(), q()) for p in kinds for q in kinds for _ in range(2)]
    found += [(x, x) for x in (smooth(), coarse(), one_hot())]
    side = np.arange(vocab_size) < rng.integers(1, vocab_size)
    for left, right in ((side, ~side), (~side, side)):
        p, q = smooth() * left, smooth() * right
        found.append((p / p.sum(), q / q.sum()))
    return found


@pytest.mark.variants(10)
@DRAWINGS
@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("vocab_size", [2, 3, 4, 5])
def test_acceptance_is_the_optimum_of_the_transport_problem(
    vocab_size, k, with_replacement
):
    cases = pairs(vocab_size, seed=10 * vocab_size + k)
    wanted = [transport(p, draft_sets(q, k, with_replacement)) for p, q in cases]
    p, q = (np.array(x) for x in zip(*cases, strict=True))
    with use_x64(True):
        found = optimal_acceptance(jnp.asarray(p), jnp.asarray(q), k, with_replacement)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-8)


@pytest.mark.parametrize("tail", [1e-6, 1e-12, 1e-20, 1e-30])
def test_a_confident_drafter_samples_its_second_token_from_the_tail(tail):
    p, q = np.array([0.1, 0.2, 0.3, 0.4]), np.array([1 - 3 * tail, tail, tail, tail])
    wanted = transport(p, draft_sets(q, 2, False))
    with use_x64(True):
        found = optimal_acceptance(jnp.asarray(p), jnp.asarray(q), 2, False)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-8)


@DRAWINGS
def test_one_draft_is_accepted_as_often_as_the_distributions_overlap(with_replacement):
    p, q = np.random.default_rng(0).dirichlet(np.ones(50), size=(2, 20))
    with use_x64(True):
        found = optimal_acceptance(jnp.asarray(p), jnp.asarray(q), 1, with_replacement)
    np.testing.assert_allclose(found, np.minimum(p, q).sum(-1), rtol=0, atol=1e-12)


@pytest.mark.variants(3)
@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-5), ("float64", 1e-12)])
@pytest.mark.parametrize("k", [1, 2, 4, 10])
def test_acceptance_of_a_uniform_drafter_has_its_closed_form(k, dtype, tolerance):
    # q is uniform over V tokens, p over half of them: drafts may miss this half.
    half = LARGE // 2
    with use_x64(dtype == "float64"):
        q = jnp.full(LARGE, 1 / LARGE, dtype)
        p = jnp.where(jnp.arange(LARGE) < half, 2 * q, 0)
        independent = optimal_acceptance(p, q, k, True)
        distinct = optimal_acceptance(p, q, k, False)
    assert abs(float(independent) - (1 - 0.5**k)) < tolerance
    assert abs(float(distinct) - (1 - comb(half, k) / comb(LARGE, k))) < tolerance


def large_pair(dtype):
    """Three targets and drafters over many tokens, from flat to sharp."""
    shared, own = np.random.default_rng(0).normal(size=(2, LARGE))
    sharpness = np.array([[1.0], [3.0], [8.0]])
    p, q = sharpness * shared, sharpness * (shared + 0.5 * own)
    return tuple(jax.nn.softmax(jnp.asarray(x, dtype)) for x in (p, q))


def over_drafts(p, q, with_replacement):
    drafts = (1, 2, 3, 5, 10)
    return np.stack([optimal_acceptance(p, q, k, with_replacement) for k in drafts])


@pytest.mark.slow
def test_more_and_distinct_drafts_are_accepted_more_often_over_many_tokens():
    with use_x64(True):
        p, q = large_pair(jnp.float64)
        independent, distinct = (over_drafts(p, q, drawn) for drawn in (True, False))
        overlap = np.minimum(p, q).sum(-1)
    for found in (independent, distinct):
        np.testing.assert_allclose(found[0], overlap, rtol=0, atol=1e-9)
        assert (np.diff(found, axis=0) > 0).all()
        assert (found <= 1).all()
    assert (distinct[1:] > independent[1:]).all()
    # Independent samples of a sharp drafter are often equal.
    assert distinct[1, 2] > 5 * independent[1, 2]


@pytest.mark.variants(1)
@pytest.mark.slow
@DRAWINGS
def test_single_precision_is_enough_over_many_tokens(with_replacement):
    single = over_drafts(*large_pair(jnp.float32), with_replacement)
    assert single.dtype == np.float32
    with use_x64(True):
        double = over_drafts(*large_pair(jnp.float64), with_replacement)
    np.testing.assert_allclose(single, double, rtol=0, atol=1e-5)


@pytest.mark.variants(1)
@DRAWINGS
def test_acceptance_broadcasts_and_maps_over_batches(with_replacement):
    rng = np.random.default_rng(0)
    p = jnp.asarray(rng.dirichlet(np.ones(6), size=(2, 1)), jnp.float32)
    q = jnp.asarray(rng.dirichlet(np.ones(6), size=3), jnp.float32)

    def best(p, q):
        return optimal_acceptance(p, q, 2, with_replacement)

    one_by_one = [[best(p[i, 0], q[j]) for j in range(3)] for i in range(2)]
    np.testing.assert_allclose(jax.jit(best)(p, q), one_by_one, rtol=1e-6)
    over_p_and_q = jax.vmap(jax.vmap(best, (None, 0)), (0, None))
    np.testing.assert_allclose(over_p_and_q(p[:, 0], q), one_by_one, rtol=1e-6)


def test_zero_drafts_are_refused():
    with pytest.raises(ConfigError, match="k=0 must be at least 1"):
        optimal_acceptance(jnp.ones(1), jnp.ones(1), 0, True)
