"""Drafts that a lossless verifier cannot verify exactly are refused, with advice."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.errors import ConfigError
from jaxspec.speculative.draft import Draft
from jaxspec.speculative.trees.tree import Tree
from jaxspec.speculative.verify import Block, Coupled, GreedySet, KSeq, Rejection
from tests.speculative.verify.lossless_cases import outcome_of


def some_draft(tree, selection):
    tree = Tree.named(tree)
    rng = np.random.default_rng(0)
    tokens = jnp.asarray(rng.integers(4, size=(2, tree.size)), jnp.int32)
    log_q = jnp.log(jnp.asarray(rng.dirichlet(np.ones(4), (2, len(tree.internal)))))
    valid = jnp.ones(tokens.shape, bool)
    return Draft(tokens, valid, log_q=log_q, selection=selection), tree


SAMPLED = [
    (Rejection(), "without_replacement"),
    (Rejection(), "with_replacement"),
    (KSeq(), "with_replacement"),
    (GreedySet(), "top_and_sample"),
]


def refuses(verifier, draft, tree, words):
    with pytest.raises(ConfigError, match=words):
        accepts(verifier, draft, tree)
    accepts(Coupled(), draft, tree)  # which accepts any draft


def accepts(verifier, draft, tree):
    log_p = jnp.zeros((2, tree.size, 4))
    jax.eval_shape(lambda draft: verifier.outcome(log_p, draft, tree), draft)


@pytest.mark.parametrize(
    "verifier, drawn, wanted",
    [
        (Rejection(), "top_and_sample", "without_replacement"),
        *((KSeq(), x, "with_replacement") for x in ("without_replacement", "top")),
        *((GreedySet(), x, "top_and_sample") for x in ("top", "with_replacement")),
        *((Block(), x, "without_replacement") for x in ("coupled", "top", "guess")),
    ],
    ids=str,
)
def test_refuses_candidates_chosen_in_another_way(verifier, drawn, wanted):
    words = f"{wanted}.* not {drawn}; set Engine.selection='{wanted}'.* or use Coupled"
    refuses(verifier, *some_draft("chain-2", drawn), words)
    assert verifier.selection == wanted


@pytest.mark.parametrize(
    "verifier, drawn", [*SAMPLED, (Block(), "without_replacement")], ids=str
)
def test_refuses_samples_that_were_dropped_because_of_their_value(verifier, drawn):
    draft, tree = some_draft("chain-2", drawn)
    wanted = jnp.array([[True, True, False]] * 2)
    accepts(verifier, draft.keep(wanted, past=True), tree)
    refuses(
        verifier, draft.keep(wanted, past=False), tree, "Stop after the token instead"
    )


@pytest.mark.parametrize("tree", ["1", "0,2", "0,1,00,02"])
@pytest.mark.parametrize("verifier, drawn", SAMPLED, ids=str)
def test_refuses_trees_that_skip_a_sample(verifier, drawn, tree):
    refuses(
        verifier, *some_draft(tree, drawn), "children of ranks 0, 1, .* without a gap"
    )


@pytest.mark.parametrize(
    "verifier, drawn", [*SAMPLED, (Block(), "without_replacement")], ids=str
)
def test_refuses_samples_of_an_unknown_distribution(verifier, drawn):
    draft, tree = some_draft("chain-2", drawn)
    refuses(verifier, replace(draft, log_q=None), tree, r"Draft\.log_q")


@pytest.mark.parametrize("tree", ["0,1", "0,00,01"])
def test_block_refuses_trees(tree):
    draft = some_draft(tree, "without_replacement")
    refuses(Block(), *draft, r"chains only; use Tree\.chain")


@pytest.mark.parametrize("drawn", ["guess", "top", "coupled"])
def test_rejection_verifies_given_tokens_in_any_tree(drawn):
    draft, tree = some_draft("0,2,00,22", drawn)
    draft = draft.keep(draft.tokens != 3, past=False)
    log_p = np.random.default_rng(2).normal(size=(2, tree.size, 4))
    one_by_one = outcome_of(Rejection(), log_p, replace(draft, log_q=None), tree)
    for part, wanted in zip(
        one_by_one, outcome_of(Coupled(), log_p, draft, tree), strict=True
    ):
        np.testing.assert_allclose(part, wanted, atol=1e-6)
