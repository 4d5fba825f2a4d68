"""Sampling of tokens by the chain of the diffusion head."""

import jax
import jax.numpy as jnp

from jaxspec.core.diffusion import DiffusionSchedule, chain_step
from jaxspec.models.mar.model import MAR
from jaxspec.typing import Array, BatchKeys, Float, Int, Params

# Number folded into the key of a sequence for the noise of the head.
_HEAD = 0x80000005


def head_noise(
    keys: BatchKeys, places: Int[Array, "B n"], steps: int, channels: int
) -> Float[Array, "B n s C"]:
    """Standard normal noise of each token and step of the chain, float32.

    Entry 0 is the first state of the chain, entry `1 + i` the noise of step `i`; step 0
    is the last. Each is a function of the key of the sequence, the place of the token
    and its own number: the batch, other tokens and `steps` do not change it.

    Args:
      keys: typed keys.
      places: tokens.
      steps: number of steps of the chain; there are `steps + 1` entries.
      channels: size of a token.
    """
    entries = jnp.arange(steps + 1, dtype=jnp.uint32)

    def of_entry(key, entry):
        return jax.random.normal(
            jax.random.fold_in(key, entry), (channels,), jnp.float32
        )

    def of_token(key, place):
        key = jax.random.fold_in(key, place)
        return jax.vmap(lambda entry: of_entry(key, entry))(entries)

    def of_sequence(key, places):
        key = jax.random.fold_in(key, jnp.uint32(_HEAD))
        return jax.vmap(lambda place: of_token(key, place))(places)

    return jax.vmap(of_sequence)(keys, places)


def sample_tokens(
    model: MAR,
    params: Params,
    schedule: DiffusionSchedule,
    conditions: Float[Array, "R n D"],
    noise: Float[Array, "B n s C"],
    scale: Float[Array, "B"],
    temperature: Float[Array, "B"],
) -> Float[Array, "B n C"]:
    """Samples tokens, given their conditions; float32.

    Args:
      model: the model.
      params: its parameters.
      schedule: steps of the chain.
      conditions: conditions of the head, of unguided rows after the others, if any.
      noise: first state of the chain and noise of its steps, see `head_noise`.
      scale: scale of guidance of the noise that the head predicts; the variance is
        that of the guided row, as published.
      temperature: factor of the standard deviations.
    """
    batch, branches = len(noise), len(conditions) // len(noise)
    times = jnp.asarray(schedule.times)
    factor = jnp.broadcast_to(temperature[:, None], noise.shape[:2])

    def step(i, state):
        index = schedule.count - 1 - i
        states = jnp.concatenate([state] * branches)
        time = jnp.broadcast_to(times[index], states.shape[:2])
        out = model.predict_noise(params, states, time, conditions).astype(jnp.float32)
        found, interpolation = jnp.split(out, 2, axis=-1)
        if branches > 1:
            own, null = found[:batch], found[batch:]
            found = null + scale[:, None, None] * (own - null)
        out = jnp.concatenate([found, interpolation[:batch]], axis=-1)
        own_noise = jax.lax.dynamic_index_in_dim(noise, index + 1, 2, keepdims=False)
        return chain_step(schedule, state, out, index, own_noise, factor)

    return jax.lax.fori_loop(0, schedule.count, step, noise[:, :, 0])
