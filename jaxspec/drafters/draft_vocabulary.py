"""Drafting from a part of the vocabulary: smaller heads, the same exactness."""

import jax.numpy as jnp
import numpy as np

from jaxspec.errors import ConfigError
from jaxspec.typing import Array, Float, Int


def frequent_tokens(tokens, vocab_size: int, count: int) -> np.ndarray:
    """The most frequent tokens, ascending, int32 `[count]`.

    VocabTrim (arXiv 2506.22694) counts them in text that the target wrote.

    Args:
      tokens: any array of ids; negative ones do not count.
      vocab_size: `V`.
      count: how many are kept.

    Raises:
      ConfigError: there are not that many tokens.
    """
    if not 1 <= count <= vocab_size:
        raise ConfigError(f"a draft vocabulary of {count} of {vocab_size} tokens")
    tokens = np.asarray(tokens).ravel()
    counts = np.bincount(tokens[tokens >= 0], minlength=vocab_size)
    return np.sort(np.argsort(-counts, kind="stable")[:count]).astype(np.int32)


def widened(
    logits: Float[Array, "... U"], ids: Int[Array, "U"], vocab_size: int
) -> Float[Array, "... V"]:
    """Logits of some tokens as logits of all: the others are never drafted."""
    wide = jnp.full((*logits.shape[:-1], vocab_size), -jnp.inf, logits.dtype)
    return wide.at[..., ids].set(logits)
