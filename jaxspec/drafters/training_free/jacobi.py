"""Speculative Jacobi decoding: drafts from the target's scores of the last pass."""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from jax.tree_util import register_dataclass

from jaxspec.drafters.tree_drafting import grow_by_depth
from jaxspec.speculative.draft import Draft, DraftContext, InitContext, RoundResult
from jaxspec.speculative.trees.topology import gather_nodes
from jaxspec.typing import Array, Bool, Float, Params

# Logit of the repeated token with `initial="repeat"`; all others have 0.
_REPEAT_LOGIT = 30.0
# Weight of a node below the last accepted one, and the least log-probability, in means.
BELOW, LEAST = 3.0, -30.0


@register_dataclass
@dataclass(frozen=True)
class JacobiState:
    """The target's last scores of the positions behind the root.

    `G` is the depth of the tree.

    Attributes:
      logits: float32 [B, G, V], scores of the next tokens after the root.
      known: bool [B, G], positions that a pass of the target has scored.
    """

    logits: Float[Array, "B G V"]
    known: Bool[Array, "B G"]


@dataclass(frozen=True)
class Jacobi:
    """Speculative Jacobi decoding; needs no training and no parameters.

    A verify pass also scores the positions behind the first rejected token, after a
    prefix that is partly wrong. Those scores are the distribution from which the next
    draft is made: sampled independently under `Rejection` (SJD, arXiv 2410.01699), or
    ranked with the Gumbel noise that the target will use under `Coupled` (the Gumbel
    variant of MC-SJD, arXiv 2510.24211), so a drafted token changes only if the scores
    have changed enough. A tree wider than SJD's chain holds several candidates per
    position.

    Attributes:
      vocab_size: vocabulary size `V`.
      initial: scores of positions that no pass has scored: "uniform" (random tokens, as
        SJD), "repeat" (the root's token), or "last" (the scores of the last scored
        position before).
      contexts: nodes whose scores a position gets: the "first" one of its depth, below
        the last accepted node if there is any; or the mean of their log-probabilities
        over "all", in which those below count `BELOW` times.
    """

    vocab_size: int
    initial: Literal["uniform", "repeat", "last"] = "last"
    contexts: Literal["first", "all"] = "all"

    def init(self, params: Params, ctx: InitContext) -> JacobiState:
        """See `Drafter`."""
        depth = ctx.tree.depth
        logits = jnp.zeros((ctx.batch, depth, self.vocab_size), jnp.float32)
        return JacobiState(logits, jnp.zeros((ctx.batch, depth), bool))

    def propose(
        self, params: Params, state: JacobiState, ctx: DraftContext
    ) -> tuple[Draft, JacobiState]:
        """See `Drafter`."""
        depth = ctx.tree.depth
        # The last known position, or index 0 if none is known.
        index = jnp.where(state.known, jnp.arange(depth), -1)
        last = jnp.maximum(jnp.max(index, axis=1, initial=-1), 0)
        fill = jnp.take_along_axis(state.logits, last[:, None, None], axis=1)
        if self.initial == "uniform":
            fill = jnp.zeros_like(fill)
        elif self.initial == "repeat":
            repeated = jnp.arange(self.vocab_size)[None] == ctx.root[:, None]
            fill = _REPEAT_LOGIT * repeated[:, None].astype(jnp.float32)
        logits = jnp.where(state.known[..., None], state.logits, fill)
        return grow_by_depth(ctx, logits), state

    def observe(
        self, params: Params, state: JacobiState, result: RoundResult
    ) -> JacobiState:
        """Keeps the scores of the positions behind the new root."""
        depth = state.known.shape[1]
        return JacobiState(*scores_behind(result, depth, self.contexts))


def scores_behind(
    result: RoundResult, depth: int, contexts: Literal["first", "all"] = "all"
) -> tuple[Float[Array, "B G V"], Bool[Array, "B G"]]:
    """Scores of the positions behind the new root, and which of them have some.

    Args:
      result: round of the target.
      depth: number of positions, `G`.
      contexts: nodes whose scores a position gets, as in `Jacobi`.
    """
    shape = result.draft.topology(result.tree)
    nodes = jnp.arange(result.tree.size)[None]
    valid = result.draft.valid
    depths = jnp.broadcast_to(shape.depths, valid.shape)
    last = jnp.take_along_axis(result.path, result.accepted[:, None], axis=1)
    ancestors = jnp.broadcast_to(shape.ancestors, (*valid.shape, result.tree.size))
    below = jnp.take_along_axis(ancestors, last[:, None], axis=2)[..., 0]
    # The new root has the position of nodes of depth `counts`.
    place = result.counts[:, None] + jnp.arange(depth)[None]
    candidates = (depths[:, None] == place[..., None]) & valid[:, None]  # [B, G, N]
    known = jnp.any(candidates, axis=-1)
    if contexts == "all":
        counted = jnp.where(below, jnp.float32(BELOW), jnp.float32(1.0))
        weights = jnp.where(candidates, counted[:, None], 0.0)
        total = jnp.sum(weights, axis=-1, keepdims=True)
        weights = weights / jnp.where(total > 0, total, 1.0)
        return jnp.einsum("bgn,bnv->bgv", weights, _log_p(result.logits)), known
    # At each depth: the first node below the last accepted one, else the first.
    priority = jnp.where(below, 2 * result.tree.size, result.tree.size) - nodes
    priority = jnp.where(candidates, priority[:, None], 0)
    return gather_nodes(result.logits, jnp.argmax(priority, axis=-1)), known


def emitted_scores(
    result: RoundResult,
) -> tuple[Float[Array, "B A V"], Bool[Array, "B A"]]:
    """Log-probabilities from which the emitted tokens were chosen, and which exist."""
    scores = gather_nodes(_log_p(result.logits), result.path)
    emitted = jnp.arange(result.path.shape[1])[None] < result.counts[:, None]
    return scores, emitted


def _log_p(logits: Float[Array, "B N V"]) -> Float[Array, "B N V"]:
    """Log-probabilities, at least `LEAST`, also of filtered or NaN scores."""
    log_p = jax.nn.log_softmax(logits, axis=-1)
    return jnp.maximum(jnp.nan_to_num(log_p, nan=LEAST), LEAST)
