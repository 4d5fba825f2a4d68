"""AdamW with warm-up, cosine decay and clipping; averaged weights."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxspec.train.experiment import TrainingConfig
from jaxspec.typing import Array, Params


def make_optimizer(config: TrainingConfig) -> optax.GradientTransformation:
    """The optimizer of every trainer; decay is on matrices only."""
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, config.learning_rate, config.warmup, max(config.steps, config.warmup + 1)
    )
    made = optax.chain(
        optax.clip_by_global_norm(config.clip),
        optax.adamw(
            schedule,
            b1=0.9,
            b2=config.beta2,
            weight_decay=config.weight_decay,
            mask=_decayed,
        ),
    )

    def update(updates, state, params=None):
        # optax combines whole numbers (counts of steps) with floats.
        with jax.numpy_dtype_promotion("standard"):
            return made.update(updates, state, params)

    return optax.GradientTransformation(made.init, update)


def _decayed(params: Params) -> Params:
    """Matrices and tables; no scales, and no biases, whose axes may be several."""

    def matrix(path, x):
        name = str(getattr(path[-1], "key", ""))
        return x.ndim > 1 and name not in ("scale", "bias")

    return jax.tree_util.tree_map_with_path(matrix, params)


def update_average(
    average: Params, params: Params, decay: float, step: Array
) -> Params:
    """Exponential moving average, with a shorter memory in the first steps."""
    if decay == 0:
        return params
    step = jnp.asarray(step, jnp.float32)
    rate = 1 - jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    return jax.tree.map(lambda a, p: a + rate * (p - a), average, params)


def begin(config: TrainingConfig, params: Params) -> dict[str, Any]:
    """State of a training: parameters, their average, the optimizer's own.

    Copies: the state may be donated, what the caller holds may not.
    """
    return {
        "params": jax.tree.map(jnp.copy, params),
        "average": jax.tree.map(jnp.copy, params),
        "optimizer": make_optimizer(config).init(params),
    }


def descend(
    config: TrainingConfig, state: dict[str, Any], gradient: Params, step: Array
) -> dict[str, Any]:
    """One step of the optimizer and of the average."""
    updates, optimizer = make_optimizer(config).update(
        gradient, state["optimizer"], state["params"]
    )
    params = optax.apply_updates(state["params"], updates)
    average = update_average(state["average"], params, config.ema, step)
    return {"params": params, "average": average, "optimizer": optimizer}
