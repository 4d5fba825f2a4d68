"""Tokenizer training: pixel losses, and a codebook of moving averages."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxspec.checkpoint import Checkpoint
from jaxspec.config import TokenizerConfig
from jaxspec.config.one_d import OneDTokenizerConfig
from jaxspec.config.residual import ResidualTokenizerConfig
from jaxspec.core.noise import seed_key
from jaxspec.data.batches import batch_indices, flip_at_random, step_rng
from jaxspec.data.source import ImageSource
from jaxspec.errors import ConfigError
from jaxspec.evaluate.reconstruction import prefix_metrics, reconstruction_metrics
from jaxspec.nn.scalar import bit_codes, sign_entropy
from jaxspec.nn.vq import l2_normalize, look_up, nearest_codes
from jaxspec.pipeline.verifiers import similar_tokens
from jaxspec.tokenizers.one_d.model import OneDTokenizer
from jaxspec.tokenizers.residual.model import ResidualTokenizer
from jaxspec.tokenizers.vqgan.model import Tokenizer
from jaxspec.train.experiment import Experiment
from jaxspec.train.identity import fingerprint
from jaxspec.train.loop import Training, TrainingJob
from jaxspec.train.optimizer import make_optimizer, update_average
from jaxspec.train.settings import TokenizerTrainingConfig, TrainingConfig
from jaxspec.train.start import (
    check_decoder_alone,
    check_start,
    deepened,
    start_digests,
    with_codes_of,
)
from jaxspec.train.swaps import check_swaps, swapped_codes
from jaxspec.typing import Array, Bool, Float, Int, Params

COMMITMENT, ENTROPY = 0.25, 0.1
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
        initial ones; of a decoder that is trained alone it may have fewer blocks. None
        for random parameters.

    Raises:
      ConfigError: codes are swapped of which there are too few, or several a cell;
        `start` has another configuration, there is none and the decoder is
        trained alone, or a one-dimensional tokenizer is of a form that is not trained.
    """
    config, tokenizer_config = experiment.train_tokenizer, experiment.tokenizer
    assert config is not None  # images, not text
    check_decoder_alone(config.decoder_alone, start)
    tokenizer, kind = _tokenizer(tokenizer_config)
    flips = experiment.data.flips

    def batch_fn(step):
        indices = batch_indices(config.seed, step, config.batch, len(source))
        images = source.take(indices)
        return flip_at_random(images, step_rng(config.seed, step)) if flips else images

    def evaluate(state):
        params = averaged_params(state)
        metrics = reconstruction_metrics(tokenizer, params, heldout)
        metrics |= prefix_metrics(tokenizer, params, heldout)
        return {"heldout_loss": -metrics["psnr"], **metrics}

    def finish(params, metrics):
        metrics = {k: v for k, v in metrics.items() if k != "heldout_loss"}
        codebook = params["codebook"]
        neighbors = None  # those of a fixed codebook are found when they are asked for
        if _learns(tokenizer):
            count = min(NEIGHBORS, _codes(tokenizer) - 2)
            neighbors = similar_tokens(tokenizer_config, codebook, count)
        metadata = {"metrics": metrics}
        checkpoint = Checkpoint(kind, tokenizer_config, params, metadata, neighbors)
        return {"tokenizer": checkpoint}

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
        if config.decoder_alone:
            start = deepened(start, tokenizer_config, averaged_params(state))
        check_start(start, kind, tokenizer_config)
        state = _start_state(state, start.params, config, _unit(tokenizer))
    return TrainingJob(training, state, finish)


def _tokenizer(config: Any) -> tuple[Tokenizer | OneDTokenizer, str]:
    """A tokenizer, and the kind of its checkpoint.

    Raises:
      ConfigError: a one-dimensional one is of a form that is not trained.
    """
    if isinstance(config, TokenizerConfig):
        return Tokenizer(config), "tokenizer"
    if isinstance(config, ResidualTokenizerConfig):
        return ResidualTokenizer(config), "residual_tokenizer"
    assert isinstance(config, OneDTokenizerConfig)  # others have jobs of their own
    other = config.mixed_order or config.text_length
    if config.pixels is not None or not config.normalized or other:
        raise ConfigError(
            "one-dimensional tokenizers are trained with pixels=None, normalized=True, "
            "mixed_order=False and no text"
        )
    return OneDTokenizer(config), "one_d_tokenizer"


