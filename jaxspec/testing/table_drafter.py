"""A drafter that is a table: what follows each token, at each depth."""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from jaxspec.drafters.grow import Step, grow
from jaxspec.spec.draft import Draft, DraftContext, InitContext, RoundResult
from jaxspec.typing import Array, Float, Params


def table_step(table: Float[Array, "G V V"]) -> Step:
    """Scores after a token at each depth; the last depth serves deeper ones."""

    def step(depth, tokens, own, shared):
        at = jnp.minimum(depth, len(table) - 1)
        return table[at[:, None] if jnp.ndim(at) else at, tokens], own, shared

    return step


@dataclass(frozen=True)
class TableDrafter:
    """Fills or grows any tree from logits that look at the last token alone.

    Parameters: `{"table": [depths, V, V]}`, see `table_step`.
    """

    def init(self, params: Params, ctx: InitContext) -> Any:
        """Remembers nothing."""
        return ()

    def propose(
        self, params: Params, state: Any, ctx: DraftContext
    ) -> tuple[Draft, Any]:
        """See `spec.draft.Drafter`."""
        return grow(ctx, table_step(params["table"]))[0], state

    def observe(self, params: Params, state: Any, result: RoundResult) -> Any:
        """Learns nothing."""
        return state
