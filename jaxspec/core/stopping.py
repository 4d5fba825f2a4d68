"""Stopping criteria of a generation."""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.tree_util import register_dataclass

from jaxspec.core.arguments import broadcast_to_batch
from jaxspec.core.numbers import whole
from jaxspec.errors import ConfigError
from jaxspec.typing import Array, Bool, Int


@register_dataclass
@dataclass(frozen=True)
class StoppingCriteria:
    """Stopping criteria of each sequence; make them with `create`.

    Attributes:
      max_new_tokens: int32 [B], largest number of tokens; at least 1.
      stop_tokens: int32 [B, J], tokens that end a sequence, as its last one; -1 for
        none.
    """

    max_new_tokens: Int[Array, "B"] | Int[Array, ""]
    stop_tokens: Int[Array, "B J"] | Int[Array, "J"]

    @classmethod
    def create(
        cls, batch: int | None = None, *, max_new_tokens: Any, stop_tokens: Any = ()
    ) -> "StoppingCriteria":
        """Checks criteria given as numbers or as arrays with one entry per sequence.

        Args:
          batch: number of sequences, `B`. With None, criteria of all sequences stay
            scalars; the engine broadcasts them with `for_batch`.
          max_new_tokens: largest number of tokens, for all sequences or for each.
          stop_tokens: tokens that end a sequence; `[J]` for all sequences or `[B, J]`,
            -1 for none.

        Raises:
          ConfigError: `max_new_tokens` is not positive, a stop token is below -1, a
            number is not whole or needs over 31 bits, or a shape does not fit.
        """
        limit = whole("max_new_tokens", max_new_tokens)
        stop = np.atleast_1d(whole("stop_tokens", stop_tokens, -1))
        criteria = cls(jnp.asarray(limit), jnp.asarray(stop))
        if batch is None and (limit.ndim or stop.ndim > 1):
            batch = limit.shape[0] if limit.ndim else stop.shape[0]
        return criteria if batch is None else criteria.for_batch(batch)

    @property
    def is_replicated(self) -> bool:
        """Whether all sequences have the same criteria, see `sharding.over_batch`."""
        return jnp.ndim(self.max_new_tokens) == 0

    def for_batch(self, batch: int) -> "StoppingCriteria":
        """Broadcasts the criteria to arrays `[B]` and `[B, J]`.

        Raises:
          ConfigError: an array has another shape.
        """
        limit = broadcast_to_batch("max_new_tokens", self.max_new_tokens, batch)
        stop = self.stop_tokens
        if stop.ndim > 2 or stop.shape[:-1] not in ((), (batch,)):
            raise ConfigError(
                f"stop_tokens has shape {stop.shape}; give [J], or [{batch}, J]"
            )
        stop = jnp.broadcast_to(stop, (batch, stop.shape[-1]))
        return StoppingCriteria(limit, stop)

    def is_stop(self, tokens: Int[Array, "B ..."]) -> Bool[Array, "B ..."]:
        """Mask of the tokens that end their sequence."""
        stop = jnp.expand_dims(self.stop_tokens, tuple(range(1, tokens.ndim)))
        return jnp.any((tokens[..., None] == stop) & (stop >= 0), axis=-1)