def _start_state(
    state: dict[str, Any],
    params: Params,
    config: TokenizerTrainingConfig,
    unit: bool,
) -> dict[str, Any]:
    """Initial state with trained networks, and a codebook in which no code is dead."""
    networks = {k: v for k, v in params.items() if k != "codebook"}
    codebook = jnp.copy(params["codebook"])
    if unit and not config.decoder_alone:
        codebook = l2_normalize(codebook)
    return {
        **state,
        "networks": jax.tree.map(jnp.copy, networks),
        "average": jax.tree.map(jnp.copy, networks),
        "codebook": codebook,
        "sums": jnp.copy(codebook),
        "counts": jnp.ones_like(codebook[:, 0]),
    }


def init_state(
    tokenizer: Tokenizer | OneDTokenizer, config: TrainingConfig
) -> dict[str, Any]:
    """Initial state: networks, average, optimizer, codebook with sums and counts."""
    params = tokenizer.init(seed_key(config.seed))
    codebook = params.pop("codebook")
    return {
        "networks": params,
        "average": jax.tree.map(jnp.copy, params),
        "optimizer": make_optimizer(config).init(params),
        "codebook": l2_normalize(codebook) if _unit(tokenizer) else codebook,
        "sums": jnp.zeros_like(codebook),
        "counts": jnp.zeros_like(codebook[:, 0]),
    }


def _learns(tokenizer: Tokenizer | OneDTokenizer) -> bool:
    """Whether the codebook is learned."""
    return isinstance(tokenizer, OneDTokenizer) or tokenizer.config.quantizer == "vq"


def _codes(tokenizer: Tokenizer | OneDTokenizer) -> int:
    """Number of codes that can stand at one place."""
    if isinstance(tokenizer, ResidualTokenizer):
        return tokenizer.config.networks.codebook_size
    return tokenizer.config.codebook_size


def _unit(tokenizer: Tokenizer | OneDTokenizer) -> bool:
    """Whether learned codes have unit length."""
    return _learns(tokenizer) and not isinstance(tokenizer, ResidualTokenizer)


def averaged_params(state: dict[str, Any]) -> Params:
    """Parameters of the tokenizer: the averaged networks and the codebook."""
    return {**state["average"], "codebook": state["codebook"]}


def make_step(tokenizer: Tokenizer | OneDTokenizer, config: TokenizerTrainingConfig):
    """One step `(state, step, images uint8 [B, H, W, 3]) -> (state, metrics)`.

    Of a tokenizer whose prefixes are images, each step decodes as many of the first
    tokens as it draws (One-D-Piece, arXiv 2501.10064); of one with several tokens a
    cell, as many depths.
    """
    check_swaps(tokenizer, config)
    optimizer, learned = make_optimizer(config), _learns(tokenizer)
    dtype = jnp.dtype(config.compute_dtype)

    def loss_fn(networks, codebook, images, key):
        networks = jax.tree.map(lambda x: x.astype(dtype), networks)
        z = tokenizer.embed(networks, images.astype(dtype)).astype(jnp.float32)
        quantize_key = jax.random.fold_in(key, 2)
        vectors, codes, q, penalty = quantized(quantize_key, tokenizer, codebook, z)
        if isinstance(tokenizer, ResidualTokenizer):
            depth = tokenizer.config.depth
            kept = jnp.arange(depth) < jax.random.randint(key, (), 1, depth + 1)
            q = jnp.sum(jnp.where(kept.reshape(-1, 1), q, 0.0), axis=-2)
        else:
            z = vectors
        if config.swapped_images:
            swap_key = jax.random.fold_in(key, 1)
            changed = swapped_codes(swap_key, codebook, codes, config)
            q = look_up(codebook, changed, normalized=_unit(tokenizer))
        # Straight-through estimator: the gradient at q is passed on to z.
        through = z + jax.lax.stop_gradient(q - z)
        through = through.astype(dtype)
        if isinstance(tokenizer, OneDTokenizer) and tokenizer.config.prefixes:
            length = tokenizer.config.length
            count = jax.random.randint(key, (), 1, length + 1)
            seen = jnp.broadcast_to(jnp.arange(length)[None] < count, codes.shape)
            out = tokenizer.decode_vectors(networks, through, seen)
        else:
            out = tokenizer.decode_vectors(networks, through)
        error = out.astype(jnp.float32) - images
        mse = jnp.mean(error**2)
        loss = mse + L1 * jnp.mean(jnp.abs(error)) + penalty
        return loss, (vectors, codes, mse)

    def step_fn(state, step, images):
        x = images.astype(jnp.float32) / 127.5 - 1.0
        key = jax.random.fold_in(seed_key(config.seed), step)
        (loss, (vectors, codes, mse)), gradient = jax.value_and_grad(
            loss_fn, has_aux=True
        )(state["networks"], state["codebook"], x, jax.random.fold_in(key, 1))
        updates, optimizer_state = optimizer.update(
            gradient, state["optimizer"], state["networks"]
        )
        networks = jax.tree.map(jnp.add, state["networks"], updates)
        if config.decoder_alone:
            networks = with_codes_of(state["networks"], networks)
        late = step > int(0.8 * config.steps)
        codebook = {k: state[k] for k in ("codebook", "sums", "counts")}
        if learned and not config.decoder_alone:
            codebook = update_codebook(tokenizer, key, state, vectors, codes, late)
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


