"""Conversion of all kinds of images to RGB, or one clear error."""

import io

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from jaxspec.data.tfds_images import tfds_images
from jaxspec.errors import DataError
from jaxspec.io.rgb import as_rgb, image_files

RGB = np.random.default_rng(0).integers(0, 256, (6, 4, 3), np.uint8)
GREY = RGB[..., 0]
BLACK = np.zeros((6, 4), np.uint8)


def encoded(image, kind="PNG", **options):
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def in_color(gray):
    return np.repeat(gray[..., None], 3, axis=2)


def deep(image):
    """16-bit values whose low bits differ from the high bits."""
    return (image.astype(np.uint16) << 8) + (255 - image)


def deep_color():
    """PNG with 16 bits per channel, which Pillow reads but cannot write."""
    import struct
    import zlib

    def chunk(name, data):
        body = name + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    values = deep(RGB).astype(">u2").tobytes()
    width = RGB.shape[1] * 6
    rows = [b"\0" + values[i : i + width] for i in range(0, len(values), width)]
    head = struct.pack(">IIBBBBB", RGB.shape[1], RGB.shape[0], 16, 2, 0, 0, 0)
    parts = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"".join(rows)))
    return b"\x89PNG\r\n\x1a\n" + parts + chunk(b"IEND", b"")


def turned():
    """Image stored on its side, with an EXIF rotation."""
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees, clockwise
    return encoded(np.rot90(RGB), exif=exif)


def palette():
    """Palette image in which index 1 of three is transparent."""
    image = Image.fromarray((np.arange(24) % 3).reshape(6, 4).astype(np.uint8), "P")
    image.putpalette([10, 20, 30, 0, 0, 0, 70, 80, 90])
    return encoded(image, transparency=1)


def palette_shown():
    colors = np.array([[10, 20, 30], [255, 255, 255], [70, 80, 90]], np.uint8)
    return colors[(np.arange(24) % 3).reshape(6, 4)]


def frames():
    first, second = Image.new("RGB", (4, 6), (200, 0, 0)), Image.new("RGB", (4, 6))
    return encoded(first, "GIF", save_all=True, append_images=[second])


def half_clear(channels):
    """Black with cyclic alpha 0, 128 and 255."""
    alpha = np.array([0, 128, 255], np.uint8)[np.arange(24).reshape(6, 4) % 3]
    return np.stack([BLACK] * (channels - 1) + [alpha], axis=2)


CLEAR = in_color(255 - half_clear(4)[..., 3])
CMYK = np.stack([255 - RGB[..., 0], 255 - RGB[..., 1], 255 - RGB[..., 2], BLACK], 2)
DEEP = deep(GREY)
CASES = {
    "8-bit RGB": (encoded(RGB), RGB),
    "8-bit gray": (encoded(GREY), in_color(GREY)),
    "two levels": (
        encoded(Image.fromarray(GREY > 99)),
        in_color(np.where(GREY > 99, 255, 0)),
    ),
    "16-bit gray": (encoded(DEEP), in_color(GREY)),
    "16-bit gray TIFF": (encoded(DEEP, "TIFF"), in_color(GREY)),
    "16-bit RGB": (deep_color(), RGB),
    "RGB and alpha": (encoded(half_clear(4)), CLEAR),
    "gray and alpha": (encoded(half_clear(2)), CLEAR),
    "palette with a transparent color": (palette(), palette_shown()),
    "CMYK": (encoded(Image.fromarray(CMYK, "CMYK"), "TIFF"), RGB),
    "turned by EXIF": (turned(), RGB),
    "animation": (frames(), np.full((6, 4, 3), (200, 0, 0), np.uint8)),
    "one pixel wide": (encoded(RGB[:, :1]), RGB[:, :1]),
    "array, 8-bit RGB": (RGB, RGB),
    "array, gray": (GREY, in_color(GREY)),
    "array, gray with a channel": (GREY[..., None], in_color(GREY)),
    "array, two levels": (GREY > 99, in_color(np.where(GREY > 99, 255, 0))),
    "array, 16-bit gray": (DEEP[..., None], in_color(GREY)),
    "array, 16-bit RGB": (deep(RGB).astype(">u2"), RGB),
    "array, RGB and alpha": (half_clear(4), CLEAR),
    "array, gray and alpha": (half_clear(2), CLEAR),
    "array, one pixel wide": (RGB[:, :1], RGB[:, :1]),
    "array, one pixel high": (RGB[:1], RGB[:1]),
}


