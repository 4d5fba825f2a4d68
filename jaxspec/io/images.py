"""Image conversion: pixel ranges, contact sheets and file formats."""

import io
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from jaxspec.errors import DataError

# Pixels between the images of a sheet; height below which images are doubled.
GAP, DOUBLED = 4, 128


def to_unit(images: Any) -> Any:
    """Maps `uint8` images, of NumPy or JAX, to float32 in [-1, 1]."""
    return images.astype(np.float32) / 127.5 - 1.0


def to_bytes(images: np.ndarray) -> np.ndarray:
    """Maps images in [-1, 1] to `uint8`; values outside are clipped."""
    scaled = (np.asarray(images, np.float32) + 1.0) * 127.5
    return np.clip(np.round(scaled), 0, 255).astype(np.uint8)


def sheet_size(count: int, height: int, width: int) -> tuple[int, int]:
    """Height and width in pixels of the sheet that `grid_image` makes."""
    scale, columns = 2 if height < DOUBLED else 1, _columns(count)
    rows = -(-count // columns)
    return rows * (scale * height + GAP) + GAP, columns * (scale * width + GAP) + GAP


def _columns(count: int) -> int:
    return int(np.ceil(np.sqrt(count)))


def grid_image(images: np.ndarray) -> np.ndarray:
    """Arranges images on a white grid; small ones are doubled in size.

    Args:
      images: images, uint8 [images, height, width, 3].

    Returns:
      The sheet, uint8 [height, width, 3].
    """
    sheet = np.full((*sheet_size(*images.shape[:3]), 3), 255, np.uint8)
    if images.shape[1] < DOUBLED:
        images = images.repeat(2, axis=1).repeat(2, axis=2)
    columns = _columns(len(images))
    height, width = images.shape[1:3]
    for i, image in enumerate(images):
        top = GAP + i // columns * (height + GAP)
        left = GAP + i % columns * (width + GAP)
        sheet[top : top + height, left : left + width] = image
    return sheet


@dataclass(frozen=True)
class Format:
    """An image file format.

    Attributes:
      name: name of the format in Pillow.
      max_side: largest height or width of a file, in pixels.
      options: keyword arguments of Pillow's `save`.
    """

    name: str
    max_side: int
    options: dict[str, Any] = field(default_factory=dict)


PNG = Format("PNG", 1 << 20)
_JPEG = Format("JPEG", 65500, {"quality": 95, "subsampling": 0})
_WEBP = Format("WEBP", 16383, {"lossless": True})
FORMATS = {".png": PNG, ".jpg": _JPEG, ".jpeg": _JPEG, ".webp": _WEBP, "": PNG}


def format_of(path: str | os.PathLike, count: int = 1, side: int = 1) -> Format:
    """The format for a file's suffix; PNG without a suffix, as in `/dev/stdout`.

    Args:
      path: path of the file.
      count: number of images on its sheet.
      side: height and width of each image, in pixels.

    Raises:
      DataError: the suffix is unknown, or the sheet is too large for the format.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in FORMATS:
        known = ", ".join(filter(None, FORMATS))
        raise DataError(f"cannot write '{path}' as a {suffix} image; use {known}")
    file_format = FORMATS[suffix]
    if (longest := max(sheet_size(count, side, side))) > file_format.max_side:
        raise DataError(
            f"cannot write '{path}': a sheet of {count} images is {longest} pixels "
            f"long, {file_format.name} has at most {file_format.max_side}; use .png"
        )
    return file_format


def image_bytes(image: np.ndarray, form: Format) -> bytes:
    """Encodes uint8 [height, width, 3]; PNG and WebP are lossless, JPEG is not."""
    out = io.BytesIO()
    Image.fromarray(image).save(out, form.name, **form.options)
    return out.getvalue()


def png_bytes(image: np.ndarray) -> bytes:
    """Encodes uint8 [height, width, 3] as PNG."""
    return image_bytes(image, PNG)
