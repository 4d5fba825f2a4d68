"""Output distributions of lossless verifiers, and mistakes that must be caught."""

from dataclasses import dataclass, replace

import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.errors import ConfigError
from jaxspec.speculative.trees.dynamic import Beam, BestFirst, StochasticBeam
from jaxspec.speculative.trees.tree import Tree
from jaxspec.speculative.verify import Block, Coupled, GreedySet, KSeq, Rejection
from jaxspec.speculative.verify.outcome import Outcome
from jaxspec.testing.drafts import Conditionals, all_drafts, sampled_drafts
from jaxspec.testing.enumeration import assert_lossless, distortion

VERIFIERS = [
    Coupled(),
    Rejection("without_replacement"),
    Rejection("with_replacement"),
    Rejection("top"),
    KSeq(),
    GreedySet(),
    Block(),
]
# Vocabulary and tree: deep, wide and mixed, small enough to enumerate all drafts.
SIZES = [
    (5, "chain-3"),
    (3, "0,1,00,01,10,000"),
    (5, "0,1,2,00"),
    (4, "0,1,00,000,001"),
]


def distribution_pairs(vocab, length):
    """Pairs of target and drafter: random, with zeros, one-hot, equal and disjoint."""
    random = [
        (
            Conditionals.random(vocab, length, seed, zeros=zeros),
            Conditionals.random(vocab, length, 50 + seed, zeros=zeros),
        )
        for seed, zeros in ((0, 0.0), (1, 0.0), (2, 0.4), (3, 0.6))
    ]
    same = Conditionals.random(vocab, length, 7)
    sharp = Conditionals.constant(np.eye(vocab)[1], length)
    other = Conditionals.constant(np.eye(vocab)[0], length)
    half = np.arange(vocab) < vocab // 2
    low = Conditionals.constant(half / half.sum(), length)
    high = Conditionals.constant(~half / (~half).sum(), length)
    return [
        *random,
        (same, same),
        (sharp, same),
        (same, sharp),
        (sharp, sharp),
        (sharp, other),
        (low, high),
    ]


# Block verification is for chains only.
CASES = [
    (verifier, vocab, tree)
    for verifier in VERIFIERS
    for vocab, tree in SIZES
    if tree.startswith("chain") or not isinstance(verifier, Block)
]


@pytest.mark.variants(5)
@pytest.mark.parametrize(("verifier", "vocab", "tree"), CASES, ids=str)
def test_the_output_distribution_is_the_targets(verifier, vocab, tree):
    tree = Tree.named(tree)
    for p, q in distribution_pairs(vocab, tree.depth + 1):
        assert_lossless(verifier, p, all_drafts(q, tree, verifier.selection), draws=0)


@pytest.mark.variants(1)
@pytest.mark.parametrize(
    ("verifier", "tree"),
    [
        (Rejection(), Tree.named("0,1,00,01,10")),
        (Rejection("with_replacement"), Tree.named("0,1,00,01,10")),
        (KSeq(), Tree.named("0,1,00,01,10")),
        (GreedySet(), Tree.named("0,1,2,00,01")),
        (Block(), Tree.chain(3)),
        (Rejection(), StochasticBeam(2, 3)),
        (Rejection(), BestFirst(7, 3, branch=3)),
        (Rejection("top"), Beam(7, 3, beam=4, branch=3)),
        (Coupled(), Beam(7, 3, beam=4, branch=3)),
    ],
    ids=str,
)
def test_drafts_sampled_by_the_library_keep_the_distribution(verifier, tree):
    """Sampled drafts; the distribution of the outcome is exact for each."""
    rng = np.random.default_rng(0)
    steps = rng.dirichlet(np.full(4, 0.5), size=(tree.depth, 4))
    p = Conditionals.random(4, tree.depth + 1, 1)
    selection = "top" if isinstance(tree, Beam) else verifier.selection
    assert_lossless(verifier, p, sampled_drafts(steps, tree, selection, 20000), draws=0)


