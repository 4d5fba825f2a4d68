"""Adaptive drafts: exactness, and policies that are refused."""

from dataclasses import dataclass, replace
from math import inf, log, nan

import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.drafters.combine.adaptive import (
    ConfidenceCutoff,
    EntropyCutoff,
    LengthController,
)
from jaxspec.drafters.dflash.acceptance_head import AcceptanceHead
from jaxspec.errors import ConfigError
from jaxspec.speculative.trees.dynamic import BestFirst, StochasticBeam
from jaxspec.speculative.trees.tree import Tree
from jaxspec.speculative.verify import Block, Rejection
from jaxspec.testing.drafts import Conditionals, all_drafts, sampled_drafts
from jaxspec.testing.enumeration import assert_lossless, distortion, output_distribution
from tests.drafters.policies import (
    BUSHY,
    CHAIN,
    DRAWN,
    DROPPING,
    GIVEN,
    PAST,
    VOCAB,
    P,
    Q,
    cut,
    drafts_of,
    ids,
)


@pytest.mark.parametrize("policies", PAST, ids=ids)
def test_stopping_after_a_token_leaves_every_verifier_exact(policies):
    for verifier, tree in DRAWN + GIVEN:
        drafts = drafts_of(verifier, tree)
        short = cut(drafts.draft, tree, *policies)
        assert short.pruned_by == "past"
        dropped, deep = np.asarray(drafts.draft.valid & ~short.valid), tree.depths > 1
        assert dropped.any() and np.asarray(short.valid)[:, deep].any()
        assert_lossless(verifier, P, replace(drafts, draft=short), draws=0)


@pytest.mark.parametrize("policy", DROPPING, ids=ids)
def test_dropping_a_token_because_of_its_value_is_refused_where_it_would_bias(policy):
    for verifier, tree in DRAWN:
        drafts = drafts_of(verifier, tree)
        short = cut(drafts.draft, tree, policy)
        with pytest.raises(ConfigError, match="keep_trigger=True"):
            output_distribution(verifier, P, replace(drafts, draft=short))
        # A later policy that uses only ancestors does not undo the bias.
        with pytest.raises(ConfigError, match="keep_trigger=True"):
            later = cut(short, tree, EntropyCutoff(inf))
            output_distribution(verifier, P, replace(drafts, draft=later))
        mislabeled = replace(drafts, draft=replace(short, pruned_by="past"))
        with pytest.raises(AssertionError, match="is biased"):
            assert_lossless(verifier, P, mislabeled, draws=0)
        assert distortion(verifier, P, mislabeled) > 1e-3
    for verifier, tree in GIVEN:
        drafts = drafts_of(verifier, tree)
        dropped = cut(drafts.draft, tree, policy)
        assert dropped.pruned_by == "token"
        assert_lossless(verifier, P, replace(drafts, draft=dropped), draws=0)


def test_dropping_unlikely_tokens_has_the_known_bias():
    """(.5, .3, .2) drafted by (.6, .3, .1), dropped below .2, is (.55, .33, .12)."""
    tree = Tree.chain(1)
    p = Conditionals.constant([0.5, 0.3, 0.2], 2)
    q = Conditionals.constant([0.6, 0.3, 0.1], 2)
    drafts = all_drafts(q, tree, "without_replacement")
    dropping = ConfidenceCutoff(0.2, keep_trigger=False, least_length=0)
    short = replace(cut(drafts.draft, tree, dropping), pruned_by="past")
    distribution = output_distribution(
        Rejection(), p, replace(drafts, draft=short)
    ).sum(axis=1)
    np.testing.assert_allclose(distribution, [0.55, 0.33, 0.12], atol=1e-6)


def test_keeping_a_chain_because_of_its_end_is_caught():
    """A policy declared `past_only` that drops whole drafts of low probability."""

    @dataclass(frozen=True)
    class AllOrNothing(ConfidenceCutoff):
        def keep(self, state, draft, ctx):
            along_path = draft.topology(ctx.tree).cumprod_path(
                self._confidence_of(draft, ctx)
            )
            return jnp.broadcast_to(
                along_path[:, -1:] >= self.least, along_path.shape
            ), state

        def _confidence_of(self, draft, ctx):
            shape = draft.topology(ctx.tree)
            return self._confidence(shape, draft).at[:, 0].set(1.0)

    for verifier in (Rejection(), Block()):
        drafts = drafts_of(verifier, CHAIN)
        short = cut(drafts.draft, CHAIN, AllOrNothing(0.05))
        with pytest.raises(AssertionError, match="is biased"):
            assert_lossless(verifier, P, replace(drafts, draft=short), draws=0)


