"""Prompts of transformers: captions, and tokens of both CFG branches."""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from jax.core import Tracer

from jaxspec.errors import ConfigError
from jaxspec.typing import Array, Bool, Float, Int


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Caption:
    """Caption prompt: features of a text encoder.

    Attributes:
      features: outputs of the text encoder, float [B, P, E], padded on the left.
      valid: mask, bool [B, P], False at padding.
    """

    features: Float[Array, "B P E"]
    valid: Bool[Array, "B P"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TokenPrompt:
    """Token prompts for classifier-free guidance, one per branch.

    Attributes:
      given: prompts of the conditional branch, int32 [B, P], with -1 after shorter
        ones.
      null: prompts of the unconditional branch, int32 [B, M], with -1 after shorter
        ones; the number of positions `M` may differ from `P`.
    """

    given: Int[Array, "B P"]
    null: Int[Array, "B M"]


def known_classes(
    ids: Array, classes: int
) -> Int[Array, "B"] | Float[Array, "B classes"]:
    """Class prompts, of which unknown ones are replaced by an id that gives NaN.

    Under `jit` the ids are unknown: a sequence with another class has NaN logits, and
    `Generation.finite` is False for it.

    Args:
      ids: int [B], classes 0 to `classes - 1`; `classes` is the null condition. Or
        float [B, classes], weights of a mixture, which are returned as they are.
      classes: number of classes.

    Raises:
      ConfigError: the ids are neither integers [B] nor weights, or one of them is no
        class.
    """
    floating = jnp.issubdtype(jnp.result_type(ids), jnp.floating)
    if floating and jnp.ndim(ids) == 2 and ids.shape[1] == classes:
        return ids
    if jnp.ndim(ids) != 1 or not jnp.issubdtype(jnp.result_type(ids), jnp.integer):
        raise ConfigError(
            f"class prompts are {jnp.result_type(ids)}{list(jnp.shape(ids))}; give the "
            "number of a class for each sequence, int [B]"
        )
    known = (ids >= 0) & (ids <= classes)
    if not isinstance(known, Tracer) and not bool(known.all()):
        unknown = jnp.asarray(ids)[jnp.argmin(known)]
        raise ConfigError(
            f"there is no class {int(unknown)}; classes are 0 to {classes - 1}, and "
            f"{classes} is no class (the null condition)"
        )
    return jnp.where(known, ids, classes + 1)


CaptionPadding = Literal["self", "published"]
# Positions that the padded positions of a caption attend to. No other position attends
# to padding, so this only changes the features at padded positions, which a drafter may
# read.
#   self        the padded position itself, as in LlamaGen
#   published   as in the target of LANTERN, see `lantern_padding_mask`
