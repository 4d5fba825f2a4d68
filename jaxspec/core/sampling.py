"""Sampling settings of the sequences of a batch."""

from dataclasses import dataclass, fields
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jax.tree_util import register_dataclass

from jaxspec.core.arguments import broadcast_to_batch
from jaxspec.core.numbers import LARGEST_SCALE, WHOLE, checked_numbers, whole, within
from jaxspec.typing import Array, Float, Int

# A logits processor.
Step = Literal["temperature", "top_k", "top_p"]
# Order of LlamaGen. LANTERN applies top_p before top_k, VAR filters before temperature.
LLAMAGEN_ORDER: tuple[Step, ...] = ("temperature", "top_k", "top_p")
_LAST_STEP = 1 << 20


@register_dataclass
@dataclass(frozen=True)
class Sampling:
    """Sampling settings of each sequence; make them with `create`.

    Attributes:
      temperature: float32 [B]; 0 is greedy.
      top_k: int32 [B]; 0 keeps all tokens.
      top_p: float32 [B] in (0, 1]; 1 keeps all tokens.
      cfg_scale: float32 [B], scale `s` of the merged logits `u + s (c - u)`, where `c`
        and `u` are those of the conditional and the unconditional branch.
      cfg_tokens: int32 [B], number of tokens that are guided; later ones follow the
        conditional branch alone.
    """

    temperature: Float[Array, "B"] | Float[Array, ""]
    top_k: Int[Array, "B"] | Int[Array, ""]
    top_p: Float[Array, "B"] | Float[Array, ""]
    cfg_scale: Float[Array, "B"] | Float[Array, ""]
    cfg_tokens: Int[Array, "B"] | Int[Array, ""]

    @classmethod
    def create(
        cls,
        batch: int | None = None,
        *,
        temperature: float | Array = 1.0,
        top_k: int | Array = 0,
        top_p: float | Array = 1.0,
        cfg_scale: float | Array = 1.0,
        cfg_interval: int | Array = -1,
    ) -> "Sampling":
        """Checks settings given as numbers or as arrays with one entry per sequence.

        Args:
          batch: number of sequences, `B`. With None, single numbers stay scalars; the
            engine broadcasts them with `for_batch`.
          temperature: 0 (greedy), or 0.001 to 1e6.
          top_k: number of tokens kept; 0 keeps all.
          top_p: probability mass kept, in (0, 1].
          cfg_scale: classifier-free guidance scale, 0 to 1e6; 1 for none. A target of
            one branch (`as_target(cfg=False)`) has no guidance: another scale raises,
            unless it is traced, when it is ignored.
          cfg_interval: last step that is guided (LlamaGen's `cfg_interval`); the first
            token is guided too. -1 guides every token.

        Raises:
          ConfigError: a value is outside its range, not finite, or a fraction where a
            whole number is needed; or a shape is neither `[]` nor `[B]`.
        """
        interval = whole("cfg_interval", cfg_interval, -1, _LAST_STEP)
        settings = {
            "temperature": checked_numbers(
                "temperature",
                temperature,
                np.float32,
                lambda x: (x == 0) | (x >= np.float32(1e-3)) & (x <= LARGEST_SCALE),
                f"0 (greedy), or 0.001 to {LARGEST_SCALE:.0f}",
            ),
            "top_k": whole("top_k", top_k, 0),
            "top_p": within("top_p", top_p, most=1.0, above=True),
            "cfg_scale": within("cfg_scale", cfg_scale),
            "cfg_tokens": np.where(interval < 0, WHOLE, interval + 2).astype(np.int32),
        }
        sampling = cls(**{name: jnp.asarray(x) for name, x in settings.items()})
        return sampling if batch is None else sampling.for_batch(batch)

    def for_batch(self, batch: int) -> "Sampling":
        """Broadcasts the settings to arrays `[B]`.

        Raises:
          ConfigError: an array is neither `[]` nor `[B]`.
        """
        return Sampling(
            **{
                field.name: broadcast_to_batch(
                    field.name, getattr(self, field.name), batch
                )
                for field in fields(self)
            }
        )


def active_steps(sampling: Sampling) -> tuple[Step, ...]:
    """Steps of `LLAMAGEN_ORDER` that change logits under given, concrete settings."""
    steps: list[Step] = ["temperature"]
    # On the host, where comparisons take no compilation.
    if (np.asarray(sampling.top_k) > 0).any():
        steps.append("top_k")
    if (np.asarray(sampling.top_p) < 1).any():
        steps.append("top_p")
    return tuple(steps)
