"""Training of models over codes: the prior, and drafters that are such models."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxspec.checkpoint import Checkpoint, params_digest
from jaxspec.data.batches import batch_indices, step_rng
from jaxspec.data.codes import Sequences
from jaxspec.drafters.riding_blocks import with_extra_tokens
from jaxspec.errors import ConfigError
from jaxspec.evaluate.likelihood import likelihood_metrics
from jaxspec.models.masked_diffusion import MaskedDiffusion
from jaxspec.models.transformer import Transformer
from jaxspec.spec.noise import seed_key
from jaxspec.train import objectives
from jaxspec.train.experiment import Experiment, PriorTrainingConfig, fingerprint
from jaxspec.train.layout import ONE_DEVICE, Layout
from jaxspec.train.loop import fit
from jaxspec.train.optimizer import begin, descend
from jaxspec.typing import Params

# Held-out sequences that select the checkpoint.
HELDOUT = 512


def train_prior(
    experiment: Experiment,
    source: Sequences,
    heldout: Sequences,
    workdir: Path,
    start: Checkpoint | None = None,
    layout: Layout = ONE_DEVICE,
) -> Checkpoint:
    """Trains a model over codes; resumes what `workdir` holds.

    Args:
      experiment: what to train and how.
      source: sequences.
      heldout: sequences that select the checkpoint.
      workdir: state and metrics.
      start: a model of the same shape to go on from; it may have fewer extra tokens.
      layout: where its arrays lie.

    Raises:
      ConfigError: `start` is another kind of model.
    """
    config = experiment.train_prior
    model = Transformer(experiment.prior)
    params = model.init(seed_key(config.seed))
    if start is not None:
        params = _grown(start, model, params)
    begun = params_digest(params) if start is not None else ""

    def batch_fn(step):
        indices = batch_indices(config.seed, step, config.batch, len(source))
        return source.take(indices, step_rng(config.seed, step))

    state = layout.place(begin(config, params))
    kept, metrics = fit(
        workdir,
        config,
        state,
        layout.compile(make_step(model, config), state),
        layout.rows(batch_fn),
        make_evaluation(model, config, heldout),
        lambda state: state["average"],
        "prior",
        fingerprint(experiment.prior, config, experiment.data, source.digest, begun),
    )
    metadata = {"metrics": metrics, "objective": config.objective}
    if config.objective == "sorted":
        metadata["exits"] = list(config.exits)
    if config.objective not in ("next", "sorted", "masked"):
        metadata["block"] = config.block
    return Checkpoint("prior", experiment.prior, kept, metadata)


def _grown(start: Checkpoint, model: Transformer, like: Params) -> Params:
    """Parameters with the extra tokens that the new model has and they lack."""
    if start.kind != "prior":
        raise ConfigError(f"--start holds a {start.kind}; a prior goes on from a prior")
    now, before = model.config, start.config
    rates = {name: 0.0 for name in now.__dataclass_fields__ if name.endswith("dropout")}
    if replace(before, extra_tokens=now.extra_tokens, **rates) != replace(now, **rates):
        raise ConfigError("the model to start from has another configuration")
    if before.extra_tokens > now.extra_tokens:
        raise ConfigError(
            f"the model to start from has {before.extra_tokens} extra tokens, this one "
            f"{now.extra_tokens}"
        )
    wanted = like["embedding"]["embedding"]
    have = len(start.params["embedding"]["embedding"])
    return with_extra_tokens(start.params, wanted[have:])


def loss_of(model: Transformer, config: PriorTrainingConfig):
    """The objective: `(params, codes, labels, null, key) -> loss`."""
    blocks = partial(objectives.block_loss, model, block=config.block)
    return {
        "next": partial(objectives.next_loss, model),
        "sorted": partial(objectives.sorted_loss, model, exits=config.exits),
        "masked": lambda *given: objectives.masked_loss(MaskedDiffusion(model), *given),
        "continuation": partial(blocks, refine=False),
        "refinement": partial(blocks, refine=True),
        "tidar": lambda *given: objectives.tidar_loss(
            model, *given, block=config.block
        )[0],
    }[config.objective]


def make_step(model: Transformer, config: PriorTrainingConfig):
    """One step `(state, step, (codes [B, T], labels [B])) -> (state, metrics)`."""
    dtype, objective = jnp.dtype(config.compute_dtype), loss_of(model, config)

    def loss_fn(params, codes, labels, key):
        null_key, own_key = jax.random.split(key)
        chance = model.config.condition_dropout
        null = jax.random.bernoulli(null_key, jnp.float32(chance), labels.shape)
        params = jax.tree.map(lambda x: x.astype(dtype), params)
        return objective(params, codes, labels, null, own_key)

    def step_fn(state, step, batch):
        key = jax.random.fold_in(seed_key(config.seed), step)
        loss, gradient = jax.value_and_grad(loss_fn)(state["params"], *batch, key)
        state = descend(config, state, gradient, step)
        return state, {"loss": loss, "gradient_norm": optax.tree.norm(gradient)}

    return step_fn


def make_evaluation(
    model: Transformer, config: PriorTrainingConfig, heldout: Sequences
):
    """Held-out loss; of a next-token model its likelihood and entropy."""
    objective = loss_of(model, config)
    count = max(min(HELDOUT, len(heldout)) // config.batch, 1) * config.batch
    rows = np.linspace(0, len(heldout) - 1, count).astype(np.int64)
    key = seed_key(config.seed + 1)

    def evaluate(state):
        if config.objective == "next":
            values = likelihood_metrics(
                model, state["average"], heldout, batch=config.batch, most=HELDOUT
            )
            return {"heldout_loss": values["nll"], "entropy": values["entropy"]}
        losses = []
        for i, part in enumerate(rows.reshape(-1, config.batch)):
            codes = heldout.codes[0, part].astype(np.int32)
            given = codes, heldout.labels[part], np.zeros(len(part), bool)
            own = None if config.objective == "sorted" else jax.random.fold_in(key, i)
            losses.append(measure(state["average"], *given, own))
        return {"heldout_loss": float(np.mean(losses))}

    measure = jax.jit(objective)
    return evaluate
