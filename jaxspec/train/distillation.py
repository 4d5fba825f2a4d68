"""Loss of a drafter on the outputs of its target, for any training loop."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxspec.drafters.common.training import TeacherOutputs
from jaxspec.drafters.kind import ExtendsTarget
from jaxspec.drafters.registry import kind_of
from jaxspec.errors import ConfigError
from jaxspec.train.divergence import Divergence, divergence, overlap
from jaxspec.typing import Array, Float, Int, Params


def drafter_loss(
    drafter: Any,
    drafter_params: Params,
    target_params: Params,
    features: Float[Array, "R Y E"],
    tokens: Int[Array, "B Y"],
    target_log_probs: Float[Array, "R Y V"],
    key: Array,
    *,
    cfg_scale: Float[Array, "B"] | None = None,
    loss: Divergence = "forward_kl",
    decay: float = 4.0,
    regression: float = 10.0,
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """Loss that trains a drafter to predict as its frozen target does.

    A pure function for `jax.value_and_grad(..., argnums=1, has_aux=True)` and any
    optimizer; `jaxspec train drafter` minimizes the same loss. No gradient flows into
    `features` and `target_log_probs`.

    The three arrays are aligned by absolute position: `tokens[:, y]` is the token at
    position `y`, `features[:, y]` are the target's hidden states after it has read that
    token, and `target_log_probs[:, y]` is its prediction of the token at `y + 1`. That
    is what one forward pass over the sequences returns. Positions of a condition
    (`target.prefix_length`) come first; their tokens are 0. Sequences have equal
    lengths.

    The drafter predicts blocks of `G` tokens from positions sampled with `key`, each
    from what it would have when it drafts there, with the data's tokens as the path.

    With `cfg_scale` both branches are given, `R = 2 B`, conditional first, for the same
    tokens. Both predict the same positions, and the distributions after guidance are
    compared: this trains the error that guidance amplifies.

    Args:
      drafter: drafter with its target, such as `DFlash(config, target)`.
      drafter_params: its parameters, from `drafter.init_params(key)`.
      target_params: parameters of the target, of which `with_target_params` selects
        those that the drafter reads; see `FeatureTarget` for a model of one's own.
      features: [R, Y, E], outputs of `drafter.feature_layers`, concatenated.
      tokens: int32 [B, Y], sequences.
      target_log_probs: float32 [R, Y, V], log-probabilities or logits of the target.
      key: random key; consumed.
      cfg_scale: float32 [B], CFG scale of each sequence, with `R = 2 B`; None for one
        branch.
      loss: divergence of each prediction, see `train.divergence`.
      decay: decay of the weight `exp(-k / decay)` of prediction `k` of a block.
      regression: weight of the loss on features, for drafters with one (EAGLE-1,
        Falcon).

    Returns:
      The loss, float32 scalar, and metrics: "overlap" [G], the mean of
      `sum min(p, q)` at each index of a block, which is the acceptance of exact
      rejection there; "divergence" and "regression", the parts of the loss.

    Raises:
      ConfigError: the drafter has no training outputs or runs the target itself (PPD),
        or shapes do not fit.
    """
    if isinstance(drafter, ExtendsTarget):
        raise ConfigError(
            f"{type(drafter).__name__} is trained through passes of its target, not on "
            "features; use `jaxspec train drafter`"
        )
    if not hasattr(drafter, "config"):
        raise ConfigError(
            f"{type(drafter).__name__} has nothing to train; use DFlash, Eagle, Medusa "
            "or Falcon"
        )
    branches = 1 if cfg_scale is None else 2
    _check_shapes(drafter, features, tokens, target_log_probs, branches)
    frozen = jax.lax.stop_gradient((features, target_log_probs))
    parts = zip(*(jnp.split(x, branches) for x in frozen), strict=True)
    teachers = [TeacherOutputs(tokens, p, h, target_params) for h, p in parts]
    losses, overlaps, on_features = prediction_losses(
        drafter, drafter_params, teachers, key, cfg_scale=cfg_scale, loss=loss
    )
    mean = weighted_mean(losses, decay)
    metrics = {
        "overlap": jnp.nanmean(overlaps, axis=(0, 1)),
        "divergence": mean,
        "regression": on_features,
    }
    return mean + regression * on_features, metrics


def _check_shapes(drafter, features, tokens, target_log_probs, branches) -> None:
    """Checks the arguments of `drafter_loss` against each other."""
    batch, length = tokens.shape
    target = drafter.target
    expected = {
        "features": (features, target.width * len(drafter.feature_layers)),
        "target_log_probs": (target_log_probs, target.vocab_size),
    }
    for name, (array, last) in expected.items():
        shape = (branches * batch, length, last)
        if array.shape != shape:
            raise ConfigError(
                f"{name} has shape {array.shape}; tokens of shape {tokens.shape}, "
                f"{branches} branch(es) and this drafter need {shape}"
            )
    if length - target.prefix_length < 4:
        raise ConfigError(
            f"sequences of {length} positions are too short; use at least 4 tokens"
        )


def prediction_losses(
    drafter: Any,
    drafter_params: Params,
    teachers: Sequence[TeacherOutputs],
    key: Array,
    *,
    cfg_scale: Float[Array, "B"] | None,
    loss: Divergence,
) -> tuple[Float[Array, "B M G"], Float[Array, "B M G"], Float[Array, ""]]:
    """Divergence of each prediction from the target, its overlap, and the regression.

    If the drafter predicts its own acceptance, the cross-entropy to the true overlap is
    added to the divergence (DSpark, arXiv 2607.05147).

    Args:
      drafter: static functions of the drafter.
      drafter_params: parameters of the drafter.
      teachers: outputs of the target in each branch, conditional first.
      key: random key for the drafter's positions; consumed.
      cfg_scale: CFG scales with two branches; None with one.
      loss: divergence, see `train.divergence`.

    Returns:
      Divergences and overlaps `sum min(p, q)`, both float32 [B, M, G] with NaN beyond
      the end of the sequence, and the scalar regression loss on features.
    """
    branches, regressions, confidence = [], [], None
    for teacher in teachers:
        # The key is reused on purpose: both branches predict the same positions.
        same_key = jax.random.clone(key)
        outputs = kind_of(drafter.config).training_outputs(
            drafter, drafter_params, teacher, same_key
        )
        flat = outputs.positions.reshape(len(teacher.tokens), -1)
        logits = jnp.take_along_axis(teacher.logits, flat[..., None] - 1, axis=1)
        branches.append((logits.reshape(outputs.logits.shape), outputs.logits))
        regressions.append(outputs.regression)
        confidence = outputs.confidence if confidence is None else confidence
    logits, drafter_logits = (
        branches[0]
        if cfg_scale is None
        else _with_cfg(branches[0], branches[1], cfg_scale)
    )
    targets = jnp.take_along_axis(teacher.tokens, flat, axis=1)
    targets, valid = targets.reshape(outputs.valid.shape), outputs.valid
    losses = divergence(loss, logits, drafter_logits, targets, valid)
    overlaps = overlap(logits, drafter_logits)
    if confidence is not None:  # of the conditional branch, which drafting reads too
        acceptance = jax.lax.stop_gradient(overlaps)
        losses += optax.sigmoid_binary_cross_entropy(confidence, acceptance)
    return (
        jnp.where(valid, losses, jnp.nan),
        jnp.where(valid, overlaps, jnp.nan),
        jnp.mean(jnp.stack(regressions)),
    )


def weighted_mean(values: Float[Array, "B M G"], decay: float) -> Float[Array, ""]:
    """Mean over blocks in which prediction `k` of a block weighs `exp(-k / decay)`.

    Later predictions weigh less, because they matter only if the earlier ones are
    accepted.

    Args:
      values: float32 [B, M, G], NaN beyond the end of a sequence.
      decay: number of predictions after which the weight has fallen to `1 / e`.
    """
    index = jnp.arange(values.shape[-1], dtype=values.dtype)
    valid = ~jnp.isnan(values)
    weight = jnp.where(valid, jnp.exp(-index / decay)[None, None], 0.0)
    return jnp.sum(jnp.where(valid, values, 0.0) * weight) / jnp.sum(weight)


def _with_cfg(conditional, unconditional, scale: Float[Array, "B"]):
    """Logits of target and drafter after CFG, from those of the two branches."""
    scale = scale[:, None, None, None]
    target, drafter = (
        jnp.where(c > -jnp.inf, u + scale * (c - u), -jnp.inf)
        for c, u in zip(conditional, unconditional, strict=True)
    )
    return target, drafter
