"""Prompts with given first tokens, from which a generation continues."""

from dataclasses import dataclass, replace

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.tree_util import register_dataclass

from jaxspec.core.arguments import check_batch
from jaxspec.core.branches import repeat_branches
from jaxspec.core.kv_cache import causal_mask
from jaxspec.core.slices import write_at
from jaxspec.errors import ConfigError
from jaxspec.speculative.target import Prefill, Target
from jaxspec.typing import Array, Bool, Int, Params, PyTree


@register_dataclass
@dataclass(frozen=True)
class Prefixed:
    """Prompt of sequences whose first tokens are given, for any target.

    Everything that depends on a position (noise, rotary angles, guided tokens, grid
    neighbors of a drafter) counts from the first given token. With the first `P` tokens
    of a sequence, its key and its settings, a token-exact engine therefore generates
    the rest of the same sequence. The result has the new tokens alone, and
    `max_new_tokens` counts these. Stop tokens among the given ones end nothing.

    Attributes:
      prompt: prompts as `Target.prefill` takes them, such as class ids.
      tokens: given tokens, int32 [B, P], as many for each sequence, in the vocabulary;
        `P = 0` is the same as the prompt alone.
    """

    prompt: PyTree
    tokens: Int[Array | np.ndarray, "B P"]


def prefix_of(prompt: PyTree, batch: int) -> Int[Array, "B P"]:
    """Given tokens of a prompt; `P` is 0 for any other than `Prefixed`."""
    if isinstance(prompt, Prefixed):
        return jnp.asarray(prompt.tokens)
    return jnp.zeros((batch, 0), jnp.int32)


def prefix_length(prompt: PyTree) -> int:
    """Number of given tokens, `P`; static."""
    return prompt.tokens.shape[1] if isinstance(prompt, Prefixed) else 0


def without_prefix(prompt: PyTree) -> PyTree:
    """Prompt as `Target.prefill` takes it."""
    return prompt.prompt if isinstance(prompt, Prefixed) else prompt


def checked_prefix(
    prompt: PyTree, vocab_size: int
) -> tuple[PyTree, Bool[Array, "B"] | None]:
    """The prompt, and the sequences whose given tokens are in the vocabulary.

    Under `jit` tokens are unknown: others are clipped, and the result marks their
    sequences.

    Args:
      prompt: prompts, or a `Prefixed`; one of no tokens becomes its prompt.
      vocab_size: number of tokens.

    Raises:
      ConfigError: given tokens are not integers [B, P] of the vocabulary, or `B` is not
        that of the prompt.
    """
    if not isinstance(prompt, Prefixed):
        return prompt, None
    tokens = jnp.asarray(prompt.tokens)
    if tokens.ndim != 2 or not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise ConfigError(
            f"the tokens of a Prefixed prompt are {tokens.dtype} {list(tokens.shape)}; "
            "give ints [B, P], as many for each sequence"
        )
    check_batch(len(tokens), prompt=prompt.prompt)
    if not tokens.shape[1]:
        return prompt.prompt, None
    known = ((tokens >= 0) & (tokens < vocab_size)).all(axis=1)
    if not isinstance(known, Tracer) and not bool(known.all()):
        row = int(jnp.argmin(known))
        raise ConfigError(
            f"the given tokens of sequence {row} are not all in 0 to {vocab_size - 1}; "
            "a sequence that ended early has -1 behind its end"
        )
    tokens = jnp.clip(tokens, 0, vocab_size - 1).astype(jnp.int32)
    return Prefixed(prompt.prompt, tokens), known


def prefill(target: Target, params: Params, prompt: PyTree, extra: int) -> Prefill:
    """Reads prompts, and given tokens but the last, as after their generation.

    The last given token is the root of the first draft, whose pass reads it.

    Args:
      target: target, or a draft model.
      params: parameters of the target.
      prompt: prompts as `Target.prefill` takes them, or a `Prefixed`, whose tokens are
        read in one further pass.
      extra: number of cache slots after prompts and given tokens.

    Returns:
      Result as of `Target.prefill`, the given tokens but the last being part of the
      prompts. The logits are those of the first token, given or not.
    """
    count = prefix_length(prompt) - 1
    if count < 1:
        return target.prefill(params, without_prefix(prompt), extra)
    logits, features, cache = target.prefill(params, prompt.prompt, count + extra)
    start = cache.lengths
    _, prefix_features, cache = target.forward(
        params,
        cache,
        repeat_branches(jnp.asarray(prompt.tokens)[:, :-1], target.branches),
        start[:, None] + jnp.arange(count)[None],
        causal_mask(cache, count),
    )
    # Prompts may differ in length; each is followed directly by its given tokens.
    features = jnp.pad(features, ((0, 0), (0, count), (0, 0)))
    features = write_at(features, prefix_features.astype(features.dtype), start)
    return Prefill(logits, features, replace(cache, lengths=start + count))
