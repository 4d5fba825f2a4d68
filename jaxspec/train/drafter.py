"""Training of the block drafter: random anchors, soft targets, decayed weights."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxspec.checkpoint import Checkpoint, params_digest
from jaxspec.data.batches import batch_indices, step_rng
from jaxspec.data.codes import CodeSource
from jaxspec.drafters.block_diffusion import BlockDiffusion
from jaxspec.drafters.block_network import append_to
from jaxspec.models.transformer import Transformer
from jaxspec.train.experiment import Experiment, TrainingConfig, fingerprint
from jaxspec.train.loop import fit
from jaxspec.train.optimizer import begin, descend
from jaxspec.typing import Array, Bool, Float, Int, Params

# Blocks drawn in every sequence.
ANCHORS = 32
# Rows k of a block weigh exp(-k / DECAY): the first guesses decide the rest.
DECAY = 4.0
# Share of unconditional sequences; guidance needs the drafter in both streams.
NULL_SHARE = 0.3
# Held-out sequences that select the checkpoint.
HELDOUT = 256


def train_drafter(
    experiment: Experiment,
    prior: Checkpoint,
    source: CodeSource,
    heldout: CodeSource,
    workdir: Path,
) -> Checkpoint:
    """Trains a block drafter for a frozen prior; resumes what `workdir` holds."""
    config = experiment.train_drafter
    drafter = BlockDiffusion(experiment.drafter, prior.config)
    digest = params_digest(prior.params)

    def batch_fn(step):
        indices = batch_indices(config.seed, step, config.batch, len(source))
        return source.take(indices, step_rng(config.seed, step))

    # The frozen target is an argument, not a constant of the compiled step.
    step = jax.jit(make_step(drafter, config), donate_argnums=0)
    kept, metrics = fit(
        workdir,
        config,
        begin(config, drafter.init_params(jax.random.key(config.seed))),
        lambda state, i, batch: step(state, prior.params, i, batch),
        batch_fn,
        make_evaluation(drafter, prior.params, heldout, config),
        lambda state: state["average"],
        "drafter",
        fingerprint(experiment.drafter, config, experiment.data, source.digest, digest),
    )
    about = {"metrics": metrics, "target_digest": digest}
    return Checkpoint("block_diffusion", drafter, kept, about)


def make_step(drafter: BlockDiffusion, config: TrainingConfig):
    """One step `(state, target_params, step, (codes, labels)) -> (state, metrics)`."""
    dtype = jnp.dtype(config.compute_dtype)

    def loss_fn(own, target_params, codes, labels, key):
        cast = jax.tree.map(lambda x: x.astype(dtype), (own, target_params))
        losses, _ = block_losses(drafter, cast[0], cast[1], codes, labels, key)
        return weighted(losses)

    def step_fn(state, target_params, step, batch):
        key = jax.random.fold_in(jax.random.key(config.seed), step)
        loss, gradient = jax.value_and_grad(loss_fn)(
            state["params"], target_params, *batch, key
        )
        state = descend(config, state, gradient, step)
        return state, {"loss": loss, "gradient_norm": optax.tree.norm(gradient)}

    return step_fn


def weighted(values: Float[Array, "B M G"]) -> Float[Array, ""]:
    """Mean over blocks and rows; NaN marks rows beyond the sequence's end."""
    weight = jnp.exp(-jnp.arange(values.shape[-1]) / DECAY)
    present = ~jnp.isnan(values)
    total = jnp.sum(jnp.where(present, values, 0.0) * weight)
    return total / jnp.sum(present * weight)


def anchored_mask(
    anchors: Int[Array, "B M"], context: int, block_size: int, causal: bool
) -> Bool[Array, "B U S"]:
    """Who the rows of all blocks may see, `U = M G`, `S = context + U`.

    Context strictly before the anchor, and the own block (causally or whole); never
    another block.
    """
    rows = anchors.shape[1] * block_size
    past = jnp.arange(context) < jnp.repeat(anchors, block_size, axis=1)[..., None]
    block, place = np.divmod(np.arange(rows), block_size)
    own = block[:, None] == block[None]
    if causal:
        own &= place[:, None] >= place[None]
    own = jnp.broadcast_to(own, (anchors.shape[0], rows, rows))
    return jnp.concatenate([past, own], axis=-1)


