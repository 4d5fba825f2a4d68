"""Drafter that reads its logits from a table."""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from jaxspec.drafters.tree_drafting import Step, grow
from jaxspec.speculative.draft import Draft, DraftContext, InitContext, RoundResult
from jaxspec.typing import Array, Float, Params


def table_step(table: Float[Array, "M V V"]) -> Step:
    """Step function of `grow` that looks logits up.

    Args:
      table: logits, indexed by depth, last token and next token. The last of the `M`
        depths is also used for deeper nodes.
    """

    def step(depth, tokens, node_state, shared):
        row = jnp.minimum(depth, len(table) - 1)
        row = row[:, None] if jnp.ndim(row) else row
        return table[row, tokens], node_state, shared

    return step


@dataclass(frozen=True)
class TableDrafter:
    """Drafter of any tree, whose logits depend on depth and last token only.

    Its parameters are `{"table": [M, V, V]}`, see `table_step`.
    """

    def init(self, params: Params, ctx: InitContext) -> Any:
        """Empty state."""
        return ()

    def propose(
        self, params: Params, state: Any, ctx: DraftContext
    ) -> tuple[Draft, Any]:
        """Proposes a draft, see `speculative.draft.Drafter`."""
        return grow(ctx, table_step(params["table"]))[0], state

    def observe(self, params: Params, state: Any, result: RoundResult) -> Any:
        """Returns the state unchanged."""
        return state