# Mistakes of published implementations, each of which must be caught.


def assert_biased(verifier, p, drafts):
    with pytest.raises(AssertionError, match="is biased"):
        assert_lossless(verifier, p, drafts)


P = Conditionals.random(4, 3, 1)
Q = Conditionals.random(4, 3, 2)
CHAIN, PAIR = Tree.chain(2), Tree.named("0,1")


def test_accepting_everything_is_caught():
    @dataclass(frozen=True)
    class AcceptAll(Rejection):
        def outcome(self, log_p, draft, tree, greedy=None, params=None):
            outcome = super().outcome(log_p, draft, tree, greedy, params)
            last = jnp.zeros_like(outcome.stop).at[:, tree.size - 1].set(1.0)
            return Outcome(last, outcome.final)

    assert_biased(AcceptAll(), P, all_drafts(Q, CHAIN, "without_replacement"))


class Wrapped:
    """Verifier with `verify` only, which can be made to accept everything."""

    def __init__(self, verifier, always_last=False):
        self.verifier, self.always_last = verifier, always_last

    def verify(self, log_p, draft, tree, noise, params=None, features=None):
        verdict = self.verifier.verify(log_p, draft, tree, noise, params, features)
        if not self.always_last:
            return verdict
        topology, batch = draft.topology(tree), draft.tokens.shape[0]
        end = jnp.full(batch, tree.size - 1)
        last = jnp.take_along_axis(log_p, end[:, None, None], axis=1)[:, 0]
        token = jnp.argmax(last + noise.fresh.at(end), axis=-1)
        path, depth = topology.path(end), jnp.full(batch, tree.depth)
        return replace(verdict, path=path, accepted=depth, next_token=token)


@pytest.mark.variants(1)
@pytest.mark.parametrize("verifier", [Rejection(), Block(), Coupled()], ids=str)
def test_verify_is_checked_as_well_as_outcome(verifier):
    """One verifier differs in `verify` and `outcome`, another has no `outcome`."""
    drafts = all_drafts(Q, CHAIN, verifier.selection)
    assert_lossless(verifier, P, drafts)
    assert_lossless(Wrapped(verifier), P, drafts)
    biased = Wrapped(verifier, always_last=True)
    with pytest.raises(AssertionError, match="verify is biased"):
        assert_lossless(biased, P, drafts)
    biased.outcome = verifier.outcome
    assert_lossless(biased, P, drafts, draws=0)
    with pytest.raises(AssertionError, match="verify is biased"):
        assert_lossless(biased, P, drafts)


def test_verifiers_and_targets_that_cannot_be_enumerated_are_refused():
    drafts = all_drafts(Q, CHAIN, "without_replacement")
    with pytest.raises(ConfigError, match="Wrapped has no `outcome`"):
        assert_lossless(Wrapped(Rejection()), P, drafts, draws=0)
    short = Conditionals(P.tables[:2])
    with pytest.raises(ConfigError, match="2 tokens long; a tree of depth 2 needs 3"):
        assert_lossless(Rejection(), short, drafts)


def test_a_wrong_log_q_is_caught():
    drafts = all_drafts(Q, CHAIN, "without_replacement")
    flat = jnp.full_like(drafts.draft.log_q, -np.log(4))
    wrong = replace(drafts, draft=replace(drafts.draft, log_q=flat))
    for verifier in (Rejection(), Block()):
        assert_lossless(verifier, P, drafts)
        assert_biased(verifier, P, wrong)


def test_argmax_drafts_verified_as_samples_are_caught():
    """Drafts by argmax that are verified as samples from q."""
    drafts = all_drafts(Q, CHAIN, "top")
    wrong = replace(
        drafts, draft=replace(drafts.draft, selection="without_replacement")
    )
    assert_lossless(Rejection("top"), P, drafts)
    assert_biased(Rejection(), P, wrong)


