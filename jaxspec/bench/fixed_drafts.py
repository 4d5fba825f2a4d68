"""Drafter with fixed drafts, for benchmarks of everything but drafting."""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from jaxspec.speculative.draft import Draft, DraftContext
from jaxspec.typing import Params


@dataclass(frozen=True)
class FixedDrafts:
    """Drafter that returns its parameters: `tokens` [B, N] and `log_q` [B, I, V]."""

    def init(self, params, ctx):
        """Returns an empty state."""
        return ()

    def propose(
        self, params: Params, state: Any, ctx: DraftContext
    ) -> tuple[Draft, Any]:
        """See `Drafter`."""
        tokens = params["tokens"].at[:, 0].set(ctx.root)
        valid = jnp.ones(tokens.shape, bool)
        return Draft(tokens, valid, params["log_q"], selection=ctx.selection), state

    def observe(self, params, state, result):
        """Returns the state unchanged."""
        return state
