"""Decoding of image tokens, also of images that are not complete yet."""

from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.io.images import to_bytes
from jaxspec.pipeline.bundle import Bundle
from jaxspec.tokenizers.vqgan.model import Tokenizer
from jaxspec.typing import Array, Float, Int, Params


def decode_partial(
    tokenizer: Tokenizer, params: Params, tokens: Int[Array, "B T"]
) -> Float[Array, "B M M 3"]:
    """Decodes images of which only the first tokens exist; a pure function.

    Args:
      tokenizer: image tokenizer; static.
      params: parameters of the tokenizer.
      tokens: tokens in raster order, -1 for those that do not exist yet.

    Returns:
      Images in [-1, 1], `M` pixels wide; grid cells without a token are gray (0).
      Pixels near the border of the known cells change once their neighbors exist.
    """
    known = tokens >= 0
    # Missing cells repeat the newest token, which disturbs their neighbors least.
    last = jnp.maximum(jnp.sum(known, axis=1, keepdims=True) - 1, 0)
    newest = jnp.take_along_axis(tokens, last, axis=1)
    images = tokenizer.decode(params, jnp.maximum(jnp.where(known, tokens, newest), 0))
    grid = tokenizer.config.grid
    cell = images.shape[1] // grid
    mask = known.reshape(-1, grid, grid).repeat(cell, axis=1).repeat(cell, axis=2)
    return jnp.where(mask[..., None], images, 0.0)


@lru_cache(maxsize=8)
def _decoder(tokenizer: Tokenizer, partial: bool):
    if partial:
        return jax.jit(lambda params, x: decode_partial(tokenizer, params, x))
    return jax.jit(tokenizer.decode)


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
      partial: whether tokens may be missing (-1), see `decode_partial`; True if there
        are fewer than an image has.

    Returns:
      Images, uint8 [B, height, width, 3].
    """
    missing = bundle.tokenizer.config.grid**2 - tokens.shape[1]
    if missing > 0:
        tokens = np.pad(tokens, ((0, 0), (0, missing)), constant_values=-1)
    decode = _decoder(Tokenizer(bundle.tokenizer.config), partial or missing > 0)
    params = bundle.tokenizer.params
    size = min(16, len(tokens)) if batch_size is None else batch_size
    padded = np.resize(tokens, (-(-len(tokens) // size) * size, tokens.shape[1]))
    parts = [
        to_bytes(decode(params, padded[i : i + size]))
        for i in range(0, len(padded), size)
    ]
    return np.concatenate(parts)[: len(tokens)]
