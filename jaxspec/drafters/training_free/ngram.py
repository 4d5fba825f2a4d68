"""N-gram drafter: a hash table of counts that stays on the device."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import register_dataclass

from jaxspec.drafters.common.history import history, prompt_ids
from jaxspec.drafters.tree_drafting import grow
from jaxspec.errors import ConfigError
from jaxspec.speculative.draft import Draft, DraftContext, InitContext, RoundResult
from jaxspec.typing import Array, Float, Int, Params

_PRIOR = 1.0  # weight of the lower-order distribution, in counts
_UNSEEN = 0.1  # count of a token without occurrences


@register_dataclass
@dataclass(frozen=True)
class Counts:
    """Counts of the most frequent successors of each context.

    Attributes:
      trigram_ids: int32 [buckets, W], successors of two context tokens, by their hash.
      trigram: float32 [buckets, W], counts of `trigram_ids`.
      bigram_ids: int32 [V + 1, W], successors of the first context token; the last
        entry is for positions without one.
      bigram: float32 [V + 1, W], counts of `bigram_ids`.
      unigram: float32 [V], counts of the tokens themselves.
    """

    trigram_ids: Int[Array, "buckets W"]
    trigram: Float[Array, "buckets W"]
    bigram_ids: Int[Array, "M W"]
    bigram: Float[Array, "M W"]
    unigram: Float[Array, "V"]


@dataclass(frozen=True)
class NgramTable:
    """Trigram drafter with interpolated back-off.

    The distribution of the next token mixes trigram, bigram and unigram counts; each
    order is the prior of the next higher one. Every sequence of the batch continues to
    count the tokens it emits. For images the context can be two-dimensional: the token
    to the left and the one above.

    Source: ADED's adaptive trigram model (arXiv 2407.12021), with static trees instead
    of its tree search; the two-dimensional context is new here.

    Parameters: `Counts`, from `fit`, or None to start empty.

    Attributes:
      vocab_size: vocabulary size `V`.
      context: offsets of the two context tokens before the next token: (1, 2) for text,
        (1, grid) for images in raster order.
      buckets: number of hash buckets for contexts of two tokens.
      width: successors stored per context, `W`.
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
        """Makes counts of 0."""
        trigram = self.buckets, self.width
        bigram = self.vocab_size + 1, self.width
        return Counts(
            jnp.full(trigram, -1, jnp.int32),
            jnp.zeros(trigram, jnp.float32),
            jnp.full(bigram, -1, jnp.int32),
            jnp.zeros(bigram, jnp.float32),
            jnp.zeros(self.vocab_size, jnp.float32),
        )

    def fit(self, sequences: Int[Array | np.ndarray, "M T"]) -> Counts:
        """Counts a corpus on the device.

        Args:
          sequences: int32 [M, T], `M` sequences of tokens, -1 behind shorter ones.
        """

        def count_sequence(counts, sequence):
            length = jnp.sum(sequence >= 0)
            body = lambda i, c: self._count_token(c, sequence, i)  # noqa: E731
            return jax.lax.fori_loop(0, length, body, counts), None

        scan = jax.jit(lambda x: jax.lax.scan(count_sequence, self.empty(), x)[0])
        return scan(jnp.asarray(sequences, jnp.int32))

    def init(self, params: Params, ctx: InitContext) -> Any:
        """See `Drafter`."""
        counts = self.empty() if params is None else params
        counts = jax.tree.map(
            lambda x: jnp.copy(jnp.broadcast_to(x, (ctx.batch, *x.shape))), counts
        )
        prompt = jnp.copy(prompt_ids(ctx))
        return counts, prompt, jnp.zeros(ctx.batch, jnp.int32)

    def propose(
        self, params: Params, state: Any, ctx: DraftContext
    ) -> tuple[Draft, Any]:
        """Counts the tokens emitted since the last round, and drafts."""
        counts, prompt, counted = state
        tokens, length = history(prompt, ctx)
        counts = self.count(counts, tokens, counted, length)
        log_probs, path = self.node_log_probs(counts, tokens, length, ctx.tree.depth)

        def step(depth, drafted, path, carry):
            logits, path = log_probs(depth, drafted, path)
            return logits, path, carry

        return grow(ctx, step, path)[0], (counts, prompt, length)

    def count(
        self,
        counts: Counts,
        tokens: Int[Array, "B T"],
        start: Int[Array, "B"],
        end: Int[Array, "B"],
    ) -> Counts:
        """Counts the tokens from `start` to `end` of each sequence."""

        def count_sequence(counts, sequence, start, end):
            def body(carry):
                index, counts = carry
                return index + 1, self._count_token(counts, sequence, index)

            more = lambda carry: carry[0] < end  # noqa: E731
            return jax.lax.while_loop(more, body, (start, counts))[1]

        return jax.vmap(count_sequence)(counts, tokens, start, end)

    def node_log_probs(
        self,
        counts: Counts,
        tokens: Int[Array, "B T"],
        length: Int[Array, "B"],
        depth: int,
    ) -> tuple[Callable[..., tuple[Array, Array]], Array]:
        """Makes the function that scores the nodes of a draft tree for `grow`.

        Args:
          counts: counts of each sequence, `[B, ...]`.
          tokens: int32 [B, T], all tokens up to the root.
          length: int32 [B], number of these tokens.
          depth: depth of the draft tree.

        Returns:
          `(depth, drafted [B, M], path) -> (log-probabilities [B, M, V], path)`, where
          `path` int32 [B, M, A] holds the drafted tokens from the root to each node;
          and the root's path.
        """

        def log_probs(depth, drafted, path):
            depth = jnp.reshape(depth, (-1, 1))
            is_node = jnp.arange(path.shape[-1])[None, None] == depth[..., None]
            path = jnp.where(is_node, drafted[..., None], path)  # [B, M, A]

            def context(offset):  # the token `offset` before the next one
                on_path = depth + 1 - offset
                index = length[:, None] - 1 + on_path
                before = jnp.take_along_axis(tokens, jnp.maximum(index, 0), axis=1)
                before = jnp.where(index >= 0, before, -1)
                on_path = jnp.broadcast_to(on_path, drafted.shape)
                drafted_before = jnp.take_along_axis(
                    path, jnp.maximum(on_path, 0)[..., None], axis=2
                )[..., 0]
                return jnp.where(on_path >= 0, drafted_before, before)

            first, second = map(context, self.context)
            by_node = jax.vmap(jax.vmap(self._log_probs, (None, 0, 0)))
            return by_node(counts, first, second), path

        return log_probs, jnp.zeros((len(tokens), 1, depth + 1), jnp.int32)

    def observe(self, params: Params, state: Any, result: RoundResult) -> Any:
        """Returns the state unchanged: the next `propose` counts the tokens."""
        return state

    def _bucket(self, first: Array, second: Array) -> Array:
        """Hashes two context tokens."""
        mixed = first.astype(jnp.uint32) * jnp.uint32(0x9E3779B1)
        mixed = (mixed ^ (mixed >> 15)) + second.astype(jnp.uint32)
        mixed = mixed * jnp.uint32(0x85EBCA6B)
        return ((mixed ^ (mixed >> 13)) % jnp.uint32(self.buckets)).astype(jnp.int32)

    def _count_token(
        self, counts: Counts, sequence: Int[Array, "T"], index: Array
    ) -> Counts:
        """Counts one token of a sequence."""
        token = sequence[index]
        first, second = (
            jnp.where(index >= offset, sequence[jnp.maximum(index - offset, 0)], -1)
            for offset in self.context
        )
        bucket = self._bucket(first, second)
        trigram_ids, trigram = _add(counts.trigram_ids, counts.trigram, bucket, token)
        bigram_ids, bigram = _add(counts.bigram_ids, counts.bigram, first, token)
        unigram = counts.unigram.at[token].add(1.0)
        return Counts(trigram_ids, trigram, bigram_ids, bigram, unigram)

    def _log_probs(
        self, counts: Counts, first: Array, second: Array
    ) -> Float[Array, "V"]:
        """Log-probabilities after two context tokens; -1 if there is no such token."""
        p = counts.unigram + _UNSEEN
        p = p / jnp.sum(p)
        bucket = self._bucket(first, second)
        p = _mix(p, counts.bigram_ids[first], counts.bigram[first])
        p = _mix(p, counts.trigram_ids[bucket], counts.trigram[bucket])
        return jnp.log(p)


def _add(ids: Array, counts: Array, context: Array, token: Array):
    """Counts a successor; a new one replaces the rarest."""
    same = ids[context] == token
    slot = jnp.where(jnp.any(same), jnp.argmax(same), jnp.argmin(counts[context]))
    count = jnp.where(jnp.any(same), counts[context, slot], 0.0) + 1.0
    return ids.at[context, slot].set(token), counts.at[context, slot].set(count)


def _mix(prior: Array, ids: Array, counts: Array) -> Array:
    """Adds counts to a prior distribution [V], and normalizes."""
    p = (_PRIOR * prior).at[ids].add(counts, mode="drop")
    return p / (_PRIOR + jnp.sum(counts))