@pytest.mark.variants(1)
@pytest.mark.parametrize("tree", ["chain-2", "0,1,00"])
def test_dropping_a_sample_because_of_its_value_is_caught(tree):
    tree = Tree.named(tree)
    drafts = all_drafts(Q, tree, "without_replacement")
    tokens = np.asarray(drafts.draft.tokens)
    unlikely = (tokens == Q.tables[0].argmin()) & (tree.depths == 1)
    pruned = replace(drafts, draft=drafts.draft.keep(~jnp.asarray(unlikely), past=True))
    assert_biased(Rejection(), P, pruned)  # `past=True` is wrong
    declared = replace(
        drafts, draft=drafts.draft.keep(~jnp.asarray(unlikely), past=False)
    )
    assert_lossless(Coupled(), P, declared)
    # Dropping the children of the token depends on the past only, and is exact.
    after = unlikely[:, np.maximum(tree.parents, 0)] & (tree.depths == 2)
    stopped = replace(drafts, draft=drafts.draft.keep(~jnp.asarray(after), past=True))
    assert_lossless(Rejection(), P, stopped)
    if tree.width == 1:
        assert_lossless(Block(), P, stopped)


def test_one_sample_for_each_path_is_caught():
    """One sample per path instead of per node: (.5, .3, .2) becomes (.675, ...)."""

    @dataclass(frozen=True)
    class PathDraws(Rejection):
        def outcome(self, log_p, draft, tree, greedy=None, params=None):
            p = jnp.exp(log_p[:, 0])
            stop, missed = [], 1.0
            for n in range(1, tree.size):
                chance = jnp.take_along_axis(p, draft.tokens[:, n : n + 1], 1)[:, 0]
                stop.append(missed * chance)
                missed = missed * (1 - chance)
            return Outcome(jnp.stack([missed, *stop], axis=1), jnp.exp(log_p))

    p = Conditionals.constant([0.5, 0.3, 0.2], 2)
    drafts = all_drafts(Conditionals.constant([0.5, 0.3, 0.2], 1), PAIR, "top")
    assert_biased(PathDraws(), p, drafts)
    assert distortion(PathDraws(), p, drafts) > 0.05


def test_batches_in_lockstep_are_caught():
    """Sequences cut to the shortest of the batch, with a next token from a residual."""

    @dataclass(frozen=True)
    class Lockstep(Rejection):
        def outcome(self, log_p, draft, tree, greedy=None, params=None):
            outcome = super().outcome(log_p, draft, tree, greedy, params)
            # Another sequence accepts 0, 1 or 2 tokens with equal probability.
            at_least = jnp.array([1.0, 2 / 3, 1 / 3])
            survival = jnp.cumsum(outcome.stop[:, ::-1], axis=1)[:, ::-1]
            both = survival * at_least
            stop = both - jnp.pad(both[:, 1:], ((0, 0), (0, 1)))
            return Outcome(stop, outcome.final)

    assert_biased(Lockstep(), P, all_drafts(Q, CHAIN, "without_replacement"))


def test_a_biased_verifier_is_caught_on_sampled_drafts_too():
    steps = np.stack([np.broadcast_to(Q.tables[0], (4, 4))] * 2)
    drafts = sampled_drafts(steps, CHAIN, "without_replacement", 20000)
    assert_lossless(Rejection(), P, drafts)
    flat = jnp.full_like(drafts.draft.log_q, -np.log(4))
    assert_biased(
        Rejection(), P, replace(drafts, draft=replace(drafts.draft, log_q=flat))
    )
    # Samples that are then selected by their probability.
    likely = Q.tables[0][np.asarray(drafts.draft.tokens)] > 0.2
    selected = drafts.draft.keep(jnp.asarray(likely), past=True)
    assert_biased(Rejection(), P, replace(drafts, draft=selected))
