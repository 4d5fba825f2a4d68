"""Two emoji in the layout of the four packages that the data set is made from."""

import io
import json
import tarfile

import numpy as np
from PIL import Image

from jaxspec.data.emoji.reading import NAMES, PACKAGES

# The first is held out, the second has a variation selector.
CODES = {"1f34f": "red apple", "2764-fe0f": "red heart"}


def disk(hue, side=64):
    """A colored disk on a transparent square, RGBA."""
    rows, columns = np.mgrid[:side, :side] / (side - 1) - 0.5
    inside = rows**2 + columns**2 < 0.2
    image = np.zeros((side, side, 4), np.uint8)
    color = Image.new("HSV", (1, 1), (int(hue * 255 / 360), 220, 230)).convert("RGB")
    image[..., :3] = np.asarray(color)[0, 0]
    image[..., 3] = 255 * inside
    return image


def file_of(image, kind):
    out = io.BytesIO()
    Image.fromarray(image).save(out, kind, lossless=True)
    return out.getvalue()


def write_package(file, contents):
    with tarfile.open(file, "w:gz") as archive:
        for name, data in contents.items():
            info = tarfile.TarInfo(f"package/{name}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def write_packages(folder):
    """Writes the packages, and returns their folder."""
    names = [
        {
            "label": label,
            "hexcode": code.upper(),
            "tags": ["red", label.split()[1]],
            "group": 4,
            "subgroup": 33,
        }
        for code, label in CODES.items()
    ]
    names.append({"label": "regional indicator A", "hexcode": "1F1E6"})
    kinds = {"groups": {"4": "food-drink"}, "subgroups": {"33": "food-fruit"}}
    write_package(
        folder / NAMES,
        {
            "en/data.json": json.dumps(names).encode(),
            "meta/groups.json": json.dumps(kinds).encode(),
        },
    )
    small, large = file_of(disk(0), "PNG"), file_of(disk(0, 256), "WEBP")
    noto = {f"img/google/64/{code}.png": small for code in (*CODES, "1f1e6")}
    write_package(folder / PACKAGES["noto"], noto)
    write_package(
        folder / PACKAGES["fluent3d"], {f"assets/{c}.webp": large for c in CODES}
    )
    body = '<circle cx="16" cy="16" r="14" fill="#e62222"/>'
    icons = {"icons": {label: {"body": body} for label in CODES.values()}}
    write_package(
        folder / PACKAGES["fluentflat"],
        {
            "icons.json": json.dumps(icons).encode(),
            "chars.json": json.dumps(CODES).encode(),
        },
    )
    return folder
