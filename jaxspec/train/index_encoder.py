"""Training of an encoder that finds the tokens of decoded images again (IndexMark)."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.checkpoint import Checkpoint
from jaxspec.config import TokenizerConfig
from jaxspec.core.noise import seed_key
from jaxspec.data.batches import batch_indices, flip_at_random, step_rng
from jaxspec.data.source import ImageSource
from jaxspec.errors import ConfigError
from jaxspec.io.images import to_unit
from jaxspec.nn.vq import l2_normalize, look_up
from jaxspec.tokenizers.vqgan.model import Tokenizer
from jaxspec.train.experiment import Experiment
from jaxspec.train.identity import fingerprint
from jaxspec.train.loop import Training, TrainingJob
from jaxspec.train.optimizer import init_train_state, make_gradient_step
from jaxspec.train.start import check_start, encoder_of, start_digests
from jaxspec.typing import Array, Float, Int, Params

# Weight of the error of images that are decoded from what the encoder finds.
RECONSTRUCTION = 0.5
# Largest standard deviation of noise on the images, in levels of 255.
NOISE = 8.0


def index_encoder_job(
    experiment: Experiment,
    source: ImageSource,
    heldout: ImageSource,
    start: Checkpoint | None,
) -> TrainingJob:
    """Prepares the training of an encoder alone, on images that the decoder makes.

    The encoder learns to give back the codes from which an image was decoded. The loss
    is that of IndexMark (arXiv 2505.14673): the distance to the codes, and half of the
    error of an image decoded from the vectors found. Noise on the images is ours.

    Args:
      experiment: configurations of the tokenizer and its training.
      source: training images, of which the tokens of `start` are taken.
      heldout: images that select the checkpoint.
      start: trained tokenizer, whose codes and decoder are kept.

    Raises:
      ConfigError: there is no tokenizer to start from, it has another configuration or
        no learned codes, or another training of a part alone is asked for.
    """
    config, sizes = experiment.train_tokenizer, experiment.tokenizer
    assert config is not None
    if not isinstance(sizes, TokenizerConfig) or sizes.quantizer != "vq":
        raise ConfigError("encoder_alone is for a grid of learned codes")
    if config.decoder_alone or config.swapped_images or config.generated_tokens:
        raise ConfigError(
            "encoder_alone excludes decoder_alone, swapped_images and generated_tokens"
        )
    if start is None:
        raise ConfigError(
            "encoder_alone needs a trained tokenizer, whose codes are kept: --start DIR"
        )
    check_start(start, "tokenizer", sizes)
    tokenizer = Tokenizer(sizes)

    decoded = jax.jit(partial(_decoded, tokenizer))
    flips, dtype = experiment.data.flips, jnp.dtype(config.compute_dtype)

    def batch_fn(step):
        indices = batch_indices(config.seed, step, config.batch, len(source))
        images = source.take(indices)
        if flips:
            images = flip_at_random(images, step_rng(config.seed, step))
        # Outside of the step, whose parameters may be rounded to bfloat16.
        _, vectors, shown = decoded(start.params, to_unit(images))
        return np.asarray(vectors), np.asarray(shown)

    def loss_fn(encoder, fixed, vectors, shown, key):
        deviation_key, noise_key = jax.random.split(key)
        deviation = jax.random.uniform(
            deviation_key, (len(shown), 1, 1, 1), maxval=NOISE / 127.5
        )
        noise = deviation * jax.random.normal(noise_key, shown.shape)
        seen = jnp.clip(shown + noise, -1.0, 1.0)
        found = tokenizer.embed({**fixed, **encoder}, seen.astype(dtype))
        found = found.astype(jnp.float32)
        if sizes.normalized == "both":
            found = l2_normalize(found)
        distance = jnp.mean((found - vectors) ** 2)
        if sizes.normalized == "decoding":
            found = l2_normalize(found)
        again = tokenizer.decode_vectors(fixed, found.astype(dtype))
        return distance + RECONSTRUCTION * jnp.mean((again - shown) ** 2)

    def whole(state: Any) -> Params:
        return {**start.params, **state["average"]}

    def evaluate(state, fixed):
        return recovery_metrics(tokenizer, fixed, whole(state), heldout)

    def finish(params, metrics):
        metrics = {k: v for k, v in metrics.items() if k != "heldout_loss"}
        metadata = {"metrics": metrics}
        found = Checkpoint("tokenizer", sizes, params, metadata, start.neighbors)
        return {"tokenizer": found}

    training = Training(
        "tokenizer",
        config,
        make_gradient_step(config, loss_fn),
        batch_fn,
        evaluate,
        fingerprint(sizes, config, experiment.data, *start_digests(start)),
        result=whole,
        frozen=(start.params,),
    )
    state = init_train_state(config, encoder_of(start.params))
    return TrainingJob(training, state, finish)


def recovery_metrics(
    tokenizer: Tokenizer,
    params: Params,
    after: Params,
    source: ImageSource,
    batch: int = 100,
) -> dict[str, float]:
    """Share of the tokens of decoded images that an encoder finds again.

    Args:
      tokenizer: static functions of the tokenizer.
      params: parameters that give the tokens and decode them.
      after: parameters whose encoder reads the decoded images.
      source: images.
      batch: images of a pass.

    Returns:
      "found_again", the share; "found_in_noise", that with noise of four levels of 255
      on the images; and "heldout_loss", what is missing of the mean of both.
    """
    measure = jax.jit(_recovered, static_argnums=0)
    sums = np.zeros(2)
    for first in range(0, len(source), batch):
        images = source.take(range(first, min(first + batch, len(source))))
        key = jax.random.fold_in(seed_key(0), first)
        shares = measure(tokenizer, params, after, to_unit(images), key)
        sums += np.array([float(x) for x in shares]) * len(images)
    plain, noisy = (float(x) for x in sums / len(source))
    return {
        "heldout_loss": 1 - (plain + noisy) / 2,
        "found_again": plain,
        "found_in_noise": noisy,
    }


def _recovered(tokenizer, params, after, images, key):
    codes, _, shown = _decoded(tokenizer, params, images)
    noise = NOISE / 255 * jax.random.normal(key, shown.shape)
    return [
        jnp.mean(tokenizer.encode(after, seen) == codes)
        for seen in (shown, jnp.clip(shown + noise, -1.0, 1.0))
    ]


def _decoded(
    tokenizer: Tokenizer, params: Params, images: Float[Array, "B h w 3"]
) -> tuple[Int[Array, "B T"], Float[Array, "B grid grid C"], Float[Array, "B h w 3"]]:
    """Codes, the vectors nearest to them, and images decoded from them, as files.

    Vectors are those that encoding compares with, on the grid.
    """
    codes = tokenizer.encode(params, images)
    normalized = tokenizer.config.normalized == "both"
    grid = tokenizer.config.grid
    vectors = look_up(
        params["codebook"], tokenizer.on_grid(codes), normalized=normalized
    ).reshape(len(images), grid, grid, -1)
    shown = jnp.clip(tokenizer.decode(params, codes), -1.0, 1.0)
    return codes, vectors, jnp.round((shown + 1) * 127.5) / 127.5 - 1
