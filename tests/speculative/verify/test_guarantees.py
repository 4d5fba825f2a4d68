"""Bounds on the acceptance of each verifier, and tokens that are never emitted."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.core.logits import process_logits
from jaxspec.core.noise import batch_keys, draw_noise
from jaxspec.core.precision import use_x64
from jaxspec.core.sampling import Sampling
from jaxspec.speculative.draft import Draft
from jaxspec.speculative.trees.tree import Tree
from jaxspec.speculative.verify import Block, Coupled, GreedySet, KSeq, Rejection
from jaxspec.speculative.verify.acceptance import optimal_acceptance
from jaxspec.testing.drafts import Conditionals
from tests.speculative.verify.lossless_cases import (
    EVERY_VERIFIER,
    batch_of_drafts,
    draws,
    outcome_of,
    random_pairs,
)
from tests.speculative.verify.transport import transport

SIBLINGS = {1: Tree.named("0"), 2: Tree.named("0,1"), 3: Tree.named("0,1,2")}
DRAFTS = pytest.mark.parametrize("k", SIBLINGS)


def first_tokens(pairs):
    """Distributions `[B, V]` of the first token, of target and drafter."""
    return tuple(
        np.stack([conditionals.tables[0] for conditionals in side])
        for side in zip(*pairs, strict=True)
    )


def optimum(pairs, k, selection):
    p, q = map(jnp.asarray, first_tokens(pairs))
    return np.asarray(optimal_acceptance(p, q, k, selection == "with_replacement"))


@pytest.fixture
def double():
    """Enables float64, for bounds that are attained."""
    with use_x64(True):
        yield


# Acceptance.


@DRAFTS
@pytest.mark.parametrize(
    "verifier, selection",
    [
        (Rejection(), "without_replacement"),
        (Rejection(), "with_replacement"),
        (KSeq(), "with_replacement"),
        (Coupled(), "coupled"),
        (Coupled(), "with_replacement"),
    ],
    ids=str,
)
def test_no_verifier_accepts_more_than_the_optimum(double, verifier, selection, k):
    pairs = random_pairs(20, 4, 1) + random_pairs(20, 4, 1, zeros=0.4)
    accepted = batch_of_drafts(pairs, SIBLINGS[k], selection).kept(verifier)
    best = optimum(pairs, k, selection)
    assert (accepted <= best + 1e-9).all()
    if k == 1 and not isinstance(verifier, Coupled):
        np.testing.assert_allclose(accepted, best, rtol=0, atol=1e-9)
    else:
        assert (accepted < best - 1e-3).any()


@DRAFTS
def test_kseq_is_within_its_factor_of_the_optimum(double, k):
    pairs = random_pairs(20, 4, 1) + random_pairs(20, 4, 1, zeros=0.4)
    accepted = batch_of_drafts(pairs, SIBLINGS[k], "with_replacement").kept(KSeq())
    best = optimum(pairs, k, "with_replacement")
    assert (accepted >= (1 - 1 / np.e) * best - 1e-9).all()


@pytest.mark.parametrize("verifier", [Rejection(), Block(), KSeq()], ids=str)
def test_one_draft_is_kept_as_often_as_the_distributions_overlap(double, verifier):
    pairs = random_pairs(20, 4, 1) + random_pairs(20, 4, 1, zeros=0.4)
    p, q = first_tokens(pairs)
    accepted = batch_of_drafts(pairs, "0", "with_replacement").kept(verifier)
    distance = np.abs(p - q).sum(-1) / 2
    np.testing.assert_allclose(accepted, 1 - distance, rtol=0, atol=1e-9)


@DRAFTS
def test_greedy_set_reaches_the_optimum_of_its_own_drafts(double, k):
    pairs = random_pairs(20, 4, 1) + random_pairs(20, 4, 1, zeros=0.4)
    accepted = batch_of_drafts(pairs, SIBLINGS[k], "top_and_sample").kept(GreedySet())
    for p, q, found in zip(*first_tokens(pairs), accepted, strict=True):
        top = [int(x) for x in np.argsort(-q)[: k - 1] if q[x] > 0]
        rest = q.copy()
        rest[top] = 0.0
        if rest.any():
            rest /= rest.sum()
            sets = {frozenset([*top, int(x)]): rest[x] for x in np.flatnonzero(rest)}
        else:
            sets = {frozenset(top): 1.0}
        assert abs(found - (p[top].sum() + np.minimum(p, rest).sum())) < 1e-9
        assert abs(found - transport(p, sets)) < 1e-8


@DRAFTS
def test_given_tokens_are_accepted_with_all_their_probability(double, k):
    pairs = random_pairs(20, 4, 1)
    p, q = first_tokens(pairs)
    held = np.take_along_axis(p, np.argsort(-q)[:, :k], axis=-1).sum(-1)
    top = batch_of_drafts(pairs, SIBLINGS[k], "top")
    for verifier in (Rejection(), Coupled()):
        np.testing.assert_allclose(top.kept(verifier), held, rtol=0, atol=1e-9)


def test_mean_acceptance_ranks_the_verifiers_as_published(double):
    pairs = random_pairs(30, 5, 1)

    def mean(verifier, selection):
        return batch_of_drafts(pairs, SIBLINGS[3], selection).kept(verifier).mean()

    independent = mean(Rejection(), "with_replacement")
    kseq = mean(KSeq(), "with_replacement")
    distinct = mean(Rejection(), "without_replacement")
    greedy_set = mean(GreedySet(), "top_and_sample")
    assert independent < kseq < distinct
    assert independent < distinct - 0.05
    assert kseq < optimum(pairs, 3, "with_replacement").mean()
    assert distinct < optimum(pairs, 3, "without_replacement").mean() - 0.03
    assert (0.60 < independent < 0.80) and (0.70 < distinct < 0.88)
    assert greedy_set > independent


def test_block_never_keeps_less_than_rejection_and_mostly_more(double):
    pairs = random_pairs(20, 3, 3) + random_pairs(20, 3, 3, zeros=0.3)
    chains = batch_of_drafts(pairs, "chain-3", "without_replacement")
    block, one_by_one = chains.kept(Block()), chains.kept(Rejection())
    assert (block >= one_by_one - 1e-9).all()
    assert (block > one_by_one + 1e-3).sum() > 20


def test_drafts_with_shared_noise_are_accepted_more_often_than_independent_ones():
    # A token drafted with the noise of the verifier is kept with probability at least
    # (1 - TV) / (1 + TV), and never more often than the optimum.
    p, q = np.random.default_rng(0).dirichlet(np.ones(5), size=2)
    rows, tree = 20_000, Tree.chain(1)

    @jax.jit
    def accepted(keys):
        noise = draw_noise(keys, jnp.tile(jnp.arange(2), (rows, 1)), tree.size, 5)
        token = jnp.argmax(jnp.log(q) + noise.coupled[:, 0], axis=-1)
        tokens = jnp.stack([jnp.zeros_like(token), token], axis=1)
        draft = Draft(tokens, jnp.ones((rows, 2), bool), selection="coupled")
        log_p = jnp.broadcast_to(jnp.log(p), (rows, 2, 5))
        return Coupled().verify(log_p, draft, tree, noise).accepted.mean()

    found = float(accepted(batch_keys(0, rows)))
    distance, error = np.abs(p - q).sum() / 2, 5 * 0.5 / np.sqrt(rows)
    assert found > (1 - distance) / (1 + distance) - error
    assert found < 1 - distance + error
    assert found > (p * q).sum() + error  # drafted with independent noise


# Perfect and disjoint drafters.


@pytest.mark.parametrize("tree", ["0,1,2", "0,1,00,01,10", "chain-3"])
@pytest.mark.parametrize("selection", ["without_replacement", "with_replacement"])
def test_every_token_of_a_perfect_drafter_is_kept(tree, selection):
    tree = Tree.named(tree)
    targets = [Conditionals.random(3, tree.depth + 1, 5, zeros=x) for x in (0.0, 0.5)]
    perfect = batch_of_drafts(
        [(p, Conditionals(p.tables[:-1])) for p in targets], tree, selection
    )
    for verifier in [Rejection(), Block()] if tree.width == 1 else [Rejection()]:
        stop, final = outcome_of(verifier, perfect.log_p, perfect.draft, tree)
        assert np.isfinite(stop).all() and np.isfinite(final).all()
        deepest = np.argmax(tree.depths)  # the first child of the first child
        np.testing.assert_allclose(stop[:, deepest], 1, atol=1e-5)


@EVERY_VERIFIER
def test_no_token_of_a_disjoint_drafter_is_kept(verifier, selection, tree):
    p = Conditionals.constant([0.2, 0.8, 0, 0], 3)
    q = Conditionals.constant([0, 0, 0.7, 0.3], 2)
    wrong = batch_of_drafts([(p, q)], tree, selection)
    stop, final = outcome_of(verifier, wrong.log_p, wrong.draft, wrong.tree)
    assert (stop == np.eye(wrong.tree.size)[0]).all()
    corrected = final[:, 0]
    np.testing.assert_allclose(
        corrected, np.broadcast_to(p.tables[0], corrected.shape), rtol=1e-6
    )


@EVERY_VERIFIER
def test_tokens_of_probability_zero_are_never_emitted(verifier, selection, tree):
    drafts = batch_of_drafts(random_pairs(6, 3, 2, zeros=0.4), tree, selection)
    draft, tree, rows = drafts.draft, drafts.tree, np.arange(len(drafts.chance))
    logits = np.random.default_rng(0).normal(size=drafts.log_p.shape)
    sampling = Sampling.create(len(rows), top_k=2)
    top_2 = process_logits(jnp.asarray(logits), sampling, ("top_k",))
    for log_p in (drafts.log_p, np.asarray(top_2, np.float64)):
        never = log_p == -np.inf
        assert never.any()
        stop, final = outcome_of(verifier, log_p, draft, tree)
        assert (final[never] == 0).all()
        for n in range(1, tree.size):
            banned = never[rows, tree.parents[n], draft.tokens[:, n]]
            assert banned.any()
            assert (stop[banned][:, tree.ancestors[:, n]] == 0).all()


@EVERY_VERIFIER
def test_outcomes_are_distributions_in_single_precision(verifier, selection, tree):
    drafts = batch_of_drafts(random_pairs(20, 3, 2), tree, selection)
    for part in outcome_of(verifier, drafts.log_p, drafts.draft, drafts.tree):
        assert part.dtype == np.float32
        assert (part >= 0).all()
        np.testing.assert_allclose(part.sum(-1), 1, atol=1e-5)


# Greedy sequences.


def greedy_output(log_p, draft, tree):
    """Last node along the likeliest tokens, and the likeliest token after it."""
    best = np.argmax(log_p, axis=-1)
    row, last = np.arange(len(best)), np.zeros(len(best), int)
    for n in range(1, tree.size):
        matches = draft.tokens[:, n] == best[row, last]
        here = (last == tree.parents[n]) & draft.valid[:, n] & matches
        last = np.where(here, n, last)
    return last, best[row, last]


@EVERY_VERIFIER
def test_greedy_sequences_follow_the_likeliest_tokens_beside_sampled_ones(
    verifier, selection, tree
):
    drafts = batch_of_drafts(random_pairs(6, 3, 2, zeros=0.3), tree, selection)
    draft, tree, rows = drafts.draft, drafts.tree, len(drafts.chance)
    log_p = np.random.default_rng(1).normal(size=drafts.log_p.shape)
    last, token = greedy_output(log_p, draft, tree)
    assert len(set(last)) == tree.size  # every node is the last one of some sequence
    greedy = np.arange(rows) % 3 > 0
    stop, final = outcome_of(verifier, log_p, draft, tree, greedy)
    emitted = stop[:, :, None] * final
    sure = np.zeros(emitted.shape, bool)
    sure[np.arange(rows), last, token] = True
    assert (emitted[greedy] > 0)[sure[greedy]].all()
    assert (emitted[greedy] == 0)[~sure[greedy]].all()

    of_sampled = outcome_of(verifier, log_p, draft, tree)
    np.testing.assert_array_equal(stop[~greedy], of_sampled[0][~greedy])
    np.testing.assert_array_equal(final[~greedy], of_sampled[1][~greedy])

    verdict = draws(verifier, log_p, draft, tree, greedy)
    ends, after = verdict.path[:rows, -1], verdict.next_token[:rows]
    np.testing.assert_array_equal(ends[greedy], last[greedy])
    np.testing.assert_array_equal(after[greedy], token[greedy])
