"""The output law of every lossless rule equals the target's; lies are caught."""

from dataclasses import dataclass, replace

import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.errors import ConfigError
from jaxspec.spec.envelopes import Beam, BestFirst, StochasticBeam
from jaxspec.spec.named_trees import named_tree
from jaxspec.spec.tree import Tree
from jaxspec.spec.verify import Block, Coupled, GreedySet, KSeq, Rejection
from jaxspec.spec.verify.law import Outcome
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
# (vocabulary, tree): deep, wide and mixed, all drafts of which can be listed.
SIZES = [
    (5, "chain-3"),
    (3, "0,1,00,01,10,000"),
    (5, "0,1,2,00"),
    (4, "0,1,00,000,001"),
]


def laws(vocab, length):
    """Pairs `(p, q)`: random, with zeros, one-hot, equal and disjoint."""
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


# Block judges chains alone.
JUDGED = [
    (verifier, vocab, tree)
    for verifier in VERIFIERS
    for vocab, tree in SIZES
    if tree.startswith("chain") or not isinstance(verifier, Block)
]


@pytest.mark.parametrize(("verifier", "vocab", "tree"), JUDGED, ids=str)
def test_the_output_law_is_the_targets(verifier, vocab, tree):
    tree = named_tree(tree)
    for p, q in laws(vocab, tree.depth + 1):
        assert_lossless(verifier, p, all_drafts(q, tree, verifier.selection), draws=0)


@pytest.mark.parametrize(
    ("verifier", "tree"),
    [
        (Rejection(), named_tree("0,1,00,01,10")),
        (Rejection("with_replacement"), named_tree("0,1,00,01,10")),
        (KSeq(), named_tree("0,1,00,01,10")),
        (GreedySet(), named_tree("0,1,2,00,01")),
        (Block(), Tree.chain(3)),
        (Rejection(), StochasticBeam(2, 3)),
        (Rejection(), BestFirst(7, 3, branch=3)),
        (Rejection("top"), Beam(7, 3, beam=4, branch=3)),
        (Coupled(), Beam(7, 3, beam=4, branch=3)),
    ],
    ids=str,
)
def test_drafts_as_the_library_draws_them_keep_the_law(verifier, tree):
    """Production drafters, sampled; the rule's law of each is exact."""
    rng = np.random.default_rng(0)
    steps = rng.dirichlet(np.full(4, 0.5), size=(tree.depth, 4))
    p = Conditionals.random(4, tree.depth + 1, 1)
    how = "top" if isinstance(tree, Beam) else verifier.selection
    assert_lossless(verifier, p, sampled_drafts(steps, tree, how, 20000), draws=0)


# What follows must fail: each is a mistake that was made somewhere.


def caught(verifier, p, drafts):
    with pytest.raises(AssertionError, match="is biased"):
        assert_lossless(verifier, p, drafts)


P = Conditionals.random(4, 3, 1)
Q = Conditionals.random(4, 3, 2)
CHAIN, PAIR = Tree.chain(2), named_tree("0,1")


def test_accepting_everything_is_caught():
    @dataclass(frozen=True)
    class AcceptAll(Rejection):
        def outcome(self, log_p, draft, tree, greedy=None, params=None):
            law = super().outcome(log_p, draft, tree, greedy, params)
            last = jnp.zeros_like(law.stop).at[:, tree.size - 1].set(1.0)
            return Outcome(last, law.final)

    caught(AcceptAll(), P, all_drafts(Q, CHAIN, "without_replacement"))


class Wrapped:
    """A rule with nothing but `verify`, which may be spoilt."""

    def __init__(self, verifier, always_last=False):
        self.verifier, self.always_last = verifier, always_last

    def verify(self, log_p, draft, tree, noise, params=None, features=None):
        verdict = self.verifier.verify(log_p, draft, tree, noise, params, features)
        if not self.always_last:
            return verdict
        shape, rows = draft.topology(tree), draft.tokens.shape[0]
        end = jnp.full(rows, tree.size - 1)
        last = jnp.take_along_axis(log_p, end[:, None, None], axis=1)[:, 0]
        token = jnp.argmax(last + noise.fresh.at(end), axis=-1)
        depth = jnp.full(rows, tree.depth)
        return replace(verdict, path=shape.path(end), accepted=depth, next_token=token)


