"""Every drafter leaves the tokens of plain decoding and a correct target cache."""

from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.core.noise import batch_keys
from jaxspec.core.sampling import Sampling
from jaxspec.core.stopping import StoppingCriteria
from jaxspec.drafters.draft_model.drafter import DraftModel
from jaxspec.models.transformer.model import Transformer
from jaxspec.speculative.engine import Engine
from jaxspec.speculative.state import Variables
from jaxspec.speculative.trees.dynamic import Beam, BestFirst
from jaxspec.testing.properties import (
    assert_fresh_cache,
    assert_same_tokens,
    run_rounds,
)
from jaxspec.testing.toy import toy_params, toy_target
from tests.drafters.tiny import (
    BUSHY,
    FEATURES,
    TABLES,
    TARGET,
    VOCAB,
    feature_params,
    table_params,
    target_params,
)

LENGTH, ROWS = 24, 3
PARAMS, OTHER = toy_params(VOCAB, 60), toy_params(VOCAB, 60, seed=1)
PROMPT = jnp.array([[1, 2, 3, 1], [4, 4, -1, -1], [0, -1, -1, -1]])
SETTINGS = {
    "temperature": [1.0, 0.0, 0.7],
    "cfg_scale": [2.0, 0.5, 1.0],
    "top_k": [0, 0, 4],
}


LIMITS = [LENGTH, 11, LENGTH], [5, -1, -1]


@lru_cache
def plain_toy_tokens():
    """Tokens of the toy target without a drafter."""
    run = jax.jit(Engine(toy_target(VOCAB, 2), LENGTH).generate)
    sampling = Sampling.create(ROWS, **SETTINGS)
    stopping = StoppingCriteria.create(
        ROWS, max_new_tokens=LIMITS[0], stop_tokens=LIMITS[1]
    )
    return run(
        Variables(PARAMS),
        PROMPT,
        sampling=sampling,
        keys=batch_keys(3, ROWS),
        stopping=stopping,
    )


@pytest.mark.variants(1)
@pytest.mark.parametrize("name", TABLES)
def test_drafters_on_the_toy_target_change_neither_tokens_nor_cache(name):
    drafter, tree = TABLES[name]
    engine, state = run_rounds(
        toy_target(VOCAB, 2),
        PARAMS,
        drafter,
        table_params(name),
        tree,
        PROMPT,
        length=LENGTH,
        batch=ROWS,
        sampling=Sampling.create(ROWS, **SETTINGS),
        stopping=StoppingCriteria.create(
            ROWS, max_new_tokens=LIMITS[0], stop_tokens=LIMITS[1]
        ),
        seed=3,
    )
    plain = plain_toy_tokens()
    np.testing.assert_array_equal(state.length, plain.lengths)
    generated = np.arange(LENGTH) < state.length[:, None]
    tokens = np.where(generated, state.tokens[:, :LENGTH], -1)
    np.testing.assert_array_equal(tokens, plain.tokens)
    assert_fresh_cache(engine, PARAMS, PROMPT, state)


@pytest.mark.variants(1)
@pytest.mark.parametrize("tree", [BUSHY, Beam(9, 3, 4, 3), BestFirst(8, 3)], ids=str)
def test_a_broken_drafter_costs_only_speed(tree):
    """Its logits after a certain token are NaN."""
    broken = {**OTHER, "values": OTHER["values"].at[2].set(jnp.nan)}
    engine, state = run_rounds(
        toy_target(VOCAB, 2),
        PARAMS,
        DraftModel(toy_target(VOCAB)),
        broken,
        tree,
        PROMPT,
        length=LENGTH,
        batch=ROWS,
        sampling=Sampling.create(ROWS, **SETTINGS),
        stopping=StoppingCriteria.create(
            ROWS, max_new_tokens=LIMITS[0], stop_tokens=LIMITS[1]
        ),
        seed=3,
    )
    generated = np.arange(LENGTH) < state.length[:, None]
    tokens = np.where(generated, state.tokens[:, :LENGTH], -1)
    np.testing.assert_array_equal(tokens, plain_toy_tokens().tokens)


def test_the_whole_loop_as_one_program_gives_the_tokens_of_plain_decoding():
    drafter, tree = TABLES["union"]
    out = assert_same_tokens(
        toy_target(VOCAB, 2),
        PARAMS,
        drafter,
        None,
        tree,
        PROMPT,
        length=LENGTH,
        batch=ROWS,
        order=("temperature",),
    )
    assert out.stats.calls.max() <= LENGTH


CLASSES = jnp.array([0, 2, 1])
SAMPLING = {"temperature": [1.0, 0.0, 0.7], "cfg_scale": 2.0}


@lru_cache
def plain_tokens():
    """Tokens of the target without a drafter; feature layers do not change them."""
    target = Transformer(TARGET).as_target(cfg=True)
    run = jax.jit(Engine(target, 16, order=("temperature",)).generate)
    return run(
        Variables(target_params()),
        CLASSES,
        sampling=Sampling.create(ROWS, **SAMPLING),
        keys=batch_keys(3, ROWS),
    ).tokens


# Variants of other drafters in this test, marked slow.
LONG = (
    "eagle-1",
    "eagle-2",
    "eagle-1, best first",
    "eagle-3, trimmed",
    "eagle-3, narrower",
    "medusa, own outputs",
    "hydra",
    "block, refined",
    "falcon, blocks of 3",
    "dynamic exit",
    "sub-networks",
)


@pytest.mark.variants(1)
@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow if n in LONG else ()) for n in FEATURES],
)
def test_drafters_on_a_transformer_change_neither_tokens_nor_cache(name):
    drafter, tree = FEATURES[name]
    feature_layers = getattr(drafter, "feature_layers", ())
    engine, state = run_rounds(
        Transformer(TARGET).as_target(cfg=True, feature_layers=feature_layers),
        target_params(),
        drafter,
        feature_params(name),
        tree,
        CLASSES,
        length=16,
        batch=ROWS,
        sampling=Sampling.create(ROWS, **SAMPLING),
        order=("temperature",),
        seed=3,
    )
    np.testing.assert_array_equal(state.tokens[:, :16], plain_tokens())
    assert_fresh_cache(engine, target_params(), CLASSES, state)
