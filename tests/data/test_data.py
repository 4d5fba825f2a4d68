"""Data sets: packed files, the fruit archive, image sizes, and batch indices."""

import numpy as np
import pytest
from PIL import Image

from jaxspec.data.batches import batch_indices
from jaxspec.data.packed import read_packed
from jaxspec.data.tfds_images import tfds_images
from jaxspec.errors import DataError
from jaxspec.io.images import to_bytes, to_unit
from jaxspec.io.rgb import fit_square
from tests.data.packed import random_images, write_packed


@pytest.mark.parametrize(
    ("name", "file", "side"),
    [
        ("fruits360_64", "fruits360_64_jpeg.npz", 64),
        ("cifar10_packed", "cifar10_jpeg.npz", 32),
    ],
)
def test_tfds_reads_packed_files(tmp_path, name, file, side):
    write_packed(tmp_path / file, side)
    source = tfds_images(name, "test", side, tmp_path / "tfds", tmp_path)
    images, labels = random_images(9, side, seed=1)
    assert source.class_names == ["red", "green", "blue"]
    # tfds shuffles; every image must be there, close to what was packed.
    served = source.take(range(9)).astype(int)
    for image, label in zip(images, labels, strict=True):
        distance = np.abs(served - image).mean(axis=(1, 2, 3))
        assert distance.min() < 4
        assert source.labels[distance.argmin()] == label
    # A second source reads the prepared data, without the packed file.
    (tmp_path / file).rename(tmp_path / "elsewhere.npz")
    again = tfds_images(name, "test", side, tmp_path / "tfds")
    np.testing.assert_array_equal(again.take([3]), source.take([3]))
    assert again.class_names == source.class_names


def test_the_public_fruit_archive_is_thinned_and_split(tmp_path):
    for folder, start in (("Training", 0), ("Test", 40)):
        for variety in ("Apple 1", "Tomato 1"):
            directory = tmp_path / folder / variety
            directory.mkdir(parents=True)
            for i in range(40):
                shade = np.full((100, 100, 3), start + i, np.uint8)
                Image.fromarray(shade).save(directory / f"r_{start + i:03}.jpg")
    splits = {
        split: tfds_images("fruits360_64", split, 64, tmp_path / "tfds", tmp_path)
        for split in ("train", "test")
    }
    # 80 files per variety, of which every third is taken: 27; every tenth is test.
    assert len(splits["train"]) == 2 * 25 and len(splits["test"]) == 2 * 2
    assert splits["train"].class_names == ["Apple 1", "Tomato 1"]
    assert splits["test"].take([0]).shape == (1, 64, 64, 3)


def fruit_archive(folder, varieties=("Apple 1",), suffix=".jpg"):
    """Writes the public archive's folders; the gray level depends on the variety."""
    for half, count in (("Training", 20), ("Test", 10)):
        for shade, variety in enumerate(varieties):
            directory = folder / half / variety
            directory.mkdir(parents=True)
            image = Image.new("RGB", (64, 64), (40 * shade,) * 3)
            for i in range(count):
                image.save(directory / f"{i}{suffix}", "JPEG")


def test_names_of_folders_and_files_are_not_patterns(tmp_path):
    """Classes are the visible folders, sorted by name, with any characters in it."""
    varieties = ["Apple [1]", "Apple *", "Apple 1", "[ab]", "a"]
    fruit_archive(tmp_path, varieties, suffix=".JPG")
    for hidden in (".ipynb_checkpoints", ".cache"):
        (tmp_path / "Training" / hidden).mkdir()
        (tmp_path / "Training" / hidden / "x.jpg").write_bytes(b"no image")
    (tmp_path / "Training" / "a" / "._0.JPG").write_bytes(b"no image")
    (tmp_path / "Trash" / "a").mkdir(parents=True)
    (tmp_path / "Trash" / "a" / "x.jpg").write_bytes(b"no image")
    source = tfds_images("fruits360_64", "train", 64, tmp_path / "tfds", tmp_path)
    assert source.class_names == sorted(varieties)
    assert np.bincount(source.labels).tolist() == [9] * 5
    shades = source.take(range(len(source))).mean(axis=(1, 2, 3))
    for label, variety in enumerate(source.class_names):
        expected = 40 * varieties.index(variety)
        assert np.abs(shades[source.labels == label] - expected).max() < 3


def test_a_class_without_images_is_refused(tmp_path):
    fruit_archive(tmp_path)
    (tmp_path / "Training" / "Pear").mkdir()
    with pytest.raises(DataError, match="has a folder 'Pear' without images"):
        tfds_images("fruits360_64", "train", 64, tmp_path / "tfds", tmp_path)


def test_errors_name_the_damaged_file(tmp_path):
    fruit_archive(tmp_path)
    file = tmp_path / "Test" / "Apple 1" / "0.jpg"  # the first one that is read
    file.write_bytes(file.read_bytes()[:400])
    with pytest.raises(DataError) as error:
        tfds_images("fruits360_64", "train", 64, tmp_path / "tfds", tmp_path)
    (line,) = str(error.value).splitlines()
    assert f"cannot read '{file}': " in line and "replace or remove it" in line


def test_errors_name_the_wrong_file(tmp_path):
    with pytest.raises(DataError, match="no packed data file"):
        list(read_packed(tmp_path / "none.npz", "train"))
    path = tmp_path / "cut.npz"
    write_packed(path, 32)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(DataError, match="not a readable"):
        list(read_packed(path, "train"))
    with pytest.raises(DataError, match="cannot open data set 'no_such_set'"):
        tfds_images("no_such_set", "train", 32, tmp_path / "tfds")
    with pytest.raises(DataError, match="--manual-dir"):
        tfds_images("cifar10_packed", "train", 32, tmp_path / "tfds", tmp_path)


def test_images_of_other_sizes_are_resized_and_cropped():
    wide = np.zeros((20, 40, 3), np.uint8)
    wide[:, 10:30] = 255
    out = fit_square(wide, 10)
    assert out.shape == (10, 10, 3) and out[:, 1:9].min() > 200
    assert fit_square(np.zeros((7, 9, 3), np.uint8), 8).shape == (8, 8, 3)


def test_pixel_scaling_round_trips():
    values = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    np.testing.assert_array_equal(to_bytes(to_unit(values)), values)
    assert to_bytes(np.array([-3.0, 3.0])).tolist() == [0, 255]


def test_every_epoch_reads_every_example_once():
    seen = np.concatenate([batch_indices(5, step, 4, 10) for step in range(5)])
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10))
    assert seen[:10].tolist() != seen[10:].tolist()
    np.testing.assert_array_equal(batch_indices(5, 3, 4, 10), seen[12:16])
