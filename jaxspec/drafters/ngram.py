"""An n-gram table on the device, filled from a corpus and by what is emitted."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import register_dataclass

from jaxspec.drafters.grow import grow
from jaxspec.drafters.history import history, prompt_ids
from jaxspec.errors import ConfigError
from jaxspec.spec.draft import Draft, DraftContext, InitContext, RoundResult
from jaxspec.typing import Array, Float, Int, Params

# Strength of each level's prior, the level below, in counts.
_PRIOR = 1.0
_UNSEEN = 0.1  # count of a token that was never seen


@register_dataclass
@dataclass(frozen=True)
class Counts:
    """Successors of contexts, the most frequent ones; all counts float32.

    Attributes:
      pair_ids: int32 [H, W], after a bucket of two context tokens.
      pair: [H, W].
      token_ids: int32 [V + 1, W], after the first context token; the last row is for
        places before the beginning.
      token: [V + 1, W].
      alone: [V], without context.
    """

    pair_ids: Int[Array, "H W"]
    pair: Float[Array, "H W"]
    token_ids: Int[Array, "U W"]
    token: Float[Array, "U W"]
    alone: Float[Array, "V"]


@dataclass(frozen=True)
class NgramTable:
    """Tri-grams with back-off, as a drafter.

    The law of the next token is a mixture of what followed the same two context tokens,
    the first of them alone, and none, each level the prior of the one above. Every row
    goes on counting what it emits. For images the context may be two-dimensional: the
    token to the left and the one above.

    Source: ADED's adaptive tri-gram model (arXiv 2407.12021) on static tables in place
    of its tree search; the two-dimensional context is ours.

    Parameters: `Counts`, from `fit`, or None to start empty.

    Attributes:
      vocab_size: `V`.
      context: how many places before the next token its two context tokens stand:
        (1, 2) for text, (1, grid) for images in raster order.
      buckets: `H`, hash buckets of contexts.
      width: `W`, successors kept for a context.
    """

    vocab_size: int
    context: tuple[int, int] = (1, 2)
    buckets: int = 4096
    width: int = 8

    def __post_init__(self):
        first, second = self.context
        if not 1 <= first < second:
            raise ConfigError(f"context={self.context} must be two growing offsets")

    def empty(self) -> Counts:
        """Nothing counted yet."""
        pair, token = (self.buckets, self.width), (self.vocab_size + 1, self.width)
        return Counts(
            jnp.full(pair, -1, jnp.int32),
            jnp.zeros(pair, jnp.float32),
            jnp.full(token, -1, jnp.int32),
            jnp.zeros(token, jnp.float32),
            jnp.zeros(self.vocab_size, jnp.float32),
        )

    def fit(self, sequences: Int[Array, "C T"]) -> Counts:
        """Counts a corpus on the device; -1 behind shorter sequences."""

        def read(counts, sequence):
            length = jnp.sum(sequence >= 0)
            body = lambda i, c: self._learn(c, sequence, i)  # noqa: E731
            return jax.lax.fori_loop(0, length, body, counts), None

        scan = jax.jit(lambda x: jax.lax.scan(read, self.empty(), x)[0])
        return scan(jnp.asarray(sequences, jnp.int32))

    def init(self, params: Params, ctx: InitContext) -> Any:
        """See `spec.draft.Drafter`."""
        given = self.empty() if params is None else params
        counts = jax.tree.map(
            lambda x: jnp.copy(jnp.broadcast_to(x, (ctx.rows, *x.shape))), given
        )
        prompt = jnp.copy(prompt_ids(ctx))
        return counts, prompt, jnp.zeros(ctx.rows, jnp.int32)

    def propose(
        self, params: Params, state: Any, ctx: DraftContext
    ) -> tuple[Draft, Any]:
        """Learns what was emitted since the last round, and drafts."""
        counts, prompt, learned = state
        tokens, length = history(prompt, ctx)
        counts = self.learn(counts, tokens, learned, length)
        law, path = self.reader(counts, tokens, length, ctx.tree.depth)

        def step(depth, drafted, own, shared):
            logits, own = law(depth, drafted, own)
            return logits, own, shared

        return grow(ctx, step, path)[0], (counts, prompt, length)

    def learn(
        self,
        counts: Counts,
        tokens: Int[Array, "B H"],
        start: Int[Array, "B"],
        end: Int[Array, "B"],
    ) -> Counts:
        """Counts the tokens from `start` to `end` of each row."""

        def catch_up(counts, row, start, end):
            def read(carry):
                at, counts = carry
                return at + 1, self._learn(counts, row, at)

            more = lambda carry: carry[0] < end  # noqa: E731
            return jax.lax.while_loop(more, read, (start, counts))[1]

        return jax.vmap(catch_up)(counts, tokens, start, end)

    def reader(
        self,
        counts: Counts,
        tokens: Int[Array, "B H"],
        length: Int[Array, "B"],
        depth: int,
    ) -> tuple[Callable[..., tuple[Array, Array]], Array]:
        """What follows the nodes of a tree, as `grow` asks for it.

        Args:
          counts: of each row, `[B, ...]`.
          tokens: all tokens up to the root.
          length: how many there are.
          depth: of the tree.

        Returns:
          `(depth, drafted [B, M], path) -> (log-probabilities [B, M, V], path)`, and
          the root's path.
        """

        def law(depth, drafted, path):
            at = jnp.reshape(depth, (-1, 1))
            here = jnp.arange(path.shape[-1])[None, None] == at[..., None]
            path = jnp.where(here, drafted[..., None], path)  # [B, M, A]

            def context(offset):  # the token `offset` before the next
                place = at + 1 - offset
                past = length[:, None] - 1 + place
                before = jnp.take_along_axis(tokens, jnp.maximum(past, 0), axis=1)
                before = jnp.where(past >= 0, before, -1)
                place = jnp.broadcast_to(place, drafted.shape)
                own = jnp.maximum(place, 0)[..., None]
                drawn = jnp.take_along_axis(path, own, axis=2)[..., 0]
                return jnp.where(place >= 0, drawn, before)

            first, second = map(context, self.context)
            each = jax.vmap(jax.vmap(self._law, (None, 0, 0)))
            return each(counts, first, second), path

        return law, jnp.zeros((len(tokens), 1, depth + 1), jnp.int32)

    def observe(self, params: Params, state: Any, result: RoundResult) -> Any:
        """Nothing: the next `propose` learns from the tokens themselves."""
        return state

    def _bucket(self, first: Array, second: Array) -> Array:
        mixed = first.astype(jnp.uint32) * jnp.uint32(0x9E3779B1)
        mixed = (mixed ^ (mixed >> 15)) + second.astype(jnp.uint32)
        mixed = mixed * jnp.uint32(0x85EBCA6B)
        return ((mixed ^ (mixed >> 13)) % jnp.uint32(self.buckets)).astype(jnp.int32)

    def _learn(self, counts: Counts, row: Int[Array, "H"], at: Array) -> Counts:
        """Counts the token at one place of a row."""
        token = row[at]
        first, second = (
            jnp.where(at >= o, row[jnp.maximum(at - o, 0)], -1) for o in self.context
        )
        bucket = self._bucket(first, second)
        pair_ids, pair = _add(counts.pair_ids, counts.pair, bucket, token)
        token_ids, alone = _add(counts.token_ids, counts.token, first, token)
        return Counts(pair_ids, pair, token_ids, alone, counts.alone.at[token].add(1.0))

    def _law(self, counts: Counts, first: Array, second: Array) -> Float[Array, "V"]:
        """Log-probabilities after two context tokens; -1 stands for none."""
        law = counts.alone + _UNSEEN
        law = law / jnp.sum(law)
        bucket = self._bucket(first, second)
        law = _mix(law, counts.token_ids[first], counts.token[first])
        law = _mix(law, counts.pair_ids[bucket], counts.pair[bucket])
        return jnp.log(law)


def _add(ids: Array, counts: Array, context: Array, token: Array):
    """Counts a successor; one that is new takes the place of the rarest."""
    same = ids[context] == token
    slot = jnp.where(jnp.any(same), jnp.argmax(same), jnp.argmin(counts[context]))
    count = jnp.where(jnp.any(same), counts[context, slot], 0.0) + 1.0
    return ids.at[context, slot].set(token), counts.at[context, slot].set(count)


def _mix(law: Array, ids: Array, counts: Array) -> Array:
    """Counts, and `law` as their prior."""
    law = (_PRIOR * law).at[ids].add(counts, mode="drop")
    return law / (_PRIOR + jnp.sum(counts))
