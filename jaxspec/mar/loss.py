"""Training objective of masked models over continuous tokens (MAR)."""

import math

import jax
import jax.numpy as jnp

from jaxspec.core.diffusion import (
    DiffusionSchedule,
    noised,
    posterior,
    step_coefficients,
)
from jaxspec.models.mar.model import MAR
from jaxspec.typing import Array, Bool, Float, Int, Params

# Masked fraction: normal with mean 1 and this deviation, cut to the interval up to 1.
LEAST_MASKED, DEVIATION = 0.7, 0.25
# Diffusion steps that are sampled for each token.
DRAWS = 4


def masked_loss(
    model: MAR,
    params: Params,
    latents: Float[Array, "B T E"],
    classes: Int[Array, "B"],
    null: Bool[Array, "B"],
    key: Array,
) -> Float[Array, ""]:
    """Mean diffusion loss of masked tokens, given the others.

    Each sequence has its own order and its own fraction of masked tokens; the published
    training has one fraction for a batch. The encoder reads the known tokens alone, of
    which there are at most `1 - LEAST_MASKED`.

    Args:
      model: static functions of the model.
      params: parameters, in the dtype of the products.
      latents: means and standard deviations [B, T, 2 C] of the tokens.
      classes: classes of the images.
      null: sequences that get the null class instead.
      key: key of orders, masks, steps and noise; consumed.
    """
    keys = jax.random.split(key, 4)
    batch, length = latents.shape[:2]
    mean, deviation = jnp.split(latents.astype(jnp.float32), 2, axis=-1)
    tokens = mean + deviation * jax.random.normal(keys[0], mean.shape, jnp.float32)
    places = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), (batch, length))
    order = jax.random.permutation(keys[1], places, axis=1, independent=True)
    least = (LEAST_MASKED - 1) / DEVIATION
    cut = jax.random.truncated_normal(keys[2], least, 0.0, (batch,), jnp.float32)
    masked = jnp.ceil((1 + DEVIATION * cut) * length).astype(jnp.int32)
    capacity = length - math.ceil(LEAST_MASKED * length)
    condition = model.condition(params, classes, null)
    conditions = model.token_conditions(
        params, condition, tokens, order, jnp.clip(masked, 1, length), max(capacity, 1)
    )
    rank = jnp.argsort(order, axis=1)
    weights = (rank < masked[:, None]).astype(jnp.float32)
    total = jnp.float32(0)
    for i in range(DRAWS):
        draw = jax.random.fold_in(keys[3], i)
        losses = head_loss(model, params, tokens, conditions, draw)
        total += jnp.sum(losses * weights) / jnp.sum(weights)
    return total / DRAWS


def head_loss(
    model: MAR,
    params: Params,
    tokens: Float[Array, "B T C"],
    conditions: Float[Array, "B T D"],
    key: Array,
) -> Float[Array, "B T"]:
    """Diffusion loss of tokens at a random step each, as mean over channels.

    The squared error of the noise, and the divergence in bits of the predicted variance
    from that of the posterior, which trains the variance alone (arXiv 2102.09672). The
    posterior of the last step has no variance; that of the step before stands for it,
    where the published loss has the likelihood of a rounded pixel.

    Args:
      model: static functions of the model.
      params: parameters.
      tokens: tokens without noise.
      conditions: conditions of the head.
      key: key of steps and noise; consumed.
    """
    steps = model.config.diffusion_steps
    schedule = DiffusionSchedule(steps, steps)
    step_key, noise_key = jax.random.split(key)
    time = jax.random.randint(step_key, tokens.shape[:2], 0, steps)
    noise = jax.random.normal(noise_key, tokens.shape, jnp.float32)
    state = noised(schedule, tokens, time, noise)
    out = model.predict_noise(params, state, time, conditions)
    predicted, interpolation = jnp.split(out, 2, axis=-1)
    squared = jnp.mean((predicted - noise) ** 2, axis=-1)
    at = step_coefficients([schedule], jnp.zeros_like(time), time)
    fixed = jnp.concatenate([jax.lax.stop_gradient(predicted), interpolation], axis=-1)
    mean, deviation = posterior(at, state, fixed)
    exact = jnp.concatenate([noise, -jnp.ones_like(noise)], axis=-1)
    true_mean, least = posterior(at, state, exact)
    ratio = jnp.log(deviation) - jnp.log(least)
    square = (least**2 + (true_mean - mean) ** 2) / deviation**2
    divergence = jnp.mean(ratio + (square - 1) / 2, axis=-1) / math.log(2)
    return squared + divergence
