"""Jacobi iteration as a drafter: the target's last opinion of each position."""

from dataclasses import dataclass
from typing import Literal

import jax.numpy as jnp
from jax.tree_util import register_dataclass

from jaxspec.drafters.grow import at_depth, grow
from jaxspec.spec.draft import Draft, DraftContext, InitContext, RoundResult
from jaxspec.spec.topology import gather_nodes
from jaxspec.typing import Array, Bool, Float, Params

# Log-odds of the token that an initialization repeats; exp(-30) is left for the others.
_SURE = 30.0


@register_dataclass
@dataclass(frozen=True)
class JacobiState:
    """What the target last said about the positions to come.

    Attributes:
      logits: float32 [B, G, V], after each depth of the next tree's root path.
      known: bool [B, G], where the target has said anything.
    """

    logits: Float[Array, "B G V"]
    known: Bool[Array, "B G"]


@dataclass(frozen=True)
class Jacobi:
    """Speculative Jacobi decoding: no training, no weights, no parameters.

    A pass over a window of guesses scores every later position, too, after a prefix
    that is partly wrong. Those scores are the law from which the next window is drawn:
    independently and honestly under `Rejection` (SJD, arXiv 2410.01699), or with the
    noise that the target will use under `Coupled` (the Gumbel variant of MC-SJD, arXiv
    2510.24211), so that a guess stays what it was unless the scores really changed. A
    wider tree than SJD's chain holds several guesses of a position.

    Positions that no pass has seen start as `initial` says.

    Attributes:
      vocab_size: `V`.
      initial: "uniform" (SJD's random), "repeat" (the last token), or "last": the
        scores of the position before.
    """

    vocab_size: int
    initial: Literal["uniform", "repeat", "last"] = "last"

    def init(self, params: Params, ctx: InitContext) -> JacobiState:
        """See `spec.draft.Drafter`."""
        depth = ctx.tree.depth
        logits = jnp.zeros((ctx.rows, depth, self.vocab_size), jnp.float32)
        return JacobiState(logits, jnp.zeros((ctx.rows, depth), bool))

    def propose(
        self, params: Params, state: JacobiState, ctx: DraftContext
    ) -> tuple[Draft, JacobiState]:
        """See `spec.draft.Drafter`."""
        depth = ctx.tree.depth
        # Where nothing is known, the last known position speaks, or nobody.
        place = jnp.where(state.known, jnp.arange(depth), -1)
        last = jnp.maximum(jnp.max(place, axis=1, initial=-1), 0)
        fill = jnp.take_along_axis(state.logits, last[:, None, None], axis=1)
        if self.initial == "uniform":
            fill = jnp.zeros_like(fill)
        elif self.initial == "repeat":
            repeated = jnp.arange(self.vocab_size)[None] == ctx.root[:, None]
            fill = _SURE * repeated[:, None].astype(jnp.float32)
        logits = jnp.where(state.known[..., None], state.logits, fill)

        def step(depth, tokens, own, shared):
            scores = at_depth(logits, depth)
            scores = jnp.broadcast_to(scores, (*tokens.shape, self.vocab_size))
            return scores, own, shared

        return grow(ctx, step)[0], state

    def observe(
        self, params: Params, state: JacobiState, result: RoundResult
    ) -> JacobiState:
        """Keeps the scores of the positions behind the new root."""
        shape = result.draft.topology(result.tree)
        nodes = jnp.arange(result.tree.size)[None]
        valid = result.draft.valid
        depths = jnp.broadcast_to(shape.depths, valid.shape)
        # At each depth: the first node below the last accepted one, else the first.
        end = jnp.take_along_axis(result.path, result.accepted[:, None], axis=1)
        ancestors = jnp.broadcast_to(shape.ancestors, (*valid.shape, result.tree.size))
        below = jnp.take_along_axis(ancestors, end[:, None], axis=2)[..., 0]
        worth = jnp.where(below, 2 * result.tree.size, result.tree.size) - nodes
        # The new root stands where nodes of depth `counts` stand.
        wanted = (
            result.counts[:, None] + jnp.arange(state.known.shape[1])[None]
        )  # [B, G]
        here = (depths[:, None] == wanted[..., None]) & valid[:, None]
        worth = jnp.where(here, worth[:, None], 0)
        logits = gather_nodes(result.logits, jnp.argmax(worth, axis=-1))
        return JacobiState(logits, jnp.any(here, axis=-1))
