"""Token Recycling: what the target said after a token, whenever it was read last."""

from dataclasses import dataclass

import jax.numpy as jnp
from jax.tree_util import register_dataclass

from jaxspec.drafters.grow import grow
from jaxspec.errors import ConfigError
from jaxspec.spec.draft import Draft, DraftContext, InitContext, RoundResult, Shared
from jaxspec.spec.vocabulary import vocab_top_k
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
      width: successors kept for each token, at most all.
      shared: one table for the batch, as published, which learns faster; with rules
        that draw, a row's tokens then depend on its neighbors (their law does not).
    """

    vocab_size: int
    width: int = 8
    shared: bool = True

    def __post_init__(self):
        if min(self.vocab_size, self.width) < 1:
            raise ConfigError(f"{self} needs a vocabulary, and 1 successor or more")

    def init(self, params: Params, ctx: InitContext) -> Successors | Shared:
        """See `spec.draft.Drafter`; `Shared` if rows share their table."""
        width = min(self.width, self.vocab_size)
        shape = (1 if self.shared else ctx.rows, self.vocab_size, width)
        ids = jnp.broadcast_to(jnp.arange(width, dtype=jnp.int32), shape)
        table = Successors(jnp.copy(ids), jnp.zeros(shape, jnp.float32))
        return Shared(table) if self.shared else table

    def propose(
        self, params: Params, state: Successors | Shared, ctx: DraftContext
    ) -> tuple[Draft, Successors | Shared]:
        """See `spec.draft.Drafter`."""
        known = _table(state)

        def step(depth, tokens, own, shared):
            rows, nodes = tokens.shape
            table = jnp.arange(rows)[:, None] % len(known.ids)
            row = jnp.arange(rows)[:, None, None]
            node = jnp.arange(nodes)[:, None]
            logits = jnp.full((rows, nodes, self.vocab_size), -jnp.inf, jnp.float32)
            ids, values = known.ids[table, tokens], known.logits[table, tokens]
            return logits.at[row, node, ids].set(values), own, shared

        return grow(ctx, step)[0], state

    def observe(
        self, params: Params, state: Successors | Shared, result: RoundResult
    ) -> Successors | Shared:
        """Stores what followed every node; the last node of a token has its way."""
        known = _table(state)
        best, ids = vocab_top_k(result.logits, known.ids.shape[-1])
        tokens = result.draft.tokens
        rows, nodes = tokens.shape
        table = jnp.broadcast_to(
            jnp.arange(rows)[:, None] % len(known.ids), (rows, nodes)
        )
        number = jnp.arange(nodes)[None] * rows + jnp.arange(rows)[:, None]
        number = jnp.where(
            result.draft.valid & (result.counts[:, None] > 0), number, -1
        )
        latest = (
            jnp.full(known.ids.shape[:2], -1, number.dtype)
            .at[table, tokens]
            .max(number)
        )
        wins = (number >= 0) & (latest[table, tokens] == number)
        place = jnp.where(wins, tokens, self.vocab_size)  # beyond the table: dropped
        new = Successors(
            known.ids.at[table, place].set(ids.astype(jnp.int32), mode="drop"),
            known.logits.at[table, place].set(best, mode="drop"),
        )
        return Shared(new) if self.shared else new


def _table(state: Successors | Shared) -> Successors:
    return state.value if isinstance(state, Shared) else state
