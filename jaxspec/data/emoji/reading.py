"""Images of emoji with their names, from public packages or from a packed file."""

import hashlib
import io
import json
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from jaxspec.errors import DataError

SIDE = 64
# Words for the styles in captions, and the packages that hold their images.
STYLES = {"noto": "noto", "fluent3d": "3d", "fluentflat": "flat"}
PACKAGES = {
    "noto": "emoji-datasource-google-16.0.0.tgz",
    "fluent3d": "lobehub-fluent-emoji-3d-1.1.0.tgz",
    "fluentflat": "iconify-json-fluent-emoji-flat-1.2.6.tgz",
}
NAMES = "emojibase-data-17.0.0.tgz"
PACKED = "emoji64.npz", "emoji64.json"
# One emoji of this many is held out, in all styles.
HELDOUT_EVERY = 12
_RENDERED = 256
# What a cut or changed file raises.
_DAMAGE = (OSError, EOFError, KeyError, ValueError, TypeError)


@dataclass(frozen=True)
class Emoji:
    """One image of an emoji.

    Attributes:
      code: code points in hexadecimal, joined by "-", without variation selectors.
      style: one of `STYLES`.
      label: English name.
      tags: other English words for it.
      group: group of Unicode, such as "food-drink".
      subgroup: subgroup of Unicode, such as "food-fruit".
      webp: lossless WebP file of the image, RGBA, 64x64.
    """

    code: str
    style: str
    label: str
    tags: tuple[str, ...]
    group: str
    subgroup: str
    webp: bytes

    @property
    def heldout(self) -> bool:
        """Whether the emoji is held out, which depends on its code alone."""
        digest = hashlib.sha256(self.code.encode()).digest()
        return int.from_bytes(digest[:4], "big") % HELDOUT_EVERY == 0

    @property
    def text(self) -> str:
        """The emoji itself, as characters without variation selectors."""
        return "".join(chr(int(point, 16)) for point in self.code.split("-"))

    def rgba(self) -> np.ndarray:
        """Image uint8 [64, 64, 4]."""
        return np.asarray(Image.open(io.BytesIO(self.webp)).convert("RGBA"))


def read_emoji(folder: str | Path) -> list[Emoji]:
    """Reads all images of a folder.

    Args:
      folder: folder of the four packages as `npm pack` downloads them, see `PACKAGES`
        and `NAMES`; or of the packed files `emoji64.npz` and `emoji64.json`, which hold
        the same.

    Raises:
      DataError: files are missing or damaged.
    """
    folder = Path(folder)
    if (folder / PACKED[0]).is_file():
        return _packed(folder)
    missing = [f for f in (NAMES, *PACKAGES.values()) if not (folder / f).is_file()]
    if missing:
        raise DataError(
            f"'{folder}' holds neither {PACKED[0]} nor the packages; missing: "
            f"{', '.join(missing)}. Download them with: npm pack "
            "emoji-datasource-google@16.0.0 @lobehub/fluent-emoji-3d@1.1.0 "
            "@iconify-json/fluent-emoji-flat@1.2.6 emojibase-data@17.0.0"
        )
    try:
        names = _names(folder / NAMES)
        readers = {"noto": _noto, "fluent3d": _fluent3d, "fluentflat": _fluentflat}
        images = {
            (style, code): image
            for style, reader in readers.items()
            for code, image in reader(folder / PACKAGES[style])
            if code in names
        }
        return [
            Emoji(code, style, **names[code], webp=_webp(image))
            for (style, code), image in images.items()
        ]
    except (*_DAMAGE, tarfile.TarError, zlib.error) as error:
        raise DataError(f"the packages in '{folder}' are damaged: {error}") from None


def names_of(emoji: Iterable[Emoji]) -> dict[str, str]:
    """Names in lower case, such as "red apple", by characters."""
    return {image.text: image.label.lower() for image in emoji}


def plain_code(text: str) -> str:
    """Code points of a file name in lower case, without variation selectors."""
    points = text.lower().split("-")
    return "-".join(point for point in points if point != "fe0f")


