"""Prompts of transformers: captions, and tokens of both CFG branches."""

from dataclasses import dataclass
from typing import Literal

import jax

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


CaptionPadding = Literal["self", "published"]
# Positions that the padded positions of a caption attend to. No other position attends
# to padding, so this only changes the features at padded positions, which a drafter may
# read.
#   self        the padded position itself, as in LlamaGen
#   published   as in the target of LANTERN, see `lantern_padding_mask`
