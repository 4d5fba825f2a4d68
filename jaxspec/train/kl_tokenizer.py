"""Training of autoencoders with continuous latents (arXiv 2112.10752)."""

from dataclasses import replace

import jax
import jax.numpy as jnp

from jaxspec.checkpoint import Checkpoint
from jaxspec.config import KLTokenizerConfig
from jaxspec.core.noise import seed_key
from jaxspec.data.batches import batch_indices, flip_at_random, step_rng
from jaxspec.data.source import ImageSource
from jaxspec.errors import ConfigError
from jaxspec.evaluate.reconstruction import reconstruction_metrics
from jaxspec.tokenizers.kl.model import KLTokenizer
from jaxspec.train.experiment import Experiment
from jaxspec.train.identity import fingerprint
from jaxspec.train.loop import Training, TrainingJob
from jaxspec.train.optimizer import init_train_state, make_gradient_step
from jaxspec.train.start import check_start, start_digests
from jaxspec.typing import Array, Float, Params

L1 = 0.2
# Weight of the divergence from a standard normal, summed over latents, of a pixel.
DIVERGENCE = 1e-6


def kl_job(
    experiment: Experiment,
    source: ImageSource,
    heldout: ImageSource,
    start: Checkpoint | None = None,
) -> TrainingJob:
    """Prepares the training of an autoencoder with continuous latents.

    Losses are those of pixels, without an adversary and without features of another
    network, and a slight one of the latents' divergence from a standard normal. The
    factor of the tokens is chosen at the end, so that their standard deviation is 1.

    Args:
      experiment: configurations of the autoencoder and its training.
      source: training images.
      heldout: images that select the checkpoint.
      start: trained autoencoder of the same sizes, whose parameters are the initial
        ones; None for random parameters.

    Raises:
      ConfigError: `start` has another configuration, or the decoder is to be trained
        alone, which is for tokenizers with codes.
    """
    config, sizes = experiment.train_tokenizer, experiment.tokenizer
    assert config is not None and isinstance(sizes, KLTokenizerConfig)
    if config.decoder_alone:
        raise ConfigError("decoder_alone is for tokenizers with codes; leave it out")
    if config.swapped_images:
        raise ConfigError("swapped_images is for tokenizers of one token a cell")
    tokenizer, flips = KLTokenizer(sizes), experiment.data.flips
    params = tokenizer.init(seed_key(config.seed))
    if start is not None:
        scale = getattr(start.config, "scale", 1.0)
        check_start(start, "kl_tokenizer", replace(sizes, scale=scale))
        params = start.params

    def batch_fn(step):
        indices = batch_indices(config.seed, step, config.batch, len(source))
        images = source.take(indices)
        if flips:
            images = flip_at_random(images, step_rng(config.seed, step))
        return (images,)

    def evaluate(state):
        metrics = reconstruction_metrics(tokenizer, state["average"], heldout)
        return {"heldout_loss": -metrics["psnr"], **metrics}

    def finish(params, metrics):
        metrics = {k: v for k, v in metrics.items() if k != "heldout_loss"}
        scaled = replace(sizes, scale=sizes.scale / metrics["deviation"])
        checkpoint = Checkpoint("kl_tokenizer", scaled, params, {"metrics": metrics})
        return {"tokenizer": checkpoint}

    training = Training(
        "tokenizer",
        config,
        make_gradient_step(config, lambda *args: autoencoder_loss(tokenizer, *args)),
        batch_fn,
        evaluate,
        fingerprint(sizes, config, experiment.data, *start_digests(start)),
    )
    return TrainingJob(training, init_train_state(config, params), finish)


def autoencoder_loss(
    tokenizer: KLTokenizer,
    params: Params,
    images: Array,
    key: Array,
) -> Float[Array, ""]:
    """Squared and absolute error of a pixel, and the divergence of its latents.

    Args:
      tokenizer: static functions of the autoencoder.
      params: parameters, in the dtype of the products.
      images: uint8 [B, height, width, 3].
      key: key of the noise of the latents; consumed.
    """
    dtype = params["decoder"]["conv_in"]["kernel"].dtype
    pixels = images.astype(jnp.float32) / 127.5 - 1.0
    mean, deviation = tokenizer.posterior(params, pixels.astype(dtype))
    noise = jax.random.normal(key, mean.shape, jnp.float32)
    tokens = mean + deviation * noise
    error = tokenizer.decode(params, tokens.astype(dtype)).astype(jnp.float32) - pixels
    mean, deviation = mean / tokenizer.config.scale, deviation / tokenizer.config.scale
    divergence = (mean**2 + deviation**2 - 1) / 2 - jnp.log(deviation)
    loss = jnp.mean(error**2) + L1 * jnp.mean(jnp.abs(error))
    return loss + DIVERGENCE * jnp.sum(divergence) / pixels.size
