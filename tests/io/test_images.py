"""Image files: formats by suffix, and sizes of contact sheets."""

import io

import numpy as np
import pytest
from PIL import Image

from jaxspec.errors import DataError
from jaxspec.io.images import format_of, grid_image, image_bytes, sheet_size

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), np.uint8)


@pytest.mark.parametrize(
    ("name", "kind", "tolerance"),
    [
        ("a.png", "PNG", 0),
        ("a.b.webp", "WEBP", 0),
        ("a.jpg", "JPEG", 40),
        ("a.JPEG", "JPEG", 40),
        ("/dev/stdout", "PNG", 0),
    ],
)
def test_the_suffix_selects_the_format(name, kind, tolerance):
    sheet = grid_image(IMAGES)
    image = Image.open(io.BytesIO(image_bytes(sheet, format_of(name))))
    assert image.format == kind
    assert np.abs(np.asarray(image, int) - sheet).max() <= tolerance


@pytest.mark.parametrize("name", ["a.tga", "a.gif", "a.png.txt", "a.pn"])
def test_other_suffixes_are_refused(name):
    with pytest.raises(DataError, match=f"'{name}' as a .*; use .png, .jpg, .jpeg, .w"):
        format_of(name)


@pytest.mark.parametrize("side", [32, 128])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_sheet_size_is_the_size_of_the_sheet(count, side):
    images = np.zeros((count, side, side, 3), np.uint8)
    assert sheet_size(count, side, side) == grid_image(images).shape[:2]


def test_sheets_too_large_for_a_format_are_refused():
    assert format_of("a.webp", 1764, 384).name == "WEBP"
    with pytest.raises(DataError, match="16688 pixels long, WEBP has at most 16383"):
        format_of("a.webp", 1849, 384)
    assert format_of("a.png", 1849, 384).name == "PNG"
