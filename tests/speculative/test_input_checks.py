"""Inputs of an engine: each is taken as meant, or refused in one sentence."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxspec
from jaxspec.drafters import Jacobi, NgramTable, TokenRecycling
from jaxspec.errors import ConfigError
from jaxspec.speculative.input_checks import checked_prefill
from jaxspec.testing import TableDrafter
from jaxspec.testing.toy import toy_params, toy_target
from tests.drafters.tiny import FEATURES, TARGET, target_params

V = 7
TOY, PARAMS = toy_target(V), toy_params(V, 60)
PROMPT = jnp.array([[1, 2, 3], [4, 0, 6], [2, 2, 1]])
CHAIN = jaxspec.Tree.chain(2)
KEY = jax.random.key(0)
MODEL = jaxspec.Transformer(TARGET)
DFLASH, DFLASH_TREE = FEATURES["block"]


def generate(engine, variables, prompt=PROMPT, **options):
    options = {"sampling": jaxspec.Sampling.create(), "keys": KEY} | options
    return engine.generate(variables, prompt, **options)


def test_a_tree_may_be_given_by_name():
    engine = jaxspec.Engine(TOY, 8, Jacobi(V), "chain-2")
    assert engine == jaxspec.Engine(TOY, 8, Jacobi(V), CHAIN)


def test_a_whole_float_is_a_number_of_tokens():
    assert jaxspec.Engine(TOY, 8.0) == jaxspec.Engine(TOY, 8)


ENGINES = {
    "unknown tree": (lambda: jaxspec.Engine(TOY, 8, Jacobi(V), "oak"), "tree 'oak'"),
    "no tree": (lambda: jaxspec.Engine(TOY, 8, Jacobi(V), 5), "tree=5 is no tree"),
    "verifier by name": (
        lambda: jaxspec.Engine(TOY, 8, Jacobi(V), CHAIN, "coupled"),
        "verifier='coupled' is no verifier; use an instance",
    ),
    "verifier class": (
        lambda: jaxspec.Engine(TOY, 8, Jacobi(V), CHAIN, jaxspec.verify.Block),
        r"use an instance of a class of jaxspec.verify: Block\(\)",
    ),
    "drafter class": (
        lambda: jaxspec.Engine(TOY, 8, Jacobi, CHAIN),
        "drafter=Jacobi is no drafter",
    ),
    "drafter by name": (
        lambda: jaxspec.Engine(TOY, 8, "jacobi", CHAIN),
        "drafter='jacobi' is no drafter",
    ),
    "model": (lambda: jaxspec.Engine(MODEL, 8), r"use model.as_target\(\)"),
    "no target": (lambda: jaxspec.Engine(None, 8), "target is None, no Target"),
    "tokens by name": (lambda: jaxspec.Engine(TOY, "8"), "max_new_tokens='8'"),
    "no tokens": (lambda: jaxspec.Engine(TOY, 0), "max_new_tokens=0"),
    "stages": (
        lambda: jaxspec.Engine(replace(TOY, move=max), 8, cache_stages=2),
        "`move` of its own needs cache_stages=1",
    ),
    **{
        f"vocabulary of {type(drafter).__name__}": (
            lambda drafter=drafter: jaxspec.Engine(TOY, 8, drafter, CHAIN),
            "the target 7; they must share a vocabulary",
        )
        for drafter in (
            Jacobi(9),
            TokenRecycling(5, 4),
            NgramTable(9, buckets=64, width=4),
            DFLASH,
        )
    },
}


@pytest.mark.parametrize(("make", "words"), ENGINES.values(), ids=ENGINES)
def test_parts_that_do_not_fit_are_refused(make, words):
    with pytest.raises(ConfigError, match=words):
        make()


def plain():
    engine = jaxspec.Engine(TOY, 8)
    return engine, engine.variables(PARAMS)


def table_of(size):
    engine = jaxspec.Engine(TOY, 8, TableDrafter(), CHAIN)
    table = {"table": jnp.zeros((2, size, size))}
    return engine, engine.variables(PARAMS, table)


def exchanged():
    engine = jaxspec.Engine(TOY, 8, TableDrafter(), CHAIN)
    return engine, engine.variables({"table": jnp.zeros((2, V, V))}, PARAMS)


def legacy(count):
    return np.zeros((count, 2), np.uint32)


CALLS = {
    "swapped": (lambda: generate(plain()[0], PROMPT, plain()[1]), "the first argument"),
    "parameters": (lambda: generate(plain()[0], PARAMS), "variables are a dict"),
    "exchanged": (lambda: generate(*exchanged()), "prefill finds no entry 'values'"),
    "table": (
        lambda: generate(*table_of(9)),
        "has logits of 9 tokens, the target has 7",
    ),
    "no sampling": (lambda: generate(*plain(), sampling=None), "sampling is None"),
    "stopping": (lambda: generate(*plain(), stopping=5), "stopping is an int"),
    "list": (lambda: generate(*plain(), prompt=[1, 2]), "no list or number"),
    "seed": (lambda: generate(*plain(), keys=3), r"make them with batch_keys\(seed"),
    "seeds": (lambda: generate(*plain(), keys=jnp.arange(3)), "not of typed keys"),
    "raw key": (lambda: generate(*plain(), keys=legacy(1)[0]), "jax.random.wrap_key"),
    "raw keys": (lambda: generate(*plain(), keys=legacy(3)), "jax.random.wrap_key"),
    "guidance": (
        lambda: generate(*plain(), sampling=jaxspec.Sampling.create(cfg_scale=2.0)),
        r"cfg_scale=2 needs an unconditional branch.*as_target\(cfg=True\)",
    ),
}


@pytest.mark.parametrize(("call", "words"), CALLS.values(), ids=CALLS)
def test_arguments_that_do_not_fit_are_refused(call, words):
    with pytest.raises(ConfigError, match=words):
        call()


def test_one_key_serves_a_batch_also_under_jit():
    engine, variables = plain()
    many = generate(engine, variables, keys=jaxspec.batch_keys(KEY, 3))
    one = jax.jit(lambda key: generate(engine, variables, keys=key))(KEY)
    np.testing.assert_array_equal(one.tokens, many.tokens)


@pytest.mark.slow
def test_parameters_of_a_trained_drafter_are_neither_missing_nor_exchanged():
    engine = jaxspec.Engine(MODEL.as_target(), 8, DFLASH, DFLASH_TREE)
    own = DFLASH.init_params(jax.random.key(1))
    with pytest.raises(ConfigError, match="the drafter DFlash has parameters"):
        engine.variables(target_params())
    with pytest.raises(ConfigError, match="in this order: engine.variables"):
        engine.variables(own, target_params())
    assert engine.variables(target_params(), own).drafter["own"] is own


def test_unknown_classes_are_refused_or_marked_as_not_finite_under_jit():
    engine = jaxspec.Engine(MODEL.as_target(), 4)
    variables = engine.variables(target_params())
    for ids, words in (
        ([0, 77], "there is no class 77; classes are 0 to 2"),
        ([0, -1], "there is no class -1"),
        ([0.0, 1.0], r"class prompts are float32\[2\]"),
        ([[0], [1]], r"class prompts are int32\[2, 1\]"),
    ):
        with pytest.raises(ConfigError, match=words):
            generate(engine, variables, jnp.array(ids))
    run = jax.jit(lambda ids: generate(engine, variables, ids).finite)
    assert run(jnp.array([0, 77, -1, 2])).tolist() == [True, False, False, True]


def caches(heads_first, heads):
    """Prefill of the toy target with a cache of many heads, in some layout."""

    def call(params, prompt, extra):
        out = TOY.prefill(params, prompt, extra)
        shape = len(prompt), heads, out.cache.capacity, 8
        if not heads_first:
            shape = shape[0], shape[2], shape[1], 8
        layers = ((jnp.zeros(shape), jnp.zeros(shape)),)
        return out._replace(cache=replace(out.cache, layers=layers))

    return replace(TOY, prefill=call)


@pytest.mark.parametrize("heads", [4, 14], ids=["few heads", "as many heads as slots"])
def test_a_cache_with_slots_before_heads_needs_a_move(heads):
    extra = 14 - PROMPT.shape[1]
    assert (
        checked_prefill(caches(True, heads), PARAMS, PROMPT, extra).cache.capacity == 14
    )
    wrong = caches(False, heads)
    with pytest.raises(ConfigError, match="give Target a `move` for your layout"):
        checked_prefill(wrong, PARAMS, PROMPT, extra)
    checked_prefill(replace(wrong, move=max), PARAMS, PROMPT, extra)
