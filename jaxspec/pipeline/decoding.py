"""Decoding of image tokens, also of images that are not complete yet."""

from functools import lru_cache
from typing import Any

import jax
import numpy as np

from jaxspec.io.images import to_bytes
from jaxspec.pipeline.bundle import Bundle


@lru_cache(maxsize=8)
def _decoder(tokenizer: Any, partial: bool):
    return jax.jit(tokenizer.decode_partial if partial else tokenizer.decode)


def decode_images(
    bundle: Bundle,
    tokens: np.ndarray,
    batch_size: int | None = None,
    *,
    partial: bool = False,
) -> np.ndarray:
    """Decodes image tokens in batches of one size, so that one program is compiled.

    Args:
      bundle: models; the image tokenizer is used.
      tokens: image tokens, int32 [B, T]; the last ones may be missing.
      batch_size: images of a batch; by default 16, or all if there are fewer.
      partial: whether tokens may be missing (-1), see `Tokenizer.decode_partial`;
        True if some are.

    Returns:
      Images, uint8 [B, height, width, 3].
    """
    missing = bundle.tokenizer.config.length - tokens.shape[1]
    if missing > 0:
        tokens = np.pad(tokens, ((0, 0), (0, missing)), constant_values=-1)
    partial = partial or bool((np.asarray(tokens) < 0).any())
    decode = _decoder(bundle.tokenizer.model, partial)
    params = bundle.tokenizer.params
    size = min(16, len(tokens)) if batch_size is None else batch_size
    padded = np.resize(tokens, (-(-len(tokens) // size) * size, tokens.shape[1]))
    parts = [
        to_bytes(decode(params, padded[i : i + size]))
        for i in range(0, len(padded), size)
    ]
    return np.concatenate(parts)[: len(tokens)]
