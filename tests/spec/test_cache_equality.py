"""After a run every layer's cache is that of a fresh pass over what was generated."""

from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.models.target import make_target
from jaxspec.models.transformer import Transformer
from jaxspec.spec.cache import compact
from jaxspec.spec.envelopes import BestFirst
from jaxspec.spec.loop import init_state, spec_step
from jaxspec.spec.named_trees import named_tree
from jaxspec.spec.noise import row_keys
from jaxspec.spec.sampling import make_sampling
from jaxspec.spec.state import Engine, make_limits
from jaxspec.spec.verify import Coupled, Rejection
from tests.drafters.test_block_diffusion import TARGET, make

ROWS, LENGTH = 3, 16
PROMPT = jnp.array([0, 2, 1])
CASES = {
    "static": (named_tree("0,1,00,01,10,000"), Coupled()),
    "grown": (BestFirst(7, 3, branch=3), Coupled()),
    "grown, drawn": (BestFirst(7, 3, branch=3), Rejection()),
}


@lru_cache
def run(case):
    """The state after the last round, its path not yet committed, and the engine."""
    drafter, own, params = make()
    target = make_target(Transformer(TARGET), guided=True, taps=drafter.config.taps)
    tree, rule = CASES[case]
    engine = Engine(target, LENGTH, drafter, tree, rule, order=("temperature",))
    sampling = make_sampling(ROWS, guidance=2.0)
    arguments = (params, drafter.bind(own, params), PROMPT, sampling)
    limits = make_limits(ROWS, [LENGTH, 9, LENGTH])
    start, step = (
        jax.jit(partial(init_state, engine)),
        jax.jit(partial(spec_step, engine)),
    )
    state = start(*arguments, row_keys(4, ROWS), limits)
    while not bool(state.done.all()):
        state = step(*arguments, state)
    return engine, params, drafter, state


def fresh_pass(engine, params, tokens):
    """The cache of one causal pass over whole rows, each stream its own."""
    streams = engine.target.streams
    tokens = jnp.concatenate([tokens] * streams)
    _, _, cache = engine.target.prefill(params, PROMPT, tokens.shape[1])
    place = jnp.arange(tokens.shape[1])
    mask = jnp.arange(cache.capacity) <= 1 + place[:, None]
    mask = jnp.broadcast_to(mask, (len(tokens), *mask.shape))
    positions = jnp.broadcast_to(1 + place, tokens.shape)
    return engine.target.forward(params, cache, tokens, positions, mask)[2]


def worst_difference(engine, params, state, cache):
    """Of keys and values of all layers, rows, streams and committed slots."""
    fresh = fresh_pass(engine, params, state.tokens[:, :LENGTH])
    filled = np.arange(LENGTH) < np.asarray(cache.lengths)[:, None]  # [R, S]
    worst = 0.0
    for mine, theirs in zip(cache.layers, fresh.layers, strict=True):
        for a, b in zip(mine, theirs, strict=True):
            gap = np.abs(np.asarray(a[:, :, :LENGTH] - b[:, :, :LENGTH]))
            worst = max(worst, np.where(filled[:, None, :, None], gap, 0).max())
    return worst


@pytest.mark.parametrize("case", CASES)
def test_every_layer_holds_what_a_fresh_pass_computes(case):
    engine, params, _, state = run(case)
    assert int(state.stats.hits.sum()) > 0  # something was moved
    streams = engine.target.streams
    path = jnp.concatenate([state.path] * streams)
    counts = jnp.concatenate([state.counts] * streams)
    cache = compact(state.cache, engine.tree.size, path, counts)
    # The class and all tokens but the newest, which was never read.
    np.testing.assert_array_equal(cache.lengths, jnp.tile(state.length, streams))
    assert worst_difference(engine, params, state, cache) < 1e-4


def test_the_comparison_sees_a_path_that_is_off_by_one():
    engine, params, _, state = run("static")
    path = jnp.concatenate([jnp.roll(state.path, 1, axis=1)] * 2)
    counts = jnp.concatenate([state.counts] * 2)
    cache = compact(state.cache, engine.tree.size, path, counts)
    assert worst_difference(engine, params, state, cache) > 1e-2
