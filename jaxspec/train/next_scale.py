"""Training of next-scale models (VAR, arXiv 2404.02905)."""

import jax
import jax.numpy as jnp

from jaxspec.checkpoint import Checkpoint, params_digest
from jaxspec.config import NextScaleConfig
from jaxspec.core.noise import seed_key
from jaxspec.data.batches import batch_indices, step_rng
from jaxspec.data.image_tokens import Sequences
from jaxspec.evaluate.scale_likelihood import log_probs, of_tokens, scale_likelihood
from jaxspec.models.next_scale.model import NextScale
from jaxspec.tokenizers.multi_scale.scales import QUANTIZER, Scales
from jaxspec.train.experiment import (
    HELDOUT,
    Experiment,
    TrainingConfig,
    fingerprint,
)
from jaxspec.train.loop import Training, TrainingJob
from jaxspec.train.optimizer import apply_gradients, init_train_state
from jaxspec.train.start import check_start, start_digests


def next_scale_job(
    experiment: Experiment,
    tokenizer: Checkpoint,
    source: Sequences,
    heldout: Sequences,
    start: Checkpoint | None = None,
) -> TrainingJob:
    """Prepares the training of a next-scale model.

    Args:
      experiment: configurations of the model and its training.
      tokenizer: multi-scale tokenizer, whose codebook and convolutions make the inputs.
      source: training sequences, tokens of all scales.
      heldout: sequences that select the checkpoint.
      start: trained model of the same configuration, whose parameters are the initial
        ones; None for random parameters.

    Raises:
      ConfigError: `start` has another configuration.
    """
    config, sizes = experiment.train_prior, experiment.prior
    assert isinstance(sizes, NextScaleConfig)
    model, scales = NextScale(sizes), tokenizer.model.scales
    quantizer = jax.device_get({k: tokenizer.params[k] for k in QUANTIZER})
    params = model.init(seed_key(config.seed))
    if start is not None:
        check_start(start, "next_scale", sizes)
        params = start.params

    def batch_fn(step):
        indices = batch_indices(config.seed, step, config.batch, len(source))
        return source.take(indices, step_rng(config.seed, step))

    def evaluate(state, quantizer):
        found = scale_likelihood(
            model,
            scales,
            state["average"],
            quantizer,
            heldout,
            batch=config.batch,
            most=HELDOUT["prior"],
        )
        return {"heldout_loss": found.pop("nll"), **found}

    def finish(trained, metrics):
        metadata = {"metrics": metrics}
        return {"prior": Checkpoint("next_scale", sizes, trained, metadata)}

    training = Training(
        "prior",
        config,
        make_step(sizes, scales, config),
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
        frozen=(quantizer,),
    )
    return TrainingJob(training, init_train_state(config, params), finish)


def make_step(sizes: NextScaleConfig, scales: Scales, config: TrainingConfig):
    """One step `(state, quantizer, step, (tokens, classes)) -> (state, metrics)`.

    Args:
      sizes: configuration of the model.
      scales: functions of its tokenizer.
      config: settings of the training.
    """
    model, dtype = NextScale(sizes), jnp.dtype(config.compute_dtype)

    def step_fn(state, quantizer, step, batch):
        tokens, classes = batch
        key = jax.random.fold_in(seed_key(config.seed), step)
        rate = jnp.float32(sizes.condition_dropout)
        null = jax.random.bernoulli(key, rate, (len(tokens),))

        def loss_fn(params):
            params = jax.tree.map(lambda x: x.astype(dtype), params)
            log_p = log_probs(model, scales, params, quantizer, tokens, classes, null)
            return -jnp.mean(of_tokens(log_p, tokens))

        loss, gradient = jax.value_and_grad(loss_fn)(state["params"])
        return apply_gradients(config, state, gradient, step), {"loss": loss}

    return step_fn
