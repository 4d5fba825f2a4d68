"""Training of a decoder on tokens that a model generates."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxspec.checkpoint import Checkpoint, params_digest
from jaxspec.config import TokenizerConfig, TransformerConfig
from jaxspec.config.token_kinds import same_tokens
from jaxspec.data.batches import batch_indices
from jaxspec.data.source import ImageSource
from jaxspec.errors import ConfigError
from jaxspec.evaluate.reconstruction import reconstruction_metrics
from jaxspec.models.transformer.model import Transformer
from jaxspec.tokenizers.vqgan.model import Tokenizer
from jaxspec.train.experiment import Experiment
from jaxspec.train.identity import fingerprint
from jaxspec.train.loop import Training, TrainingJob
from jaxspec.train.optimizer import init_train_state, make_gradient_step
from jaxspec.train.start import check_decoder_alone, check_start, trained_alone
from jaxspec.train.tokenizer import L1
from jaxspec.typing import Array, Float, Int, Params


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
        its encoder is to be trained too, or the model is over other tokens.
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
        or not same_tokens(prior.config, sizes)
    ):
        raise ConfigError(
            "generated_tokens needs a model of classes over these tokens: --checkpoint"
        )
    tokenizer, model = Tokenizer(sizes), Transformer(prior.config)
    share = config.generated_tokens

    def batch_fn(step):
        indices = batch_indices(config.seed, step, config.batch, len(source))
        return source.take(indices), source.labels[indices]

    def loss_fn(decoder, fixed, prior_params, images, labels, key):
        x = images.astype(jnp.float32) / 127.5 - 1.0
        codes = tokenizer.encode(fixed, x)
        codes = sampled_tokens(key, model, prior_params, labels, codes, share)
        error = tokenizer.decode({**fixed, **decoder}, codes) - x
        return jnp.mean(error**2) + L1 * jnp.mean(jnp.abs(error))

    def whole(state: Any) -> Params:
        return {**start.params, **state["average"]}

    def evaluate(state, *frozen):
        metrics = reconstruction_metrics(tokenizer, whole(state), heldout)
        return {"heldout_loss": -metrics["psnr"], **metrics}

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
      share: probability that a token is sampled, given all of `tokens` before it.
    """
    sample_key, share_key = jax.random.split(key)
    logits: Float[Array, "B Y V"] = model.score(params, labels, tokens[:, :-1])[0]
    first = model.config.prefix_length - 1
    sampled = jax.random.categorical(sample_key, logits[:, first:]).astype(tokens.dtype)
    chosen = jax.random.bernoulli(share_key, jnp.float32(share), tokens.shape)
    return jnp.where(chosen, sampled, tokens)