def block_losses(
    drafter: BlockDiffusion,
    own: Params,
    target_params: Params,
    codes: Int[Array, "B T"],
    labels: Int[Array, "B"],
    key: Array,
) -> tuple[Float[Array, "B M G"], Float[Array, "B M G"]]:
    """Cross-entropy to the target's distribution, and the overlap `sum min(p, q)`.

    Both are NaN for rows beyond the sequence's end. `key` draws anchors and the
    unconditional sequences; it is consumed.
    """
    config, model = drafter.config, Transformer(drafter.target)
    rows, length = codes.shape
    prefix, size = drafter.target.prefix_length, config.block_size
    null_key, anchor_key = jax.random.split(key)
    null = jax.random.bernoulli(null_key, NULL_SHARE, labels.shape)
    logits, features = model.score(
        target_params, labels, codes, null=null, taps=config.taps
    )
    logits, features = jax.lax.stop_gradient((logits, features))
    total = prefix + length

    # Anchors are absolute positions of tokens that have at least one successor.
    anchors = prefix + jax.random.randint(anchor_key, (rows, ANCHORS), 0, length - 1)
    places = anchors[..., None] + jnp.arange(size)  # of each row's own token
    inside = places + 1 < total
    places = jnp.minimum(places, total - 2)
    known = jnp.pad(codes, ((0, 0), (prefix, 0)))  # by absolute position
    previous = jnp.take_along_axis(known, places.reshape(rows, -1), axis=1)
    anchor_tokens = jnp.take_along_axis(known, anchors, axis=1)

    network = drafter.network(own)
    positions = jnp.broadcast_to(jnp.arange(total), (rows, total))
    contexts = network.context(features, drafter.angles(positions))
    h = network.block_input(target_params["embedding"]["embedding"][anchor_tokens])
    block_positions = (anchors[..., None] + jnp.arange(size)).reshape(rows, -1)
    h = network.block(
        h.reshape(rows, -1, h.shape[-1]),
        drafter.angles(block_positions),
        anchored_mask(anchors, total, size, config.causal),
        [append_to(past) for past in contexts],
    )
    head = drafter.bind(own, target_params)["head"]
    scores = jnp.matmul(h, head, preferred_element_type=jnp.float32)
    if config.markov_rank:
        scores += network.markov(previous)
    log_q = jax.nn.log_softmax(scores)
    rows_p = jnp.take_along_axis(logits, places.reshape(rows, -1, 1), axis=1)
    p = jax.nn.softmax(rows_p)
    losses = -jnp.sum(p * log_q, axis=-1)
    overlap = jnp.sum(jnp.minimum(p, jnp.exp(log_q)), axis=-1)
    shape = (rows, ANCHORS, size)
    return (
        jnp.where(inside, losses.reshape(shape), jnp.nan),
        jnp.where(inside, overlap.reshape(shape), jnp.nan),
    )


def make_evaluation(
    drafter: BlockDiffusion,
    target_params: Params,
    heldout: CodeSource,
    config: TrainingConfig,
):
    """Held-out loss, and the overlap with the target by place in the block."""
    batch = config.batch
    count = max(min(HELDOUT, len(heldout)) // batch, 1) * batch
    rows = np.linspace(0, len(heldout) - 1, count).astype(np.int64)

    @jax.jit
    def measure(own, target_params, codes, labels, key):
        losses, overlap = block_losses(drafter, own, target_params, codes, labels, key)
        return weighted(losses), jnp.nanmean(overlap, axis=(0, 1))

    def evaluate(state):
        losses, overlaps = [], []
        for i, part in enumerate(rows.reshape(-1, batch)):
            codes = heldout.codes[0, part].astype(np.int32)
            key = jax.random.fold_in(jax.random.key(config.seed + 1), i)
            loss, overlap = measure(
                state["average"], target_params, codes, heldout.labels[part], key
            )
            losses.append(float(loss))
            overlaps.append(np.asarray(overlap))
        overlap = np.mean(overlaps, axis=0)
        places = {f"overlap_{i + 1}": float(x) for i, x in enumerate(overlap)}
        return {"heldout_loss": float(np.mean(losses)), **places}

    return evaluate
