"""Tokenizer training: pixel losses, and a codebook of moving averages."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxspec.checkpoint import Checkpoint
from jaxspec.config import TokenizerConfig
from jaxspec.core.noise import seed_key
from jaxspec.data.batches import batch_indices, flip_at_random, step_rng
from jaxspec.data.source import ImageSource
from jaxspec.evaluate.reconstruction import reconstruction_metrics
from jaxspec.nn.vq import l2_normalize, look_up, nearest_codes
from jaxspec.speculative.verify.neighbors import neighbor_table
from jaxspec.tokenizers.vqgan.model import Tokenizer
from jaxspec.train.experiment import (
    Experiment,
    TokenizerTrainingConfig,
    TrainingConfig,
    fingerprint,
)
from jaxspec.train.loop import Training, TrainingJob
from jaxspec.train.optimizer import make_optimizer, update_average
from jaxspec.train.start import (
    check_decoder_alone,
    check_start,
    start_digests,
    with_codes_of,
)
from jaxspec.typing import Array, Bool, Float, Int, Params

COMMITMENT = 0.25
L1 = 0.2
CODE_DECAY = 0.99
# A code is reset when its average count falls below this share of the uniform count.
DEAD_SHARE = 0.02
# Neighbors of each code saved in the checkpoint, for relaxed verifiers (LANTERN).
NEIGHBORS = 100


def tokenizer_job(
    experiment: Experiment,
    source: ImageSource,
    heldout: ImageSource,
    start: Checkpoint | None = None,
) -> TrainingJob:
    """Prepares the training of an experiment's tokenizer.

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
    config, tokenizer_config = experiment.train_tokenizer, experiment.tokenizer
    assert config is not None  # images, not text
    assert isinstance(tokenizer_config, TokenizerConfig)  # see `multi_scale_job`
    check_decoder_alone(config.decoder_alone, start)
    tokenizer = Tokenizer(tokenizer_config)
    flips = experiment.data.flips

    def batch_fn(step):
        indices = batch_indices(config.seed, step, config.batch, len(source))
        images = source.take(indices)
        return flip_at_random(images, step_rng(config.seed, step)) if flips else images

    def evaluate(state):
        metrics = reconstruction_metrics(tokenizer, averaged_params(state), heldout)
        return {"heldout_loss": -metrics["psnr"], **metrics}

    def finish(params, metrics):
        metrics = {k: v for k, v in metrics.items() if k != "heldout_loss"}
        codebook = params["codebook"]
        neighbors = neighbor_table(codebook, min(NEIGHBORS, len(codebook) - 2))
        metadata = {"metrics": metrics}
        kind = "tokenizer"
        return {kind: Checkpoint(kind, tokenizer_config, params, metadata, neighbors)}

    training = Training(
        "tokenizer",
        config,
        make_step(tokenizer, config),
        batch_fn,
        evaluate,
        fingerprint(tokenizer_config, config, experiment.data, *start_digests(start)),
        result=averaged_params,
    )
    state = init_state(tokenizer, config)
    if start is not None:
        check_start(start, "tokenizer", tokenizer_config)
        state = _start_state(state, start.params, config)
    return TrainingJob(training, state, finish)


def _start_state(
    state: dict[str, Any], params: Params, config: TokenizerTrainingConfig
) -> dict[str, Any]:
    """Initial state with trained networks, and a codebook in which no code is dead."""
    networks = {k: v for k, v in params.items() if k != "codebook"}
    codebook = jnp.copy(params["codebook"])
    if not config.decoder_alone:
        codebook = l2_normalize(codebook)
    return {
        **state,
        "networks": jax.tree.map(jnp.copy, networks),
        "average": jax.tree.map(jnp.copy, networks),
        "codebook": codebook,
        "sums": jnp.copy(codebook),
        "counts": jnp.ones_like(codebook[:, 0]),
    }


def init_state(tokenizer: Tokenizer, config: TrainingConfig) -> dict[str, Any]:
    """Initial state: networks, average, optimizer, codebook with sums and counts."""
    params = tokenizer.init(seed_key(config.seed))
    codebook = params.pop("codebook")
    return {
        "networks": params,
        "average": jax.tree.map(jnp.copy, params),
        "optimizer": make_optimizer(config).init(params),
        "codebook": l2_normalize(codebook),
        "sums": jnp.zeros_like(codebook),
        "counts": jnp.zeros_like(codebook[:, 0]),
    }


