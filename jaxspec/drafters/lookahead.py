"""Lookahead: Jacobi trajectories of the target, cut into n-grams and verified."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import register_dataclass

from jaxspec.errors import ConfigError
from jaxspec.spec.draft import (
    Draft,
    DraftContext,
    ExtraQueries,
    InitContext,
    RoundResult,
)
from jaxspec.spec.tree import Tree
from jaxspec.typing import Array, Bool, Int, Params


@register_dataclass
@dataclass(frozen=True)
class LookaheadState:
    """The window and the pool of one batch.

    Attributes:
      window: int32 [B, L, C], `L = n - 1` levels of `C` columns of guesses.
      levels: int32 [B], filled levels; the others mean nothing.
      pool: int32 [B, V, G, L], n-grams by their first token, latest first.
      filled: bool [B, V, G].
    """

    window: Int[Array, "B L C"]
    levels: Int[Array, "B"]
    pool: Int[Array, "B V G L"]
    filled: Bool[Array, "B V G"]


@dataclass(frozen=True)
class Lookahead:
    """DrafterOutputs that refine each other ride along; what they agree on is verified.

    A window of `columns` places ahead and `n - 1` iterations rides in each pass; its
    diagonals are n-grams, kept by their first token. Those that begin with the root are
    the draft: chains of `n - 1` tokens. Source: lookahead decoding (arXiv 2402.02057).
    DrafterOutputs are the likeliest tokens, whatever the temperature: it is made for
    greedy text.

    The engine's tree has to be `lookahead.tree`. No parameters.

    Attributes:
      vocab_size: `V`.
      n: length of the n-grams; 5 in the paper.
      columns: `C`, 7.
      guesses: `G`, n-grams kept for a token and verified at once, 7.
    """

    vocab_size: int
    n: int = 5
    columns: int = 7
    guesses: int = 7

    def __post_init__(self):
        if self.n < 3 or self.columns < 1 or self.guesses < 1:
            raise ConfigError(f"{self}: use n >= 3, and 1 of everything else")

    @property
    def levels(self) -> int:
        """`L`."""
        return self.n - 1

    @property
    def tree(self) -> Tree:
        """`G` chains of `L` tokens."""
        return Tree.from_paths(
            [(g, *(0,) * (self.levels - 1)) for g in range(self.guesses)]
        )

    @property
    def extra_rows(self) -> int:
        """The window."""
        return self.levels * self.columns

    def init(self, params: Params, ctx: InitContext) -> LookaheadState:
        """See `spec.draft.Drafter`.

        Raises:
          ConfigError: the engine's tree is another.
        """
        if ctx.tree != self.tree:
            raise ConfigError("Lookahead drafts on `lookahead.tree`; use it")
        rows, levels = ctx.rows, self.levels
        key = jax.random.key(0)
        shape = (rows, levels, self.columns)
        window = jax.random.randint(key, shape, 0, self.vocab_size, jnp.int32)
        pool = (rows, self.vocab_size, self.guesses, levels)
        return LookaheadState(
            window,
            jnp.ones(rows, jnp.int32),
            jnp.zeros(pool, jnp.int32),
            jnp.zeros(pool[:3], bool),
        )

    def propose(
        self, params: Params, state: LookaheadState, ctx: DraftContext
    ) -> tuple[Draft, LookaheadState]:
        """See `spec.draft.Drafter`."""
        rows, tree = jnp.arange(len(ctx.root)), self.tree
        which = np.array([path[0] if path else 0 for path in tree.rank_paths])
        place = np.maximum(tree.depths - 1, 0)
        tokens = state.pool[rows, ctx.root][:, which, place]
        tokens = tokens.at[:, 0].set(ctx.root)
        valid = state.filled[rows, ctx.root][:, which].at[:, 0].set(True)
        level, column = np.divmod(np.arange(self.extra_rows), self.columns)
        first = level == 0
        # A column sees the first level up to itself, then its own refinements.
        own = first & (column[:, None] >= column) & first[:, None]
        own |= ~first[:, None] & first & (column[:, None] > column)
        deeper = ~first[:, None] & ~first & (level[:, None] >= level)
        own |= deeper & (column[:, None] == column)
        nodes = np.zeros((self.extra_rows, tree.size), bool)
        nodes[:, 0] = True
        mask = np.concatenate([nodes, own], axis=1)
        ahead = np.where(first, 1, level) + column
        riders = ExtraQueries(
            state.window.reshape(len(rows), -1),
            ctx.position[:, None] + jnp.asarray(ahead, jnp.int32)[None],
            jnp.broadcast_to(mask, (len(rows), *mask.shape)),
        )
        return Draft(jnp.where(valid, tokens, 0), valid, extra=riders), state

    def observe(
        self, params: Params, state: LookaheadState, result: RoundResult
    ) -> LookaheadState:
        """Collects the window's n-grams, and moves it behind the new root."""
        assert result.extra_logits is not None
        rows, columns = len(result.path), self.columns
        shape = (rows, self.levels, columns)
        said = jnp.argmax(result.extra_logits, axis=-1).astype(jnp.int32).reshape(shape)
        row = jnp.arange(rows)
        new = said[row, state.levels - 1]  # [B, C], what the last filled level says
        full = state.levels == self.levels
        live = result.counts > 0
        root = result.draft.tokens[:, 0]
        newest = jnp.take_along_axis(
            result.tokens, jnp.maximum(result.counts - 1, 0)[:, None], axis=1
        )
        pool, filled = state.pool, state.filled
        for c in range(columns):
            key = root if c == 0 else state.window[:, 0, c - 1]
            gram = jnp.concatenate([state.window[:, 1:, c], new[:, c, None]], axis=1)
            pool, filled = _remember(pool, filled, key, gram, full & live)

        def shifted(tokens, by):  # [B, C] moved left; the newest token fills
            at = jnp.arange(columns)[None] + by[:, None]
            moved = jnp.take_along_axis(tokens, jnp.minimum(at, columns - 1), axis=1)
            return jnp.where(at < columns, moved, newest)

        levels = []
        for i in range(self.levels):
            # Filling: levels stay, the one above the last is new. Full: all move up.
            above = state.window[:, i + 1] if i + 1 < self.levels else new
            up = shifted(above, result.counts - int(i > 0))
            fresh = shifted(new, result.counts - int(i == 1))
            stay = shifted(state.window[:, i], result.counts)
            filling = jnp.where((state.levels == i)[:, None], fresh, stay)
            levels.append(jnp.where(full[:, None], up, filling))
        window = jnp.where(live[:, None, None], jnp.stack(levels, 1), state.window)
        count = jnp.minimum(state.levels + 1, self.levels)
        return LookaheadState(
            window, jnp.where(live, count, state.levels), pool, filled
        )


def _remember(pool, filled, key, gram, wanted):
    """Puts an n-gram first among those of its key; one that was there moves up."""
    row = jnp.arange(len(key))
    own, held = pool[row, key], filled[row, key]  # [B, G, L], [B, G]
    same = jnp.all(own == gram[:, None], axis=-1) & held
    last = own.shape[1] - 1
    at = jnp.where(jnp.any(same, axis=1), jnp.argmax(same, axis=1), last)
    place = jnp.arange(last + 1)[None]
    source = jnp.where(place <= at[:, None], place - 1, place)
    source = jnp.maximum(source, 0)
    moved = jnp.take_along_axis(own, source[..., None], axis=1).at[:, 0].set(gram)
    kept = jnp.take_along_axis(held, source, axis=1).at[:, 0].set(True)
    moved = jnp.where(wanted[:, None, None], moved, own)
    kept = jnp.where(wanted[:, None], kept, held)
    return pool.at[row, key].set(moved), filled.at[row, key].set(kept)
