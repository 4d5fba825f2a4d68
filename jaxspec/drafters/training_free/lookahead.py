"""Lookahead decoding: n-grams collected from Jacobi trajectories of the target."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import register_dataclass

from jaxspec.errors import ConfigError
from jaxspec.speculative.draft import (
    Draft,
    DraftContext,
    ExtraQueries,
    InitContext,
    RoundResult,
)
from jaxspec.speculative.trees.tree import Tree
from jaxspec.typing import Array, Bool, Int, Params


@register_dataclass
@dataclass(frozen=True)
class LookaheadState:
    """Jacobi window and n-gram pool of a batch.

    Below, `n` is the length of the n-grams, `columns` and `guesses` are those of
    `Lookahead`.

    Attributes:
      window: int32 [B, n - 1, columns], the token guesses of the last `n - 1` Jacobi
        iterations.
      levels: int32 [B], number of valid iterations in `window`.
      pool: int32 [B, V, guesses, n - 1], continuations by first token, latest first.
      filled: bool [B, V, guesses], valid entries of `pool`.
    """

    window: Int[Array, "B levels columns"]
    levels: Int[Array, "B"]
    pool: Int[Array, "B V guesses levels"]
    filled: Bool[Array, "B V guesses"]


@dataclass(frozen=True)
class Lookahead:
    """Drafts n-grams that earlier Jacobi iterations of the target produced.

    Each verify pass carries a window of extra queries: `columns` positions ahead in
    `n - 1` iterations. The diagonals of the window are n-grams, stored by their first
    token. The stored n-grams that begin with the root are the draft: chains of `n - 1`
    tokens. Source: lookahead decoding (arXiv 2402.02057). Guesses are the likeliest
    tokens whatever the temperature, so it suits greedy decoding.

    The engine's tree must be `Lookahead.tree`. No parameters.

    Attributes:
      vocab_size: vocabulary size `V`.
      n: length of the n-grams; 5 in the paper.
      columns: positions in the window; 7 in the paper.
      guesses: n-grams stored per token and verified at once; 7 in the paper.
    """

    vocab_size: int
    n: int = 5
    columns: int = 7
    guesses: int = 7

    def __post_init__(self):
        if self.n < 3 or self.columns < 1 or self.guesses < 1:
            raise ConfigError(f"{self}: use n >= 3, and at least 1 column and 1 guess")

    @property
    def levels(self) -> int:
        """Jacobi iterations in the window, `n - 1`."""
        return self.n - 1

    @property
    def tree(self) -> Tree:
        """`guesses` chains of `n - 1` tokens."""
        return Tree.from_paths(
            [(g, *(0,) * (self.levels - 1)) for g in range(self.guesses)]
        )

    @property
    def num_extra_queries(self) -> int:
        """Extra queries: the tokens of the window."""
        return self.levels * self.columns

    def init(self, params: Params, ctx: InitContext) -> LookaheadState:
        """See `Drafter`.

        Raises:
          ConfigError: the engine has another tree.
        """
        if ctx.tree != self.tree:
            raise ConfigError(
                "Lookahead fills its own `tree`; give that tree to the engine"
            )
        batch, levels = ctx.batch, self.levels
        key = jax.random.key(0)
        shape = (batch, levels, self.columns)
        window = jax.random.randint(key, shape, 0, self.vocab_size, jnp.int32)
        pool = (batch, self.vocab_size, self.guesses, levels)
        return LookaheadState(
            window,
            jnp.ones(batch, jnp.int32),
            jnp.zeros(pool, jnp.int32),
            jnp.zeros(pool[:3], bool),
        )

    def propose(
        self, params: Params, state: LookaheadState, ctx: DraftContext
    ) -> tuple[Draft, LookaheadState]:
        """See `Drafter`."""
        sequence, tree = jnp.arange(len(ctx.root)), self.tree
        guess = np.array([path[0] if path else 0 for path in tree.rank_paths])
        index = np.maximum(tree.depths - 1, 0)
        tokens = state.pool[sequence, ctx.root][:, guess, index]
        tokens = tokens.at[:, 0].set(ctx.root)
        valid = state.filled[sequence, ctx.root][:, guess].at[:, 0].set(True)
        level, column = np.divmod(np.arange(self.num_extra_queries), self.columns)
        first = level == 0
        # Queries of the first iteration attend causally to it. Later ones attend to the
        # first iteration before their column, then to later iterations in their column.
        window = first & (column[:, None] >= column) & first[:, None]
        window |= ~first[:, None] & first & (column[:, None] > column)
        deeper = ~first[:, None] & ~first & (level[:, None] >= level)
        window |= deeper & (column[:, None] == column)
        nodes = np.zeros((self.num_extra_queries, tree.size), bool)
        nodes[:, 0] = True
        mask = np.concatenate([nodes, window], axis=1)
        ahead = np.where(first, 1, level) + column
        extra = ExtraQueries(
            state.window.reshape(len(sequence), -1),
            ctx.position[:, None] + jnp.asarray(ahead, jnp.int32)[None],
            jnp.broadcast_to(mask, (len(sequence), *mask.shape)),
        )
        return Draft(jnp.where(valid, tokens, 0), valid, extra=extra), state

    def observe(
        self, params: Params, state: LookaheadState, result: RoundResult
    ) -> LookaheadState:
        """Stores the n-grams of the window, and shifts it to the new root."""
        assert result.extra_logits is not None
        batch, columns = len(result.path), self.columns
        predicted = jnp.argmax(result.extra_logits, axis=-1).astype(jnp.int32)
        predicted = predicted.reshape(batch, self.levels, columns)
        # Only the predictions of the last valid iteration are new.
        new = predicted[jnp.arange(batch), state.levels - 1]  # [B, columns]
        full = state.levels == self.levels
        live = result.counts > 0
        root = result.draft.tokens[:, 0]
        newest = jnp.take_along_axis(
            result.tokens, jnp.maximum(result.counts - 1, 0)[:, None], axis=1
        )
        pool, filled = state.pool, state.filled
        for c in range(columns):
            first = root if c == 0 else state.window[:, 0, c - 1]
            gram = jnp.concatenate([state.window[:, 1:, c], new[:, c, None]], axis=1)
            pool, filled = _store(pool, filled, first, gram, full & live)

        def shifted(tokens, by):  # moves columns left; the newest token fills
            source = jnp.arange(columns)[None] + by[:, None]
            moved = jnp.minimum(source, columns - 1)
            moved = jnp.take_along_axis(tokens, moved, axis=1)
            return jnp.where(source < columns, moved, newest)

        levels = []
        for i in range(self.levels):
            # While the window fills, iterations stay and the next one is added. Once it
            # is full, all move down by one and the oldest is dropped.
            following = state.window[:, i + 1] if i + 1 < self.levels else new
            when_full = shifted(following, result.counts - int(i > 0))
            added = shifted(new, result.counts - int(i == 1))
            unchanged = shifted(state.window[:, i], result.counts)
            filling = jnp.where((state.levels == i)[:, None], added, unchanged)
            levels.append(jnp.where(full[:, None], when_full, filling))
        window = jnp.where(live[:, None, None], jnp.stack(levels, 1), state.window)
        count = jnp.minimum(state.levels + 1, self.levels)
        return LookaheadState(
            window, jnp.where(live, count, state.levels), pool, filled
        )


def _store(pool, filled, first, gram, use):
    """Puts an n-gram in front of those with the same first token.

    An n-gram that is already stored moves to the front; otherwise the oldest is
    dropped.

    Args:
      pool: int32 [B, V, guesses, n - 1], see `LookaheadState`.
      filled: bool [B, V, guesses], valid entries of `pool`.
      first: int32 [B], first tokens of the n-grams.
      gram: int32 [B, n - 1], other tokens of the n-grams.
      use: bool [B], sequences whose n-gram is stored.
    """
    sequence = jnp.arange(len(first))
    old, old_filled = pool[sequence, first], filled[sequence, first]
    same = jnp.all(old == gram[:, None], axis=-1) & old_filled
    last = old.shape[1] - 1
    replaced = jnp.where(jnp.any(same, axis=1), jnp.argmax(same, axis=1), last)
    slot = jnp.arange(last + 1)[None]
    source = jnp.where(slot <= replaced[:, None], slot - 1, slot)
    source = jnp.maximum(source, 0)
    new = jnp.take_along_axis(old, source[..., None], axis=1).at[:, 0].set(gram)
    new_filled = jnp.take_along_axis(old_filled, source, axis=1).at[:, 0].set(True)
    new = jnp.where(use[:, None, None], new, old)
    new_filled = jnp.where(use[:, None], new_filled, old_filled)
    return pool.at[sequence, first].set(new), filled.at[sequence, first].set(new_filled)
