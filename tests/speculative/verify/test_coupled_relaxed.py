"""`CoupledRelaxed` against a walk in plain Python."""

from collections import defaultdict
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxspec.core.precision import use_x64
from jaxspec.speculative.draft import Draft
from jaxspec.speculative.trees.tree import Tree
from jaxspec.speculative.verify import Coupled, CoupledRelaxed, Lantern
from jaxspec.speculative.verify.neighbors import neighbor_table
from tests.speculative.trees.random_trees import trees
from tests.speculative.verify.noises import coupled_noise
from tests.speculative.verify.walks import (
    CHAIN,
    FORK,
    as_given,
    assert_same_outcomes,
    codebook,
    outcomes_of,
    random_round,
    relaxed_probability,
    sorted_neighbors,
)

VOCAB = 8
# Embeddings on a line, in random order: many equal distances, all exact.
LINE = np.random.default_rng(5).permutation(VOCAB)[:, None].astype(np.float32)
NEIGHBORS = sorted_neighbors(LINE)


def coupled_round(tree, seed, rows=8):
    """Scores, noise, samples of the target, and siblings that often equal them."""
    rng = np.random.default_rng(seed)
    log_p = rng.normal(size=(rows, tree.size, VOCAB)).astype(np.float32)
    noise = rng.gumbel(size=(rows, tree.depth + 1, VOCAB)).astype(np.float32)
    choice = (log_p + noise[:, tree.depths]).argmax(-1)
    tokens = np.zeros((rows, tree.size), np.int32)
    for node in tree.internal:
        children = [n for n in range(1, tree.size) if tree.parents[n] == node]
        for row in range(rows):
            preference = rng.random(VOCAB)
            preference[choice[row, node]] += rng.random() < 0.6
            best = np.argsort(-preference)[: len(children)]
            tokens[row, children] = rng.permutation(best)
    valid = rng.random((rows, tree.size)) < 0.85
    draft = Draft(jnp.asarray(tokens), jnp.asarray(valid))
    return log_p, noise, choice, draft


def verdict_of(verifier, log_p, draft, tree, gumbel, params=None, greedy=False):
    """Verdict of a verifier under given noise, compiled."""
    noise = coupled_noise(gumbel, tree.size)
    noise = replace(noise, greedy=jnp.full_like(noise.greedy, greedy))
    verify = jax.jit(lambda *case: verifier.verify(*case[:2], tree, *case[2:]))
    return verify(jnp.asarray(log_p), draft, noise, params)


def nearest_child(tree, node, y, tokens, valid, p, *, k, radius, **budget):
    """Child that is accepted for the sample `y` at a node, or None."""
    accepting = []
    for n in range(1, tree.size):
        if tree.parents[n] == node and valid[n]:
            x = tokens[n]
            apart = abs(LINE[x, 0] - LINE[y, 0])
            fitting = relaxed_probability(p[node], x, NEIGHBORS, k=k, **budget)[1]
            if x == y or (y in NEIGHBORS[x][:fitting] and apart <= radius):
                accepting.append((apart, n))
    return min(accepting)[1] if accepting else None


def relaxed_walk(tree, tokens, valid, p, choice, **setting):
    """Accepted path for given samples of the target."""
    path = [0]
    while path[-1] is not None:
        y = choice[path[-1]]
        path.append(nearest_child(tree, path[-1], y, tokens, valid, p, **setting))
    return path[:-1]


def relaxed_outcomes(tree, tokens, valid, p, **setting):
    """Outcomes over all samples of the target, with their probabilities."""
    outcomes = defaultdict(float)

    def at(node, path, chance):
        into = defaultdict(float)
        for y, mass in enumerate(p[node]):
            child = nearest_child(tree, node, y, tokens, valid, p, **setting)
            if child is None:
                outcomes[*path, y] += chance * mass
            else:
                into[child] += mass
        for child, mass in into.items():
            at(child, (*path, int(tokens[child])), chance * mass)

    at(0, (), 1.0)
    return outcomes


