"""Checks of what tokenizers are given."""

from jaxspec.errors import DataError
from jaxspec.typing import Array, Float


def check_images(images: Float[Array, "B h w 3"], side: int) -> None:
    """Checks the size of images.

    Raises:
      DataError: they are not squares of `side` pixels with three channels.
    """
    if images.ndim != 4 or images.shape[1:] != (side, side, 3):
        raise DataError(
            f"images have shape {tuple(images.shape)}; this tokenizer takes "
            f"[B, {side}, {side}, 3] in [-1, 1]: resize or crop them first"
        )