def _packed(folder: Path) -> list[Emoji]:
    try:
        entries = json.loads((folder / PACKED[1]).read_bytes())
        with np.load(folder / PACKED[0]) as file:
            webp, offsets = file["webp"].tobytes(), file["offsets"]
        return [
            Emoji(**{**entry, "tags": tuple(entry["tags"])}, webp=webp[start:end])
            for entry, start, end in zip(
                entries, offsets[:-1], offsets[1:], strict=True
            )
        ]
    except (*_DAMAGE, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(
            f"the packed files in '{folder}' are damaged: {error}"
        ) from None


def _names(file: Path) -> dict[str, dict[str, Any]]:
    """Names of emoji without skin tones, by code."""
    with tarfile.open(file) as archive:
        emoji = _json(archive, "package/en/data.json")
        kinds = _json(archive, "package/meta/groups.json")
    groups, subgroups = kinds["groups"], kinds["subgroups"]
    return {
        plain_code(entry["hexcode"]): {
            "label": entry["label"],
            "tags": tuple(entry.get("tags", ())),
            "group": groups[str(entry["group"])],
            "subgroup": subgroups[str(entry["subgroup"])],
        }
        for entry in emoji
        if "group" in entry
    }


def _noto(file: Path) -> Iterator[tuple[str, Image.Image]]:
    """Noto Emoji (Google): PNG of 64x64."""
    folder = "package/img/google/64/"
    with tarfile.open(file) as archive:
        for name, data in _files(archive, folder, ".png"):
            yield plain_code(name), Image.open(io.BytesIO(data)).convert("RGBA")


def _fluent3d(file: Path) -> Iterator[tuple[str, Image.Image]]:
    """Fluent Emoji in 3D (Microsoft): WebP of 256x256."""
    with tarfile.open(file) as archive:
        for name, data in _files(archive, "package/assets/", ".webp"):
            yield plain_code(name), _reduced(Image.open(io.BytesIO(data)))


def _fluentflat(file: Path) -> Iterator[tuple[str, Image.Image]]:
    """Flat Fluent Emoji (Microsoft): SVG, drawn at 256x256."""
    try:
        import resvg_py  # pyright: ignore
    except ImportError:
        raise DataError(
            "the flat emoji are drawn from SVG: pip install resvg_py"
        ) from None
    with tarfile.open(file) as archive:
        icons = _json(archive, "package/icons.json")
        codes = _json(archive, "package/chars.json")
    width, height = icons.get("width", 32), icons.get("height", 32)
    for code, name in codes.items():
        icon = icons["icons"].get(name)
        if icon is not None:
            svg = (
                f'<svg xmlns="http://www.w3.org/2000/svg" width="{_RENDERED}" '
                f'height="{_RENDERED}" viewBox="0 0 {icon.get("width", width)} '
                f'{icon.get("height", height)}">{icon["body"]}</svg>'
            )
            drawn = resvg_py.svg_to_bytes(svg_string=svg)
            yield plain_code(code), _reduced(Image.open(io.BytesIO(bytes(drawn))))


def _files(
    archive: tarfile.TarFile, folder: str, suffix: str
) -> Iterator[tuple[str, bytes]]:
    """Names without folder and suffix, and contents, of an archive's files."""
    for member in archive:
        if member.name.startswith(folder) and member.name.endswith(suffix):
            stream = archive.extractfile(member)
            assert stream is not None
            yield member.name[len(folder) : -len(suffix)], stream.read()


def _json(archive: tarfile.TarFile, name: str) -> Any:
    stream = archive.extractfile(name)
    assert stream is not None
    return json.loads(stream.read())


def _reduced(image: Image.Image) -> Image.Image:
    """An image at 64x64, by a Lanczos filter over premultiplied colors in float32."""
    pixels = np.asarray(image.convert("RGBA")).astype(np.float32)
    pixels[..., :3] *= pixels[..., 3:] / 255
    size, lanczos = (SIDE, SIDE), Image.Resampling.LANCZOS
    channels = (Image.fromarray(pixels[..., i]).resize(size, lanczos) for i in range(4))
    small = np.stack([np.asarray(channel) for channel in channels], axis=-1)
    alpha = np.clip(small[..., 3:], 0, 255)
    colors = np.where(alpha > 0, small[..., :3] * 255 / np.maximum(alpha, 1e-3), 0)
    whole = np.rint(np.clip(np.concatenate([colors, alpha], axis=-1), 0, 255))
    return Image.fromarray(whole.astype(np.uint8), "RGBA")


def _webp(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "WEBP", lossless=True, exact=True)
    return out.getvalue()
