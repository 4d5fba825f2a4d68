"""A drafter whose guesses are its parameters."""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from jaxspec.spec.draft import Draft, DraftContext
from jaxspec.typing import Params


@dataclass(frozen=True)
class GivenDrafts:
    """Proposes what its parameters hold: `tokens` [B, N] and `log_q` [B, I, V]."""

    def init(self, params, ctx):
        """Remembers nothing."""
        return ()

    def propose(
        self, params: Params, state: Any, ctx: DraftContext
    ) -> tuple[Draft, Any]:
        """See `spec.draft.Drafter`."""
        tokens = params["tokens"].at[:, 0].set(ctx.root)
        valid = jnp.ones(tokens.shape, bool)
        return Draft(tokens, valid, params["log_q"], selection=ctx.selection), state

    def observe(self, params, state, result):
        """Learns nothing."""
        return state
