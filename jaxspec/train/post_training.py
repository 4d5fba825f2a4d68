"""Training of a decoder on tokens that a model generates."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.checkpoint import Checkpoint, params_digest
from jaxspec.config import TokenizerConfig, TransformerConfig
from jaxspec.config.token_kinds import same_tokens
from jaxspec.core.noise import seed_key
from jaxspec.data.batches import (
    batch_indices,
    evenly_spaced,
    flip_at_random,
    step_rng,
)
from jaxspec.data.source import ImageSource
from jaxspec.errors import ConfigError
from jaxspec.evaluate.reconstruction import reconstruction_metrics
from jaxspec.io.images import to_unit
from jaxspec.models.transformer.model import Transformer
from jaxspec.tokenizers.vqgan.model import Tokenizer
from jaxspec.train.experiment import Experiment
from jaxspec.train.identity import fingerprint
from jaxspec.train.loop import Training, TrainingJob
from jaxspec.train.optimizer import init_train_state, make_gradient_step
from jaxspec.train.start import check_decoder_alone, check_start, trained_alone
from jaxspec.train.tokenizer import L1
from jaxspec.typing import Array, Float, Int, Params

# Held-out images of which a model samples tokens in an evaluation.
SAMPLED = 256


def post_training_job(
    experiment: Experiment,
    source: ImageSource,
    heldout: ImageSource,
    prior: Checkpoint,
    start: Checkpoint | None,
) -> TrainingJob:
    """Prepares the training of a decoder on a mixture of real and sampled tokens.

    An image is decoded from its tokens, of which the model over them has sampled a
    share, each given all real ones before it. Source: post-training of tokenizers
    (arXiv 2509.12474), which generates whole images; a share of sampled tokens among
    real ones is ours.

    Args:
      experiment: configurations of the tokenizer and its training.
      source: training images of the model's classes.
      heldout: images that select the checkpoint, with their real tokens.
      prior: model over the tokens, of classes.
      start: trained tokenizer, whose tokens are kept.

    Raises:
      ConfigError: there is no tokenizer to start from, it has another configuration,
        its encoder is to be trained too, or the model is over other tokens or classes.
    """
    config, sizes = experiment.train_tokenizer, experiment.tokenizer
    assert config is not None
    if not config.decoder_alone or not isinstance(sizes, TokenizerConfig):
        raise ConfigError(
            "generated_tokens is for the decoder of a grid of codes: set "
            "train_tokenizer.decoder_alone=true"
        )
    if config.swapped_images:
        raise ConfigError("generated_tokens and swapped_images exclude each other")
    check_decoder_alone(True, start)
    assert start is not None
    check_start(start, "tokenizer", sizes)
    if (
        not isinstance(prior.config, TransformerConfig)
        or prior.config.condition != "class"
        or prior.metadata.get("objective", "next") not in ("next", "any_order")
        or not same_tokens(prior.config, sizes)
    ):
        raise ConfigError(
            "generated_tokens needs a model that generates these tokens of classes one "
            "by one: --checkpoint"
        )
    for images in (source, heldout):
        _check_labels(images, prior)
    tokenizer, model = Tokenizer(sizes), Transformer(prior.config)
    share, flips = config.generated_tokens, experiment.data.flips
    encode = jax.jit(tokenizer.encode)

    def batch_fn(step):
        indices = batch_indices(config.seed, step, config.batch, len(source))
        images = source.take(indices)
        if flips:
            images = flip_at_random(images, step_rng(config.seed, step))
        # Outside of the step, whose parameters may be rounded to bfloat16.
        codes = np.asarray(encode(start.params, to_unit(images)))
        return images, codes, source.labels[indices]

    def loss_fn(decoder, fixed, prior_params, images, codes, labels, key):
        x = to_unit(images)
        codes = sampled_tokens(key, model, prior_params, labels, codes, share)
        error = tokenizer.decode({**fixed, **decoder}, codes) - x
        return jnp.mean(error**2) + L1 * jnp.mean(jnp.abs(error))

    def whole(state: Any) -> Params:
        return {**start.params, **state["average"]}

    @jax.jit
    def sampled_error(params, prior_params, images, labels, key):
        x = to_unit(images)
        codes = tokenizer.encode(params, x)
        codes = sampled_tokens(key, model, prior_params, labels, codes, share)
        out = jnp.clip(tokenizer.decode(params, codes), -1.0, 1.0)
        return jnp.mean((out - x) ** 2, axis=(1, 2, 3))

    def evaluate(state, fixed, prior_params):
        params = whole(state)
        metrics = reconstruction_metrics(tokenizer, params, heldout)
        parts = evenly_spaced(len(heldout), min(len(heldout), SAMPLED))
        errors = [
            sampled_error(
                params,
                prior_params,
                heldout.take(part),
                heldout.labels[part],
                seed_key(i),
            )
            for i, part in enumerate(np.array_split(parts, max(len(parts) // 64, 1)))
        ]
        errors = np.maximum(np.concatenate(errors), 1e-10)
        # Selection is by what is trained; real tokens lose a little by it.
        psnr = float(np.mean(10 * np.log10(4.0 / errors)))
        return {"heldout_loss": -psnr, "sampled_psnr": psnr, **metrics}

    def finish(params, metrics):
        metrics = {k: v for k, v in metrics.items() if k != "heldout_loss"}
        found = Checkpoint(
            "tokenizer", sizes, params, {"metrics": metrics}, start.neighbors
        )
        return {"tokenizer": found}

    training = Training(
        "tokenizer",
        config,
        make_gradient_step(config, loss_fn),
        batch_fn,
        evaluate,
        fingerprint(
            sizes,
            config,
            experiment.data,
            params_digest(start.params),
            params_digest(prior.params),
        ),
        result=whole,
        frozen=(start.params, prior.params),
    )
    return TrainingJob(
        training, init_train_state(config, trained_alone(start.params)), finish
    )


def _check_labels(source: ImageSource, prior: Checkpoint) -> None:
    """Checks that images have the classes of a model.

    Raises:
      ConfigError: they have others.
    """
    names = list(getattr(source, "class_names", ()))
    known = list(prior.metadata.get("class_names", ()))
    labels, count = source.labels, prior.config.classes
    outside = labels.min() < 0 or labels.max() >= count
    if outside or (names and known and names != known):
        raise ConfigError(
            f"generated_tokens needs images of the {count} classes of the model, in "
            "its order"
        )


def sampled_tokens(
    key: Array,
    model: Transformer,
    params: Params,
    labels: Int[Array, "B"],
    tokens: Int[Array, "B T"],
    share: float,
) -> Int[Array, "B T"]:
    """Tokens of images, of which a model has sampled some.

    Args:
      key: random key; consumed.
      model: model over the tokens.
      params: its parameters.
      labels: classes of the images, int32.
      tokens: tokens of the images, int32.
      share: probability that a token is sampled, without guidance and filters, given
        all of `tokens` before it.

    Returns:
      Tokens, int32 [B, T].
    """
    sample_key, share_key = jax.random.split(key)
    logits: Float[Array, "B Y V"] = model.score(params, labels, tokens[:, :-1])[0]
    first = model.config.prefix_length - 1
    sampled = jax.random.categorical(sample_key, logits[:, first:]).astype(tokens.dtype)
    chosen = jax.random.bernoulli(share_key, jnp.float32(share), tokens.shape)
    return jnp.where(chosen, sampled, tokens)
