"""Rounds of an engine before the one that is examined."""

import jax

from jaxspec.core.noise import batch_keys
from jaxspec.speculative.engine import Engine
from jaxspec.speculative.state import Variables


def after_rounds(
    rounds, target, params, drafter, drafter_params, tree, prompt, sampling
):
    """Engine and state after some rounds; no sequence has ended."""
    length = 1 + rounds * (tree.depth + 1)
    engine = Engine(target, length, drafter, tree, order=("temperature",))
    variables = Variables(params, drafter_params)
    keys = batch_keys(0, len(sampling.temperature))
    state = engine.init(variables, prompt, sampling=sampling, keys=keys)
    step = jax.jit(engine.step)
    for _ in range(rounds):
        state = step(variables, state)
    assert not (state.done & (state.length < length)).any()
    return engine, state
