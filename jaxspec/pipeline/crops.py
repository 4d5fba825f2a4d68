"""Tokens of images that were cut out of larger ones."""

from pathlib import Path

import numpy as np
from PIL import Image

from jaxspec.config.orders import cells_of
from jaxspec.errors import ConfigError, DataError
from jaxspec.pipeline.bundle import Bundle
from jaxspec.pipeline.encoding import encode_images, rgb_image
from jaxspec.watermark import Detection


def tokens_of_crop(
    bundle: Bundle, image: Image.Image | np.ndarray | Path | str, name: str = "image"
) -> np.ndarray:
    """Tokens of a part of an image, for each place of its first pixel in a token.

    The image is not resized. It is put on a canvas of the model's size so that its
    first pixel is at each place within the pixels of a token; rows and columns beside
    it repeat its border.

    Args:
      bundle: models; the tokenizer of a grid is used.
      image: image as for `encode_images`.
      name: name of the image in error messages.

    Returns:
      int32 [P, T]; -1 for tokens that the image does not cover completely. `P` is the
      square of the pixels along each side of a token.

    Raises:
      ConfigError: the tokens are no grid of one token a cell.
      DataError: the image cannot be read, or is larger than those that the model makes.
    """
    config = bundle.tokenizer.config
    grid = getattr(config, "grid", None)
    ordered = getattr(config, "order", None) is not None
    if not isinstance(grid, int) or not ordered or config.length != grid**2:
        raise ConfigError(
            f"tokens of bundle '{bundle.name}' are no grid, so that a part of an image "
            "has none of the whole"
        )
    pixels, side = rgb_image(image, name), config.image_size
    height, width = pixels.shape[:2]
    if max(height, width) > side:
        raise DataError(
            f"{name} has {width} x {height} pixels, more than the {side} x {side} of "
            "the model: it is no part of one of its images"
        )
    step = side // grid
    places = [(top, left) for top in range(step) for left in range(step)]
    canvases = [
        np.pad(
            pixels[: side - top, : side - left],
            (
                (top, max(side - top - height, 0)),
                (left, max(side - left - width, 0)),
                (0, 0),
            ),
            mode="edge",
        )
        for top, left in places
    ]
    covered = [
        _covered(top, height, step, grid)[:, None]
        & _covered(left, width, step, grid)[None]
        for top, left in places
    ]
    cells = np.array(cells_of(config.order, grid))
    tokens = encode_images(bundle, np.stack(canvases))
    return np.where(np.stack(covered).reshape(len(places), -1)[:, cells], tokens, -1)


def best_detection(found: list[Detection]) -> Detection:
    """The surest of several tests of an image.

    The probability that any of them is as sure without the key is at most that of this
    one times their number.

    Args:
      found: results of the tests, at least one.
    """
    best = min(found, key=lambda x: x.p_value)
    p_value = min(best.p_value * len(found), 1.0)
    return Detection(best.green, best.tokens, p_value, len(found))


def _covered(first: int, size: int, step: int, grid: int) -> np.ndarray:
    """Rows, or columns, of cells whose pixels an image covers, bool [grid]."""
    start = np.arange(grid) * step
    return (start >= first) & (start + step <= first + size)