@settings(max_examples=12)
@given(
    trees(VOCAB),
    st.integers(0, 2**31 - 1),
    st.sampled_from([{"budget": 0.2}, {"budget": 0.5}, {"lam": 4.0}]),
    st.sampled_from([1.0, 2.0, float("inf")]),
)
def test_relaxed_verdict_is_that_of_a_walk_within_the_radius(
    tree, seed, budget, radius
):
    log_p, noise, choice, draft = coupled_round(tree, seed)
    given_noise = coupled_noise(noise, tree.size)
    params = {"neighbors": neighbor_table(LINE, 4)}
    verifiers = Coupled(), CoupledRelaxed(4, 0.0), CoupledRelaxed(4, lam=1.0)
    verifiers += (CoupledRelaxed(4, radius=radius, **budget),)

    @jax.jit
    def verify(*case):
        return [verifier.verify(*case[:2], tree, *case[2:]) for verifier in verifiers]

    exact, *unrelaxed, verdict = verify(jnp.asarray(log_p), draft, given_noise, params)
    for other in unrelaxed:
        jax.tree.map(np.testing.assert_array_equal, other, exact)

    tokens, valid = np.asarray(draft.tokens), np.asarray(draft.valid)
    named = {"delta": budget["budget"]} if "budget" in budget else budget
    p = np.asarray(jax.nn.softmax(log_p), np.float64)
    for row in range(len(tokens)):
        count = int(verdict.accepted[row])
        path = verdict.path[row, : count + 1].tolist()
        case = tree, tokens[row], valid[row], p[row], choice[row]
        assert path == relaxed_walk(*case, k=4, radius=radius, **named)
        assert int(verdict.next_token[row]) == choice[row, path[-1]]
        wanted, kept = choice[row, path[:-1]], tokens[row, path[1:]]
        assert (np.abs(LINE[kept] - LINE[wanted]) <= radius).all()


def test_relaxation_accepts_more_and_the_radius_limits_it():
    """The control of the walk: other tokens are accepted, far ones without a radius."""
    farthest, kept = {}, {}
    log_p, noise, choice, draft = coupled_round(FORK, 0, rows=200)
    params = {"neighbors": neighbor_table(LINE, 4)}
    for radius in (0.0, 1.0, float("inf")):
        verifier = CoupledRelaxed(4, 0.6, radius=radius)
        verdict = verdict_of(verifier, log_p, draft, FORK, noise, params)
        first = verdict.path[:, 1]
        rows = np.flatnonzero(verdict.accepted > 0)
        accepted = np.asarray(draft.tokens)[rows, first[rows]]
        farthest[radius] = np.abs(LINE[accepted] - LINE[choice[rows, 0]]).max()
        kept[radius] = int(verdict.accepted.sum())
    assert farthest[0.0] == 0 and farthest[1.0] == 1 < farthest[float("inf")]
    assert kept[0.0] < kept[1.0] < kept[float("inf")]


def test_of_equal_siblings_the_one_on_the_deeper_path_is_followed():
    """Independent drafts may repeat a token; both subtrees are considered."""
    tree = Tree.from_paths([(0,), (1,), (1, 0)])
    draft = Draft(jnp.array([[0, 3, 3, 5]]), jnp.ones((1, 4), bool))
    log_p = np.zeros((1, 4, VOCAB), np.float32)
    log_p[0, 0, 3] = log_p[0, 2, 5] = 9.0
    no_noise = jnp.zeros((1, 3, VOCAB))
    params = {"neighbors": neighbor_table(LINE, 4)}
    exact = verdict_of(Coupled(), log_p, draft, tree, no_noise)
    assert exact.accepted.tolist() == [2]
    verifier = CoupledRelaxed(4, 0.0)
    verdict = verdict_of(verifier, log_p, draft, tree, no_noise, params)
    assert verdict.path.tolist() == exact.path.tolist()


@pytest.mark.variants(1)
@pytest.mark.parametrize("amount", [{"delta": 0.3}, {"lam": 3.0}], ids=str)
@pytest.mark.slow
def test_a_child_without_shared_noise_is_accepted_as_often_as_by_lantern(amount):
    k, near = 3, sorted_neighbors(codebook())
    params = {"neighbors": neighbor_table(codebook(), k)}
    named = {"budget": 0.3} if "delta" in amount else amount
    with use_x64(True):
        log_p, draft, p, _ = random_round(CHAIN, zeros=0.0, absent=0.0)
        draft = as_given(draft)
        outcome = CoupledRelaxed(k, **named).outcome(log_p, draft, CHAIN, params=params)
        other = Lantern(k, **amount).outcome(log_p, draft, CHAIN, params=params)
        np.testing.assert_allclose(outcome.stop, other.stop, atol=1e-12)
        for row, x in enumerate(np.asarray(draft.tokens)[:, 1]):
            relaxed, _ = relaxed_probability(p[row, 0], x, near, k=k, **amount)
            assert 1 - outcome.stop[row, 0] == pytest.approx(relaxed, abs=1e-9)


