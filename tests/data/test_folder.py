"""Folders of images: layouts, held-out images, damaged files."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxspec.data.dataset import open_dataset
from jaxspec.data.folder import list_folder
from jaxspec.errors import DataError


def write_image(file: Path, value: int = 0, size=(12, 10)) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value % 256, 40, 90)).save(file)
    return file


def write_classes(folder: Path, count: int = 20, classes=("cat", "dog")) -> None:
    for i in range(count):
        write_image(folder / classes[i % len(classes)] / f"{i:03}.png", i)


def write_metadata(folder: Path, rows) -> None:
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "metadata.jsonl").write_text(lines, encoding="utf-8")


def test_folders_are_classes_in_the_order_of_their_names(tmp_path):
    """Names that are numbers sort by value; deeper folders belong to their class."""
    write_classes(tmp_path, 40, classes=("10", "9"))
    write_image(tmp_path / "9" / "deeper" / "x.png")
    write_image(tmp_path / ".hidden" / "x.png")
    (tmp_path / "9" / "notes.md").write_text("not an image")
    listing = list_folder(tmp_path)
    assert listing.class_names == ("9", "10")
    folders = [file.relative_to(tmp_path).parts[0] for file in listing.files]
    assert folders == [listing.class_names[label] for label in listing.labels]
    assert len(listing.files) == 41 and listing.ignored == 1


def test_every_tenth_image_of_a_class_is_held_out(tmp_path):
    write_classes(tmp_path, 40)
    listing = list_folder(tmp_path)
    held = [f.name for f in np.array(listing.files)[listing.heldout]]
    assert held == ["018.png", "038.png", "019.png", "039.png"]


def test_classes_of_fewer_than_ten_images_share_the_held_out_ones(tmp_path):
    write_classes(tmp_path, 20, classes=tuple("abcde"))
    assert list_folder(tmp_path).heldout.sum() == 2


def test_folders_named_train_and_test_are_splits(tmp_path):
    write_classes(tmp_path / "train", 8)
    write_classes(tmp_path / "val", 4)
    listing = list_folder(tmp_path)
    assert listing.class_names == ("cat", "dog")
    split = [file.relative_to(tmp_path).parts[0] for file in listing.files]
    assert [name == "val" for name in split] == listing.heldout.tolist()


@pytest.mark.parametrize("key", ["text", "caption", "prompt"])
def test_metadata_gives_captions(tmp_path, key):
    files = [write_image(tmp_path / f"{i:02}.png").name for i in range(20)]
    write_image(tmp_path / "unlisted.png")
    write_metadata(tmp_path, [{"file_name": f, key: f"image {f} é"} for f in files])
    listing = list_folder(tmp_path)
    assert [c.split()[1] for c in listing.captions] == [f.name for f in listing.files]
    assert listing.captions[0].endswith("é") and listing.ignored == 1


def test_metadata_gives_classes(tmp_path):
    files = [write_image(tmp_path / f"{i:02}.png").name for i in range(20)]
    rows = [{"file_name": f, "label": i % 3} for i, f in enumerate(files)]
    write_metadata(tmp_path, rows)
    listing = list_folder(tmp_path)
    assert listing.class_names == ("0", "1", "2") and not listing.captions
    assert listing.labels.tolist() == [i % 3 for i in range(20)]


def test_text_files_beside_images_are_captions(tmp_path):
    for i in range(20):
        file = write_image(tmp_path / f"{i:02}.jpg")
        file.with_suffix(".txt").write_text(f" caption {i}\n")
    listing = list_folder(tmp_path)
    assert listing.captions == tuple(f"caption {i}" for i in range(20))


def test_images_alone_are_one_class_named_like_the_folder(tmp_path):
    folder = tmp_path / "photos"
    for i in range(20):
        write_image(folder / f"{i:02}.webp")
    listing = list_folder(folder)
    assert listing.class_names == ("photos",) and not listing.labels.any()


def a_loose_image(folder):
    write_classes(folder)
    write_image(folder / "loose.png")


def a_missing_caption(folder):
    for i in range(20):
        write_image(folder / f"{i}.png").with_suffix(".txt").write_text("x")
    (folder / "7.txt").unlink()


def few_images(folder):
    write_classes(folder, 19)


def no_image(folder):
    (folder / "readme.txt").write_text("empty")


def metadata_of(*rows):
    def write(folder):
        write_image(folder / "a.png")
        write_metadata(folder, rows)

    return write


def damaged_metadata(folder):
    write_image(folder / "a.png")
    (folder / "metadata.jsonl").write_text('{"file_name": "a.png"')


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (a_loose_image, "loose.png' lies beside folders of classes; move it into one"),
        (a_missing_caption, "7.png' has no caption beside it and 19 other images have"),
        (few_images, "holds 19 images; give at least 20"),
        (no_image, "holds no images"),
        (damaged_metadata, "line 1: not a JSON object"),
        (metadata_of({"text": "x"}), "line 1: an object with a `file_name` is needed"),
        (metadata_of({"file_name": "b.png", "text": "x"}), "there is no image 'b.png'"),
        (metadata_of({"file_name": "a.png"}), "give a `text` or a `label`"),
        (metadata_of({"file_name": "a.png", "text": 3}), "the caption is no text"),
        (metadata_of({"file_name": "a.png", "text": " "}), "the caption is empty"),
        (metadata_of({"file_name": "a.png", "text": "\ud800"}), "no valid Unicode"),
        (metadata_of({"file_name": "a.png", "label": 0.5}), "a name or a whole number"),
        (
            metadata_of(
                {"file_name": "a.png", "text": "x"}, {"file_name": "a.png", "label": 1}
            ),
            "some lines have a caption and others a label",
        ),
        (metadata_of(), "lists no images"),
    ],
)
def test_folders_that_cannot_be_used_are_explained(tmp_path, write, words):
    write(tmp_path)
    with pytest.raises(DataError, match=words) as error:
        list_folder(tmp_path)
    assert "\n" not in str(error.value)


def test_a_missing_folder_is_explained(tmp_path):
    with pytest.raises(DataError, match="no folder of images at '.*no'; .* tfds:NAME"):
        list_folder(tmp_path / "no")


def test_damaged_files_are_named_and_left_out(tmp_path, capsys):
    write_classes(tmp_path, 40)
    whole = (tmp_path / "cat" / "000.png").read_bytes()
    (tmp_path / "cat" / "000.png").write_bytes(whole[:50])
    dataset = open_dataset(tmp_path)
    message = capsys.readouterr().err
    assert "left out 1 of 40 images" in message and "000.png" in message
    train, heldout = dataset.open(8)
    assert (dataset.count, len(train), len(heldout)) == (35, 35, 4)
    with pytest.raises(DataError, match="1 of 40 images are damaged:\n.*000.png"):
        open_dataset(tmp_path, on_bad="stop")


def test_images_of_any_size_are_cropped_to_squares_in_listing_order(tmp_path):
    write_classes(tmp_path, 40)
    dataset = open_dataset(tmp_path)
    assert dataset.side == 10 and dataset.class_names == ("cat", "dog")
    train, heldout = dataset.open(8)
    shades = [int(file.stem) for file in list_folder(tmp_path).files]
    held = list_folder(tmp_path).heldout
    assert train.take(range(36)).shape == (36, 8, 8, 3)
    assert train.take(range(36))[:, 0, 0, 0].tolist() == [
        s for s, h in zip(shades, held, strict=True) if not h
    ]
    assert heldout.labels.tolist() == [0, 0, 1, 1]


def test_an_image_that_does_not_fit_into_memory_is_read_each_time(
    tmp_path, monkeypatch
):
    write_classes(tmp_path, 40)
    held_in_memory, _ = open_dataset(tmp_path).open(8)
    monkeypatch.setattr("jaxspec.data.source._MEMORY_BYTES", 0)
    read_each_time, _ = open_dataset(tmp_path).open(8)
    indices = [3, 0, 30]
    np.testing.assert_array_equal(
        held_in_memory.take(indices), read_each_time.take(indices)
    )
    np.testing.assert_array_equal(held_in_memory.labels, read_each_time.labels)


def test_the_identity_of_a_folder_follows_its_content_not_its_place(tmp_path):
    for name in ("here", "there"):
        write_classes(tmp_path / name, 40)
    digest = list_folder(tmp_path / "here").digest()
    assert digest == list_folder(tmp_path / "there").digest()
    (tmp_path / "there" / "cat").rename(tmp_path / "there" / "tiger")
    assert digest != list_folder(tmp_path / "there").digest()


def test_pairs_of_images_and_classes_are_a_data_set(tmp_path):
    """Images may be files, PIL images and arrays; classes names or numbers."""
    kinds = (
        lambda i: write_image(tmp_path / f"{i}.png", i),
        lambda i: Image.new("RGB", (12, 10), (i, 40, 90)),
        lambda i: np.full((10, 12, 3), (i, 40, 90), np.uint8),
        lambda i: str(write_image(tmp_path / f"{i}.png", i)),
    )
    pairs = [(kinds[i % 4](i), ("odd", "even")[i % 2 == 0]) for i in range(40)]
    dataset = open_dataset(iter(pairs))
    train, heldout = dataset.open(8)
    assert dataset.class_names == ("even", "odd") and len(heldout) == 4
    first = train.take(range(len(train)))[:, 0, 0, 0]
    assert [int(label) for label in train.labels] == [int(x % 2) for x in first]
    with pytest.raises(DataError, match="example 0 is no pair"):
        open_dataset([np.zeros((3, 3))])
