"""Speculative Jacobi decoding over a grid, whose first guesses come from neighbors."""

from dataclasses import dataclass
from functools import lru_cache

import jax.numpy as jnp
import numpy as np
from jax.tree_util import register_dataclass

from jaxspec.config.orders import Order, cells_of, check_order
from jaxspec.core.numbers import whole
from jaxspec.drafters.training_free.jacobi import emitted_scores, scores_behind
from jaxspec.drafters.tree_drafting import grow_by_depth
from jaxspec.speculative.draft import Draft, DraftContext, InitContext, RoundResult
from jaxspec.typing import Array, Bool, Float, Int, Params

# Nearest earlier cells among which each neighbor is looked for.
_CANDIDATES = 3


@register_dataclass
@dataclass(frozen=True)
class GridJacobiState:
    """The target's last scores of all cells.

    `T` is the number of cells.

    Attributes:
      log_p: float32 [B, T, V], log-probabilities of the tokens of each cell in the last
        pass that scored it.
      known: bool [B, T], cells that a pass has scored.
      index: int32 [B], index of the next token when the draft was made.
    """

    log_p: Float[Array, "B T V"]
    known: Bool[Array, "B T"]
    index: Int[Array, "B"]


@dataclass(frozen=True)
class GridJacobi:
    """`Jacobi` for tokens of a grid; needs no training and no parameters.

    A position that no pass has scored gets the mean of the log-probabilities of the
    nearest scored cells before it, weighted by the inverse of their distances (ours).
    They are looked for among three times as many; where none of these has been scored,
    those of the last cell that has are taken, as `Jacobi` does everywhere. Cells of
    given tokens (`Prefixed`) have none. All other drafts are those of `Jacobi`. The
    state holds a float32 distribution for each cell and sequence: 1 MB for 16 x 16
    cells and 1,024 tokens, 38 MB for 24 x 24 and 16,384.

    Attributes:
      vocab_size: vocabulary size `V`.
      grid: cells along each side.
      order: order of the cells.
      neighbors: number of nearest cells.

    Raises:
      ConfigError: a size is no whole number above 0, or there is no such order.
    """

    vocab_size: int
    grid: int
    order: Order = "raster"
    neighbors: int = 4

    def __post_init__(self):
        for name in ("vocab_size", "grid", "neighbors"):
            whole(name, getattr(self, name))
        check_order(self.order)

    def init(self, params: Params, ctx: InitContext) -> GridJacobiState:
        """See `Drafter`."""
        cells = self.grid**2
        log_p = jnp.zeros((ctx.batch, cells, self.vocab_size), jnp.float32)
        known = jnp.zeros((ctx.batch, cells), bool)
        return GridJacobiState(log_p, known, jnp.zeros(ctx.batch, jnp.int32))

    def propose(
        self, params: Params, state: GridJacobiState, ctx: DraftContext
    ) -> tuple[Draft, GridJacobiState]:
        """See `Drafter`."""
        depth, cells = ctx.tree.depth, self.grid**2
        place = jnp.minimum(ctx.index[:, None] + jnp.arange(depth)[None], cells - 1)
        own = jnp.take_along_axis(state.log_p, place[..., None], axis=1)
        known = jnp.take_along_axis(state.known, place, axis=1)
        logits = jnp.where(known[..., None], own, self._guesses(state, place))
        index = ctx.index.astype(jnp.int32)
        state = GridJacobiState(state.log_p, state.known, index)
        return grow_by_depth(ctx, logits), state

    def observe(
        self, params: Params, state: GridJacobiState, result: RoundResult
    ) -> GridJacobiState:
        """Keeps the scores of the emitted tokens and of the positions behind them."""
        cells = self.grid**2
        depth = result.tree.depth
        rows = jnp.arange(len(state.index))[:, None]
        accepted, taken = emitted_scores(result)
        behind, scored = scores_behind(result, depth)
        first = state.index[:, None]
        emitted = jnp.where(taken, first + jnp.arange(taken.shape[1])[None], cells)
        later = first + result.counts[:, None] + jnp.arange(depth)[None]
        later = jnp.where(scored, later, cells)
        place = jnp.concatenate([emitted, later], axis=1)  # those beyond are dropped
        values = jnp.concatenate([accepted, behind], axis=1)
        return GridJacobiState(
            state.log_p.at[rows, place].set(values, mode="drop"),
            state.known.at[rows, place].set(True, mode="drop"),
            state.index,
        )

    def _guesses(
        self, state: GridJacobiState, place: Int[Array, "B G"]
    ) -> Float[Array, "B G V"]:
        """Weighted means over the nearest known cells, else the last known scores."""
        nearest, distance = nearest_cells(self.grid, self.order, self.neighbors)
        cells = jnp.asarray(nearest)[place]  # [B, G, n], -1 for none
        batch, depth, count = cells.shape
        flat = jnp.maximum(cells, 0).reshape(batch, -1)
        known = jnp.take_along_axis(state.known, flat, axis=1).reshape(cells.shape)
        known &= cells >= 0
        # The first of the known ones, as columns.
        rank = jnp.where(known, jnp.arange(count), count + jnp.arange(count))
        kept = jnp.argsort(rank, axis=-1)[..., : self.neighbors]
        weight = jnp.where(known, 1 / jnp.asarray(distance)[place], 0.0)
        weight = jnp.take_along_axis(weight, kept, axis=-1)
        total = jnp.sum(weight, axis=-1, keepdims=True)
        weight = weight / jnp.where(total > 0, total, 1.0)
        cells = jnp.take_along_axis(jnp.maximum(cells, 0), kept, axis=-1)
        log_p = jnp.take_along_axis(
            state.log_p, cells.reshape(batch, -1)[..., None], axis=1
        )
        log_p = log_p.reshape(batch, depth, -1, self.vocab_size)
        means = jnp.einsum("bgn,bgnv->bgv", weight, log_p)
        index = jnp.arange(state.known.shape[1])
        last = jnp.max(jnp.where(state.known, index, 0), axis=1)  # zeros without any
        latest = jnp.take_along_axis(state.log_p, last[:, None, None], axis=1)
        return jnp.where(total > 0, means, latest)


@lru_cache
def nearest_cells(
    grid: int, order: Order, neighbors: int
) -> tuple[np.ndarray, np.ndarray]:
    """Nearest earlier cells of each cell, and their distances, [T, n]; -1 for none."""
    cells = np.asarray(cells_of(order, grid))
    places = np.stack(np.divmod(cells, grid), axis=-1)
    count = _CANDIDATES * neighbors
    nearest = np.full((len(cells), count), -1, np.int32)
    distance = np.ones((len(cells), count), np.float32)
    for i in range(1, len(cells)):
        away = np.linalg.norm(places[:i] - places[i], axis=-1)
        first = np.argsort(away, kind="stable")[:count]
        nearest[i, : len(first)], distance[i, : len(first)] = first, away[first]
    return nearest, distance
