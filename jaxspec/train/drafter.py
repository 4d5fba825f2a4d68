"""One trainer for every drafter that reads the target's features."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxspec.checkpoint import Checkpoint, digest_of, params_digest
from jaxspec.config import DFlashConfig
from jaxspec.data.batches import batch_indices, step_rng
from jaxspec.data.codes import CodeSource, Sequences
from jaxspec.drafters.draft_vocabulary import frequent_tokens
from jaxspec.drafters.kinds import make_drafter
from jaxspec.errors import ConfigError
from jaxspec.spec.noise import seed_key
from jaxspec.train.divergence import divergence, overlap
from jaxspec.train.experiment import (
    DrafterTrainingConfig,
    Experiment,
    fingerprint,
)
from jaxspec.train.kept_features import keep_features
from jaxspec.train.layout import ONE_DEVICE, Layout
from jaxspec.train.loop import fit
from jaxspec.train.optimizer import begin, descend
from jaxspec.train.recipes import recipe_of
from jaxspec.train.recipes.lesson import run_teacher
from jaxspec.typing import Array, Float, Int, Params

# Held-out sequences that select the checkpoint.
HELDOUT = 256


def train_drafter(
    experiment: Experiment,
    prior: Checkpoint,
    source: Sequences,
    heldout: Sequences,
    workdir: Path,
    start: Checkpoint | None = None,
    layout: Layout = ONE_DEVICE,
) -> Checkpoint:
    """Trains a drafter for a frozen prior; resumes what `workdir` holds.

    Args:
      experiment: what to train and how.
      prior: the target.
      source: sequences.
      heldout: sequences that select the checkpoint.
      workdir: state and metrics.
      start: a trained drafter of the same configuration to go on from.
      layout: where its arrays, and the prior's, lie.

    Raises:
      ConfigError: `start` is another drafter.
    """
    config = experiment.train_drafter
    assert experiment.drafter is not None  # see `train_part`
    kind, drafter = make_drafter(experiment.drafter, prior.config)
    digest = digest_of(prior)

    kept = None
    if config.cached != "no":
        kept = keep_features(
            prior,
            drafter.feature_layers,
            source,
            dtype=config.cached,
            cache_dir=workdir,
        )

    def batch_fn(step):
        indices = batch_indices(config.seed, step, config.batch, len(source))
        rng = step_rng(config.seed, step)
        if kept is None:
            return (*source.take(indices, rng), None)
        assert isinstance(source, CodeSource)  # see `keep_features`
        rows = source.rows(indices, rng)
        return (*source.at(rows), np.asarray(kept[rows]))

    own, before, fixed = drafter.init_params(seed_key(config.seed)), "", {}
    if own.pop("ids", None) is not None:  # a smaller vocabulary: the tokens that occur
        count, most = drafter.config.draft_vocab, prior.config.vocab_size
        fixed = {"ids": frequent_tokens(source.codes, most, count)}
    if start is not None:
        check_start(start, kind, drafter)
        own, before = dict(start.params), params_digest(start.params)
        fixed = {"ids": own.pop("ids")} if "ids" in own else {}
    # The frozen target is an argument, not a constant of the compiled step.
    state, target = layout.place(begin(config, own)), layout.place(prior.params)
    step = layout.compile(make_step(drafter, config, fixed), state)
    best, metrics = fit(
        workdir,
        config,
        state,
        lambda state, i, batch: step(state, target, i, batch),
        layout.rows(batch_fn),
        make_evaluation(drafter, target, heldout, config, fixed),
        lambda state: {**state["average"], **fixed},
        "drafter",
        fingerprint(
            experiment.drafter, config, experiment.data, source.digest, digest, before
        ),
    )
    metadata = {"metrics": metrics, "target_digest": digest}
    return Checkpoint(kind, drafter, best, metadata)


def check_start(start: Checkpoint, kind: str, drafter: Any) -> None:
    """Refuses a drafter that another one cannot go on from.

    Passes of refinement may differ: they have no parameters.

    Raises:
      ConfigError: says what differs.
    """

    def but_passes(config):
        same = isinstance(config, DFlashConfig)
        return replace(config, refinements=0) if same else config

    if start.kind != kind:
        raise ConfigError(f"--start holds a {start.kind}; this trains a {kind}")
    mine = but_passes(drafter.config), drafter.target
    theirs = but_passes(start.config.config), start.config.target
    if mine != theirs:
        raise ConfigError(
            f"the drafter to start from is another one: {start.config.config}, where "
            f"{drafter.config} is trained"
        )


def make_step(drafter: Any, config: DrafterTrainingConfig, fixed: Params):
    """One step `(state, target_params, step, batch) -> (state, metrics)`.

    A batch is codes, labels, and what was kept of the target for them, or None. `fixed`
    are the drafter's parameters that are not trained.
    """
    dtype = jnp.dtype(config.compute_dtype)

    def loss_fn(own, target_params, codes, labels, kept, key):
        own, target_params = jax.tree.map(
            lambda x: x.astype(dtype), (own, target_params)
        )
        losses, _, regression = drafter_losses(
            drafter, config, {**own, **fixed}, target_params, codes, labels, key, kept
        )
        return weighted(losses, config.decay) + config.regression * regression

    def step_fn(state, target_params, step, batch):
        key = jax.random.fold_in(seed_key(config.seed), step)
        loss, gradient = jax.value_and_grad(loss_fn)(
            state["params"], target_params, *batch, key
        )
        state = descend(config, state, gradient, step)
        return state, {"loss": loss, "gradient_norm": optax.tree.norm(gradient)}

    return step_fn


def weighted(values: Float[Array, "B M G"], decay: float) -> Float[Array, ""]:
    """Mean over blocks and places; NaN marks places beyond the sequence's end.

    Place `k` of a block weighs `exp(-k / decay)`: the first guesses decide the rest.
    """
    places = jnp.arange(values.shape[-1], dtype=values.dtype)
    present = ~jnp.isnan(values)
    weight = jnp.where(present, jnp.exp(-places / decay)[None, None], 0.0)
    return jnp.sum(jnp.where(present, values, 0.0) * weight) / jnp.sum(weight)


def drafter_losses(
    drafter: Any,
    config: DrafterTrainingConfig,
    own: Params,
    target_params: Params,
    codes: Int[Array, "B T"],
    labels: Int[Array, "B"],
    key: Array,
    kept: Float[Array, "B 2 U E"] | None = None,
) -> tuple[Float[Array, "B M G"], Float[Array, "B M G"], Float[Array, ""]]:
    """Divergence from the target, the overlap `sum min(p, q)`, and the regression.

    The first two are NaN for places beyond the sequence's end. With `config.guidance`
    above 1 both streams guess at the same places, and the guided laws are compared, at
    a scale drawn for each sequence; else a stream is drawn for each. Where the drafter
    judges its own guesses, the cross-entropy to the true overlap is added (DSpark).
    `key` draws scales or streams and what the recipe draws; it is consumed. `kept` is
    what was computed of the target before, see `keep_features`.
    """
    draw_key, recipe_key = jax.random.split(key)
    guided = config.cfg_scale > 1.0
    if guided:
        nulls = [jnp.zeros(labels.shape, bool), jnp.ones(labels.shape, bool)]
        scale = jax.random.uniform(
            draw_key, labels.shape, jnp.float32, minval=1.0, maxval=config.cfg_scale
        )
    else:
        share = jnp.float32(config.null_share)  # the same draws with 64-bit numbers
        nulls = [jax.random.bernoulli(draw_key, share, labels.shape)]
        scale = None
    streams, regressions, confidence = [], [], None
    for null in nulls:
        lesson = run_teacher(
            drafter.target,
            target_params,
            drafter.feature_layers,
            codes,
            labels,
            null,
            kept,
        )
        # The same key, on purpose: the same places in both streams.
        same_key = jax.random.clone(recipe_key)
        guesses = recipe_of(drafter)(drafter, own, lesson, same_key)
        flat = guesses.places.reshape(len(codes), -1)
        p = jnp.take_along_axis(lesson.logits, flat[..., None] - 1, axis=1)
        streams.append((p.reshape(guesses.logits.shape), guesses.logits))
        regressions.append(guesses.regression)
        confidence = guesses.confidence if confidence is None else confidence
    p, q = streams[0] if scale is None else _guided(streams[0], streams[1], scale)
    tokens = jnp.take_along_axis(lesson.tokens, flat, axis=1)
    tokens, present = tokens.reshape(guesses.places.shape), guesses.present
    losses = divergence(config.divergence, p, q, tokens, present)
    shared = overlap(p, q)
    if confidence is not None:  # of the conditional stream, which drafting reads too
        judged = jax.lax.stop_gradient(shared)
        losses += optax.sigmoid_binary_cross_entropy(confidence, judged)
    return (
        jnp.where(present, losses, jnp.nan),
        jnp.where(present, shared, jnp.nan),
        jnp.mean(jnp.stack(regressions)),
    )


def _guided(conditional, unconditional, scale: Float[Array, "B"]):
    """Guided logits of target and drafter."""
    scale = scale[:, None, None, None]
    return tuple(
        jnp.where(c > -jnp.inf, u + scale * (c - u), -jnp.inf)
        for c, u in zip(conditional, unconditional, strict=True)
    )


def make_evaluation(
    drafter: Any,
    target_params: Params,
    heldout: Sequences,
    config: DrafterTrainingConfig,
    fixed: Params,
):
    """Held-out loss, and the overlap with the target by place in the block."""
    batch = config.batch
    count = max(min(HELDOUT, len(heldout)) // batch, 1) * batch
    rows = np.linspace(0, len(heldout) - 1, count).astype(np.int64)

    @jax.jit
    def measure(own, target_params, codes, labels, key):
        losses, shared, regression = drafter_losses(
            drafter, config, own, target_params, codes, labels, key
        )
        loss = weighted(losses, config.decay) + config.regression * regression
        return loss, jnp.nanmean(shared, axis=(0, 1))

    def evaluate(state):
        losses, overlaps = [], []
        for i, part in enumerate(rows.reshape(-1, batch)):
            codes = heldout.codes[0, part].astype(np.int32)
            key = jax.random.fold_in(seed_key(config.seed + 1), i)
            own = {**state["average"], **fixed}
            labels = heldout.labels[part]
            loss, shared = measure(own, target_params, codes, labels, key)
            losses.append(float(loss))
            overlaps.append(np.asarray(shared))
        shared = np.mean(overlaps, axis=0)
        places = {f"overlap_{i + 1}": float(x) for i, x in enumerate(shared)}
        return {"heldout_loss": float(np.mean(losses)), **places}

    return evaluate