def averaged_params(state: dict[str, Any]) -> Params:
    """Parameters of the tokenizer: the averaged networks and the codebook."""
    return {**state["average"], "codebook": state["codebook"]}


def make_step(tokenizer: Tokenizer, config: TokenizerTrainingConfig):
    """One step `(state, step, images uint8 [B, H, W, 3]) -> (state, metrics)`."""
    optimizer = make_optimizer(config)
    dtype = jnp.dtype(config.compute_dtype)

    def loss_fn(networks, codebook, images):
        networks = jax.tree.map(lambda x: x.astype(dtype), networks)
        z = l2_normalize(tokenizer.embed(networks, images.astype(dtype)))
        codes = nearest_codes(codebook, jax.lax.stop_gradient(z))
        q = look_up(codebook, codes)
        # Straight-through estimator: the gradient at q is passed on to z.
        through = z + jax.lax.stop_gradient(q - z)
        out = tokenizer.decode_vectors(networks, through.astype(dtype))
        error = out.astype(jnp.float32) - images
        mse = jnp.mean(error**2)
        commitment = jnp.mean((z - q) ** 2)
        loss = mse + L1 * jnp.mean(jnp.abs(error)) + COMMITMENT * commitment
        return loss, (z, codes, mse)

    def step_fn(state, step, images):
        x = images.astype(jnp.float32) / 127.5 - 1.0
        (loss, (z, codes, mse)), gradient = jax.value_and_grad(loss_fn, has_aux=True)(
            state["networks"], state["codebook"], x
        )
        updates, optimizer_state = optimizer.update(
            gradient, state["optimizer"], state["networks"]
        )
        networks = jax.tree.map(jnp.add, state["networks"], updates)
        if config.decoder_alone:
            networks = with_codes_of(state["networks"], networks)
        key = jax.random.fold_in(seed_key(config.seed), step)
        late = step > int(0.8 * config.steps)
        codebook = {k: state[k] for k in ("codebook", "sums", "counts")}
        if not config.decoder_alone:
            codebook = _update_codebook(key, state, z, codes, late)
        average = update_average(state["average"], networks, config.ema, step)
        state = {
            "networks": networks,
            "average": average,
            "optimizer": optimizer_state,
            **codebook,
        }
        psnr = -10 * jnp.log10(mse / 4)
        return state, {"loss": loss, "psnr_of_mean": psnr}

    return step_fn


def _update_codebook(
    key: Array,
    state: dict[str, Any],
    z: Float[Array, "B h w C"],
    codes: Int[Array, "B h w"],
    late: Bool[Array, ""],
) -> dict[str, Array]:
    """Updates each code to a moving average of its vectors, and resets dead codes.

    A dead code is moved to a vector of the batch, sampled in proportion to the vector's
    quantization error; otherwise uniform background would take all dead codes.

    Args:
      key: random key for resets; consumed.
      state: training state.
      z: float32 [B, h, w, C], encoded vectors of a grid of `h` by `w`.
      codes: int32 [B, h, w], indices of the nearest codes.
      late: bool scalar, True to reset no more codes.
    """
    vectors, codes = z.reshape(-1, z.shape[-1]), codes.reshape(-1)
    size = state["codebook"].shape[0]
    count = jnp.bincount(codes, length=size).astype(jnp.float32)
    total = jax.ops.segment_sum(vectors, codes, size)
    counts = CODE_DECAY * state["counts"] + (1 - CODE_DECAY) * count
    sums = CODE_DECAY * state["sums"] + (1 - CODE_DECAY) * total

    uniform = vectors.shape[0] / size
    dead = (counts < DEAD_SHARE * uniform) & ~late
    error = jnp.sum((vectors - state["codebook"][codes]) ** 2, axis=-1)
    score = jnp.log(error + 1e-9) + jax.random.gumbel(key, error.shape, error.dtype)
    sampled = jax.lax.top_k(score, min(size, len(vectors)))[1]
    replacements = vectors[sampled[jnp.arange(size) % len(sampled)]]
    counts = jnp.where(dead, 0.1 * uniform, counts)
    sums = jnp.where(dead[:, None], 0.1 * uniform * replacements, sums)
    codebook = jnp.where(counts[:, None] > 0, l2_normalize(sums), state["codebook"])
    return {"codebook": codebook, "sums": sums, "counts": counts}
