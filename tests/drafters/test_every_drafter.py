"""Whatever drafts: the tokens are those of plain decoding, the cache is like new."""

import jax.numpy as jnp
import pytest

from jaxspec.drafters.jacobi import Jacobi
from jaxspec.drafters.ngram import NgramTable
from jaxspec.drafters.prompt_lookup import PromptLookup
from jaxspec.drafters.recycling import TokenRecycling
from jaxspec.drafters.union import Union
from jaxspec.spec.envelopes import Beam, BestFirst
from jaxspec.spec.named_trees import named_tree
from jaxspec.spec.sampling import make_sampling
from jaxspec.spec.state import make_limits
from jaxspec.spec.tree import Tree
from jaxspec.testing.properties import (
    assert_fresh_cache,
    assert_same_tokens,
    run_rounds,
)
from jaxspec.testing.toy import toy_params, toy_target

VOCAB, LENGTH, ROWS = 6, 24, 3
PARAMS = toy_params(VOCAB, 60)
PROMPT = jnp.array([[1, 2, 3, 1], [4, 4, -1, -1], [0, -1, -1, -1]])
BUSHY = named_tree("0,1,2,00,01,10,000")
BOTH = Union(PromptLookup(), Jacobi(VOCAB), Tree.chain(3), named_tree("0,1,00"))
DRAFTERS = {
    "jacobi, uniform": (Jacobi(VOCAB, "uniform"), BUSHY),
    "jacobi, last": (Jacobi(VOCAB), BUSHY),
    "jacobi, repeat": (Jacobi(VOCAB, "repeat"), Tree.chain(5)),
    "jacobi, grown": (Jacobi(VOCAB), Beam(9, 3, beam=4, branch=3)),
    "recycling": (TokenRecycling(VOCAB, 4), BUSHY),
    "recycling, a table a row": (TokenRecycling(VOCAB, 4, False), BestFirst(8, 3)),
    "prompt lookup": (PromptLookup(), named_tree("0,1,00,10,000")),
    "n-grams": (NgramTable(VOCAB, buckets=64, width=4), BUSHY),
    "n-grams of a grid": (NgramTable(VOCAB, (1, 4), 64, 4), BestFirst(8, 3)),
    "union": (BOTH, BOTH.tree),
}
SETTINGS = {
    "temperature": [1.0, 0.0, 0.7],
    "guidance": [2.0, 0.5, 1.0],
    "top_k": [0, 0, 4],
}


@pytest.mark.parametrize("name", DRAFTERS)
def test_the_same_tokens_as_plain_decoding(name):
    drafter, tree = DRAFTERS[name]
    assert_same_tokens(
        toy_target(VOCAB, 2),
        PARAMS,
        drafter,
        None,
        tree,
        PROMPT,
        length=LENGTH,
        rows=ROWS,
        sampling=make_sampling(ROWS, **SETTINGS),
        limits=make_limits(ROWS, [LENGTH, 11, LENGTH], stop=[5, -1, -1]),
        seed=3,
    )


@pytest.mark.parametrize("name", DRAFTERS)
def test_the_cache_is_that_of_a_fresh_pass(name):
    drafter, tree = DRAFTERS[name]
    engine, state = run_rounds(
        toy_target(VOCAB, 1),
        PARAMS,
        drafter,
        None,
        tree,
        PROMPT,
        length=LENGTH,
        rows=ROWS,
        sampling=make_sampling(ROWS, temperature=0.3),
    )
    assert_fresh_cache(engine, PARAMS, PROMPT, state)
