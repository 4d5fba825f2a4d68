"""Training of masked models over continuous tokens (MAR, arXiv 2406.11838)."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.checkpoint import Checkpoint, params_digest
from jaxspec.config import MARConfig
from jaxspec.core.diffusion import (
    DiffusionSchedule,
    noised,
    posterior,
    step_coefficients,
)
from jaxspec.core.noise import seed_key
from jaxspec.data.batches import batch_indices, heldout_batches, step_rng
from jaxspec.data.image_tokens import Sequences
from jaxspec.models.mar.model import MAR
from jaxspec.train.experiment import HELDOUT, Experiment, fingerprint
from jaxspec.train.loop import Training, TrainingJob
from jaxspec.train.optimizer import init_train_state, make_gradient_step
from jaxspec.train.start import check_start, start_digests
from jaxspec.typing import Array, Bool, Float, Int, Params

# Masked fraction: normal with mean 1 and this deviation, cut to the interval up to 1.
LEAST_MASKED, DEVIATION = 0.7, 0.25
# Diffusion steps that are sampled for each token.
DRAWS = 4


def mar_job(
    experiment: Experiment,
    tokenizer: Checkpoint,
    source: Sequences,
    heldout: Sequences,
    start: Checkpoint | None = None,
) -> TrainingJob:
    """Prepares the training of a masked model over continuous tokens.

    Args:
      experiment: configurations of the model and its training.
      tokenizer: autoencoder that made the tokens.
      source: training sequences, means and standard deviations of tokens.
      heldout: sequences that select the checkpoint.
      start: trained model of the same configuration, whose parameters are the initial
        ones; None for random parameters.

    Raises:
      ConfigError: `start` has another configuration.
    """
    config, sizes = experiment.train_prior, experiment.prior
    assert isinstance(sizes, MARConfig)
    model = MAR(sizes)
    params = model.init(seed_key(config.seed))
    if start is not None:
        check_start(start, "mar", sizes)
        params = start.params

    def batch_fn(step):
        indices = batch_indices(config.seed, step, config.batch, len(source))
        return source.take(indices, step_rng(config.seed, step))

    def loss_fn(params, latents, classes, key):
        null_key, key = jax.random.split(key)
        rate = jnp.float32(sizes.condition_dropout)
        null = jax.random.bernoulli(null_key, rate, (len(latents),))
        return masked_loss(model, params, latents, classes, null, key)

    measure = jax.jit(partial(masked_loss, model))

    def evaluate(state):
        """Loss of the same masks, steps and noise each time."""
        total, count, key = 0.0, 0, seed_key(config.seed + 1)
        batches = heldout_batches(len(heldout), HELDOUT["prior"], config.batch)
        for i, part in enumerate(batches):
            latents = heldout.tokens[0, part].astype(np.float32)
            batch = latents, heldout.prompts(part), np.zeros(len(part), bool)
            loss = measure(state["average"], *batch, jax.random.fold_in(key, i))
            total, count = total + len(part) * float(loss), count + len(part)
        return {"heldout_loss": total / count}

    def finish(trained, metrics):
        return {"prior": Checkpoint("mar", sizes, trained, {"metrics": metrics})}

    training = Training(
        "prior",
        config,
        make_gradient_step(config, loss_fn),
        batch_fn,
        evaluate,
        fingerprint(
            sizes,
            config,
            experiment.data,
            source.digest,
            params_digest(tokenizer.params),
            *start_digests(start),
        ),
    )
    return TrainingJob(training, init_train_state(config, params), finish)


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
    keys = jax.random.split(key, 5)
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