@pytest.mark.parametrize("verifier", [Rejection(), Block(), Coupled()], ids=str)
def test_what_verify_draws_is_held_to_the_law_too(verifier):
    """A rule with an honest law that acts otherwise, and one that has no law at all."""
    drafts = all_drafts(Q, CHAIN, verifier.selection)
    assert_lossless(verifier, P, drafts)
    assert_lossless(Wrapped(verifier), P, drafts)
    cheat = Wrapped(verifier, always_last=True)
    with pytest.raises(AssertionError, match="verify is biased"):
        assert_lossless(cheat, P, drafts)
    cheat.outcome = verifier.outcome
    assert_lossless(cheat, P, drafts, draws=0)
    with pytest.raises(AssertionError, match="verify is biased"):
        assert_lossless(cheat, P, drafts)


def test_a_rule_or_target_that_cannot_be_enumerated_says_why():
    drafts = all_drafts(Q, CHAIN, "without_replacement")
    with pytest.raises(ConfigError, match="Wrapped has no `outcome`"):
        assert_lossless(Wrapped(Rejection()), P, drafts, draws=0)
    short = Conditionals(P.tables[:2])
    with pytest.raises(ConfigError, match="2 tokens long; a tree of depth 2 needs 3"):
        assert_lossless(Rejection(), short, drafts)


def test_a_lie_about_q_is_caught():
    drafts = all_drafts(Q, CHAIN, "without_replacement")
    flat = jnp.full_like(drafts.draft.log_q, -np.log(4))
    lying = replace(drafts, draft=replace(drafts.draft, log_q=flat))
    for verifier in (Rejection(), Block()):
        assert_lossless(verifier, P, drafts)
        caught(verifier, P, lying)


def test_argmax_drafts_that_pass_for_samples_are_caught():
    """The bias of a peer library: drafts by argmax, corrected as if drawn from q."""
    drafts = all_drafts(Q, CHAIN, "top")
    lying = replace(
        drafts, draft=replace(drafts.draft, selection="without_replacement")
    )
    assert_lossless(Rejection("top"), P, drafts)
    caught(Rejection(), P, lying)


@pytest.mark.parametrize("tree", ["chain-2", "0,1,00"])
def test_dropping_a_sample_for_what_it_is_is_caught(tree):
    tree = named_tree(tree)
    drafts = all_drafts(Q, tree, "without_replacement")
    tokens = np.asarray(drafts.draft.tokens)
    unlikely = (tokens == Q.tables[0].argmin()) & (tree.depths == 1)
    pruned = replace(drafts, draft=drafts.draft.keep(~jnp.asarray(unlikely), past=True))
    caught(Rejection(), P, pruned)  # `past=True` is the lie
    honest = replace(
        drafts, draft=drafts.draft.keep(~jnp.asarray(unlikely), past=False)
    )
    assert_lossless(Coupled(), P, honest)
    # Stopping after the token is decided from the past, and is exact.
    after = unlikely[:, np.maximum(tree.parents, 0)] & (tree.depths == 2)
    stopped = replace(drafts, draft=drafts.draft.keep(~jnp.asarray(after), past=True))
    assert_lossless(Rejection(), P, stopped)
    if tree.width == 1:
        assert_lossless(Block(), P, stopped)


def test_one_draw_for_each_path_is_caught():
    """A draw for each path instead of each node: (.5, .3, .2) becomes (.675, ...)."""

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
    caught(PathDraws(), p, drafts)
    assert distortion(PathDraws(), p, drafts) > 0.05


def test_batches_in_lockstep_are_caught():
    """Rows cut to the shortest of the batch, their next token drawn from a residual."""

    @dataclass(frozen=True)
    class Lockstep(Rejection):
        def outcome(self, log_p, draft, tree, greedy=None, params=None):
            law = super().outcome(log_p, draft, tree, greedy, params)
            # A neighbor that accepts 0, 1 or 2 tokens with equal chances.
            at_least = jnp.array([1.0, 2 / 3, 1 / 3])
            own = jnp.cumsum(law.stop[:, ::-1], axis=1)[:, ::-1]
            both = own * at_least
            stop = both - jnp.pad(both[:, 1:], ((0, 0), (0, 1)))
            return Outcome(stop, law.final)

    caught(Lockstep(), P, all_drafts(Q, CHAIN, "without_replacement"))


def test_a_biased_rule_is_caught_on_sampled_drafts_too():
    steps = np.stack([np.broadcast_to(Q.tables[0], (4, 4))] * 2)
    drafts = sampled_drafts(steps, CHAIN, "without_replacement", 20000)
    assert_lossless(Rejection(), P, drafts)
    flat = jnp.full_like(drafts.draft.log_q, -np.log(4))
    caught(Rejection(), P, replace(drafts, draft=replace(drafts.draft, log_q=flat)))
    # Samples that were then chosen by their probability.
    likely = Q.tables[0][np.asarray(drafts.draft.tokens)] > 0.2
    kept = drafts.draft.keep(jnp.asarray(likely), past=True)
    caught(Rejection(), P, replace(drafts, draft=kept))
