"""Tokens of tokenizers and of models over them, in words."""

import itertools
from typing import Any

from jaxspec.config.flow import FlowTokenizerConfig
from jaxspec.config.kl import KLTokenizerConfig
from jaxspec.config.mar import MARConfig
from jaxspec.config.models import TransformerConfig
from jaxspec.config.one_d import OneDTokenizerConfig
from jaxspec.config.orders import levels_of, order_of
from jaxspec.config.residual import ResidualTokenizerConfig

# Tokenizers whose tokens are a row, each about the whole image.
_ROWS = OneDTokenizerConfig, FlowTokenizerConfig


def tokens_of(config: Any) -> str:
    """Tokens of an image, in words, of a tokenizer or of a model over its tokens."""
    if isinstance(config, KLTokenizerConfig | MARConfig):
        return f"vectors of {config.channels} channels on a grid of {config.grid}"
    size = getattr(config, "codebook_size", None) or config.vocab_size
    if isinstance(config, (*_ROWS, ResidualTokenizerConfig)):
        return f"{size} tokens in a row of {config.length}"
    if isinstance(config, TransformerConfig) and config.rope == "sequence":
        return f"{size} tokens in a row of {config.max_length}"
    scales = getattr(config, "scales", None)
    places = f"maps of {scales}" if scales else f"a grid of {config.grid}"
    order = order_of(config)
    return f"{size} tokens on {places}" + (f", {order}" if order != "raster" else "")


def same_tokens(prior: Any, tokenizer: Any) -> bool:
    """Whether a model is over the tokens that a tokenizer makes.

    Args:
      prior: configuration of the model. With positions of a sequence it may be over
        tokens in any arrangement, of the right number.
      tokenizer: configuration of the tokenizer.
    """
    if isinstance(prior, TransformerConfig) and prior.rope == "sequence":
        if isinstance(tokenizer, KLTokenizerConfig):
            return False
        sizes = tokenizer.codebook_size, tokenizer.length
        return (prior.vocab_size, prior.max_length) == sizes
    return tokens_of(prior) == tokens_of(tokenizer)


def row_ends(config: Any) -> tuple[int, ...]:
    """Number of tokens of the first row of an image, of the first two, and so on.

    Rows are those of a grid, its levels in coarse order, the token maps of several
    scales, or single tokens.

    Args:
      config: configuration of a tokenizer.
    """
    order = order_of(config)
    if isinstance(config, _ROWS) or order == "halton":
        return tuple(range(1, config.length + 1))
    if order == "coarse":
        return tuple(itertools.accumulate(map(len, levels_of(config.grid))))
    sides = getattr(config, "scales", None)
    row = config.grid * getattr(config, "depth", 1)
    counts = [side * side for side in sides] if sides else [row] * config.grid
    return tuple(itertools.accumulate(counts))
