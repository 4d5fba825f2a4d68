"""Encoding of images of any kind as tokens of a bundle's image tokenizer."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from jaxspec.errors import ConfigError, DataError
from jaxspec.io.images import to_bytes, to_unit
from jaxspec.io.rgb import as_rgb, fit_square
from jaxspec.pipeline.bundle import Bundle


@lru_cache(maxsize=8)
def _encoder(tokenizer: Any):
    return jax.jit(tokenizer.encode)


def encode_images(
    bundle: Bundle,
    images: Sequence[Image.Image | np.ndarray | Path | str] | np.ndarray,
    batch_size: int | None = None,
) -> np.ndarray:
    """Encodes images as tokens, after the conversion that training images get.

    Their shorter side is resized to the model's image size, and the middle is kept.

    Args:
      bundle: models; the image tokenizer is used.
      images: Pillow images, files, arrays of unsigned integers (see `io.rgb.as_rgb`) or
        of floats in [-1, 1]; or one array [B, height, width, 3] of them.
      batch_size: images of a batch; by default 16, or all if there are fewer.

    Returns:
      Image tokens, int32 [B, T], in the order of the tokenizer; float32 [B, T, C] of an
      autoencoder with continuous latents.

    Raises:
      ConfigError: there is no image, or a single one that is not in a list.
      DataError: an image cannot be read, or floats are outside of [-1, 1].
    """
    is_array = isinstance(images, np.ndarray | jax.Array)
    if isinstance(images, (Image.Image, Path, str)) or (is_array and images.ndim < 4):
        raise ConfigError("`images` is a list, also for one image: encode([image])")
    tokenizer = bundle.tokenizer.model
    side = tokenizer.config.image_size
    squares = [
        fit_square(rgb_image(x, f"image {i}"), side) for i, x in enumerate(images)
    ]
    if not squares:
        raise ConfigError("there is nothing to encode; give at least one image")
    size = min(16, len(squares)) if batch_size is None else batch_size
    padded = np.resize(
        np.stack(squares), (-(-len(squares) // size) * size, side, side, 3)
    )
    params = bundle.tokenizer.params
    parts = [
        np.asarray(_encoder(tokenizer)(params, to_unit(padded[i : i + size])))
        for i in range(0, len(padded), size)
    ]
    return np.concatenate(parts)[: len(squares)]


def rgb_image(image: Any, name: str) -> np.ndarray:
    """Image as uint8 RGB [h, w, 3].

    Args:
      image: Pillow image, file or array, as for `encode_images`; floats are in
        [-1, 1], as a tokenizer decodes them.
      name: name of the image in error messages.

    Raises:
      DataError: it cannot be read, or floats are outside of [-1, 1].
    """
    if isinstance(image, (str, Path)):
        return as_rgb(Path(image), f"'{image}'")
    if isinstance(image, Image.Image):
        return as_rgb(image, name)
    array = np.asarray(image)
    if np.issubdtype(array.dtype, np.floating):
        if not (np.abs(array) <= 1 + 1e-3).all():
            raise DataError(
                f"{name} has floats outside of [-1, 1] or NaN; scale it, or give uint8"
            )
        array = to_bytes(array)
    return as_rgb(array, name)
