"""Continuous batching with every drafter gives the tokens of plain decoding."""

from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.models.target import make_target
from jaxspec.models.transformer import Transformer
from jaxspec.spec.loop import generate
from jaxspec.spec.noise import batch_keys
from jaxspec.spec.sampling import make_sampling
from jaxspec.spec.state import Engine, StoppingCriteria
from jaxspec.spec.stream import Jobs, begin_stream, run_stream
from jaxspec.testing.toy import toy_params, toy_target
from tests.drafters.tiny import (
    FEATURES,
    TABLES,
    TARGET,
    VOCAB,
    feature_params,
    table_params,
    target_params,
)

COUNT, LENGTH = 7, 10
PARAMS = toy_params(VOCAB, 60)


@lru_cache
def jobs(text):
    """Jobs of unequal lengths: prompts of tokens, or classes."""
    rng = np.random.default_rng(0)
    prompt = rng.integers(0, 3, (COUNT, 4) if text else COUNT)
    if text:
        prompt[np.arange(4) >= rng.integers(1, 5, COUNT)[:, None]] = -1
    temperature = rng.choice([0.0, 0.7, 1.0], COUNT)
    return Jobs(
        jnp.arange(COUNT),
        jnp.asarray(prompt),
        make_sampling(COUNT, temperature=temperature, cfg_scale=2.0),
        batch_keys(3, COUNT),
        StoppingCriteria.create(COUNT, rng.integers(1, LENGTH + 1, COUNT)),
    )


def engine_of(text, drafter=None, **tree):
    feature_layers = getattr(drafter, "feature_layers", ())
    target = (
        toy_target(VOCAB, 2)
        if text
        else make_target(Transformer(TARGET), feature_layers=feature_layers)
    )
    return Engine(target, LENGTH, drafter, **tree, order=("temperature",))


@lru_cache
def alone(text):
    """Tokens of each job with plain decoding."""
    work, params = jobs(text), PARAMS if text else target_params()
    run = jax.jit(partial(generate, engine_of(text)))
    return run(
        params, None, work.prompt, work.sampling, work.keys, work.stopping
    ).tokens


FEW = ("recycling", "union", "block")
SLOW = [name for name in (*TABLES, *FEATURES) if name not in FEW]


@pytest.mark.parametrize("batch", [1, 2, 5])
@pytest.mark.parametrize(
    "name", [*FEW, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]
)
def test_every_job_gets_the_tokens_of_plain_decoding(name, batch):
    text = name in TABLES
    drafter, tree = (TABLES if text else FEATURES)[name]
    drafter_params = (table_params if text else feature_params)(name)
    engine = engine_of(text, drafter, tree=tree)
    params = PARAMS if text else target_params()
    work = jobs(text)

    @jax.jit
    def run(params, drafter_params, work):
        first = jax.tree.map(lambda x: x[:batch], work)
        stream = begin_stream(engine, params, drafter_params, first)
        return run_stream(engine, params, drafter_params, stream, work, True)[1]

    finished = run(params, drafter_params, work)
    order = np.asarray(finished.number)
    assert sorted(order[order >= 0]) == list(range(COUNT))
    tokens = np.asarray(finished.result.tokens)[np.argsort(order)[-COUNT:]]
    np.testing.assert_array_equal(tokens, alone(text))
