"""A drafter whose guesses are its parameters."""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from jaxspec.spec.draft import Draft, Round
from jaxspec.typing import Params


@dataclass(frozen=True)
class GivenDrafts:
    """Proposes what its parameters hold: `tokens` [B, N] and `log_q` [B, I, V]."""

    def init(self, params, start):
        """Remembers nothing."""
        return ()

    def propose(self, params: Params, state: Any, this: Round) -> tuple[Draft, Any]:
        """See `spec.draft.Drafter`."""
        tokens = params["tokens"].at[:, 0].set(this.root)
        valid = jnp.ones(tokens.shape, bool)
        return Draft(tokens, valid, params["log_q"], drawn=this.selection), state

    def observe(self, params, state, seen):
        """Learns nothing."""
        return state