@pytest.mark.parametrize("case", CASES)
def test_images_of_any_kind_are_read_as_viewers_show_them(case):
    source, expected = CASES[case]
    rgb = as_rgb(source, "an image")
    assert rgb.dtype == np.uint8 and rgb.shape == expected.shape
    assert np.abs(rgb.astype(int) - expected.astype(int)).max() <= 1


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (RGB / 255.0, "is of float64, whose range is not declared"),
        (RGB.astype(np.float32), "is of float32, whose range"),
        (RGB.astype(np.int32), "is of int32, whose range"),
        (encoded(GREY.astype(np.float32), "TIFF"), "is of float32, whose range"),
        (encoded(GREY.astype(np.int32), "TIFF"), "is of int32, whose range"),
        (np.zeros((6, 4, 5), np.uint8), r"has shape \(6, 4, 5\); an image is"),
        (np.zeros((2, 6, 4, 3), np.uint8), r"has shape \(2, 6, 4, 3\)"),
        (np.zeros((0, 4, 3), np.uint8), r"has shape \(0, 4, 3\)"),
        (b"no image", "cannot read it: it is damaged or of a kind"),
        (encoded(RGB)[:60], "cannot read it: .*; replace or remove it"),
        (b"", "cannot read it: "),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_unreadable_images_raise_one_sentence(source, words):
    with pytest.raises(DataError, match=words) as error:
        as_rgb(source, "it")
    assert "\n" not in str(error.value) and "0x" not in str(error.value)


def test_errors_name_the_missing_file(tmp_path):
    with pytest.raises(DataError, match="cannot read 'x.png': No such file"):
        as_rgb(tmp_path / "x.png", "'x.png'")


def test_image_files_are_found_by_suffix_in_any_case(tmp_path):
    names = ["b.JPG", "a.jpeg", "c [1].png", "d*.Webp", ".hidden.jpg", "._b.JPG"]
    for name in [*names, "notes.txt", "Thumbs.db"]:
        (tmp_path / name).touch()
    files = [file.name for file in image_files(tmp_path)]
    assert files == ["a.jpeg", "b.JPG", "c [1].png", "d*.Webp"]


class AnyImages(tfds.core.GeneratorBasedBuilder):
    """Data set of image files or of arrays, depending on the config."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [
        tfds.core.BuilderConfig(name=name)
        for name in ("files", "deep", "arrays", "bad")
    ]
    FILES = [case for case, (image, _) in CASES.items() if isinstance(image, bytes)]

    def _info(self):
        image = tfds.features.Image()
        if self.builder_config.name == "deep":
            image = tfds.features.Image(shape=(None, None, 1), dtype=np.uint16)
        if self.builder_config.name == "arrays":
            image = tfds.features.Tensor(shape=(6, 4, 3), dtype=np.float32)
        features = {"image": image, "label": tfds.features.Scalar(np.int64)}
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(features)
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        images = {
            "files": [CASES[case][0] for case in self.FILES],
            "deep": [CASES["16-bit gray"][0]],
            "arrays": [RGB.astype(np.float32)],
            "bad": [CASES["8-bit RGB"][0][:60]],
        }[self.builder_config.name]
        for i, image in enumerate(images):
            yield i, {"image": image, "label": i}


def open_source(tmp_path, kind):
    return tfds_images(f"any_images/{kind}", "train", 4, tmp_path)


@pytest.mark.parametrize(
    "in_memory", [True, False], ids=["in memory", "read each time"]
)
def test_a_data_set_of_mixed_images_is_read_as_viewers_show_them(
    tmp_path, monkeypatch, in_memory
):
    monkeypatch.setattr("jaxspec.data.source._MEMORY_BYTES", (1 << 30) * in_memory)
    monkeypatch.setattr(
        "jaxspec.data.source.fit_square", lambda image, side: image[:4, :1]
    )
    source = open_source(tmp_path, "files")
    assert sorted(source.labels) == list(range(len(AnyImages.FILES)))
    for i, label in enumerate(source.labels):
        expected = CASES[AnyImages.FILES[label]][1][:4, :1].astype(int)
        assert np.abs(source.take([i])[0] - expected).max() <= 1, AnyImages.FILES[label]


def test_a_data_set_of_16_bit_images_is_scaled(tmp_path):
    image = open_source(tmp_path, "deep").take([0])[0]
    assert image.shape == (4, 4, 3) and 64 < image.mean() < 192


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("arrays", "of split 'train' of data set .* is of float32, whose range"),
        (
            "bad",
            "cannot read image 0 of split 'train' of data set 'any_images/bad'",
        ),
    ],
)
def test_errors_name_the_unreadable_image_of_a_data_set(tmp_path, kind, words):
    with pytest.raises(DataError, match=words):
        open_source(tmp_path, kind)
