"""What a recipe is given, and what it returns."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.tree_util import register_dataclass

from jaxspec.config import TransformerConfig
from jaxspec.drafters.shared import shared_target_params, target_logits
from jaxspec.models.transformer import Transformer
from jaxspec.train.kept_features import kept_layers
from jaxspec.typing import Array, Bool, Float, Int, Params

# Positions of every sequence from which guesses are made, where all could be.
STARTS = 64


@register_dataclass
@dataclass(frozen=True)
class TeacherOutputs:
    """Sequences as the frozen target sees them; `U = P + T` absolute positions.

    Attributes:
      tokens: int32 [B, U], by absolute position; 0 for the condition.
      logits: float32 [B, U, V], the target's after each position.
      features: [B, U, E], the tapped layers' outputs.
      labels: int32 [B], conditions.
      null: bool [B], sequences without condition.
      params: the target's parameters.
    """

    tokens: Int[Array, "B U"]
    logits: Float[Array, "B U V"]
    features: Float[Array, "B U E"]
    labels: Int[Array, "B"]
    null: Bool[Array, "B"]
    params: Params


@register_dataclass
@dataclass(frozen=True)
class DrafterOutputs:
    """DrafterOutputs in blocks of consecutive tokens: `M` blocks of `G` places.

    Attributes:
      logits: float32 [B, M, G, V], the drafter's.
      places: int32 [B, M, G], absolute position of the token that is guessed.
      present: bool [B, M, G], False beyond the sequence's end.
      regression: a loss on features, 0 where there is none.
      confidence: logits float32 [B, M, G] of each guess's chance to be accepted, where
        the drafter has a head for it.
    """

    logits: Float[Array, "B M G V"]
    places: Int[Array, "B M G"]
    present: Bool[Array, "B M G"]
    regression: Float[Array, ""]
    confidence: Float[Array, "B M G"] | None = None


def run_teacher(
    target: TransformerConfig,
    params: Params,
    feature_layers: tuple[int, ...],
    codes: Int[Array, "B T"],
    labels: Int[Array, "B"],
    null: Bool[Array, "B"],
    kept: Float[Array, "B 2 U E"] | None = None,
) -> TeacherOutputs:
    """Sequences as the target reads them; no gradient flows into it.

    `kept` is what it said of them before; see `train.kept_features`.
    """
    if kept is None:
        logits, features = Transformer(target).score(
            params, labels, codes, null=null, feature_layers=feature_layers
        )
    else:
        logits, features = _recalled(target, params, feature_layers, null, kept)
    logits, features = jax.lax.stop_gradient((logits, features))
    tokens = jnp.pad(codes, ((0, 0), (target.prefix_length, 0)))
    return TeacherOutputs(tokens, logits, features, labels, null, params)


def _recalled(target, params, feature_layers, null, kept):
    """Scores and tapped features from the outputs of `kept_layers`."""
    chosen = jnp.where(null[:, None, None], kept[:, 1], kept[:, 0])
    dtype = params["norm"]["scale"].dtype
    parts = jnp.split(chosen.astype(dtype), kept.shape[-1] // target.width, axis=-1)
    by_layer = dict(zip(kept_layers(target.layers, feature_layers), parts, strict=True))
    features = [by_layer[layer] for layer in feature_layers]
    features = (
        jnp.concatenate(features, axis=-1) if feature_layers else parts[0][..., :0]
    )
    shared = shared_target_params(target, params, norm=True)
    return target_logits(target, shared, by_layer[target.layers - 1]), features


def some_starts(lesson: TeacherOutputs, key: Array, first: int) -> Int[Array, "B M"]:
    """Positions from which guesses are made, drawn evenly; `key` is consumed.

    Args:
      lesson: what is read.
      key: of the draw.
      first: least position: the last one of the condition.
    """
    rows, length = lesson.tokens.shape
    shape = rows, STARTS
    return jax.random.randint(key, shape, max(first, 0), length - 2, jnp.int32)


def smooth_l1(
    h: Float[Array, "... D"], wanted: Float[Array, "... D"], present: Bool[Array, "..."]
) -> Float[Array, ""]:
    """Mean distance of features: squared when small, absolute when large."""
    gap = jnp.abs(h - jax.lax.stop_gradient(wanted)).astype(jnp.float32)
    each = jnp.where(gap < 1, 0.5 * gap**2, gap - 0.5).mean(axis=-1)
    count = jnp.sum(present, dtype=each.dtype)
    return jnp.sum(jnp.where(present, each, 0.0)) / count


def guesses_from(
    lesson: TeacherOutputs, starts: Int[Array, "B M"], depth: int
) -> tuple[Int[Array, "B M G"], Bool[Array, "B M G"]]:
    """Places and presence of `depth` guesses from two places behind each start.

    The token right behind a start is the target's own to say.
    """
    places = starts[..., None] + 2 + jnp.arange(depth)[None, None]
    length = lesson.tokens.shape[1]
    return jnp.minimum(places, length - 1), places < length
