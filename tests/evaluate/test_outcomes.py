"""Distribution of the emitted token of lossy verifiers at one position."""

from itertools import permutations

import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.core.precision import use_x64
from jaxspec.evaluate.relaxation.distances import total_variation, wasserstein
from jaxspec.evaluate.relaxation.drafts import (
    Drafts,
    coupled_drafts,
    coupled_pairs,
    independent_drafts,
)
from jaxspec.evaluate.relaxation.outcomes import coupled_outcome, independent_outcome
from jaxspec.speculative.draft import Draft
from jaxspec.speculative.trees.tree import Tree
from jaxspec.speculative.verify import Coupled, CoupledRelaxed, Lantern, Rejection
from tests.evaluate.toy_position import toy_position
from tests.speculative.verify.noises import coupled_noise

TOY = toy_position(10, neighbors=6)
FORK = Tree.from_paths([(0,), (1,), (2,)])


def all_triples(q):
    """All drafts of three children, with their probabilities."""
    tokens = np.array(list(permutations(range(len(q)), 3)), np.int32)
    probs, remaining = np.ones(len(tokens)), np.ones(len(tokens))
    for column in tokens.T:
        probs, remaining = probs * q[column] / remaining, remaining - q[column]
    assert probs.sum() == pytest.approx(1)
    return Drafts(tokens, probs)


def distortion(outcome, position=TOY):
    return total_variation(outcome.output, position.p)


@pytest.mark.parametrize("verifier", [Rejection(), Coupled()], ids=str)
def test_lossless_verifiers_have_no_distortion(verifier):
    for drafts in (independent_drafts(TOY.q, 1, 0), all_triples(TOY.q)):
        outcome = independent_outcome(verifier, TOY, drafts)
        assert distortion(outcome) < 1e-6
        assert 0 < outcome.acceptance < 1
    # The control: a lossy verifier distorts, over the same drafts.
    lossy = Lantern(4, lam=3.0)
    assert distortion(independent_outcome(lossy, TOY, all_triples(TOY.q))) > 0.01


def test_coupled_children_are_accepted_without_loss():
    one = coupled_outcome(Coupled(), TOY, coupled_drafts(TOY.p, TOY.q, 1, 0))
    three = coupled_outcome(Coupled(), TOY, coupled_drafts(TOY.p, TOY.q, 3, 40_000))
    assert distortion(one) < 1e-12
    assert distortion(three) < 0.02
    assert one.acceptance < three.acceptance and one.shift == three.shift == 0


@pytest.mark.parametrize("zeros", [0.0, 0.4])
def test_joint_distribution_of_samples_under_shared_noise(zeros):
    rng = np.random.default_rng(3)
    p, q = rng.dirichlet(np.ones(7), size=2) * (rng.random((2, 7)) >= zeros)
    p, q = p / p.sum(), q / q.sum()
    pairs = coupled_pairs(p, q)
    np.testing.assert_allclose(pairs.sum(axis=1), p, atol=1e-12)
    np.testing.assert_allclose(pairs.sum(axis=0), q, atol=1e-12)
    sampled = coupled_drafts(p, q, 2, 200_000)
    counts = np.zeros((7, 7))
    np.add.at(counts, (sampled.sample, sampled.tokens[:, 0]), 1)
    mean = 200_000 * pairs
    assert (np.abs(counts - mean) / np.sqrt(mean + 1)).max() < 5
    assert np.trace(pairs) > (p * q).sum()  # the control: not independent


def test_sampled_drafts_have_the_distribution_of_enumerated_ones(monkeypatch):
    listed = all_triples(TOY.q)
    monkeypatch.setattr("jaxspec.evaluate.relaxation.drafts.ENUMERATED", 0)
    sampled = independent_drafts(TOY.q, 3, 2**14)
    assert listed.exact and not sampled.exact
    probs = {tuple(t): c for t, c in zip(listed.tokens, listed.probs, strict=True)}
    counts = dict.fromkeys(probs, 0.0)
    for tokens in sampled.tokens:
        counts[tuple(tokens)] += 1 / 2**14
    assert sum(abs(counts[t] - probs[t]) for t in probs) / 2 < 0.02


