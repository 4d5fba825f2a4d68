"""Classifier training; the classifier's features measure generated images."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxspec.checkpoint import Checkpoint
from jaxspec.core.noise import seed_key
from jaxspec.data.batches import (
    batch_indices,
    evenly_spaced,
    flip_at_random,
    step_rng,
)
from jaxspec.data.source import ImageSource
from jaxspec.io.images import to_unit
from jaxspec.models.classifier.model import Classifier, ClassifierConfig
from jaxspec.train.experiment import Experiment
from jaxspec.train.identity import fingerprint
from jaxspec.train.loop import Training, TrainingJob
from jaxspec.train.optimizer import init_train_state, make_gradient_step
from jaxspec.train.settings import HELDOUT, TrainingConfig
from jaxspec.train.start import check_start, start_digests

# Largest random shift of an image, as a share of its side.
SHIFT = 1 / 16


def classifier_job(
    experiment: Experiment,
    source: ImageSource,
    heldout: ImageSource,
    start: Checkpoint | None = None,
) -> TrainingJob:
    """Prepares the training of a classifier of an experiment's images.

    Args:
      experiment: image size, and settings of the training.
      source: training images.
      heldout: images that select the checkpoint.
      start: trained classifier of the same configuration, whose parameters are the
        initial ones; None for random parameters.

    Raises:
      ConfigError: `start` has another configuration.
    """
    config = experiment.train_classifier
    assert experiment.tokenizer is not None  # images, not text
    side = experiment.tokenizer.image_size
    model_config = ClassifierConfig(side, len(source.class_names), max(side // 16, 1))
    model, shift = Classifier(model_config), max(int(SHIFT * side), 1)

    def batch_fn(step):
        indices = batch_indices(config.seed, step, config.batch, len(source))
        rng, images = step_rng(config.seed, step), source.take(indices)
        if experiment.data.flips:
            images = flip_at_random(images, rng)
        down, right = rng.integers(-shift, shift + 1, 2)
        pad = ((0, 0), (shift, shift), (shift, shift), (0, 0))
        padded = np.pad(images, pad, mode="edge")
        shifted = padded[:, shift + down :, shift + right :][:, :side, :side]
        return shifted, source.labels[indices]

    training = Training(
        "classifier",
        config,
        make_step(model, config),
        batch_fn,
        make_evaluation(model, heldout),
        fingerprint(model_config, config, experiment.data, *start_digests(start)),
    )
    params = model.init(seed_key(config.seed))
    if start is not None:
        check_start(start, "classifier", model_config)
        params = start.params

    def finish(trained, metrics):
        kind, metadata = "classifier", {"metrics": metrics}
        return {kind: Checkpoint(kind, model_config, trained, metadata)}

    return TrainingJob(training, init_train_state(config, params), finish)


def make_step(model: Classifier, config: TrainingConfig):
    """One step `(state, step, (images uint8, labels)) -> (state, metrics)`."""
    dtype = jnp.dtype(config.compute_dtype)

    def loss_fn(params, images, labels, _):
        x = (images.astype(jnp.float32) / 127.5 - 1.0).astype(dtype)
        cross = optax.softmax_cross_entropy_with_integer_labels
        return jnp.mean(cross(model(params, x)[1], labels))

    return make_gradient_step(config, loss_fn)


def make_evaluation(model: Classifier, heldout: ImageSource, batch: int = 128):
    """Evaluation `state -> metrics`: held-out loss and share of right classes."""
    indices = evenly_spaced(len(heldout), min(HELDOUT["classifier"], len(heldout)))
    logits_of = jax.jit(lambda params, images: model(params, images)[1])

    def evaluate(state):
        losses, correct = [], []
        for part in np.array_split(indices, -(-len(indices) // batch)):
            logits = logits_of(state["average"], to_unit(heldout.take(part)))
            labels = heldout.labels[part]
            cross = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            losses.append(np.asarray(cross))
            correct.append(np.asarray(logits).argmax(-1) == labels)
        return {
            "heldout_loss": float(np.concatenate(losses).mean()),
            "accuracy": float(np.concatenate(correct).mean()),
        }

    return evaluate