def quantized(
    key: Array,
    tokenizer: Tokenizer | OneDTokenizer,
    codebook: Float[Array, "V C"],
    vectors: Float[Array, "B ... C"],
) -> tuple[Array, Int[Array, "B ..."], Array, Float[Array, ""]]:
    """Vectors before and after quantization, their codes, and a term of the loss.

    Args:
      key: random key; consumed for bits, which are sampled.
      tokenizer: static functions of the tokenizer.
      codebook: codebook.
      vectors: float32 vectors as from `embed`.

    Returns:
      Vectors as they are compared, codes, codebook entries, and the term: the distance
      of a learned codebook, none of FSQ and bits; of LFQ also the entropies of its
      paper. With several tokens a cell, the first three have an axis of depths after
      the cells.
    """
    if isinstance(tokenizer, ResidualTokenizer):
        fixed = jax.lax.stop_gradient(codebook)
        codes, rests, q = tokenizer.residuals(fixed, vectors)
        return rests, codes, q, COMMITMENT * jnp.mean((rests - q) ** 2)
    if _learns(tokenizer):
        z = l2_normalize(vectors)
        codes = nearest_codes(codebook, jax.lax.stop_gradient(z))
        q = look_up(codebook, codes)
        return z, codes, q, COMMITMENT * jnp.mean((z - q) ** 2)
    assert isinstance(tokenizer, Tokenizer)
    fixed = jax.lax.stop_gradient(vectors)
    if tokenizer.config.quantizer == "bits":
        codes = bit_codes(jax.random.bernoulli(key, fixed))
    else:
        codes = tokenizer.quantize(codebook, fixed)
    q = look_up(codebook, codes, normalized=False)
    penalty = jnp.zeros((), jnp.float32)
    if tokenizer.config.quantizer == "lfq":
        own, mean = sign_entropy(vectors.reshape(-1, vectors.shape[-1]))
        penalty = ENTROPY * (own - mean) + COMMITMENT * jnp.mean((vectors - q) ** 2)
    return vectors, codes, q, penalty


def update_codebook(
    tokenizer: Tokenizer | OneDTokenizer,
    key: Array,
    state: dict[str, Any],
    vectors: Array,
    codes: Array,
    late: Bool[Array, ""],
) -> dict[str, Array]:
    """Codebook, sums and counts after a step, see `_update_codebook`."""
    names = ("codebook", "sums", "counts")
    old = {name: state[name] for name in names}
    if not isinstance(tokenizer, ResidualTokenizer):
        return _update_codebook(key, old, vectors, codes, late)
    depth = tokenizer.config.depth
    old = {k: x.reshape(depth, -1, *x.shape[1:]) for k, x in old.items()}
    first = jnp.arange(depth, dtype=jnp.int32) * old["codebook"].shape[1]
    codes = jnp.moveaxis(codes, -1, 0) - first.reshape(-1, *(1,) * (codes.ndim - 1))
    new = jax.vmap(partial(_update_codebook, unit=False), (0, 0, 0, 0, None))(
        jax.random.split(key, depth), old, jnp.moveaxis(vectors, -2, 0), codes, late
    )
    return {k: x.reshape(state[k].shape) for k, x in new.items()}


def _update_codebook(
    key: Array,
    state: dict[str, Any],
    z: Float[Array, "B ... C"],
    codes: Int[Array, "B ..."],
    late: Bool[Array, ""],
    unit: bool = True,
) -> dict[str, Array]:
    """Updates each code to a moving average of its vectors, and resets dead codes.

    A dead code is moved to a vector of the batch, sampled in proportion to the vector's
    quantization error; otherwise uniform background would take all dead codes.

    Args:
      key: random key for resets; consumed.
      state: training state.
      z: float32 [B, ..., C], encoded vectors of a grid or a row.
      codes: int32 [B, ...], indices of the nearest codes.
      late: bool scalar, True to reset no more codes.
      unit: whether codes have unit length.
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
    mean = sums / jnp.maximum(counts, 1e-12)[:, None]
    mean = l2_normalize(sums) if unit else mean
    codebook = jnp.where(counts[:, None] > 0, mean, state["codebook"])
    return {"codebook": codebook, "sums": sums, "counts": counts}
