"""A drafter that is a table: what follows each token, at each depth."""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from jaxspec.drafters.grow import grow
from jaxspec.spec.draft import Draft, Observation, Round
from jaxspec.spec.envelopes import Envelope
from jaxspec.spec.tree import Tree
from jaxspec.typing import Array, Params


@dataclass(frozen=True)
class TableDrafter:
    """Fills or grows any tree from logits that look at the last token alone.

    Parameters: `{"table": [depths, V, V]}`; the last depth serves deeper ones.
    """

    def init(
        self,
        params: Params,
        features: Array,
        lengths: Array,
        extra: int,
        tree: Tree | Envelope,
        rows: int,
    ) -> Any:
        """Remembers nothing."""
        return ()

    def propose(self, params: Params, state: Any, this: Round) -> tuple[Draft, Any]:
        """See `spec.draft.Drafter`."""
        table = params["table"]

        def scores(depth, tokens):
            at = jnp.minimum(depth, len(table) - 1)
            return table[at[:, None] if jnp.ndim(at) else at, tokens]

        return grow(this, scores), state

    def observe(self, params: Params, state: Any, seen: Observation) -> Any:
        """Learns nothing."""
        return state
