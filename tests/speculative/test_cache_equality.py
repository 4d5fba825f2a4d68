"""Caches after a run, against those of a fresh pass over the generated tokens."""

from dataclasses import replace
from functools import lru_cache

import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.core.sampling import Sampling
from jaxspec.core.stopping import StoppingCriteria
from jaxspec.models.transformer.model import Transformer
from jaxspec.speculative.trees.dynamic import BestFirst
from jaxspec.speculative.trees.tree import Tree
from jaxspec.speculative.verify import Coupled, Rejection
from jaxspec.testing.properties import (
    assert_fresh_cache,
    cache_error,
    committed,
    run_rounds,
)
from tests.drafters.tiny_block import TARGET, block_drafter

ROWS, LENGTH = 3, 16
PROMPT = jnp.array([0, 2, 1])
CASES = {
    "static": (Tree.named("0,1,00,01,10,000"), Coupled()),
    "grown": (BestFirst(7, 3, branch=3), Coupled()),
    "grown, drawn": (BestFirst(7, 3, branch=3), Rejection()),
}


@lru_cache
def run(case):
    """The engine, the target's parameters, and the state after the last round."""
    drafter, own, params = block_drafter()
    target = Transformer(TARGET).as_target(
        cfg=True, feature_layers=drafter.config.feature_layers
    )
    tree, verifier = CASES[case]
    engine, state = run_rounds(
        target,
        params,
        drafter,
        drafter.with_target_params(own, params),
        tree,
        PROMPT,
        length=LENGTH,
        batch=ROWS,
        verifier=verifier,
        sampling=Sampling.create(ROWS, cfg_scale=2.0),
        stopping=StoppingCriteria.create(ROWS, max_new_tokens=[LENGTH, 9, LENGTH]),
        seed=4,
    )
    return engine, params, state


@pytest.mark.variants(1)
@pytest.mark.parametrize("case", CASES)
def test_every_layer_holds_what_a_fresh_pass_computes(case):
    engine, params, state = run(case)
    lengths = committed(engine, state).lengths
    # The class and all tokens but the newest, which was never read.
    np.testing.assert_array_equal(
        lengths, jnp.tile(state.length, engine.target.branches)
    )
    assert_fresh_cache(engine, params, PROMPT, state)


def test_the_comparison_detects_a_path_that_is_off_by_one():
    engine, params, state = run("static")
    wrong = committed(engine, replace(state, path=jnp.roll(state.path, 1, axis=1)))
    tokens = state.tokens[:, :LENGTH]
    assert cache_error(engine, params, PROMPT, tokens, wrong) > 1e-2


def test_the_comparison_detects_nan_in_any_layer():
    engine, params, state = run("static")
    right = committed(engine, state)
    (k, v), *rest = right.layers
    wrong = replace(right, layers=((k.at[0, 0, 0, 0].set(jnp.nan), v), *rest))
    tokens = state.tokens[:, :LENGTH]
    assert np.isnan(cache_error(engine, params, PROMPT, tokens, wrong))
