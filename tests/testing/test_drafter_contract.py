"""Checks of drafters: correct ones pass, and each fault is named."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest

from jaxspec.drafters import (
    DraftModel,
    GridJacobi,
    Jacobi,
    PromptLookup,
    TokenRecycling,
)
from jaxspec.errors import ConfigError
from jaxspec.speculative.trees.dynamic import Beam
from jaxspec.testing import TableDrafter, check_drafter
from jaxspec.testing.toy import toy_params, toy_target
from tests.drafters.tiny import FEATURES, TARGET, feature_params, target_params
from tests.testing.broken_drafters import (
    TREE,
    VOCAB,
    Incomplete,
    Modest,
    Mutable,
    Shallow,
    SumDrafter,
    params,
)
from tests.testing.sentences import sentences

PARAMS, PROMPT = toy_params(VOCAB, 60), jnp.array([[1, 2, 3], [4, 0, 6], [2, 2, 1]])
TOY = {"target": toy_target(VOCAB), "target_params": PARAMS, "prompt": PROMPT}
TABLE = {"table": jax.random.normal(jax.random.key(3), (3, VOCAB, VOCAB), jnp.float32)}

CORRECT = {
    "with a state": (SumDrafter(), params(), {}),
    "a table": (TableDrafter(), TABLE, {}),
    "a model": (DraftModel(toy_target(VOCAB)), toy_params(VOCAB, 60, seed=1), {}),
    "the target": (DraftModel(toy_target(VOCAB)), PARAMS, {}),
    "jacobi": (Jacobi(VOCAB), None, {"depends_on": "rounds"}),
    "grid jacobi": (GridJacobi(VOCAB, 5, "halton"), None, {"depends_on": "rounds"}),
    "prompt lookup": (PromptLookup(), None, {}),
    "recycling": (TokenRecycling(VOCAB, 4), None, {"depends_on": "rounds"}),
    "a beam": (TableDrafter(), TABLE, {"tree": Beam(9, 3, beam=4, branch=3)}),
}


@pytest.mark.variants(1)
@pytest.mark.parametrize(("drafter", "own", "options"), CORRECT.values(), ids=CORRECT)
def test_a_correct_drafter_passes(drafter, own, options):
    check_drafter(drafter, own, **TOY, **options)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["eagle-1", "medusa", "block", "kangaroo", "falcon"])
def test_a_trained_drafter_passes(name):
    from jaxspec.models.transformer.model import Transformer

    drafter, _ = FEATURES[name]
    check_drafter(
        drafter,
        feature_params(name),
        target=Transformer(TARGET).as_target(),
        target_params=target_params(),
        prompt=jnp.array([0, 2, 1]),
        length=12,
    )


STATIC = {
    "a class": (SumDrafter, "SumDrafter is a class; pass an instance"),
    "no observe": (Incomplete(), "has no function `observe`"),
    "not hashable": (Mutable(), "not hashable"),
    "too deep": (Shallow(), "max_depth is 3, but a chain of 3 fails"),
    "too modest": (Modest(), "max_depth is 2, but check_tree accepts a chain of 3"),
}
SHAPES = {
    "one state more": r"the first axis is the batch, 3 or 3",
    "propose raises": "propose raises ValueError: no such round",
    "observe raises": "observe raises ValueError: no such path",
    "other sizes": r"Draft.valid is bool \[3, 5\]; a tree of 6 nodes needs",
    "half": "log_q is bfloat16; use float32",
    "grows": r"its state is another than that of init: float32\[3, 12\]",
    "float": r"int32\[3\] at \[1\]",
}


@pytest.mark.parametrize(("drafter", "words"), STATIC.values(), ids=STATIC)
def test_objects_that_are_no_drafters_are_named(drafter, words):
    tree = TREE if isinstance(drafter, Modest) else None
    assert words in sentences(check_drafter, drafter, params(), **TOY, tree=tree)[0]


@pytest.mark.parametrize(("fault", "words"), SHAPES.items(), ids=SHAPES)
def test_wrong_shapes_are_named_before_anything_runs(fault, words):
    with pytest.raises(ConfigError, match=words):
        check_drafter(SumDrafter(fault), params(), **TOY, tree=TREE)


VALUES = {
    "unknown tokens": "Draft.tokens has 7 at node 1",
    "logits": "probabilities with sum 2.718, not 1",
    "reversed": "log_q is reversed",
    "late": "log_q is one entry too late",
    "samples": "selection is 'coupled', but node",
    "no shared noise": "it is by the selection 'top': declare that",
    "takes the top": "but the children are the likeliest tokens",
    "shared noise": "the tokens change with ctx.noise",
    "with replacement": "deviate from log_q by",
    "prunes by token": "drop none because of its token",
    "no probabilities": "but log_q is None",
    "no key": "all keys give the same tokens",
    "one key": "equal drafts; sample with `ctx.keys",
    "reads ahead": "depends on arbitrary entries",
    "reads ahead below the root": "depends on arbitrary entries",
    "mean of the batch": "sequences must not depend on each other",
    "first nodes": "`observe` must keep what belongs to `result.path`",
    "all nodes": "count `result.counts` tokens",
    "not the root": "after the same tokens one by one",
    "not if nothing is accepted": "after the same tokens one by one",
    "stale position": "after the same tokens one by one",
}


@pytest.mark.variants(2)
@pytest.mark.parametrize(("fault", "words"), VALUES.items(), ids=VALUES)
def test_each_fault_is_named(fault, words):
    found = sentences(check_drafter, SumDrafter(fault), params(), **TOY, tree=TREE)
    assert any(words in sentence for sentence in found), found
    assert len(found) <= 2, found


PARENTS = {
    "parents behind": "Draft.parents has 5 for node 1",
    "a long path": "makes a path of 5 drafted tokens; the tree allows 3",
    "many children": "gives a node 5 valid children; the tree allows 3",
}


@pytest.mark.variants(1)
@pytest.mark.parametrize(("fault", "words"), PARENTS.items(), ids=PARENTS)
def test_parents_that_no_tree_has_are_named(fault, words):
    tree = Beam(6, 3, beam=3, branch=3)
    options = {"tree": tree, "selections": ()}
    found = sentences(check_drafter, SumDrafter(fault), params(), **TOY, **options)
    assert any(words in sentence for sentence in found), found


def test_tokens_that_change_with_their_acceptance_are_named():
    """The target scores the nodes of a tree otherwise than its root."""
    target = TOY["target"]

    def forward(*arguments):
        logits, features, cache = target.forward(*arguments)
        rolled = jnp.roll(logits, 1, axis=-1)
        node = jnp.arange(logits.shape[1])[None, :, None]
        return jnp.where(node > 0, rolled, logits), features, cache

    broken = TOY | {"target": replace(target, forward=forward)}
    found = sentences(check_drafter, SumDrafter(), params(), **broken, tree=TREE)
    assert any("tokens change with the number of accepted" in x for x in found), found


def test_drafts_that_depend_on_rounds_must_be_declared():
    faults = sentences(check_drafter, Jacobi(VOCAB), **TOY, selections=())
    assert len(faults) == 1 and "pass depends_on='rounds'" in faults[0]


def test_one_sequence_is_refused():
    with pytest.raises(ConfigError, match="give at least two"):
        check_drafter(SumDrafter(), params(), **(TOY | {"prompt": PROMPT[:1]}))
