"""Tokens of tokenizers and of models over them, in words."""

from typing import Any

from jaxspec.config.kl import KLTokenizerConfig
from jaxspec.config.mar import MARConfig


def tokens_of(config: Any) -> str:
    """Tokens of an image, in words, of a tokenizer or of a model over its tokens."""
    if isinstance(config, KLTokenizerConfig | MARConfig):
        return f"vectors of {config.channels} channels on a grid of {config.grid}"
    size = getattr(config, "codebook_size", None) or config.vocab_size
    scales = getattr(config, "scales", None)
    places = f"maps of {scales}" if scales else f"a grid of {config.grid}"
    return f"{size} tokens on {places}"
