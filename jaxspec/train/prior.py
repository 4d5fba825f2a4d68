"""Training of the autoregressive prior: next-code cross-entropy."""

from pathlib import Path

import jax
import jax.numpy as jnp
import optax

from jaxspec.checkpoint import Checkpoint
from jaxspec.data.batches import batch_indices, step_rng
from jaxspec.data.codes import CodeSource
from jaxspec.evaluate.likelihood import likelihood_metrics
from jaxspec.models.transformer import Transformer
from jaxspec.train.experiment import Experiment, TrainingConfig, fingerprint
from jaxspec.train.loop import fit
from jaxspec.train.optimizer import begin, descend
from jaxspec.typing import Array, Float, Int, Params

# Held-out sequences that select the checkpoint.
HELDOUT = 512


def train_prior(
    experiment: Experiment, source: CodeSource, heldout: CodeSource, workdir: Path
) -> Checkpoint:
    """Trains the prior of an experiment; resumes what `workdir` holds."""
    config = experiment.train_prior
    model = Transformer(experiment.prior)

    def batch_fn(step):
        indices = batch_indices(config.seed, step, config.batch, len(source))
        return source.take(indices, step_rng(config.seed, step))

    def evaluate(state):
        values = likelihood_metrics(
            model, state["average"], heldout, batch=config.batch, most=HELDOUT
        )
        return {"heldout_loss": values["nll"], "entropy": values["entropy"]}

    kept, metrics = fit(
        workdir,
        config,
        begin(config, model.init(jax.random.key(config.seed))),
        jax.jit(make_step(model, config), donate_argnums=0),
        batch_fn,
        evaluate,
        lambda state: state["average"],
        "prior",
        fingerprint(experiment.prior, config, experiment.data, source.digest),
    )
    return Checkpoint("prior", experiment.prior, kept, {"metrics": metrics})


def make_step(model: Transformer, config: TrainingConfig):
    """One step `(state, step, (codes [B, T], labels [B])) -> (state, metrics)`."""
    dtype = jnp.dtype(config.compute_dtype)

    def loss_fn(params, codes, labels, key):
        null_key, dropout_key = jax.random.split(key)
        chance = model.config.condition_dropout
        null = jax.random.bernoulli(null_key, chance, labels.shape)
        params = jax.tree.map(lambda x: x.astype(dtype), params)
        return jnp.mean(nll(model, params, codes, labels, null, dropout_key))

    def step_fn(state, step, batch):
        key = jax.random.fold_in(jax.random.key(config.seed), step)
        loss, gradient = jax.value_and_grad(loss_fn)(state["params"], *batch, key)
        state = descend(config, state, gradient, step)
        return state, {"loss": loss, "gradient_norm": optax.tree.norm(gradient)}

    return step_fn


def nll(
    model: Transformer,
    params: Params,
    codes: Int[Array, "B T"],
    labels: Int[Array, "B"],
    null: Array | None = None,
    dropout_key: Array | None = None,
) -> Float[Array, "B T"]:
    """Negative log-likelihood of each code in nats, given those before it."""
    logits, _ = model.score(
        params, labels, codes[:, :-1], null=null, dropout_key=dropout_key
    )
    first = model.config.prefix_length - 1
    return optax.softmax_cross_entropy_with_integer_labels(logits[:, first:], codes)
