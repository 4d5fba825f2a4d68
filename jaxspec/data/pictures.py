"""An image of any kind, in a file or an array, as `uint8` RGB."""

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from jaxspec.errors import DataError

# Files of a folder of images, whatever the case of the letters.
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}  # by channels


def image_files(folder: Path) -> list[Path]:
    """Images in a folder, by name; other files and hidden ones are left out."""
    if not folder.is_dir():
        return []
    return sorted(
        file
        for file in folder.iterdir()
        if file.suffix.lower() in SUFFIXES and not file.name.startswith(".")
    )


def as_rgb(source: Path | bytes | np.ndarray, name: str) -> np.ndarray:
    """An image as a viewer shows it, `uint8 [H, W, 3]`.

    16 bits a channel are scaled to 8, two levels to 0 and 255. Gray, palettes and CMYK
    become RGB, the latter without color profiles. Transparent parts lie on white. The
    rotation that EXIF asks for is done. Of an animated file the first frame is taken.

    Args:
      source: a file, its bytes, or an array `[H, W]` or `[H, W, C]` of 1 (gray), 2
        (gray, alpha), 3 or 4 (alpha) channels: uint8, uint16 or bool.
      name: of the image in errors.

    Raises:
      DataError: it is damaged, of an unknown kind, or its numbers have no declared
        range (floats, 32-bit integers).
    """
    try:
        if isinstance(source, np.ndarray):
            return _on_white(_of_array(source, name))
        data = source.read_bytes() if isinstance(source, Path) else source
        with Image.open(io.BytesIO(data)) as image:
            return _on_white(_eight_bits(image, name))
    except DataError:
        raise
    except UnidentifiedImageError:
        reason = "it is damaged or of a kind that Pillow does not read"
    except Exception as error:  # decoders of damaged files raise all kinds
        reason = getattr(error, "strerror", None) or str(error) or repr(error)
    raise DataError(f"cannot read {name}: {reason}; replace or remove it")


def _of_array(image: np.ndarray, name: str) -> Image.Image:
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
        image = _scaled(image)
    elif image.dtype != np.uint8:
        raise _no_range(name, str(image.dtype))
    gray = image.shape[2] == 1
    return Image.fromarray(image[..., 0] if gray else image)


def _eight_bits(image: Image.Image, name: str) -> Image.Image:
    """The first frame, turned, with at most 8 bits a channel."""
    kind = image.format
    image = ImageOps.exif_transpose(image)
    # Pillow scales 16-bit color itself, and 16-bit gray of PPM to this range.
    if image.mode.startswith("I;16") or (image.mode == "I" and kind in ("PNG", "PPM")):
        return Image.fromarray(_scaled(np.asarray(image)))
    if image.mode in ("I", "F"):
        raise _no_range(name, {"I": "int32", "F": "float32"}[image.mode])
    return image


def _scaled(values: np.ndarray) -> np.ndarray:
    """0 to 65535 as 0 to 255, rounded."""
    return np.round(values / 257.0).astype(np.uint8)


def _no_range(name: str, dtype: str) -> DataError:
    return DataError(
        f"{name} is of {dtype}, whose range is not declared; store it as uint8 or "
        "uint16"
    )


def _on_white(image: Image.Image) -> np.ndarray:
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return np.asarray(image.convert("RGB"))
