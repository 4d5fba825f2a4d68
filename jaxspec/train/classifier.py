"""Training of the classifier whose features measure images."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxspec.checkpoint import Checkpoint
from jaxspec.data.batches import batch_indices, step_rng
from jaxspec.data.source import ImageSource
from jaxspec.images import to_unit
from jaxspec.models.classifier import Classifier, ClassifierConfig
from jaxspec.spec.noise import seed_key
from jaxspec.train.experiment import Experiment, TrainingConfig, fingerprint
from jaxspec.train.layout import ONE_DEVICE, Layout
from jaxspec.train.loop import fit
from jaxspec.train.optimizer import begin, descend

# Held-out images that select the checkpoint.
HELDOUT = 2048
# Most pixels by which an image is moved, as a share of its side.
SHIFT = 1 / 16


def train_classifier(
    experiment: Experiment,
    source: ImageSource,
    heldout: ImageSource,
    workdir: Path,
    layout: Layout = ONE_DEVICE,
) -> Checkpoint:
    """Trains a classifier on the experiment's images; resumes `workdir`."""
    config = experiment.train_classifier
    assert experiment.tokenizer is not None  # there are images
    side = experiment.tokenizer.image_size
    shape = ClassifierConfig(side, len(source.class_names), max(side // 16, 1))
    model, most = Classifier(shape), max(int(SHIFT * side), 1)

    def batch_fn(step):
        indices = batch_indices(config.seed, step, config.batch, len(source))
        rng, images = step_rng(config.seed, step), source.take(indices)
        if experiment.data.flips:
            mirrored = rng.random(config.batch)[:, None, None, None] < 0.5
            images = np.where(mirrored, images[:, :, ::-1], images)
        down, right = rng.integers(-most, most + 1, 2)
        pad = ((0, 0), (most, most), (most, most), (0, 0))
        moved = np.pad(images, pad, mode="edge")
        moved = moved[:, most + down :, most + right :][:, :side, :side]
        return moved, source.labels[indices]

    rows = np.linspace(0, len(heldout) - 1, min(HELDOUT, len(heldout))).astype(np.int64)
    measure = jax.jit(lambda params, images: model(params, images)[1])

    def evaluate(state):
        losses, right = [], []
        for part in np.array_split(rows, -(-len(rows) // 128)):
            logits = measure(state["average"], to_unit(heldout.take(part)))
            labels = heldout.labels[part]
            cross = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            losses.append(np.asarray(cross))
            right.append(np.asarray(logits).argmax(-1) == labels)
        return {
            "heldout_loss": float(np.concatenate(losses).mean()),
            "accuracy": float(np.concatenate(right).mean()),
        }

    state = layout.place(begin(config, model.init(seed_key(config.seed))))
    kept, metrics = fit(
        workdir,
        config,
        state,
        layout.compile(make_step(model, config), state),
        layout.rows(batch_fn),
        evaluate,
        lambda state: state["average"],
        "classifier",
        fingerprint(shape, config, experiment.data),
    )
    return Checkpoint("classifier", shape, kept, {"metrics": metrics})


def make_step(model: Classifier, config: TrainingConfig):
    """One step `(state, step, (images uint8, labels)) -> (state, metrics)`."""
    dtype = jnp.dtype(config.compute_dtype)

    def loss_fn(params, images, labels):
        params = jax.tree.map(lambda x: x.astype(dtype), params)
        x = (images.astype(jnp.float32) / 127.5 - 1.0).astype(dtype)
        cross = optax.softmax_cross_entropy_with_integer_labels
        return jnp.mean(cross(model(params, x)[1], labels))

    def step_fn(state, step, batch):
        loss, gradient = jax.value_and_grad(loss_fn)(state["params"], *batch)
        state = descend(config, state, gradient, step)
        return state, {"loss": loss, "gradient_norm": optax.tree.norm(gradient)}

    return step_fn
