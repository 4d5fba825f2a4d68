"""Training of tokenizers whose decoder is a flow (FlexTok, D-AR)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.checkpoint import Checkpoint
from jaxspec.config.flow import FlowTokenizerConfig
from jaxspec.core.noise import seed_key
from jaxspec.data.batches import batch_indices, evenly_spaced, flip_at_random, step_rng
from jaxspec.data.source import ImageSource
from jaxspec.errors import ConfigError
from jaxspec.evaluate.reconstruction import prefix_metrics, reconstruction_metrics
from jaxspec.io.images import to_unit
from jaxspec.nn.scalar import product_codes
from jaxspec.nn.vq import look_up
from jaxspec.tokenizers.flow.model import FlowTokenizer
from jaxspec.train.experiment import Experiment
from jaxspec.train.identity import fingerprint
from jaxspec.train.loop import Training, TrainingJob
from jaxspec.train.optimizer import init_train_state, make_gradient_step
from jaxspec.train.start import check_start, start_digests
from jaxspec.typing import Array, Float, Params

# Number of held-out images that are decoded in an evaluation, which follows their flow.
DECODED = 64
# Share of the images whose flow reads no token, for guidance.
NULL_SHARE = 0.1


def flow_job(
    experiment: Experiment,
    source: ImageSource,
    heldout: ImageSource,
    start: Checkpoint | None = None,
) -> TrainingJob:
    """Prepares the training of a tokenizer with a flow on pixels.

    Args:
      experiment: configurations of the tokenizer and its training.
      source: training images.
      heldout: images that select the checkpoint.
      start: trained tokenizer of the same configuration, whose parameters are the
        initial ones; None for random parameters.

    Raises:
      ConfigError: the tokenizer has latents, a part is to be trained alone, or `start`
        has another configuration.
    """
    config, sizes = experiment.train_tokenizer, experiment.tokenizer
    assert config is not None and isinstance(sizes, FlowTokenizerConfig)
    if sizes.latents is not None:
        raise ConfigError("flows are trained on pixels: latents=None")
    if config.decoder_alone or config.swapped_images:
        raise ConfigError("decoder_alone and swapped_images are for learned codes")
    tokenizer, flips = FlowTokenizer(sizes), experiment.data.flips
    params = tokenizer.init(seed_key(config.seed))
    if start is not None:
        check_start(start, "flow_tokenizer", sizes)
        params = start.params
    book = params["codebook"]
    networks = {k: x for k, x in params.items() if k != "codebook"}

    def batch_fn(step):
        indices = batch_indices(config.seed, step, config.batch, len(source))
        images = source.take(indices)
        if flips:
            images = flip_at_random(images, step_rng(config.seed, step))
        return (images,)

    def whole(state):
        return {**state["average"], "codebook": book}

    few = _Few(heldout, DECODED)

    def evaluate(state):
        params = whole(state)
        metrics = reconstruction_metrics(tokenizer, params, few)
        metrics |= prefix_metrics(tokenizer, params, few)
        return {"heldout_loss": -metrics["psnr"], **metrics}

    def finish(params, metrics):
        metrics = {k: v for k, v in metrics.items() if k != "heldout_loss"}
        found = Checkpoint("flow_tokenizer", sizes, params, {"metrics": metrics})
        return {"tokenizer": found}

    def loss_fn(networks, images, key):
        return flow_loss(tokenizer, {**networks, "codebook": book}, images, key)

    training = Training(
        "tokenizer",
        config,
        make_gradient_step(config, loss_fn),
        batch_fn,
        evaluate,
        fingerprint(sizes, config, experiment.data, *start_digests(start)),
        result=whole,
    )
    return TrainingJob(training, init_train_state(config, networks), finish)


class _Few:
    """Evenly spaced images of a source, as a source."""

    def __init__(self, source: ImageSource, count: int):
        self._source, self._count = source, count

    def __len__(self) -> int:
        return min(self._count, len(self._source))

    def take(self, indices: Any) -> np.ndarray:
        """Some of the images, uint8 [n, h, w, 3]."""
        spaced = evenly_spaced(len(self._source), len(self))
        return self._source.take(spaced[np.asarray(indices)])


def flow_loss(
    tokenizer: FlowTokenizer, params: Params, images: Array, key: Array
) -> Float[Array, ""]:
    """Squared error of the velocity of images at random times.

    Times are sigmoids of normal numbers. Of a tokenizer of one group, each image has as
    many tokens as it draws (nested dropout); of several, those that are read by then.

    Args:
      tokenizer: static functions of the tokenizer.
      params: parameters.
      images: uint8 [B, height, width, 3].
      key: random key; consumed.
    """
    c, rows = tokenizer.config, len(images)
    time_key, noise_key, count_key, null_key = jax.random.split(key, 4)
    pixels = to_unit(images)
    dtype = params["encoder"]["out"]["kernel"].dtype  # of the products
    vectors = tokenizer.embed(params, pixels.astype(dtype)).astype(jnp.float32)
    codes = product_codes(jax.lax.stop_gradient(vectors), c.levels)
    rounded = look_up(params["codebook"], codes, normalized=False)
    # Straight-through estimator: the gradient of what is rounded is passed on.
    through = vectors + jax.lax.stop_gradient(rounded - vectors)
    time = jax.nn.sigmoid(jax.random.normal(time_key, (rows,), jnp.float32))
    count = tokenizer.read_at(time)
    if c.groups == 1:
        count = jax.random.randint(count_key, (rows,), 1, c.length + 1)
    seen = jnp.arange(c.length)[None] < count[:, None]
    null = jax.random.bernoulli(null_key, jnp.float32(NULL_SHARE), (rows,))
    noise = jax.random.normal(noise_key, pixels.shape, jnp.float32)
    share = time.reshape(-1, 1, 1, 1)
    mixture = share * noise + (1 - share) * pixels
    inputs = mixture.astype(dtype), time, through.astype(dtype), seen, null
    speed = tokenizer.velocity(params, *inputs).astype(jnp.float32)
    return jnp.mean((speed - (noise - pixels)) ** 2)
