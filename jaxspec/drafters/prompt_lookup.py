"""Prompt lookup: what followed the last tokens when they last stood here."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.drafters.history import history, prompt_ids
from jaxspec.errors import ConfigError
from jaxspec.spec.draft import Draft, DraftContext, InitContext, RoundResult
from jaxspec.spec.tree import Tree
from jaxspec.typing import Array, Int, Params


@dataclass(frozen=True)
class PromptLookup:
    """Copies the continuation of an earlier occurrence of the last tokens.

    The longest match counts most, then the latest. The child of rank `r` below the root
    begins the continuation of the `r`-th best match; other ranks further down are not
    used. A continuation that runs into the present goes on periodically. No parameters.

    Source: prompt lookup decoding, as in `transformers`.

    Attributes:
      longest: most tokens that are matched.
      shortest: least.
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
        """Keeps the prompt.

        Raises:
          ConfigError: the tree is not static.
        """
        if not isinstance(ctx.tree, Tree):
            raise ConfigError(
                f"PromptLookup lays chains on a static tree, not on a "
                f"{type(ctx.tree).__name__}; use chain-LENGTH or paths such as 0,1,00"
            )
        return jnp.copy(prompt_ids(ctx))

    def propose(
        self, params: Params, state: Int[Array, "B P"], ctx: DraftContext
    ) -> tuple[Draft, Int[Array, "B P"]]:
        """See `spec.draft.Drafter`."""
        tree = ctx.tree
        assert isinstance(tree, Tree)
        tokens, length = history(state, ctx)
        starts, found = self._matches(tokens, length, max(tree.width, 1))
        first = np.array([path[0] if path else 0 for path in tree.rank_paths])
        straight = np.array([not any(path[1:]) for path in tree.rank_paths])
        begin = starts[:, first]  # [B, N], where each node's continuation begins
        period = jnp.maximum(length[:, None] - begin, 1)
        place = begin + (jnp.asarray(tree.depths)[None] - 1) % period
        drafted = jnp.take_along_axis(tokens, jnp.maximum(place, 0), axis=1)
        drafted = drafted.at[:, 0].set(ctx.root)
        valid = (found[:, first] & straight[None]).at[:, 0].set(True)
        return Draft(jnp.where(valid, drafted, 0), valid), state

    def observe(self, params: Params, state: Array, result: RoundResult) -> Array:
        """Learns nothing: a round shows what was emitted."""
        return state

    def _matches(self, tokens: Int[Array, "B H"], length: Int[Array, "B"], width: int):
        """Where the continuations of the best matches begin, and which exist."""
        size = tokens.shape[1]
        place = jnp.arange(size)[None]
        agree, run = jnp.ones(tokens.shape, bool), jnp.zeros(tokens.shape, jnp.int32)
        for back in range(1, self.longest + 1):
            last = jnp.take_along_axis(
                tokens, jnp.maximum(length[:, None] - back, 0), axis=1
            )
            earlier = jnp.roll(tokens, back, axis=1)  # `back` before each place
            agree &= (earlier == last) & (place >= back) & (length[:, None] > back)
            run += agree.astype(jnp.int32)
        # A continuation begins at a place that is already written.
        good = (run >= self.shortest) & (place < length[:, None])
        value, starts = jax.lax.top_k(jnp.where(good, run * size + place, -1), width)
        return starts, value >= 0
