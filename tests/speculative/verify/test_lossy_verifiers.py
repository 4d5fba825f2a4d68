"""Lossy verifiers against their definitions in plain Python."""

import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.core.precision import use_x64
from jaxspec.errors import ConfigError
from jaxspec.speculative.draft import Draft
from jaxspec.speculative.trees.tree import Tree
from jaxspec.speculative.verify import (
    Annealed,
    Block,
    Coupled,
    CoupledRelaxed,
    Entropic,
    GreedySet,
    Grouped,
    Judge,
    KSeq,
    Lantern,
    Rejection,
    Skipped,
    Typical,
    Verifier,
)
from jaxspec.speculative.verify.neighbors import neighbor_table
from jaxspec.testing.drafts import Conditionals, all_drafts
from jaxspec.testing.enumeration import assert_lossless, distortion
from tests.speculative.verify.noises import coupled_noise
from tests.speculative.verify.walks import (
    CHAIN,
    FORK,
    as_given,
    assert_follows,
    codebook,
    normalized,
    outcomes_of,
    random_round,
)


@pytest.mark.parametrize(
    ("verifier", "lossless"),
    [
        (Lantern(3, 0.1), False),
        (Grouped(), False),
        (Annealed(), False),
        (Entropic(), False),
        (Skipped(), False),
        (Typical(), False),
        (Judge(jnp.dot), False),
        (CoupledRelaxed(3, 0.1), False),
        # With empty relaxed sets these two are exact, but not declared lossless.
        (Lantern(3, lam=1.0, residual="optimal"), False),
        (CoupledRelaxed(3, 0.0), False),
        (Coupled(), True),
        (Rejection(), True),
        (Block(), True),
        (KSeq(), True),
        (GreedySet(), True),
    ],
    ids=lambda x: type(x).__name__,
)
def test_every_verifier_declares_whether_it_is_lossless(verifier, lossless):
    assert isinstance(verifier, Verifier)
    assert verifier.lossless is lossless
    assert hash(verifier) == hash(replace(verifier))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Grouped(group=0), "group=0 is impossible"),
        (lambda: Grouped(group=1 << 32), "group=4294967296 is impossible"),
        (lambda: Grouped(distance=-1.0), "no negative distance"),
        (lambda: Grouped(gap=float("nan")), "no negative distance"),
        (lambda: Annealed(delta=0.0), "delta=0.0 is impossible"),
        (lambda: Annealed(delta=1e39), "delta=1e\\+39 is impossible"),
        (lambda: Annealed(decay=-0.1), "decay=-0.1 is impossible"),
        (lambda: Entropic(scale=0.0), "scale=0.0 is impossible"),
        (lambda: Entropic(floor=1.5), "floor=1.5 is impossible"),
        (lambda: Skipped(share=1.1), "share=1.1 is impossible"),
        (lambda: Typical(epsilon=0.0), "epsilon=0.0 is impossible"),
        (lambda: Typical(delta=0.0), "delta=0.0 is impossible"),
        (lambda: CoupledRelaxed(3), "or lam; none was given"),
        (lambda: CoupledRelaxed(3, 0.1, radius=-1.0), "must not be negative"),
    ],
)
def test_impossible_settings_raise_a_clear_error(make, words):
    with pytest.raises(ConfigError, match=words):
        make()


@pytest.mark.parametrize("verifier", [Grouped(), Annealed()])
def test_verifiers_that_divide_by_q_need_sampled_children(verifier):
    log_p, draft, _, _ = random_round(CHAIN, rows=2)
    params = {"embedding": jnp.zeros((7, 2))}
    with pytest.raises(ConfigError, match="without_replacement or with_replacement"):
        verifier.outcome(log_p, as_given(draft), CHAIN, params=params)


# --- Grouped ---------------------------------------------------------------------


