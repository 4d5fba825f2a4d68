"""Token Recycling: a table of the target's latest successors of each token."""

from dataclasses import dataclass

import jax.numpy as jnp
from jax.tree_util import register_dataclass

from jaxspec.core.shared import Shared
from jaxspec.core.vocab_parallel import vocab_top_k
from jaxspec.drafters.tree_drafting import grow
from jaxspec.errors import ConfigError
from jaxspec.speculative.draft import Draft, DraftContext, InitContext, RoundResult
from jaxspec.typing import Array, Float, Int, Params


@register_dataclass
@dataclass(frozen=True)
class Successors:
    """The likeliest successors of each token.

    Attributes:
      ids: int32 [b, V, W], successors of each token; `b` is `B`, or 1 if all sequences
        share one table.
      logits: float32 [b, V, W], the target's logits of the successors.
    """

    ids: Int[Array, "b V W"]
    logits: Float[Array, "b V W"]


@dataclass(frozen=True)
class TokenRecycling:
    """Drafts from a table that every verify pass updates, rejected nodes included.

    Source: Token Recycling (arXiv 2408.08696), which stores only token ids and fills
    one static tree greedily. This version also stores their logits, so children can be
    ranked with the Gumbel noise of their position or sampled, on any draft tree.

    Attributes:
      vocab_size: vocabulary size `V`.
      width: successors stored per token, at most `V`.
      shared: one table for the whole batch, as published, which fills faster. With
        sampling verifiers a sequence's tokens then depend on the rest of the batch;
        their distribution does not.
    """

    vocab_size: int
    width: int = 8
    shared: bool = True

    def __post_init__(self):
        if min(self.vocab_size, self.width) < 1:
            raise ConfigError(f"{self} needs a vocabulary, and 1 successor or more")

    def init(self, params: Params, ctx: InitContext) -> Successors | Shared:
        """See `Drafter`; returns `Shared` if all sequences share a table."""
        width = min(self.width, self.vocab_size)
        shape = (1 if self.shared else ctx.batch, self.vocab_size, width)
        ids = jnp.broadcast_to(jnp.arange(width, dtype=jnp.int32), shape)
        table = Successors(jnp.copy(ids), jnp.zeros(shape, jnp.float32))
        return Shared(table) if self.shared else table

    def propose(
        self, params: Params, state: Successors | Shared, ctx: DraftContext
    ) -> tuple[Draft, Successors | Shared]:
        """See `Drafter`."""
        successors = _table(state)

        def step(depth, tokens, node_state, carry):
            batch, nodes = tokens.shape
            table = jnp.arange(batch)[:, None] % len(successors.ids)
            sequence = jnp.arange(batch)[:, None, None]
            node = jnp.arange(nodes)[:, None]
            logits = jnp.full((batch, nodes, self.vocab_size), -jnp.inf, jnp.float32)
            ids = successors.ids[table, tokens]
            values = successors.logits[table, tokens]
            logits = logits.at[sequence, node, ids].set(values)
            return logits, node_state, carry

        return grow(ctx, step)[0], state

    def observe(
        self, params: Params, state: Successors | Shared, result: RoundResult
    ) -> Successors | Shared:
        """Stores the target's best successors of every node's token.

        If several nodes hold the same token, the last one is stored.
        """
        old = _table(state)
        best, ids = vocab_top_k(result.logits, old.ids.shape[-1])
        tokens = result.draft.tokens
        batch, nodes = tokens.shape
        table = jnp.broadcast_to(
            jnp.arange(batch)[:, None] % len(old.ids), (batch, nodes)
        )
        order = jnp.arange(nodes)[None] * batch + jnp.arange(batch)[:, None]
        order = jnp.where(result.draft.valid & (result.counts[:, None] > 0), order, -1)
        latest = (
            jnp.full(old.ids.shape[:2], -1, order.dtype).at[table, tokens].max(order)
        )
        is_latest = (order >= 0) & (latest[table, tokens] == order)
        # Indices beyond the table are dropped.
        index = jnp.where(is_latest, tokens, self.vocab_size)
        new = Successors(
            old.ids.at[table, index].set(ids.astype(jnp.int32), mode="drop"),
            old.logits.at[table, index].set(best, mode="drop"),
        )
        return Shared(new) if self.shared else new


def _table(state: Successors | Shared) -> Successors:
    return state.value if isinstance(state, Shared) else state
