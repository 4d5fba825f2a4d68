"""Captioned emoji: packages, held-out emoji, changed copies, colors and the builder."""

import json
import re

import numpy as np
import pytest

from jaxspec.data.builders.emoji import COPIES
from jaxspec.data.dataset import open_dataset
from jaxspec.data.emoji.captions import any_caption, plain_caption
from jaxspec.data.emoji.colors import WORDS, color_word, turn_hue
from jaxspec.data.emoji.copies import copies, over_white
from jaxspec.data.emoji.reading import (
    HELDOUT_EVERY,
    PACKAGES,
    STYLES,
    Emoji,
    read_emoji,
)
from jaxspec.errors import DataError
from tests.data.emoji_packages import disk, file_of, write_packages

HUES = {"red": 0, "orange": 28, "yellow": 55, "green": 120, "blue": 225, "purple": 275}


def emoji(hue=0, code="1f34e", **changes):
    fields = {
        "style": "noto",
        "label": "red apple",
        "tags": ("fruit", "red", "diet"),
        "group": "food-drink",
        "subgroup": "food-fruit",
        "webp": file_of(disk(hue), "WEBP"),
    }
    return Emoji(code, **{**fields, **changes})


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    return write_packages(tmp_path_factory.mktemp("packages"))


def test_packages_give_named_images_in_three_styles(packages):
    found = read_emoji(packages)
    assert {(e.style, e.code) for e in found} == {
        (style, code) for style in STYLES for code in ("1f34f", "2764")
    }
    for image in found:
        assert image.rgba().shape == (64, 64, 4)
        assert color_word(image.rgba()) == "red"
        assert image.group == "food-drink" and image.tags[0] == "red"
    assert {e.text for e in found} == {"🍏", "❤"}


def test_the_packed_files_hold_the_same(packages, tmp_path):
    found = read_emoji(packages)
    webp = b"".join(e.webp for e in found)
    offsets = np.cumsum([0, *(len(e.webp) for e in found)])
    np.savez(
        tmp_path / "emoji64.npz", webp=np.frombuffer(webp, np.uint8), offsets=offsets
    )
    entries = [{k: v for k, v in vars(e).items() if k != "webp"} for e in found]
    (tmp_path / "emoji64.json").write_text(json.dumps(entries), "utf-8")
    assert read_emoji(tmp_path) == found


@pytest.mark.parametrize("name", ["emoji64.npz", "emoji64.json"])
def test_cut_packed_files_are_one_error(packages, tmp_path, name):
    found = read_emoji(packages)
    webp = np.frombuffer(b"".join(e.webp for e in found), np.uint8)
    offsets = np.cumsum([0, *(len(e.webp) for e in found)])
    np.savez_compressed(tmp_path / "emoji64.npz", webp=webp, offsets=offsets)
    entries = [{k: v for k, v in vars(e).items() if k != "webp"} for e in found]
    (tmp_path / "emoji64.json").write_text(json.dumps(entries[:-1]), "utf-8")
    with pytest.raises(DataError, match="damaged"):  # fewer names than images
        read_emoji(tmp_path)
    (tmp_path / "emoji64.json").write_text(json.dumps(entries), "utf-8")
    file = tmp_path / name
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(DataError, match="damaged"):
        read_emoji(tmp_path)


