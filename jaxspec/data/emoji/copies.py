"""Changed copies of emoji over white: sizes, places, mirror images and colors."""

import re
from collections.abc import Iterator

import numpy as np
from PIL import Image

from jaxspec.data.emoji.captions import any_caption, plain_caption
from jaxspec.data.emoji.colors import color_word, turn_hue
from jaxspec.data.emoji.reading import SIDE, Emoji

# Groups of images without hands of clocks and, outside some subgroups, letters.
MIRRORED = (
    "smileys-emotion",
    "people-body",
    "animals-nature",
    "food-drink",
    "activities",
)
LETTERED = ("emotion", "award-medal", "game")
_DIRECTION = re.compile(r"left|right", re.IGNORECASE)
TURNED = (
    "animals-nature",
    "food-drink",
    "activities",
    "objects",
    "travel-places",
    "smileys-emotion",
)
# Shares of the copies that have another color, and that are smaller or moved.
TURNED_SHARE, MOVED_SHARE = 0.3, 0.7
LEAST_SCALE = 0.8


def over_white(rgba: np.ndarray) -> np.ndarray:
    """Blends an image uint8 [h, w, 4] with white, to uint8 [h, w, 3]."""
    alpha = rgba[..., 3:].astype(np.float32) / 255
    blended = rgba[..., :3] * alpha + 255 * (1 - alpha)
    return np.rint(blended).astype(np.uint8)


def copies(
    emoji: Emoji, count: int, rng: np.random.Generator
) -> Iterator[tuple[np.ndarray, str]]:
    """Yields images uint8 [64, 64, 3] over white, and their captions.

    The first is the image itself with its label and style.

    Args:
      emoji: image to copy.
      count: number of copies.
      rng: generator of the changes.
    """
    rgba = emoji.rgba()
    yield over_white(rgba), plain_caption(emoji)
    for _ in range(count - 1):
        copy, color, turned = rgba, color_word(rgba), False
        if emoji.group in TURNED and rng.random() < TURNED_SHARE:
            candidate = turn_hue(rgba, rng.uniform(30, 330))
            word = color_word(candidate)
            if word is not None:
                copy, color, turned = candidate, word, True
        if _has_mirror_image(emoji) and rng.random() < 0.5:
            copy = copy[:, ::-1]
        if rng.random() < MOVED_SHARE:
            copy = _moved(copy, rng)
        yield over_white(copy), any_caption(emoji, rng, color, turned)


def _has_mirror_image(emoji: Emoji) -> bool:
    """Whether the mirror image shows the same: no letters, no named direction."""
    return (
        emoji.group in MIRRORED
        and emoji.subgroup not in LETTERED
        and not _DIRECTION.search(emoji.label)
    )


def _moved(rgba: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """An image made smaller and put at another place of its square."""
    side = round(SIDE * rng.uniform(LEAST_SCALE, 1))
    image = Image.fromarray(rgba, "RGBA").convert("RGBa")
    image = image.resize((side, side), Image.Resampling.LANCZOS).convert("RGBA")
    out = np.zeros_like(rgba)
    top, left = rng.integers(0, SIDE - side + 1, 2)
    out[top : top + side, left : left + side] = np.asarray(image)
    return out
