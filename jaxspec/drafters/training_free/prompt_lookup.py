"""Prompt lookup decoding: drafts copied from earlier occurrences of the last tokens."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.drafters.common.history import history, prompt_ids
from jaxspec.errors import ConfigError
from jaxspec.speculative.draft import Draft, DraftContext, InitContext, RoundResult
from jaxspec.speculative.trees.tree import Tree
from jaxspec.typing import Array, Int, Params


@dataclass(frozen=True)
class PromptLookup:
    """Copies the continuation of an earlier occurrence of the last tokens.

    Matches are ranked by length, then by recency. The child of rank `r` below the root
    begins the continuation of the `r`-th best match; below it only rank-0 nodes are
    valid. A continuation that reaches the root repeats periodically. No parameters.

    Source: prompt lookup decoding, as in `transformers`.

    Attributes:
      longest: most tokens that a match compares.
      shortest: fewest tokens of a match.
    """

    longest: int = 3
    shortest: int = 1

    def __post_init__(self):
        if not 1 <= self.shortest <= self.longest:
            raise ConfigError(
                f"shortest={self.shortest} and longest={self.longest}: matches need "
                "1 <= shortest <= longest"
            )

    def init(self, params: Params, ctx: InitContext) -> Int[Array, "B P"]:
        """Stores the prompt tokens.

        Raises:
          ConfigError: the tree is not static.
        """
        if not isinstance(ctx.tree, Tree):
            raise ConfigError(
                f"PromptLookup drafts chains on a static tree, not on a "
                f"{type(ctx.tree).__name__}; use chain-LENGTH or paths such as 0,1,00"
            )
        return jnp.copy(prompt_ids(ctx))

    def propose(
        self, params: Params, state: Int[Array, "B P"], ctx: DraftContext
    ) -> tuple[Draft, Int[Array, "B P"]]:
        """See `Drafter`."""
        tree = ctx.tree
        assert isinstance(tree, Tree)
        tokens, length = history(state, ctx)
        starts, exists = self._matches(tokens, length, max(tree.width, 1))
        match = np.array([path[0] if path else 0 for path in tree.rank_paths])
        on_chain = np.array([not any(path[1:]) for path in tree.rank_paths])
        start = starts[:, match]  # [B, N]
        period = jnp.maximum(length[:, None] - start, 1)
        source = start + (jnp.asarray(tree.depths)[None] - 1) % period
        drafted = jnp.take_along_axis(tokens, jnp.maximum(source, 0), axis=1)
        drafted = drafted.at[:, 0].set(ctx.root)
        valid = (exists[:, match] & on_chain[None]).at[:, 0].set(True)
        return Draft(jnp.where(valid, drafted, 0), valid), state

    def observe(self, params: Params, state: Array, result: RoundResult) -> Array:
        """Returns the state unchanged: `DraftContext.tokens` has all new tokens."""
        return state

    def _matches(self, tokens: Int[Array, "B T"], length: Int[Array, "B"], width: int):
        """Finds the continuations of the best matches.

        Returns:
          Indices int32 [B, width] where they start, and which exist, bool [B, width].
        """
        size = tokens.shape[1]
        index = jnp.arange(size)[None]
        equal, run = jnp.ones(tokens.shape, bool), jnp.zeros(tokens.shape, jnp.int32)
        for back in range(1, self.longest + 1):
            last = jnp.take_along_axis(
                tokens, jnp.maximum(length[:, None] - back, 0), axis=1
            )
            earlier = jnp.roll(tokens, back, axis=1)  # `back` before each index
            equal &= (earlier == last) & (index >= back) & (length[:, None] > back)
            run += equal.astype(jnp.int32)
        # A continuation starts with a token that exists.
        exists = (run >= self.shortest) & (index < length[:, None])
        value, starts = jax.lax.top_k(jnp.where(exists, run * size + index, -1), width)
        return starts, value >= 0
