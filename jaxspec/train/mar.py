"""Training of masked models over continuous tokens (MAR, arXiv 2406.11838)."""

import jax
import jax.numpy as jnp

from jaxspec.checkpoint import Checkpoint, params_digest
from jaxspec.config import MARConfig
from jaxspec.core.noise import seed_key
from jaxspec.data.batches import batch_indices, step_rng
from jaxspec.data.image_tokens import Sequences
from jaxspec.evaluate.masked_loss import heldout_masked_loss
from jaxspec.mar.loss import masked_loss
from jaxspec.models.mar.model import MAR
from jaxspec.train.experiment import Experiment
from jaxspec.train.identity import fingerprint
from jaxspec.train.loop import Training, TrainingJob
from jaxspec.train.optimizer import init_train_state, make_gradient_step
from jaxspec.train.settings import HELDOUT
from jaxspec.train.start import check_start, start_digests


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

    def evaluate(state):
        loss = heldout_masked_loss(
            model,
            state["average"],
            heldout,
            batch=config.batch,
            most=HELDOUT["prior"],
            seed=config.seed + 1,
        )
        return {"heldout_loss": loss}

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
