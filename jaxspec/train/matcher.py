"""Training of a matcher of images and captions, by contrast within a batch."""

import jax.numpy as jnp
import numpy as np
import optax

from jaxspec.checkpoint import Checkpoint
from jaxspec.config import TextEncoderConfig
from jaxspec.core.noise import seed_key
from jaxspec.data.batches import batch_indices, evenly_spaced
from jaxspec.data.source import ImageSource
from jaxspec.evaluate.matching import first_share
from jaxspec.models.matcher.model import Matcher, MatcherConfig
from jaxspec.train.experiment import Experiment
from jaxspec.train.identity import fingerprint
from jaxspec.train.loop import Training, TrainingJob
from jaxspec.train.optimizer import init_train_state, make_gradient_step
from jaxspec.train.settings import TrainingConfig
from jaxspec.train.start import check_start, start_digests

MATCHER = "matcher"  # kind of checkpoint, and name of the part
# Captions among which the right one has to score highest.
AMONG = 100


def matcher_config(side: int, text: TextEncoderConfig) -> MatcherConfig:
    """Sizes of the matcher of images with `side` pixels."""
    return MatcherConfig(side, text, max(side // 16, 1))


def matcher_job(
    experiment: Experiment,
    source: ImageSource,
    captions: np.ndarray,
    heldout: ImageSource,
    heldout_captions: np.ndarray,
    start: Checkpoint | None = None,
) -> TrainingJob:
    """Prepares the training of a matcher of an experiment's images and captions.

    Args:
      experiment: image size, text encoder, and settings of the training.
      source: training images.
      captions: their captions, int32 [n, P], with -1 after shorter ones.
      heldout: images that select the checkpoint.
      heldout_captions: their captions, int32 [m, P].
      start: trained matcher of the same configuration, whose parameters are the initial
        ones; None for random parameters.

    Raises:
      ConfigError: `start` has another configuration.
    """
    config = experiment.train_matcher
    assert experiment.tokenizer is not None  # images, not text
    assert experiment.text_encoder is not None
    model = Matcher(
        matcher_config(experiment.tokenizer.image_size, experiment.text_encoder)
    )

    def batch_fn(step):
        indices = batch_indices(config.seed, step, config.batch, len(source))
        return source.take(indices), captions[indices]

    chosen = evenly_spaced(len(heldout), min(5 * AMONG, len(heldout)))
    images, ids = heldout.take(chosen), heldout_captions[chosen]

    def evaluate(state):
        share = first_share(model, state["average"], images, ids, among=AMONG)
        return {"heldout_loss": 1 - share, "ranked_first": share}

    training = Training(
        MATCHER,
        config,
        make_step(model, config),
        batch_fn,
        evaluate,
        fingerprint(model.config, config, experiment.data, *start_digests(start)),
    )
    params = model.init(seed_key(config.seed))
    if start is not None:
        check_start(start, MATCHER, model.config)
        params = start.params

    def finish(trained, metrics):
        data = experiment.data
        split = data.matcher_split or data.train_split
        metadata = {"metrics": metrics, "split": split}
        return {MATCHER: Checkpoint(MATCHER, model.config, trained, metadata)}

    return TrainingJob(training, init_train_state(config, params), finish)


def make_step(model: Matcher, config: TrainingConfig):
    """One step `(state, step, (images uint8, captions)) -> (state, metrics)`.

    Equal captions of a batch do not count as wrong ones.
    """
    dtype = jnp.dtype(config.compute_dtype)

    def loss_fn(params, images, captions, _):
        x = (images.astype(jnp.float32) / 127.5 - 1.0).astype(dtype)
        scores = model.scores(params, x, captions).astype(jnp.float32)
        same = jnp.all(captions[:, None] == captions[None], axis=-1)
        right = jnp.arange(len(captions))
        wrong = same & ~jnp.eye(len(captions), dtype=bool)
        scores = jnp.where(wrong, -1e9, scores)
        cross = optax.softmax_cross_entropy_with_integer_labels
        return jnp.mean(cross(scores, right) + cross(scores.T, right)) / 2

    return make_gradient_step(config, loss_fn)
