"""Drafts with invalid nodes and with repeated tokens."""

from dataclasses import replace
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.core.noise import batch_keys, draw_noise
from jaxspec.speculative.draft import Draft
from jaxspec.speculative.trees.tree import Tree
from jaxspec.speculative.verify import Coupled, Rejection
from jaxspec.testing.drafts import Conditionals, Drafts, all_drafts
from jaxspec.testing.enumeration import assert_lossless
from tests.speculative.verify.lossless_cases import EVERY_VERIFIER, compiled


@pytest.mark.variants(2)
@EVERY_VERIFIER
def test_invalid_nodes_are_never_kept_and_cause_no_bias(verifier, selection, tree):
    """Nodes are dropped for reasons that do not depend on their tokens.

    The content of such a node has no effect, be it the target's own token or no token.
    """
    tree = Tree.named(tree)
    p, q = Conditionals.random(3, 3, 4), Conditionals.random(3, 2, 5, zeros=0.3)
    drafts = all_drafts(q, tree, selection)
    outcome = jax.jit(lambda log_p, draft: verifier.outcome(log_p, draft, tree))
    rows = len(drafts.chance)
    flat = jnp.zeros((rows, tree.size, 3))
    positions = jnp.tile(jnp.arange(tree.depth + 1), (rows, 1))
    noise = draw_noise(batch_keys(1, rows), positions, tree.size, 3)
    for absent in range(1, tree.size):
        wanted = jnp.arange(tree.size) != absent
        draft = drafts.draft.keep(jnp.broadcast_to(wanted, flat.shape[:2]), past=True)
        assert_lossless(verifier, p, replace(drafts, draft=draft), draws=0)
        gone = tree.ancestors[:, absent]
        stop = np.asarray(outcome(flat, draft).stop)
        assert (stop[:, gone] == 0).all()
        verdict = compiled(verifier, "verify", tree)(flat, draft, noise)
        assert not gone[np.asarray(verdict.path)].any()
        np.testing.assert_allclose(stop.sum(-1), 1, atol=1e-5)
        # Without its token, the distribution is the same, and so is the outcome, except
        # where the next child is sampled from what that token left.
        empty = replace(draft, tokens=jnp.where(wanted, draft.tokens, -1))
        assert_lossless(verifier, p, replace(drafts, draft=empty), draws=0)
        if selection != "top_and_sample":
            np.testing.assert_array_equal(outcome(flat, empty).stop, stop)


def test_given_children_may_repeat_a_token():
    """All tokens on all siblings, many of them equal, with equal probability."""
    tree, vocab = Tree.named("0,1,2,00"), 3
    rows = np.array(list(product(range(vocab), repeat=tree.size - 1)), np.int32)
    tokens = jnp.asarray(np.pad(rows, ((0, 0), (1, 0))))
    draft = Draft(tokens, jnp.ones_like(tokens, bool))
    assert (tokens[:, 1] == tokens[:, 2]).any()
    drafts = Drafts(draft, np.full(len(rows), 1 / len(rows)), tree, True)
    p = Conditionals.random(vocab, 3, 6, zeros=0.2)
    for verifier in (Rejection(), Coupled()):
        assert_lossless(verifier, p, drafts, draws=0)
    # The control: equal siblings declared as independent samples.
    log_q = jnp.full((len(rows), len(tree.internal), vocab), -np.log(vocab))
    repeated = rows.copy()
    repeated[:, 1] = repeated[:, 0]
    repeated = jnp.asarray(np.pad(repeated, ((0, 0), (1, 0))))
    mislabeled = Draft(repeated, draft.valid, log_q=log_q, selection="with_replacement")
    with pytest.raises(AssertionError, match="is biased"):
        assert_lossless(
            Rejection(),
            Conditionals.random(vocab, 3, 6),
            replace(drafts, draft=mislabeled),
            draws=0,
        )
