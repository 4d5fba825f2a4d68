"""Reduced draft vocabularies, which make a drafter's output head smaller."""

import jax.numpy as jnp
import numpy as np

from jaxspec.errors import ConfigError
from jaxspec.typing import Array, Float, Int


def frequent_tokens(tokens, vocab_size: int, count: int) -> np.ndarray:
    """Selects the most frequent tokens.

    VocabTrim (arXiv 2506.22694) counts them in text that the target generated.

    Args:
      tokens: integer array of token ids, of any shape; negative ones are ignored.
      vocab_size: vocabulary size `V`.
      count: number of tokens to select.

    Returns:
      Ids int32 [count], ascending.

    Raises:
      ConfigError: `count` is not between 1 and `vocab_size`.
    """
    if not 1 <= count <= vocab_size:
        raise ConfigError(f"a draft vocabulary of {count} of {vocab_size} tokens")
    tokens = np.asarray(tokens).ravel()
    counts = np.bincount(tokens[tokens >= 0], minlength=vocab_size)
    return np.sort(np.argsort(-counts, kind="stable")[:count]).astype(np.int32)


def widened(
    logits: Float[Array, "... M"], ids: Int[Array, "M"], vocab_size: int
) -> Float[Array, "... V"]:
    """Expands logits of a reduced vocabulary to the full one.

    Args:
      logits: float [..., M], logits of `M` tokens.
      ids: int32 [M], ids of these tokens.
      vocab_size: vocabulary size `V`.

    Returns:
      Logits [..., V]; all other tokens get -inf.
    """
    wide = jnp.full((*logits.shape[:-1], vocab_size), -jnp.inf, logits.dtype)
    return wide.at[..., ids].set(logits)
