"""Chains of the diffusion head, which sample tokens."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.tree_util import register_dataclass

from jaxspec.core.branches import repeat_branches
from jaxspec.core.diffusion import DiffusionSchedule, posterior, step_coefficients
from jaxspec.core.mesh_sync import group_max, varying
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


@register_dataclass
@dataclass(frozen=True)
class ChainEnd:
    """Last step of the chains of some tokens.

    Attributes:
      mean: float32 [B, n, C], mean of the last step. MAR adds no noise to it: it is the
        sample.
      deviation: float32 [B, n, C], standard deviation of the last step.
      log_deviations: float32 [B, n], logarithms of the standard deviations of all steps
        but the last, summed over steps and channels.
    """

    mean: Float[Array, "B n C"]
    deviation: Float[Array, "B n C"]
    log_deviations: Float[Array, "B n"]


def run_chains(
    model: MAR,
    params: Params,
    schedules: tuple[DiffusionSchedule, ...],
    which: Int[Array, "B"],
    conditions: Float[Array, "R n D"],
    noise: Float[Array, "B n s C"],
    scale: Float[Array, "B"],
    temperature: Float[Array, "B"],
) -> ChainEnd:
    """Runs the chains of tokens, given their conditions.

    Args:
      model: the model.
      params: its parameters.
      schedules: steps of chains, of one solver.
      which: schedule of each row.
      conditions: conditions of the head, of unguided rows after the others, if any.
      noise: first states and noise of the steps of the longest chain, see `head_noise`.
      scale: scale of guidance of the noise that the head predicts; the variance is
        that of the guided row, as published.
      temperature: factor of the standard deviations.
    """
    batch, branches = len(noise), len(conditions) // len(noise)
    counts = jnp.asarray([schedule.count for schedule in schedules], jnp.int32)[which]
    most = schedules[0].count if len(schedules) == 1 else group_max(jnp.max(counts))

    def step(i, carry):
        state, *_, log_deviations = carry
        index = most - 1 - i
        at = step_coefficients(schedules, which, index)
        at = {name: x[:, None] for name, x in at.items()}
        states = repeat_branches(state, branches)
        time = repeat_branches(at["time"], branches)
        time = jnp.broadcast_to(time, states.shape[:2])
        out = model.predict_noise(params, states, time, conditions)
        predicted, interpolation = jnp.split(out, 2, axis=-1)
        if branches > 1:
            own, null = predicted[:batch], predicted[batch:]
            predicted = null + scale[:, None, None] * (own - null)
        out = jnp.concatenate([predicted, interpolation[:batch]], axis=-1)
        mean, deviation = posterior(
            at, state, out, schedules[0].solver, model.config.bound
        )
        deviation = temperature[:, None, None] * deviation
        active = (index < counts)[:, None]
        noisy = active & (index > 0)
        own_noise = jax.lax.dynamic_index_in_dim(noise, index + 1, 2, keepdims=False)
        after = mean + jnp.where(noisy[..., None], deviation * own_noise, 0.0)
        return (
            jnp.where(active[..., None], after, state),
            deviation,
            log_deviations
            + jnp.where(noisy, jnp.sum(jnp.log(deviation), axis=-1), 0.0),
        )

    start = noise[:, :, 0]
    # Derived from the noise, so that types are those of the loop's results on a mesh.
    carry = start, jnp.zeros_like(start), jnp.zeros_like(start[..., 0])
    carry = varying(carry, start, scale, conditions, which)
    return ChainEnd(*jax.lax.fori_loop(0, most, step, carry))
