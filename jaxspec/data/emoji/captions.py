"""Captions of emoji: label, tags, color and style in several forms."""

import re

import numpy as np

from jaxspec.data.emoji.colors import WORDS
from jaxspec.data.emoji.reading import STYLES, Emoji

_COLORS = re.compile(rf"\b({'|'.join((*WORDS, 'black', 'white', 'gray'))})\b")

# Code points of the five skin tones.
_TONES = 0x1F3FB, 0x1F400


def plain_caption(emoji: Emoji) -> str:
    """Label and style, such as "red apple, 3d"."""
    return f"{emoji.label.lower()}, {STYLES[emoji.style]}"


def any_caption(
    emoji: Emoji, rng: np.random.Generator, color: str | None, turned: bool
) -> str:
    """A caption of random form, as people might write it.

    Args:
      emoji: image to describe.
      rng: generator that chooses the form.
      color: color word of the image, if it has one.
      turned: whether the image has changed its color, so that color words of its
        label and tags are wrong. Such an image is always named with `color`.
    """
    label, tags = emoji.label.lower(), [tag.lower() for tag in emoji.tags]
    if turned:
        assert color is not None
        label = _COLORS.sub("", label).strip()
        tags = [tag for tag in tags if not _COLORS.search(tag)]
    tags = [tag for tag in tags if tag != label]
    rng.shuffle(tags)
    form = rng.random()
    if turned:
        words = [f"{color} {label}".strip()] if form < 0.8 else [label, f"{color}"]
    elif form < 0.5:
        words = [label]
    elif form < 0.6 and color is not None and not _COLORS.search(label):
        words = [f"{color} {label}"]
    elif form < 0.75:
        words = [label, *tags[: rng.integers(1, 3)]]
    elif form < 0.9 and len(tags) > 1:
        words = tags[: rng.integers(2, 4)]
    else:
        words = [_characters(emoji, rng)]
    if rng.random() < 0.15 and words[0].isascii():
        article = "an" if words[0][:1] in "aeiou" else "a"
        words[0] = f"{article} {words[0]}"
    if rng.random() < 0.9:
        words.append(STYLES[emoji.style])
    return ", ".join(words)


def _characters(emoji: Emoji, rng: np.random.Generator) -> str:
    """The emoji itself; people at times with a skin tone, which no image has."""
    text = emoji.text
    if emoji.group == "people-body" and rng.random() < 0.5:
        return text[:1] + chr(rng.integers(*_TONES)) + text[1:]
    return text