def test_missing_and_damaged_packages_are_named(packages, tmp_path):
    with pytest.raises(DataError, match="missing: emojibase.*npm pack"):
        read_emoji(tmp_path)
    for file in packages.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    noto = tmp_path / PACKAGES["noto"]
    for damaged in (b"no archive", noto.read_bytes()[: noto.stat().st_size // 2]):
        noto.write_bytes(damaged)
        with pytest.raises(DataError, match="damaged"):
            read_emoji(tmp_path)


def test_an_emoji_is_held_out_in_all_styles():
    codes = [f"{x:x}" for x in range(0x1F300, 0x1F700)]
    held = [{emoji(code=c, style=style).heldout for style in STYLES} for c in codes]
    assert all(len(kinds) == 1 for kinds in held)
    share = np.mean([True in kinds for kinds in held])
    assert share == pytest.approx(1 / HELDOUT_EVERY, rel=0.3)


@pytest.mark.parametrize("word", HUES)
def test_images_have_the_word_of_their_color(word):
    assert color_word(disk(HUES[word])) == word


def test_gray_and_many_colored_images_have_no_color_word():
    gray = disk(0)
    gray[..., :3] = 128
    assert color_word(gray) is None
    halves = np.concatenate([disk(0)[:, :32], disk(225)[:, 32:]], axis=1)
    assert color_word(halves) is None
    assert color_word(np.zeros((4, 4, 4), np.uint8)) is None


def test_a_turn_of_the_hue_keeps_light_and_shape():
    image = disk(225)
    turned = turn_hue(image, 180)
    assert color_word(turned) not in (None, "blue")
    np.testing.assert_array_equal(turned[..., 3], image[..., 3])
    luma = np.array([0.299, 0.587, 0.114])
    drawn = image[..., 3] > 0
    before, after = (x[drawn][:, :3] @ luma for x in (image, turned))
    assert abs(before - after).max() < 25  # colors beyond the cube are clipped
    assert abs(turn_hue(image, 360).astype(int) - image).max() <= 2


def test_copies_have_captions_that_fit_their_colors():
    """The words of a caption name the color of its own image, or none at all."""
    apple = emoji(tags=("fruit", "diet", "healthy"))
    made = list(copies(apple, 200, np.random.default_rng(0)))
    first, caption = made[0]
    np.testing.assert_array_equal(first, over_white(apple.rgba()))
    assert caption == plain_caption(apple) == "red apple, noto"
    turned = 0
    for image, caption in made:
        drawn = np.where((image < 250).any(axis=-1), 255, 0)
        rgba = np.dstack([image, drawn]).astype(np.uint8)
        named = set(re.findall("|".join(WORDS), caption))
        assert named <= {color_word(rgba)}, caption
        turned += color_word(rgba) != "red"
    assert 30 < turned < 90
    captions = [caption for _, caption in made]
    assert any("🍎" in c for c in captions) and any(c.startswith("a") for c in captions)
    assert any("diet" in c for c in captions) and "apple, noto" not in captions
    places = {
        np.argwhere((x < 250).any(axis=-1)).min(axis=0).tobytes() for x, _ in made
    }
    assert len(places) > 20


def test_captions_of_turned_images_lose_their_old_color():
    apple = emoji(tags=("red", "fruit", "blue hat"))
    rng = np.random.default_rng(0)
    for _ in range(100):
        caption = any_caption(apple, rng, "green", turned=True)
        assert "green" in caption and not re.search("red|blue", caption)


def test_flags_and_clocks_are_not_mirrored_and_keep_their_colors():
    half = disk(0)
    half[:, 32:, 3] = 0
    fields = {"webp": file_of(half, "WEBP"), "group": "flags"}
    for image, _ in copies(emoji(**fields), 60, np.random.default_rng(0)):
        drawn = (image < 250).any(axis=-1)
        rgba = np.dstack([image, 255 * drawn]).astype(np.uint8)
        assert color_word(rgba) == "red"
        # The straight edge of the half disk stays on its right.
        columns = (255 - image.astype(int)).sum(axis=(0, 2))
        used = np.flatnonzero(drawn.any(axis=0))
        assert columns[used[-4:]].sum() > columns[used[:4]].sum()


@pytest.mark.parametrize(
    ("mirrored", "fields"),
    [
        (True, {}),
        (False, {"label": "rightwards hand", "group": "people-body"}),
        (False, {"label": "left-facing fist", "group": "people-body"}),
        (False, {"subgroup": "emotion", "group": "smileys-emotion"}),  # hundred points
        (False, {"group": "travel-places", "subgroup": "time"}),
    ],
)
def test_only_what_has_no_letters_and_no_direction_is_mirrored(
    mirrored, fields, monkeypatch
):
    monkeypatch.setattr("jaxspec.data.emoji.copies.MOVED_SHARE", 0.0)
    half = disk(0)
    half[:, 32:, 3] = 0
    made = copies(
        emoji(webp=file_of(half, "WEBP"), **fields), 40, np.random.default_rng(0)
    )
    sides = {bool((image[:, :32] < 250).any()) for image, _ in made}
    assert sides == ({True, False} if mirrored else {True})


def test_the_data_set_has_copies_to_train_on_and_other_emoji_to_test(
    packages, tmp_path
):
    dataset = open_dataset("tfds:emoji64", data_dir=tmp_path, manual_dir=packages)
    assert dataset.captioned and dataset.class_names == ("noto", "3d", "flat")
    train, heldout = dataset.open(64)
    assert [c.partition(",")[0] for c in heldout.captions] == 3 * ["red apple"]
    assert len(train) == dataset.count == 3 * COPIES
    assert train.take([0]).shape == (1, 64, 64, 3)
    assert len(train.captions) == len(train) and all(train.captions)
    assert train.names["❤"] == "red heart" and train.names == heldout.names
