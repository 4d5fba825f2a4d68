"""Token Recycling: what the target said after a token, whenever it was read last."""

from dataclasses import dataclass

import jax.numpy as jnp
from jax.tree_util import register_dataclass

from jaxspec.drafters.grow import grow
from jaxspec.spec.draft import Draft, Observation, Round, Start
from jaxspec.spec.vocabulary import top_tokens
from jaxspec.typing import Array, Float, Int, Params


@register_dataclass
@dataclass(frozen=True)
class Successors:
    """The likeliest successors of each token.

    Attributes:
      ids: int32 [b, V, W], `b` being `B`, or 1 if all rows share.
      logits: float32 [b, V, W].
    """

    ids: Int[Array, "b V W"]
    logits: Float[Array, "b V W"]


@dataclass(frozen=True)
class TokenRecycling:
    """Drafts from a table that each verify pass fills anew, rejected nodes included.

    Source: Token Recycling (arXiv 2408.08696), which keeps ids alone and fills one
    static tree greedily. Here the scores are kept, too, so children can be ranked with
    the noise of their position or drawn, on any tree.

    Attributes:
      vocab_size: `V`.
      width: successors kept for each token.
      shared: one table for the batch, as published, which learns faster; with rules
        that draw, a row's tokens then depend on its neighbours (their law does not).
    """

    vocab_size: int
    width: int = 8
    shared: bool = True

    def init(self, params: Params, start: Start) -> Successors:
        """See `spec.draft.Drafter`."""
        shape = (1 if self.shared else start.rows, self.vocab_size, self.width)
        ids = jnp.broadcast_to(jnp.arange(self.width, dtype=jnp.int32), shape)
        return Successors(jnp.copy(ids), jnp.zeros(shape))

    def propose(
        self, params: Params, state: Successors, this: Round
    ) -> tuple[Draft, Successors]:
        """See `spec.draft.Drafter`."""

        def step(depth, tokens, own, shared):
            rows, nodes = tokens.shape
            table = jnp.arange(rows)[:, None] % len(state.ids)
            row = jnp.arange(rows)[:, None, None]
            node = jnp.arange(nodes)[:, None]
            logits = jnp.full((rows, nodes, self.vocab_size), -jnp.inf)
            ids, values = state.ids[table, tokens], state.logits[table, tokens]
            return logits.at[row, node, ids].set(values), own, shared

        return grow(this, step)[0], state

    def observe(
        self, params: Params, state: Successors, seen: Observation
    ) -> Successors:
        """Stores what followed every node; the last node of a token has its way."""
        best, ids = top_tokens(seen.logits, self.width)
        tokens = seen.draft.tokens
        rows, nodes = tokens.shape
        table = jnp.broadcast_to(
            jnp.arange(rows)[:, None] % len(state.ids), (rows, nodes)
        )
        number = jnp.arange(nodes) * rows + jnp.arange(rows)[:, None]
        number = jnp.where(seen.draft.valid & (seen.counts[:, None] > 0), number, -1)
        latest = jnp.full(state.ids.shape[:2], -1).at[table, tokens].max(number)
        wins = (number >= 0) & (latest[table, tokens] == number)
        place = jnp.where(wins, tokens, self.vocab_size)  # beyond the table: dropped
        return Successors(
            state.ids.at[table, place].set(ids.astype(jnp.int32), mode="drop"),
            state.logits.at[table, place].set(best, mode="drop"),
        )