@pytest.mark.slow
def test_relaxed_distribution_sums_over_the_samples_that_accept_each_child():
    tree, params = FORK, {"neighbors": neighbor_table(LINE, 4)}
    with use_x64(True):
        log_p, draft, p, _ = random_round(tree, vocab=VOCAB)
        draft = as_given(draft)
        tokens, valid = np.asarray(draft.tokens), np.asarray(draft.valid).copy()
        for n in range(1, tree.size):  # filtered tokens are not accepted
            valid[:, n] &= p[np.arange(len(p)), tree.parents[n], tokens[:, n]] > 0
        for radius in (1.5, float("inf")):
            verifier = CoupledRelaxed(4, 0.5, radius=radius)
            outcome = verifier.outcome(log_p, draft, tree, params=params)
            for row in range(len(tokens)):
                wanted = relaxed_outcomes(
                    tree, tokens[row], valid[row], p[row], k=4, radius=radius, delta=0.5
                )
                assert_same_outcomes(outcomes_of(outcome, tree, tokens, row), wanted)


def outcome_counts(verifier, log_p, draft, tree, params, rounds, seed):
    """Counts of each last node and next token, `[N, V]`."""
    rng = np.random.default_rng(seed)
    noise = rng.gumbel(size=(rounds, tree.depth + 1, log_p.shape[-1]))
    many = jax.tree.map(lambda x: jnp.repeat(x[:1], rounds, axis=0), (log_p, draft))
    verdict = verdict_of(verifier, *many, tree, noise.astype(np.float32), params)
    counts = np.zeros((tree.size, log_p.shape[-1]))
    np.add.at(counts, (np.asarray(verdict.path[:, -1]), verdict.next_token), 1)
    return counts


def deviation(counts, outcome):
    """Greatest deviation of a count from its mean, in standard deviations."""
    chance = np.asarray(outcome.stop[0, :, None] * outcome.final[0], np.float64)
    mean = counts.sum() * chance
    return (np.abs(counts - mean) / np.sqrt(mean * (1 - chance) + 1)).max()


@pytest.mark.slow
def test_relaxed_distribution_is_that_of_the_verdicts():
    params = {"neighbors": neighbor_table(codebook(), 3)}
    log_p, draft, _, _ = random_round(FORK, rows=1, absent=0.0, zeros=0.15, seed=2)
    draft = as_given(draft)
    log_p = log_p.astype(jnp.float32)

    def outcome(verifier):
        return verifier.outcome(log_p, draft, FORK, params=params)

    verifier = CoupledRelaxed(3, 0.4, radius=1.5)
    counts = outcome_counts(verifier, log_p, draft, FORK, params, 100_000, 0)
    assert deviation(counts, outcome(verifier)) < 5
    # Controls: other settings have other distributions.
    for other in (Coupled(), CoupledRelaxed(3, 0.4), CoupledRelaxed(3, 0.1)):
        assert deviation(counts, outcome(other)) > 20


def test_relaxed_distribution_of_greedy_sequences_is_that_of_their_verdicts():
    log_p, _, _, draft = coupled_round(CHAIN, 1, rows=40)
    params = {"neighbors": neighbor_table(LINE, 4)}
    verifier = CoupledRelaxed(4, 0.4)
    outcome = jax.jit(lambda *case: verifier.outcome(*case[:2], CHAIN, *case[2:]))
    greedy = outcome(jnp.asarray(log_p), draft, jnp.ones(40, bool), params)
    no_noise = jnp.zeros((40, 3, VOCAB))
    verdict = verdict_of(verifier, log_p, draft, CHAIN, no_noise, params, greedy=True)
    last = np.asarray(verdict.path[:, -1])
    np.testing.assert_array_equal(greedy.stop, np.arange(3) == last[:, None])
