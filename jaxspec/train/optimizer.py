"""AdamW or Muon with warm-up, cosine decay and clipping, and averaged weights."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from jaxspec.core.noise import seed_key
from jaxspec.train.settings import TrainingConfig
from jaxspec.typing import Array, Params


def make_optimizer(config: TrainingConfig) -> optax.GradientTransformation:
    """The optimizer of all trainers; only matrices are decayed."""
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, config.learning_rate, config.warmup, max(config.steps, config.warmup + 1)
    )
    rule = _muon if config.optimizer == "muon" else _adamw
    optimizer = optax.chain(
        optax.clip_by_global_norm(config.clip), rule(config, schedule)
    )

    def update(updates, state, params=None):
        # optax combines integers (step counts) with floats.
        with jax.numpy_dtype_promotion("standard"):
            return optimizer.update(updates, state, params)

    return optax.GradientTransformation(optimizer.init, update)


def _adamw(config: TrainingConfig, schedule: optax.Schedule):
    return optax.adamw(
        schedule,
        b1=0.9,
        b2=config.beta2,
        weight_decay=config.weight_decay,
        mask=_decay_mask,
    )


def _muon(config: TrainingConfig, schedule: optax.Schedule):
    """Muon (Jordan et al. 2024), its updates as large as AdamW's (Liu et al. 2025)."""
    return contrib.muon(
        schedule,
        beta=0.95,
        weight_decay=config.weight_decay,
        adam_b2=config.beta2,
        muon_weight_dimension_numbers=_linear_layers,
        consistent_rms=0.2,
    )


def _linear_layers(params: Params) -> Params:
    """Axes of the matrices of linear layers, None for all other parameters.

    A kernel `[D, n, ...]` of several matrices is orthogonalized matrix by matrix.
    """

    def axes(path, x):
        if path[-1].key != "kernel":
            return None
        outputs = range(1 if x.ndim == 2 else 2, x.ndim)
        return contrib.MuonDimensionNumbers(0, tuple(outputs))

    return jax.tree_util.tree_map_with_path(axes, params)


def _decay_mask(params: Params) -> Params:
    """True for matrices and tables, False for scales and biases of any rank."""

    def is_matrix(path, x):
        name = str(getattr(path[-1], "key", ""))
        return x.ndim > 1 and name not in ("scale", "bias")

    return jax.tree_util.tree_map_with_path(is_matrix, params)


def update_average(
    average: Params, params: Params, decay: float, step: Array
) -> Params:
    """Exponential moving average with a shorter memory in the first steps.

    Args:
      average: average up to now.
      params: new parameters.
      decay: decay per step; 0 returns `params`.
      step: index of the step, from 0.
    """
    if decay == 0:
        return params
    step = jnp.asarray(step, jnp.float32)
    rate = 1 - jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    return jax.tree.map(lambda a, p: a + rate * (p - a), average, params)


def init_train_state(config: TrainingConfig, params: Params) -> dict[str, Any]:
    """Initial training state: parameters, their average and the optimizer's state.

    Arrays are copied, because the state may be donated while the caller's arrays may
    not. Those of a checkpoint in another floating dtype become float32.
    """

    def own(x: Array) -> Array:
        floating = jnp.issubdtype(jnp.result_type(x), jnp.floating)
        return jnp.array(x, jnp.float32 if floating else None)

    params = jax.tree.map(own, params)
    return {
        "params": params,
        "average": jax.tree.map(jnp.copy, params),
        "optimizer": make_optimizer(config).init(params),
    }


def apply_gradients(
    config: TrainingConfig, state: dict[str, Any], gradient: Params, step: Array
) -> dict[str, Any]:
    """Takes one step of the optimizer and updates the average."""
    updates, optimizer = make_optimizer(config).update(
        gradient, state["optimizer"], state["params"]
    )
    params = optax.apply_updates(state["params"], updates)
    average = update_average(state["average"], params, config.ema, step)
    return {"params": params, "average": average, "optimizer": optimizer}


def make_gradient_step(config: TrainingConfig, loss_fn: Callable[..., Array]):
    """One step `(state, *frozen, step, batch) -> (state, metrics)` down a loss.

    The loss is computed in `config.compute_dtype`; parameters stay in float32.

    Args:
      config: settings of the training.
      loss_fn: scalar loss `(params, *frozen, *batch, key)`. The frozen parameters get
        no gradient, and the random key is different in each step.
    """
    dtype = jnp.dtype(config.compute_dtype)

    def cast_loss(params, frozen, batch, key):
        params, frozen = jax.tree.map(lambda x: x.astype(dtype), (params, frozen))
        return loss_fn(params, *frozen, *batch, key)

    def step_fn(state, *arguments):
        *frozen, step, batch = arguments
        key = jax.random.fold_in(seed_key(config.seed), step)
        loss, gradient = jax.value_and_grad(cast_loss)(
            state["params"], frozen, batch, key
        )
        state = apply_gradients(config, state, gradient, step)
        return state, {"loss": loss, "gradient_norm": optax.tree.norm(gradient)}

    return step_fn
