"""Pictures as numbers, as a sheet, and on disk."""

import io
import os
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from jaxspec.errors import DataError


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


def check_writable(path: str | os.PathLike) -> Path:
    """Fails early where `write_file` would fail late.

    Raises:
      DataError: the folder is missing or cannot be written, or `path` is a folder.
    """
    path = Path(path)
    folder = path.parent
    if not folder.is_dir():
        raise DataError(f"cannot write '{path}': there is no folder '{folder}'")
    if path.is_dir():
        raise DataError(f"cannot write '{path}': it is a folder")
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise DataError(f"cannot write '{path}': {error.strerror}") from None
    return path


def write_file(path: str | os.PathLike, data: bytes) -> None:
    """Writes a file whole or not at all."""
    path = check_writable(path)
    handle, fresh = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as out:
            out.write(data)
        os.chmod(fresh, 0o644)
        os.replace(fresh, path)
    except BaseException:
        os.unlink(fresh)
        raise


def png_bytes(picture: np.ndarray) -> bytes:
    """Encodes `uint8 [H, W, 3]`."""
    out = io.BytesIO()
    Image.fromarray(picture).save(out, "PNG")
    return out.getvalue()
