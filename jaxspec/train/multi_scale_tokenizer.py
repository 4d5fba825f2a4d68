"""Training of multi-scale tokenizers (VAR, arXiv 2404.02905)."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxspec.checkpoint import Checkpoint
from jaxspec.config import MultiScaleTokenizerConfig
from jaxspec.core.noise import seed_key
from jaxspec.data.batches import batch_indices, flip_at_random, step_rng
from jaxspec.data.source import ImageSource
from jaxspec.errors import ConfigError
from jaxspec.evaluate.reconstruction import prefix_metrics, reconstruction_metrics
from jaxspec.io.images import to_unit
from jaxspec.nn.vq import kmeans, look_up, nearest_codes
from jaxspec.tokenizers.multi_scale.model import MultiScaleTokenizer
from jaxspec.train.experiment import Experiment
from jaxspec.train.identity import fingerprint
from jaxspec.train.loop import Training, TrainingJob
from jaxspec.train.optimizer import apply_gradients, init_train_state
from jaxspec.train.settings import TokenizerTrainingConfig, TrainingConfig
from jaxspec.train.start import (
    check_decoder_alone,
    check_start,
    start_digests,
    with_codes_of,
)
from jaxspec.typing import Array, Bool, Float, Int, Params

COMMITMENT, L1 = 0.25, 0.2
# Decay of the counts of codes; a code whose count is below this share of the mean, or
# of 1 if that is less, is moved until this share of the steps.
DECAY, DEAD_SHARE, LAST_MOVE = 0.99, 0.02, 0.8
# Images whose vectors are clustered for the first codebook.
FIRST_IMAGES = 256
_TOGETHER = 8


def multi_scale_job(
    experiment: Experiment,
    source: ImageSource,
    heldout: ImageSource,
    start: Checkpoint | None = None,
) -> TrainingJob:
    """Prepares the training of an experiment's multi-scale tokenizer.

    The codebook starts with the centers of clusters of the first encoder's vectors at
    all scales, each scale with equal weight. Networks, residual convolutions and
    codebook follow gradients, as published; here without an adversary and without
    features of another network. A code that no scale uses is moved to a vector that is
    represented badly; scales take turns in giving it, so that coarse ones, of few
    vectors, get theirs.

    Args:
      experiment: configurations of the tokenizer and its training.
      source: training images.
      heldout: images that select the checkpoint.
      start: trained tokenizer of the same configuration, whose parameters are the
        initial ones; None for random parameters.

    Raises:
      ConfigError: `start` has another configuration, or there is none and the decoder
        is trained alone.
    """
    config, sizes = experiment.train_tokenizer, experiment.tokenizer
    assert config is not None and isinstance(sizes, MultiScaleTokenizerConfig)
    check_decoder_alone(config.decoder_alone, start)
    if config.swapped_images:
        raise ConfigError("swapped_images is for tokenizers of one token a cell")
    tokenizer, flips = MultiScaleTokenizer(sizes), experiment.data.flips

    def batch_fn(step):
        indices = batch_indices(config.seed, step, config.batch, len(source))
        images = source.take(indices)
        return flip_at_random(images, step_rng(config.seed, step)) if flips else images

    def evaluate(state):
        params = state["average"]
        metrics = reconstruction_metrics(tokenizer, params, heldout)
        scales = prefix_metrics(tokenizer, params, heldout)
        return {"heldout_loss": -metrics["psnr"], **metrics, **scales}

    def finish(params, metrics):
        metrics = {k: v for k, v in metrics.items() if k != "heldout_loss"}
        kind = "multi_scale_tokenizer"
        return {"tokenizer": Checkpoint(kind, sizes, params, {"metrics": metrics})}

    if start is not None:
        check_start(start, "multi_scale_tokenizer", sizes)
        params = start.params
    else:
        indices = batch_indices(config.seed, 0, FIRST_IMAGES, len(source))
        images = jnp.asarray(to_unit(source.take(indices)))
        params = first_params(tokenizer, seed_key(config.seed), images)
    training = Training(
        "tokenizer",
        config,
        make_step(tokenizer, config),
        batch_fn,
        evaluate,
        fingerprint(sizes, config, experiment.data, *start_digests(start)),
    )
    return TrainingJob(training, init_state(config, params), finish)


def first_params(
    tokenizer: MultiScaleTokenizer, key: Array, images: Float[Array, "B h w 3"]
) -> Params:
    """Random networks, and a codebook of clusters of their vectors at all scales."""
    params = tokenizer.init(key)
    scales = tokenizer.scales
    embed = jax.jit(tokenizer.embed)
    features = [
        embed(params, images[i : i + _TOGETHER])
        for i in range(0, len(images), _TOGETHER)
    ]
    features = jnp.concatenate(features)
    parts = [scales.reduced(features, k) for k in range(len(scales))]
    parts = [x.reshape(-1, x.shape[-1]) for x in parts]
    weights = [jnp.full(len(x), 1 / len(x), jnp.float32) for x in parts]
    book = kmeans(
        jax.random.fold_in(key, 1),
        jnp.concatenate(parts),
        tokenizer.config.codebook_size,
        weights=jnp.concatenate(weights),
    )
    return {**params, "codebook": book}


def init_state(config: TrainingConfig, params: Params) -> dict[str, Any]:
    """Initial state: parameters, average, optimizer, and counts of codes."""
    counts = jnp.ones(len(params["codebook"]), jnp.float32)
    return {**init_train_state(config, params), "counts": counts}


def make_step(tokenizer: MultiScaleTokenizer, config: TokenizerTrainingConfig):
    """One step `(state, step, images uint8 [B, H, W, 3]) -> (state, metrics)`."""
    dtype = jnp.dtype(config.compute_dtype)

    def loss_fn(params, images):
        networks = jax.tree.map(lambda x: x.astype(dtype), params)
        features = tokenizer.embed(networks, images.astype(dtype))
        features = features.astype(jnp.float32)
        quantized, distance, parts = _quantize(tokenizer, params, features)
        # Straight-through estimator: the gradient at the sum is that at the features.
        through = features + jax.lax.stop_gradient(quantized - features)
        out = tokenizer.decode_vectors(networks, through.astype(dtype))
        error = out.astype(jnp.float32) - images
        mse = jnp.mean(error**2)
        loss = mse + L1 * jnp.mean(jnp.abs(error)) + distance
        return loss, (parts, mse)

    def step_fn(state, step, images):
        x = images.astype(jnp.float32) / 127.5 - 1.0
        (loss, (parts, mse)), gradient = jax.value_and_grad(loss_fn, has_aux=True)(
            state["params"], x
        )
        trained = {k: v for k, v in state.items() if k != "counts"}
        trained = apply_gradients(config, trained, gradient, step)
        key = jax.random.fold_in(seed_key(config.seed), step)
        moves = step < int(LAST_MOVE * config.steps)
        book, counts = _move_dead(
            key, trained["params"]["codebook"], state["counts"], parts, moves
        )
        params = {**trained["params"], "codebook": book}
        if config.decoder_alone:
            params = with_codes_of(state["params"], params)
            average = with_codes_of(state["params"], trained["average"])
            trained = {**trained, "average": average}
        metrics = {"loss": loss, "psnr_of_mean": -10 * jnp.log10(mse / 4)}
        return {**trained, "params": params, "counts": counts}, metrics

    return step_fn


def _quantize(
    tokenizer: MultiScaleTokenizer,
    params: Params,
    features: Float[Array, "B grid grid C"],
) -> tuple[Array, Array, list[tuple[Array, Array, Array]]]:
    """Sum of what all maps add, its distance, and vectors, codes, errors by scale.

    The distance has gradients for codebook and convolutions and, weighted less, for
    the features, after every scale.
    """
    scales, book = tokenizer.scales, params["codebook"]
    fixed = jax.lax.stop_gradient(features)
    total, rest = jnp.zeros_like(features), fixed
    distance, parts = jnp.zeros((), jnp.float32), []
    for scale in range(len(scales)):
        vectors = scales.reduced(rest, scale)
        codes = nearest_codes(jax.lax.stop_gradient(book), vectors, normalized=False)
        chosen = look_up(book, codes, normalized=False)
        added = scales.spread(params, chosen, scale)
        total = total + added
        rest = rest - jax.lax.stop_gradient(added)
        error = jnp.sum((vectors - jax.lax.stop_gradient(chosen)) ** 2, axis=-1)
        parts.append((vectors, codes, error))
        distance += jnp.mean((total - fixed) ** 2)
        distance += COMMITMENT * jnp.mean(
            (jax.lax.stop_gradient(total) - features) ** 2
        )
    return total, distance / len(scales), parts


def _move_dead(
    key: Array,
    book: Float[Array, "V C"],
    counts: Float[Array, "V"],
    parts: list[tuple[Float[Array, "B T C"], Int[Array, "B T"], Float[Array, "B T"]]],
    moves: Bool[Array, ""],
) -> tuple[Array, Array]:
    """Codebook and counts after a step, with dead codes at badly represented vectors.

    Args:
      key: random key; consumed.
      book: codebook.
      counts: average number of vectors of each code in a step, of all scales.
      parts: vectors, codes and errors of each scale.
      moves: whether codes are moved.
    """
    size = len(book)
    codes = jnp.concatenate([c.reshape(-1) for _, c, _ in parts])
    found = jnp.bincount(codes, length=size)
    counts = DECAY * counts + (1 - DECAY) * found.astype(jnp.float32)
    mean = codes.size / size
    dead = (counts < DEAD_SHARE * min(mean, 1.0)) & moves
    replacements = []
    for i, (vectors, _, error) in enumerate(parts):
        count = min(-(-size // len(parts)), error.size)
        noise = jax.random.gumbel(jax.random.fold_in(key, i), (error.size,))
        score = jnp.log(error.reshape(-1) + 1e-9) + noise.astype(jnp.float32)
        best = jax.lax.top_k(score, count)[1]
        flat = vectors.reshape(-1, vectors.shape[-1])
        replacements.append(flat[best[jnp.arange(-(-size // len(parts))) % count]])
    # Code v takes from scale v modulo the number of scales.
    replacement = jnp.stack(replacements, axis=1).reshape(-1, book.shape[1])[:size]
    counts = jnp.where(dead, min(mean, 1.0), counts)
    return jnp.where(dead[:, None], replacement, book), counts
