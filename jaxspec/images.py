"""Pictures as numbers, as a sheet, and as bytes of a file."""

import io

import numpy as np
from PIL import Image


def to_unit(pictures: np.ndarray) -> np.ndarray:
    """Maps `uint8` pictures to float32 in [-1, 1]."""
    return pictures.astype(np.float32) / 127.5 - 1.0


def to_bytes(pictures: np.ndarray) -> np.ndarray:
    """Maps pictures in [-1, 1] to `uint8`, clipping what lies outside."""
    scaled = (np.asarray(pictures, np.float32) + 1.0) * 127.5
    return np.clip(np.round(scaled), 0, 255).astype(np.uint8)


def grid_picture(pictures: np.ndarray) -> np.ndarray:
    """Lays `uint8 [n, H, W, 3]` out on a white grid; small ones are doubled."""
    count, height = pictures.shape[:2]
    if height < 128:
        pictures = pictures.repeat(2, axis=1).repeat(2, axis=2)
    columns = int(np.ceil(np.sqrt(count)))
    rows = -(-count // columns)
    _, height, width, _ = pictures.shape
    gap = 4
    shape = (rows * (height + gap) + gap, columns * (width + gap) + gap, 3)
    sheet = np.full(shape, 255, np.uint8)
    for i, picture in enumerate(pictures):
        top = gap + i // columns * (height + gap)
        left = gap + i % columns * (width + gap)
        sheet[top : top + height, left : left + width] = picture
    return sheet


def png_bytes(picture: np.ndarray) -> bytes:
    """Encodes `uint8 [H, W, 3]`."""
    out = io.BytesIO()
    Image.fromarray(picture).save(out, "PNG")
    return out.getvalue()