def grouped(embedding, group, distance, gap):
    """Ratio of groups: ranks -G/2 .. G/2 - 1 around x, near in embedding and p."""

    def accept(p, q, x, node):
        order = sorted(range(len(p)), key=lambda y: (-p[y], y))
        rank = order.index(x)
        window = order[max(0, rank - group // 2) : rank - group // 2 + group]
        similar = [
            y
            for y in window
            if ((embedding[x] - embedding[y]) ** 2).sum() < distance
            and abs(p[x] - p[y]) < gap
        ]
        return min(1.0, sum(p[y] for y in similar) / sum(q[y] for y in similar))

    return accept, subtract


def subtract(p, q, x, node):
    return normalized([max(a - b, 0.0) for a, b in zip(p, q, strict=True)], p)


@pytest.mark.slow
def test_grouped_compares_groups_instead_of_tokens():
    tree, embedding, outcomes = FORK, codebook(), []
    # The released window, which contains all tokens here, and narrow and odd ones.
    windows = [(14, 2.0, 0.15), (4, 9.0, 0.9), (5, 9.0, 0.9), (2, 9.0, 0.9)]
    with use_x64(True):
        params = {"embedding": jnp.asarray(embedding)}
        log_p, draft, p, q = random_round(tree)
        for group, distance, gap in windows:
            verifier = Grouped(group, distance, gap, filtered="published")
            outcome = verifier.outcome(log_p, draft, tree, params=params)
            steps = grouped(embedding, group, distance, gap)
            assert_follows(outcome, tree, draft, p, q, *steps)
            outcomes.append(np.asarray(outcome.stop))
        alone = Grouped(group=1).outcome(log_p, draft, tree, params=params)
        plain = Rejection().outcome(log_p, draft, tree)
    for i, outcome in enumerate(outcomes):
        assert not any(np.allclose(outcome, other) for other in outcomes[:i])
    np.testing.assert_allclose(alone.stop, plain.stop, atol=1e-12)


# --- Entropic --------------------------------------------------------------------


@pytest.mark.parametrize("tree", [Tree.chain(3), FORK], ids=["chain", "fork"])
def test_sure_predictions_accept_more(tree):
    """The published rule by hand; without relaxation it is exact rejection."""

    def accept(p, q, x, node):
        entropy = -sum(a * math.log(a) for a in p if a > 0)
        return min(1.0, p[x] / (q[x] * min(entropy / 2.5 + 0.1, 1.0)))

    with use_x64(True):
        log_p, draft, p, q = random_round(tree)
        outcome = Entropic(2.5, 0.1).outcome(log_p, draft, tree)
        assert_follows(outcome, tree, draft, p, q, accept, subtract)
        plain = Rejection().outcome(log_p, draft, tree)
        exact = Entropic(floor=1.0).outcome(log_p, draft, tree)
        # A greedy target has no entropy: what it would take is accepted, nothing else.
        greedy = jnp.ones(len(log_p), bool)
        sure = Entropic(floor=0.0).outcome(log_p, draft, tree, greedy)
        right = Rejection().outcome(log_p, draft, tree, greedy)
    np.testing.assert_allclose(exact.stop, plain.stop, atol=1e-12)
    assert np.abs(outcome.stop - plain.stop).max() > 0.01
    assert (outcome.stop[:, 0] <= plain.stop[:, 0] + 1e-12).all()
    np.testing.assert_allclose(sure.stop, right.stop, atol=1e-12)


# --- Annealed --------------------------------------------------------------------


@pytest.mark.parametrize(("delta", "decay"), [(1.1, 0.7), (2.0, 0.7), (0.5, 0.2)])
def test_factors_fall_by_their_rate_around_their_mean(delta, decay):
    for depth in (1, 2, 5):
        factors = Annealed(delta, decay).factors(depth)
        assert factors.mean() == pytest.approx(delta)
        np.testing.assert_allclose(factors[1:] / factors[:-1], np.exp(-decay))


@pytest.mark.variants(1)
@pytest.mark.parametrize(
    ("tree", "delta"), [(Tree.chain(3), 2.0), (FORK, 0.6)], ids=["chain", "fork"]
)
def test_annealed_accepts_by_depth_and_subtracts_what_it_accepts(tree, delta):
    factor = np.exp(-0.7 * np.arange(tree.depth))
    factor *= delta / factor.mean()

    def accept(p, q, x, node):
        return min(1.0, factor[tree.depths[node] - 1] * p[x] / q[x])

    def reject(p, q, x, node):
        accepted = [q[y] and q[y] * accept(p, q, y, node) for y in range(len(p))]
        left = [max(a - b, 0.0) for a, b in zip(p, accepted, strict=True)]
        return normalized(left, p)

    with use_x64(True):
        log_p, draft, p, q = random_round(tree)
        outcome = Annealed(delta, 0.7).outcome(log_p, draft, tree)
        assert_follows(outcome, tree, draft, p, q, accept, reject)


def test_annealed_without_decay_and_factor_is_rejection():
    verifier = Annealed(delta=1.0, decay=0.0)
    with use_x64(True):
        log_p, draft, _, _ = random_round(FORK)
        outcome, plain = (
            x.outcome(log_p, draft, FORK) for x in (verifier, Rejection())
        )
        np.testing.assert_allclose(outcome.stop, plain.stop, atol=1e-12)
        weight = plain.stop[..., None]
        np.testing.assert_allclose(
            weight * outcome.final, weight * plain.final, atol=1e-12
        )
    p, q = Conditionals.random(4, 3, 0, zeros=0.2), Conditionals.random(4, 3, 1)
    drafts = all_drafts(q, CHAIN, "without_replacement")
    assert_lossless(verifier, p, drafts, draws=0)
    with pytest.raises(AssertionError, match="Annealed.outcome is biased"):
        assert_lossless(Annealed(delta=1.0, decay=0.7), p, drafts, draws=0)


@pytest.mark.variants(1)
@pytest.mark.parametrize("delta", [0.5, 1.1, 2.0])
def test_annealed_distorts_only_by_what_it_accepts_too_often(delta):
    p, q = Conditionals.random(6, 2, 0), Conditionals.random(6, 1, 20)
    drafts = all_drafts(q, Tree.chain(1), "without_replacement")
    first = p.tables[0]
    accepted = np.minimum(q.tables[0], delta * first)
    floor = np.maximum(accepted - first, 0).sum()
    assert distortion(Annealed(delta), p, drafts) == pytest.approx(floor, abs=1e-6)
    assert (floor > 0.01) == (delta > 1)  # accepting too rarely is exact


# --- Skipped ---------------------------------------------------------------------


def skipped_outcomes(tree, tokens, alive, p):
    """Emitted tokens of a skipped round, with their probabilities."""
    paths = {n: [m for m in range(1, tree.size) if tree.ancestors[n, m]] for n in alive}
    leaves = [
        n for n in alive if not any(n != m and tree.ancestors[m, n] for m in alive)
    ]
    length = sum(len(paths[n]) for n in leaves) // len(leaves)
    outcomes = {}
    for leaf in leaves:
        emitted = tuple(int(tokens[n]) for n in paths[leaf][:length])
        # Without a drafted token, one is sampled from the target.
        for words, mass in (
            [(emitted, 1.0)] if emitted else [((y,), mass) for y, mass in enumerate(p)]
        ):
            outcomes[words] = outcomes.get(words, 0.0) + mass / len(leaves)
    return outcomes


@pytest.mark.variants(1)
@pytest.mark.parametrize("tree", [Tree.chain(3), FORK], ids=["chain", "fork"])
def test_a_skipped_round_emits_a_random_path_of_mean_length(tree):
    with use_x64(True):
        log_p, draft, p, _ = random_round(tree)
        outcome = Skipped(1.0).outcome(log_p, draft, tree)
        for row in range(len(p)):
            alive = [0]
            for n in range(1, tree.size):
                parent, token = tree.parents[n], draft.tokens[row, n]
                if parent in alive and draft.valid[row, n] and p[row, parent, token]:
                    alive.append(n)
            expected = skipped_outcomes(tree, draft.tokens[row], alive, p[row, 0])
            found = outcomes_of(outcome, tree, np.asarray(draft.tokens), row)
            found = {k: v for k, v in found.items() if v > 1e-12}
            assert found == pytest.approx({k: v for k, v in expected.items() if v})


def test_skipping_distorts_as_far_as_drafter_and_target_differ():
    p, q = Conditionals.random(5, 2, 0), Conditionals.random(5, 1, 20)
    drafts = all_drafts(q, Tree.chain(1), "without_replacement")
    apart = 0.5 * abs(p.tables[0] - q.tables[0]).sum()
    assert apart > 0.1
    for share in (0.0, 0.2, 1.0):
        found = distortion(Skipped(share), p, drafts)
        assert found == pytest.approx(share * apart, abs=1e-6)


# --- Typical ---------------------------------------------------------------------


def typical_walk(tree, tokens, valid, p, epsilon, delta):
    """Last accepted node: deepest, then likeliest, then first."""
    value = {0: (0, 0.0, 0)}
    for n in range(1, tree.size):
        parent = tree.parents[n]
        row, x = p[parent], tokens[n]
        entropy = -sum(mass * np.log(mass) for mass in row if mass > 0)
        typical = row[x] > min(epsilon, delta * np.exp(-entropy))
        if parent in value and valid[n] and typical:
            depth, likelihood, _ = value[parent]
            value[n] = (depth + 1, likelihood + np.log(row[x]), -n)
    return max(value, key=value.get)


def test_typical_keeps_the_longest_path_of_typical_tokens():
    tree, rows, counts = FORK, 200, np.zeros(FORK.size)
    greedy = np.arange(rows) % 2 == 0
    with use_x64(True):
        log_p, draft, p, _ = random_round(tree, rows=rows)
        draft = as_given(draft)
        tokens, valid = np.asarray(draft.tokens), np.asarray(draft.valid)
        sharp = np.where(greedy[:, None, None], np.eye(7)[p.argmax(-1)], p)
        for epsilon, delta in ((0.09, 0.3), (0.3, 0.5), (0.9, 1.5)):
            outcome = Typical(epsilon, delta).outcome(
                log_p, draft, tree, jnp.asarray(greedy)
            )
            np.testing.assert_allclose(np.asarray(outcome.final), sharp, atol=1e-12)
            for row, stop in enumerate(np.asarray(outcome.stop)):
                case = tree, tokens[row], valid[row], sharp[row]
                last = typical_walk(*case, epsilon, delta)
                assert stop.tolist() == [n == last for n in range(tree.size)]
                counts[last] += not greedy[row]
    assert (counts > 5).all()  # every node was the last one several times


def test_typical_threshold_falls_with_the_entropy_of_the_target():
    """Ten tokens of .1: none reaches .3, all reach .5 exp(-entropy) = .05."""
    flat = jnp.zeros((1, 2, 10))
    sure = jnp.log(jnp.array([0.1, 0.9] + [0.0] * 8))[None, None].repeat(2, 1)
    draft = Draft(jnp.array([[0, 0]]), jnp.ones((1, 2), bool))
    verifier = Typical(epsilon=0.3, delta=0.5)
    assert verifier.outcome(flat, draft, Tree.chain(1)).stop.tolist() == [[0, 1]]
    assert verifier.outcome(sure, draft, Tree.chain(1)).stop.tolist() == [[1, 0]]


# --- Judge -----------------------------------------------------------------------


def test_judge_accepts_the_sample_or_tokens_that_its_head_accepts():
    rows, rng = 40, np.random.default_rng(0)
    log_p, draft, p, _ = random_round(FORK, rows=rows)
    draft, tokens, valid = as_given(draft), np.asarray(draft.tokens), draft.valid
    noise = rng.gumbel(size=(rows, 3, 7)).astype(np.float32)
    features = rng.normal(size=(2 * rows, FORK.size, 3)).astype(np.float32)
    weights, seen = rng.normal(size=3).astype(np.float32), []

    def head(params, x):
        seen.append(np.asarray(x))
        return x @ params

    def verdict(threshold):
        return Judge(head, threshold).verify(
            log_p,
            draft,
            FORK,
            coupled_noise(noise, FORK.size),
            params={"head": jnp.asarray(weights)},
            features=jnp.asarray(features),
        )

    found = verdict(0.8)
    # The head reads the conditional branch only.
    np.testing.assert_array_equal(seen[0], features[:rows])
    choice = (np.asarray(log_p) + noise[:, FORK.depths]).argmax(-1)
    accepted = features[:rows] @ weights > 0.8
    for row in range(rows):
        alive = {0}
        for n in range(1, FORK.size):
            parent = FORK.parents[n]
            kept = p[row, parent, tokens[row, n]] > 0  # not filtered
            good = tokens[row, n] == choice[row, parent] or (accepted[row, n] and kept)
            if parent in alive and valid[row, n] and good:
                alive.add(n)
        last = max(alive, key=lambda n: (FORK.depths[n], -n))
        assert int(found.accepted[row]) == FORK.depths[last]
        assert int(found.path[row, -1]) == last
        assert int(found.next_token[row]) == choice[row, last]

    exact = Coupled().verify(log_p, draft, FORK, coupled_noise(noise, FORK.size))
    jax.tree.map(np.testing.assert_array_equal, verdict(float("inf")), exact)
    assert (found.accepted > exact.accepted).any()
    with pytest.raises(ConfigError, match="features"):
        Judge(head).verify(log_p, draft, FORK, coupled_noise(noise, FORK.size))


# --- Filtered tokens --------------------------------------------------------------


@pytest.mark.variants(1)
@pytest.mark.parametrize(
    ("verifier", "released"),
    [
        (Lantern(3, 0.5), {"filtered": "published"}),
        (Lantern(3, 0.5), {"fallback": "uniform"}),
        (Lantern(3, lam=6.0), {"fallback": "uniform"}),
        (Lantern(3, 0.5, residual="optimal"), {"filtered": "published"}),
        (Grouped(5, 9.0, 0.9), {"filtered": "published"}),
        (CoupledRelaxed(3, 0.5), None),
        (CoupledRelaxed(3, lam=6.0), None),
        (Typical(), None),
        (Annealed(2.0), None),
        (Skipped(0.5), None),
    ],
    ids=str,
)
def test_no_verifier_emits_filtered_tokens(verifier, released):
    """A score of -inf is never emitted, except by the released variants (control)."""

    def filtered_mass(verifier):
        outcome = verifier.outcome(log_p, case, FORK, None, params)
        stop, removed = np.asarray(outcome.stop), ~np.isfinite(np.asarray(log_p))
        last = (stop[..., None] * np.where(removed, outcome.final, 0.0)).sum()
        row, above = np.arange(len(stop)), np.zeros(stop.shape, bool)
        for n in range(1, FORK.size):
            parent = FORK.parents[n]
            above[:, n] = above[:, parent] | removed[row, parent, case.tokens[:, n]]
        return last + stop[above].sum()

    params = {"neighbors": neighbor_table(codebook(), 3), "embedding": codebook()}
    with use_x64(True):
        log_p, draft, _, _ = random_round(FORK, rows=100, zeros=0.5)
        for case in (draft, as_given(draft)):
            given = case.selection == "top"
            if given and isinstance(verifier, Grouped | Annealed):
                continue  # these need samples
            assert filtered_mass(verifier) == 0
            if released and given == ("fallback" in released):
                assert filtered_mass(replace(verifier, **released)) > 0.1


def test_judge_rejects_filtered_tokens():
    log_p = jnp.zeros((1, 2, 4)).at[0, 0, 3].set(-jnp.inf)
    noise = coupled_noise(np.zeros((1, 2, 4), np.float32), 2)
    head, features = lambda _, x: x[..., 0], jnp.ones((1, 2, 1))
    for token, accepted in ((2, 1), (3, 0)):
        draft = Draft(jnp.array([[0, token]]), jnp.ones((1, 2), bool))
        verdict = Judge(head).verify(log_p, draft, Tree.chain(1), noise, None, features)
        assert verdict.accepted.tolist() == [accepted]
