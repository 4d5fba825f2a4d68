"""Teacher and drafter outputs that losses of drafters are computed from."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.tree_util import register_dataclass

from jaxspec.typing import Array, Bool, Float, Int, Params, PyTree

# Start positions sampled in each sequence; using all of them would cost too much.
STARTS = 64


@register_dataclass
@dataclass(frozen=True)
class TeacherOutputs:
    """Sequences with the frozen target's outputs at all `P + T` positions.

    Attributes:
      tokens: int32 [B, P + T], by absolute position; 0 at the condition.
      logits: float32 [B, P + T, V], the target's prediction of the next token.
      features: [B, P + T, E], outputs of the layers that the drafter reads.
      params: the target's parameters.
      prompts: conditions of the sequences as the target takes them, for drafters that
        run the target; else None.
      null: bool [B], True for sequences read without their condition; else None.
    """

    tokens: Int[Array, "B Y"]
    logits: Float[Array, "B Y V"]
    features: Float[Array, "B Y E"]
    params: Params
    prompts: PyTree = None
    null: Bool[Array, "B"] | None = None


@register_dataclass
@dataclass(frozen=True)
class DrafterOutputs:
    """Predictions in `M` blocks of `G` consecutive tokens.

    Attributes:
      logits: float32 [B, M, G, V], the drafter's.
      positions: int32 [B, M, G], absolute positions of the predicted tokens.
      valid: bool [B, M, G], False beyond the end of the sequence.
      regression: float32 scalar, a loss on features; 0 for drafters without one.
      confidence: float32 [B, M, G], logits of the acceptance probability of each
        prediction; None for drafters without such a head.
    """

    logits: Float[Array, "B M G V"]
    positions: Int[Array, "B M G"]
    valid: Bool[Array, "B M G"]
    regression: Float[Array, ""]
    confidence: Float[Array, "B M G"] | None = None


def sample_starts(teacher: TeacherOutputs, key: Array, first: int) -> Int[Array, "B M"]:
    """Samples positions uniformly, from which the drafter predicts.

    Args:
      teacher: the sequences.
      key: random key; consumed.
      first: lowest position to sample; 0 if negative.

    Returns:
      int32 [B, M] absolute positions, `M = STARTS`, each with at least two successors.
    """
    batch, length = teacher.tokens.shape
    shape = batch, STARTS
    return jax.random.randint(key, shape, max(first, 0), length - 2, jnp.int32)


def smooth_l1(
    h: Float[Array, "... D"], target: Float[Array, "... D"], valid: Bool[Array, "..."]
) -> Float[Array, ""]:
    """Smooth L1 distance of features, averaged over the valid positions.

    The distance is squared below 1 and absolute above. No gradient flows into `target`.
    """
    gap = jnp.abs(h - jax.lax.stop_gradient(target)).astype(jnp.float32)
    each = jnp.where(gap < 1, 0.5 * gap**2, gap - 0.5).mean(axis=-1)
    count = jnp.sum(valid, dtype=each.dtype)
    return jnp.sum(jnp.where(valid, each, 0.0)) / count


def predicted_positions(
    teacher: TeacherOutputs, starts: Int[Array, "B M"], depth: int
) -> tuple[Int[Array, "B M G"], Bool[Array, "B M G"]]:
    """Positions of `depth` tokens, from the second after each start, and validity.

    The first token after a start comes from the target itself, so it is not drafted.
    """
    positions = starts[..., None] + 2 + jnp.arange(depth)[None, None]
    length = teacher.tokens.shape[1]
    return jnp.minimum(positions, length - 1), positions < length
