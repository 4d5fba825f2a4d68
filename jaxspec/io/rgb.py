"""Conversion of images of any kind to uint8 RGB, and of any shape to squares."""

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from jaxspec.errors import DataError

# Suffixes of image files, in lower case.
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}  # by number of channels


def image_files(folder: Path) -> list[Path]:
    """Image files in a folder, sorted by name; hidden files are skipped."""
    if not folder.is_dir():
        return []
    return sorted(
        file
        for file in folder.iterdir()
        if file.suffix.lower() in SUFFIXES and not file.name.startswith(".")
    )


def as_rgb(source: Path | bytes | np.ndarray | Image.Image, name: str) -> np.ndarray:
    """Converts an image to uint8 RGB [height, width, 3], as a viewer shows it.

    16-bit channels are scaled to 8 bits, and bilevel images to 0 and 255. Gray, palette
    and CMYK images become RGB, the latter without color profiles. Transparent parts are
    blended with white. The EXIF rotation is applied. For animations the first frame is
    used.

    Args:
      source: file, bytes of a file, Pillow image, or array [height, width] or [height,
        width, C] of uint8, uint16 or bool, with 1 (gray), 2 (gray, alpha), 3 or 4
        (alpha) channels.
      name: name of the image in error messages.

    Raises:
      DataError: the image is damaged, of an unknown kind, or its values have no
        declared range (floats, 32-bit integers).
    """
    try:
        if isinstance(source, np.ndarray):
            return _on_white(_from_array(source, name))
        if isinstance(source, Image.Image):
            return _on_white(_to_eight_bits(source, name))
        data = source.read_bytes() if isinstance(source, Path) else source
        with Image.open(io.BytesIO(data)) as image:
            return _on_white(_to_eight_bits(image, name))
    except DataError:
        raise
    except UnidentifiedImageError:
        reason = "it is damaged or of a kind that Pillow does not read"
    except Exception as error:  # decoders of damaged files raise all kinds
        reason = getattr(error, "strerror", None) or str(error) or repr(error)
    raise DataError(f"cannot read {name}: {reason}; replace or remove it")


def _from_array(image: np.ndarray, name: str) -> Image.Image:
    if image.ndim == 2:
        image = image[..., None]
    if image.ndim != 3 or image.shape[2] not in MODES or 0 in image.shape:
        raise DataError(
            f"{name} has shape {image.shape}; an image is [height, width] or "
            "[height, width, channels], with 1 to 4 channels"
        )
    if image.dtype == bool:
        image = image * np.uint8(255)
    elif (image.dtype.kind, image.dtype.itemsize) == ("u", 2):
        image = _scale_to_eight_bits(image)
    elif image.dtype != np.uint8:
        raise _undeclared_range(name, str(image.dtype))
    gray = image.shape[2] == 1
    return Image.fromarray(image[..., 0] if gray else image)


def _to_eight_bits(image: Image.Image, name: str) -> Image.Image:
    """First frame after EXIF rotation, with at most 8 bits per channel."""
    kind = image.format
    image = ImageOps.exif_transpose(image)
    # Pillow scales 16-bit color to 8 bits, and 16-bit gray of PPM to 0..65535.
    if image.mode.startswith("I;16") or (image.mode == "I" and kind in ("PNG", "PPM")):
        return Image.fromarray(_scale_to_eight_bits(np.asarray(image)))
    if image.mode in ("I", "F"):
        raise _undeclared_range(name, {"I": "int32", "F": "float32"}[image.mode])
    return image


def _scale_to_eight_bits(values: np.ndarray) -> np.ndarray:
    """Values in [0, 65535] scaled to [0, 255] and rounded."""
    return np.round(values / 257.0).astype(np.uint8)


def _undeclared_range(name: str, dtype: str) -> DataError:
    return DataError(
        f"{name} is of {dtype}, whose range is not declared; store it as uint8 or "
        "uint16"
    )


def _on_white(image: Image.Image) -> np.ndarray:
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return np.asarray(image.convert("RGB"))


def fit_square(image: np.ndarray, side: int) -> np.ndarray:
    """Resizes the shorter side of an image uint8 [h, w, 3] to `side`; center-crops."""
    if image.shape == (side, side, 3):
        return image
    original = Image.fromarray(image)
    scale = side / min(original.size)
    width, height = (max(side, round(s * scale)) for s in original.size)
    resized = original.resize((width, height), Image.Resampling.LANCZOS)
    left, top = (resized.width - side) // 2, (resized.height - side) // 2
    return np.asarray(resized.crop((left, top, left + side, top + side)))