@pytest.mark.slow
def test_traced_amounts_match_the_verifier():
    """Amounts are traced, so that a sweep compiles once."""
    drafts = all_triples(TOY.q)
    count = len(drafts.tokens)
    for verifier in (
        Lantern(4, delta=0.2),
        Lantern(4, lam=2.5, residual="optimal"),
        CoupledRelaxed(4, 0.3, radius=0.9),
    ):
        with use_x64(True):
            draft = Draft(
                jnp.pad(jnp.asarray(drafts.tokens), ((0, 0), (1, 0))),
                jnp.ones((count, 4), bool),
                log_q=jnp.broadcast_to(jnp.log(jnp.asarray(TOY.q)), (count, 1, 10)),
                selection="without_replacement",
            )
            log_p = jnp.broadcast_to(jnp.log(jnp.asarray(TOY.p)), (count, 4, 10))
            exact = verifier.outcome(
                log_p, draft, FORK, params={"neighbors": TOY.neighbors}
            )
            stop, final = np.asarray(exact.stop), np.asarray(exact.final)
        expected = (drafts.probs * stop[:, 0]) @ final[:, 0]
        np.add.at(expected, drafts.tokens, drafts.probs[:, None] * stop[:, 1:])
        outcome = independent_outcome(verifier, TOY, drafts)
        np.testing.assert_allclose(outcome.output, expected, atol=1e-6)
        assert outcome.acceptance == pytest.approx(1 - drafts.probs @ stop[:, 0])


@pytest.mark.variants(1)
@pytest.mark.parametrize(
    "verifier",
    [Coupled(), CoupledRelaxed(4, 0.3, radius=0.9), CoupledRelaxed(6, lam=3.0)],
    ids=str,
)
def test_coupled_outcome_matches_verdicts(verifier):
    batch = 2000
    noise = np.random.default_rng(0).gumbel(size=(batch, 2, 10)).astype(np.float32)
    log_p = np.broadcast_to(np.log(TOY.p).astype(np.float32), (batch, 4, 10))
    sample = (log_p[:, 0] + noise[:, 0]).argmax(-1)
    ranked = np.argsort(-(np.log(TOY.q) + noise[:, 0]), axis=1)[:, :3]
    draft = Draft(
        jnp.pad(jnp.asarray(ranked, jnp.int32), ((0, 0), (1, 0))),
        jnp.ones((batch, 4), bool),
        selection="coupled",
    )
    params = {"neighbors": TOY.neighbors}
    noises = coupled_noise(noise, FORK.size)
    verdict = verifier.verify(jnp.asarray(log_p), draft, FORK, noises, params)
    emitted = np.asarray(verdict.emitted(draft)[0][:, 0])
    outcome = coupled_outcome(
        verifier, TOY, Drafts(ranked, np.full(batch, 1 / batch), sample)
    )
    counts = np.bincount(emitted, minlength=10)
    np.testing.assert_allclose(outcome.output * batch, counts, atol=1e-6)
    assert outcome.acceptance == pytest.approx(float(verdict.accepted.mean()))
    shifts = np.linalg.norm(TOY.codebook[emitted] - TOY.codebook[sample], axis=1)
    assert outcome.shift == pytest.approx(shifts.mean(), abs=1e-6)


def test_acceptance_and_distortion_grow_with_the_budget():
    listed = independent_drafts(TOY.q, 1, 0), coupled_drafts(TOY.p, TOY.q, 1, 0)
    for drafts, outcome_of in zip(
        (*listed, all_triples(TOY.q)),
        (independent_outcome, coupled_outcome, independent_outcome),
        strict=True,
    ):
        budgets = (0.0, 0.1, 0.3, 0.9)
        outcomes = [outcome_of(CoupledRelaxed(6, b), TOY, drafts) for b in budgets]
        accepted = [x.acceptance for x in outcomes]
        assert distortion(outcomes[0]) < 1e-6 and outcomes[0].shift == 0
        assert (np.diff(accepted) > 0).all()
        for x in outcomes:
            w1 = wasserstein(x.output, TOY.p, TOY.codebook)
            assert w1 <= x.shift + 1e-6  # the mean shift bounds W1
            assert w1 <= 2 * distortion(x) + 1e-9
        assert distortion(outcomes[-1]) > 0.01


def test_wasserstein_on_a_line_is_the_area_between_cdfs():
    rng = np.random.default_rng(0)
    positions = np.sort(rng.normal(size=9))
    for _ in range(3):
        a, b = rng.dirichlet(np.ones(9), size=2)
        area = np.abs(np.cumsum(a - b))[:-1] @ np.diff(positions)
        assert wasserstein(a, b, positions[:, None]) == pytest.approx(area, abs=1e-7)
    tiny = np.append(np.eye(9)[0, :8] * 1e-9, -1e-9)
    assert wasserstein(a + tiny, a, positions[:, None]) < 1e-6
    assert wasserstein(a, a, positions[:, None]) == 0
