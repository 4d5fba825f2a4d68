"""Training of the VQ tokenizer: pixel losses, a codebook of moving averages."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.checkpoint import Checkpoint
from jaxspec.data.batches import batch_indices, step_rng
from jaxspec.data.source import ImageSource
from jaxspec.evaluate.reconstruction import reconstruction_metrics
from jaxspec.models.tokenizer import Tokenizer
from jaxspec.nn.vq import l2_normalize, look_up, nearest_codes
from jaxspec.spec.neighbors import neighbor_table
from jaxspec.spec.noise import seed_key
from jaxspec.train.experiment import Experiment, TrainingConfig, fingerprint
from jaxspec.train.layout import ONE_DEVICE, Layout
from jaxspec.train.loop import fit
from jaxspec.train.optimizer import make_optimizer, update_average
from jaxspec.typing import Array, Float, Params

COMMITMENT = 0.25
L1 = 0.2
CODE_DECAY = 0.99
# A code is reset when its average count falls below this share of the uniform one.
DEAD_SHARE = 0.02
# Neighbors of each code that are kept beside it, for rules that relax equality.
NEIGHBORS = 100


def train_tokenizer(
    experiment: Experiment,
    source: ImageSource,
    heldout: ImageSource,
    workdir: Path,
    layout: Layout = ONE_DEVICE,
) -> Checkpoint:
    """Trains the tokenizer of an experiment; resumes what `workdir` holds."""
    config, shape = experiment.train_tokenizer, experiment.tokenizer
    assert config is not None and shape is not None  # there are images
    tokenizer = Tokenizer(shape)
    flips = experiment.data.flips

    def batch_fn(step):
        indices = batch_indices(config.seed, step, config.batch, len(source))
        images = source.take(indices)
        if flips:
            mirrored = step_rng(config.seed, step).random(config.batch) < 0.5
            images = np.where(mirrored[:, None, None, None], images[:, :, ::-1], images)
        return images

    def evaluate(state):
        metrics = reconstruction_metrics(tokenizer, kept_params(state), heldout)
        return {"heldout_loss": -metrics["psnr"], **metrics}

    state = layout.place(init_state(tokenizer, config))
    kept, metrics = fit(
        workdir,
        config,
        state,
        layout.compile(make_step(tokenizer, config), state),
        layout.rows(batch_fn),
        evaluate,
        kept_params,
        "tokenizer",
        fingerprint(experiment.tokenizer, config, experiment.data),
    )
    metrics.pop("heldout_loss")
    book = kept["codebook"]
    neighbors = neighbor_table(book, min(NEIGHBORS, len(book) - 2))
    metadata = {"metrics": metrics}
    return Checkpoint("tokenizer", experiment.tokenizer, kept, metadata, neighbors)


def init_state(tokenizer: Tokenizer, config: TrainingConfig) -> dict[str, Any]:
    """Networks, their average, the optimizer, and the codebook's sums and counts."""
    params = tokenizer.init(seed_key(config.seed))
    book = params.pop("codebook")
    return {
        "networks": params,
        "average": jax.tree.map(jnp.copy, params),
        "optimizer": make_optimizer(config).init(params),
        "codebook": l2_normalize(book),
        "sums": jnp.zeros_like(book),
        "counts": jnp.zeros_like(book[:, 0]),
    }


def kept_params(state: dict[str, Any]) -> Params:
    """The averaged networks with the codebook."""
    return {**state["average"], "codebook": state["codebook"]}


def make_step(tokenizer: Tokenizer, config: TrainingConfig):
    """One step `(state, step, images uint8 [B, H, W, 3]) -> (state, metrics)`."""
    optimizer = make_optimizer(config)
    dtype = jnp.dtype(config.compute_dtype)

    def loss_fn(networks, codebook, images):
        networks = jax.tree.map(lambda x: x.astype(dtype), networks)
        z = l2_normalize(tokenizer.embed(networks, images.astype(dtype)))
        codes = nearest_codes(codebook, jax.lax.stop_gradient(z))
        q = look_up(codebook, codes)
        straight = z + jax.lax.stop_gradient(q - z)
        out = tokenizer.decode_vectors(networks, straight.astype(dtype))
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
        key = jax.random.fold_in(seed_key(config.seed), step)
        late = step > int(0.8 * config.steps)
        book = _update_codebook(key, state, z, codes, late)
        average = update_average(state["average"], networks, config.ema, step)
        state = {
            "networks": networks,
            "average": average,
            "optimizer": optimizer_state,
            **book,
        }
        psnr = -10 * jnp.log10(mse / 4)
        return state, {"loss": loss, "psnr_of_mean": psnr}

    return step_fn


def _update_codebook(
    key: Array,
    state: dict[str, Any],
    z: Float[Array, "B h w d"],
    codes: Array,
    late: Array,
) -> dict[str, Array]:
    """Moving averages of the vectors of each code; dead codes start anew.

    A dead code is moved to a vector of the batch, drawn with a chance that grows with
    the vector's own quantization error, so that plain background does not take all.
    Nothing is reset once training is `late`.
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
    drawn = jax.lax.top_k(score, min(size, len(vectors)))[1]
    chosen = vectors[drawn[jnp.arange(size) % len(drawn)]]
    counts = jnp.where(dead, 0.1 * uniform, counts)
    sums = jnp.where(dead[:, None], 0.1 * uniform * chosen, sums)
    codebook = jnp.where(counts[:, None] > 0, l2_normalize(sums), state["codebook"])
    return {"codebook": codebook, "sums": sums, "counts": counts}
