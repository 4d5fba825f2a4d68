"""Swaps between similar codes, against which a decoder is trained (RobustTok)."""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxspec.errors import ConfigError
from jaxspec.tokenizers.residual.model import ResidualTokenizer
from jaxspec.train.settings import TokenizerTrainingConfig
from jaxspec.typing import Array, Float, Int


def swapped_codes(
    key: Array,
    codebook: Float[Array, "V C"],
    codes: Int[Array, "B ..."],
    config: TokenizerTrainingConfig,
) -> Int[Array, "B ..."]:
    """Codes of a batch, some of them replaced by codes that are close to them.

    Of a share of the images, a share of the codes, each by one of its nearest others
    with equal probability. Source: RobustTok (arXiv 2503.08354), which lowers these
    shares during the training.

    Args:
      key: random key; consumed.
      codebook: codebook.
      codes: codes of images in random order, of which the first are changed.
      config: shares, and number of nearest codes.
    """
    count = math.ceil(config.swapped_images * len(codes) - 1e-9)
    if not count:
        return codes
    first = codes[:count].reshape(count, -1)
    choice_key, token_key = jax.random.split(key)
    rank = jax.random.randint(choice_key, first.shape, 1, config.swap_neighbors + 1)
    swap = jax.random.bernoulli(
        token_key, jnp.float32(config.swapped_tokens), first.shape
    )
    other = jax.lax.map(
        partial(_ranked, codebook, config.swap_neighbors), (first, rank)
    )
    changed = jnp.where(swap, other, first).reshape(codes[:count].shape)
    return jnp.concatenate([changed, codes[count:]])


def _ranked(
    codebook: Float[Array, "V C"],
    most: int,
    image: tuple[Int[Array, "T"], Int[Array, "T"]],
) -> Int[Array, "T"]:
    """The neighbor of a rank of each code; rank 0 is the code itself."""
    codes, rank = image
    book = codebook.astype(jnp.float32)
    entries = book[codes]
    distance = jnp.sum((entries[:, None] - book[None]) ** 2, axis=-1)
    distance = distance.at[jnp.arange(len(codes)), codes].set(-1.0)
    nearest = jax.lax.top_k(-distance, most + 1)[1]
    return jnp.take_along_axis(nearest, rank[:, None], axis=1)[:, 0].astype(codes.dtype)


def check_swaps(tokenizer: Any, config: TokenizerTrainingConfig) -> None:
    """Checks that the codes of a tokenizer can be swapped.

    Raises:
      ConfigError: there are several codes a cell, or fewer than a swap chooses from.
    """
    if not config.swapped_images:
        return
    if isinstance(tokenizer, ResidualTokenizer):
        raise ConfigError("swapped_images is for tokenizers of one token a cell")
    size = tokenizer.config.codebook_size
    if config.swap_neighbors >= size:
        raise ConfigError(
            f"swap_neighbors={config.swap_neighbors}: {size} codes have {size - 1} "
            "others"
        )
