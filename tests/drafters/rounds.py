"""Rounds of an engine before the one that is examined, and inputs made by hand."""

import jax
import jax.numpy as jnp

from jaxspec.core.noise import batch_keys
from jaxspec.core.sampling import Sampling
from jaxspec.speculative.draft import DraftContext, RoundResult
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


def result_of(logits, draft, tree, path, accepted, tokens=None):
    """Result of a round with a draft of given tokens."""
    rows = len(logits)
    path = jnp.broadcast_to(jnp.asarray(path), (rows, len(path)))
    accepted = jnp.full(rows, accepted)
    tokens = jnp.zeros(path.shape, jnp.int32) if tokens is None else tokens
    none = jnp.zeros((rows, tree.size, 0))
    return RoundResult(tokens, accepted + 1, path, accepted, none, logits, draft, tree)


def a_round(tokens, tree, vocab_size, rows=1):
    """Draft context after `tokens`."""
    batch_tokens = jnp.asarray([tokens] * rows)
    return DraftContext(
        root=batch_tokens[:, -1],
        tokens=jnp.pad(batch_tokens, ((0, 0), (0, 4))),
        position=jnp.full(rows, len(tokens) - 1),
        index=jnp.full(rows, len(tokens)),
        noise=jnp.zeros((rows, tree.depth + 1, vocab_size)),
        keys=batch_keys(0, rows),
        sampling=Sampling.create(rows, temperature=0.0),
        tree=tree,
        selection="top",
        order=("temperature",),
    )
