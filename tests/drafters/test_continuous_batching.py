"""Continuous batching with every drafter gives the tokens of plain decoding."""

from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.core.continuous_batching import Requests, idle_batch, run_queue
from jaxspec.core.noise import batch_keys
from jaxspec.core.sampling import Sampling
from jaxspec.core.stopping import StoppingCriteria
from jaxspec.models.transformer.model import Transformer
from jaxspec.speculative.engine import Engine
from jaxspec.speculative.state import Variables
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
def requests(text):
    """Requests of unequal lengths: prompts of tokens, or classes."""
    rng = np.random.default_rng(0)
    prompt = rng.integers(0, 3, (COUNT, 4) if text else COUNT)
    if text:
        prompt[np.arange(4) >= rng.integers(1, 5, COUNT)[:, None]] = -1
    temperature = rng.choice([0.0, 0.7, 1.0], COUNT)
    return Requests(
        jnp.arange(COUNT),
        jnp.asarray(prompt),
        Sampling.create(COUNT, temperature=temperature, cfg_scale=2.0),
        batch_keys(3, COUNT),
        StoppingCriteria.create(
            COUNT, max_new_tokens=rng.integers(1, LENGTH + 1, COUNT)
        ),
    )


def engine_of(text, drafter=None, **tree):
    target = toy_target(VOCAB, 2) if text else Transformer(TARGET).as_target()
    return Engine(target, LENGTH, drafter, **tree, order=("temperature",))


@lru_cache
def alone(text):
    """Tokens of each request with plain decoding."""
    work, params = requests(text), PARAMS if text else target_params()
    return jax.jit(engine_of(text).generate)(
        Variables(params),
        work.prompt,
        sampling=work.sampling,
        keys=work.keys,
        stopping=work.stopping,
    ).tokens


FEW = ("recycling", "union", "block")
SLOW = [name for name in (*TABLES, *FEATURES) if name not in FEW]


@pytest.mark.variants(2)
@pytest.mark.parametrize("batch", [1, 2, 5])
@pytest.mark.parametrize(
    "name", [*FEW, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]
)
def test_every_request_gets_the_tokens_of_plain_decoding(name, batch):
    text = name in TABLES
    drafter, tree = (TABLES if text else FEATURES)[name]
    drafter_params = (table_params if text else feature_params)(name)
    engine = engine_of(text, drafter, tree=tree)
    params = PARAMS if text else target_params()

    @jax.jit
    def run(variables, queue):
        first = jax.tree.map(lambda x: x[:batch], queue)
        idle = idle_batch(engine, variables, first)
        return run_queue(engine, variables, idle, queue, True)[1]

    finished = run(Variables(params, drafter_params), requests(text))
    order = np.asarray(finished.ids)
    assert sorted(order[order >= 0]) == list(range(COUNT))
    tokens = np.asarray(finished.result.tokens)[np.argsort(order)[-COUNT:]]
    np.testing.assert_array_equal(tokens, alone(text))