@pytest.mark.variants(1)
@pytest.mark.parametrize(
    "tree", [StochasticBeam(3, 2), BestFirst(6, 3, branch=2)], ids=str
)
def test_dynamic_drafts_stay_exact(tree):
    steps = np.random.default_rng(0).dirichlet(np.full(VOCAB, 0.5), size=(3, VOCAB))
    drafts = sampled_drafts(steps, tree, "without_replacement", 4000)
    for policy in (EntropyCutoff(0.8), ConfidenceCutoff(0.3), LengthController(1, 2)):
        short = cut(drafts.draft, tree, policy)
        assert (drafts.draft.valid & ~short.valid).any()
        assert_lossless(Rejection(), P, replace(drafts, draft=short), draws=0)
    dropping = ConfidenceCutoff(0.3, keep_trigger=False, least_length=0)
    mislabeled = replace(cut(drafts.draft, tree, dropping), pruned_by="past")
    with pytest.raises(AssertionError, match="is biased"):
        assert_lossless(Rejection(), P, replace(drafts, draft=mislabeled), draws=0)


def depends_on_later(draft, tree, n, policies, seed):
    """Whether a policy's decision on node `n` depends on more than its ancestors."""
    rng = np.random.default_rng(seed)
    later = ~tree.ancestors[n] | (np.arange(tree.size) == n)
    tokens = rng.integers(VOCAB, size=draft.tokens.shape)
    confidence = rng.random(draft.tokens.shape)
    log_q = np.log(rng.dirichlet(np.ones(VOCAB), size=draft.log_q.shape[:2]))
    other = replace(
        draft,
        tokens=jnp.where(later, tokens, draft.tokens),
        confidence=jnp.where(later, confidence, draft.confidence),
        log_q=jnp.where(later[tree.internal][:, None], log_q, draft.log_q),
    )
    before, after = (cut(x, tree, *policies).valid[:, n] for x in (draft, other))
    return bool((before != after).any())


@pytest.mark.parametrize("policies", PAST, ids=ids)
def test_decisions_depend_on_ancestors_only(policies):
    draft = drafts_of(Rejection(), BUSHY).draft
    for n in range(1, BUSHY.size):
        assert not depends_on_later(draft, BUSHY, n, policies, n)


def test_the_same_check_detects_a_policy_that_uses_the_token():
    draft = drafts_of(Rejection(), BUSHY).draft
    for policy in (DROPPING[0], DROPPING[2]):
        assert depends_on_later(draft, BUSHY, 1, (policy,), 0)


def test_policies_keep_the_nodes_of_their_formula():
    """Compares with plain Python, node by node."""
    drafts = drafts_of(Rejection(), BUSHY)
    tokens = np.asarray(drafts.draft.tokens)
    head = np.asarray(drafts.draft.confidence, np.float64)

    def entropy(q):
        return -sum(x * log(x) for x in q if x > 0)

    def keeps(b, n, policy):
        path = [m for m in range(tree.size) if tree.ancestors[n, m]]  # root first
        words = [tokens[b, m] for m in path]
        qs = [Q.tables[d][tuple(words[1 : d + 1])] for d in range(len(path))]
        if isinstance(policy, EntropyCutoff):
            return all(entropy(q) <= policy.most for q in qs[:-1])
        used = path[1:-1] if policy.keep_trigger else path[1:]
        chance = 1.0
        for d, m in enumerate(used):
            q = qs[d][tokens[b, m]]
            chance *= head[b, m] if policy.source == "head" else q
        return chance >= policy.least or len(path) - 1 <= policy.least_length

    tree = BUSHY
    policies = [policy for group in PAST for policy in group] + DROPPING
    for policy in policies:
        if isinstance(policy, LengthController):
            continue
        got = np.asarray(cut(drafts.draft, tree, policy).valid)
        want = np.array(
            [
                [keeps(b, n, policy) for n in range(tree.size)]
                for b in range(0, len(tokens), 7)
            ]
        )
        valid = np.asarray(drafts.draft.valid)[::7]
        np.testing.assert_array_equal(got[::7], want & valid)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: EntropyCutoff(-0.1), "most=-0.1"),
        (lambda: EntropyCutoff(nan), "most=nan"),
        (lambda: ConfidenceCutoff(-0.1), "least=-0.1"),
        (lambda: ConfidenceCutoff(1.1), "least=1.1"),
        (lambda: ConfidenceCutoff(nan), "least=nan"),
        (lambda: ConfidenceCutoff(0.5, "p"), "source='p'"),
        (lambda: ConfidenceCutoff(0.5, least_length=-1), "least_length=-1"),
        (lambda: LengthController(0), "1 <= least"),
        (lambda: LengthController(31), "least <= most"),
        (lambda: LengthController(decay=1.0), "decay"),
        (lambda: LengthController(decay=-0.5), "decay"),
        (lambda: LengthController(decay=nan), "decay"),
        (lambda: LengthController(step=-1), "step"),
        (lambda: LengthController(end_token=-1), "end_token"),
        (lambda: AcceptanceHead(0), "positive width"),
        (lambda: AcceptanceHead(4, layers=-1), "layers"),
    ],
)
def test_invalid_settings_raise(make, words):
    with pytest.raises(ConfigError, match=words):
        make()
