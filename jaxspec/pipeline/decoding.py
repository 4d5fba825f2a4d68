"""Decoding of image tokens, also of images that are not complete yet."""

from functools import lru_cache
from typing import Any

import jax
import numpy as np

from jaxspec.core.result import present
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
      tokens: image tokens, int32 [B, T], or float32 [B, T, C] of a continuous model;
        the last ones may be missing.
      batch_size: images of a batch; by default 16, or all if there are fewer.
      partial: whether tokens may be missing (-1, or -inf), see
        `Tokenizer.decode_partial`; True if some are.

    Returns:
      Images, uint8 [B, height, width, 3].
    """
    missing = bundle.tokenizer.config.length - tokens.shape[1]
    if missing > 0:
        absent = -np.inf if tokens.dtype.kind == "f" else -1
        ends = (0, 0), (0, missing), *((0, 0),) * (tokens.ndim - 2)
        tokens = np.pad(tokens, ends, constant_values=absent)
    partial = partial or not present(tokens).all()
    decode = _decoder(bundle.tokenizer.model, partial)
    params = bundle.tokenizer.params
    size = min(16, len(tokens)) if batch_size is None else batch_size
    padded = np.resize(tokens, (-(-len(tokens) // size) * size, *tokens.shape[1:]))
    parts = [
        to_bytes(decode(params, padded[i : i + size]))
        for i in range(0, len(padded), size)
    ]
    return np.concatenate(parts)[: len(tokens)]
