"""Listing of a folder of images: files, classes or captions, and held-out files."""

import hashlib
import json
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from jaxspec.config.checks import whole_number
from jaxspec.errors import DataError
from jaxspec.io.rgb import SUFFIXES
from jaxspec.io.text_files import read_text, split_lines

METADATA = "metadata.jsonl"
CAPTION_KEYS = ("text", "caption", "prompt")
CAPTION_SUFFIXES = (".txt", ".caption")
TRAIN = ("train", "training")
HELDOUT = ("test", "val", "valid", "validation", "heldout")
# Without folders of splits, one image of this many is held out.
HELDOUT_EVERY = 10


@dataclass(frozen=True)
class Listing:
    """Images of a folder, sorted by class and file name.

    Attributes:
      folder: folder that was listed.
      files: image files, `n` of them.
      labels: int32 [n], classes.
      class_names: class names, indexed by label; a folder without classes has one.
      captions: caption of each file; empty if there are none.
      heldout: bool [n], whether a file is held out from training.
      ignored: number of files that are no images or are not listed in the metadata.
    """

    folder: Path
    files: tuple[Path, ...]
    labels: np.ndarray
    class_names: tuple[str, ...]
    captions: tuple[str, ...]
    heldout: np.ndarray
    ignored: int

    def digest(self) -> str:
        """Identity of names, sizes, classes and captions, wherever the folder is."""
        text = hashlib.sha256(repr((self.class_names, self.captions)).encode())
        for file, label, held in zip(
            self.files, self.labels, self.heldout, strict=True
        ):
            name = file.relative_to(self.folder).as_posix()
            size = file.stat().st_size
            text.update(repr((name, size, int(label), bool(held))).encode())
        return text.hexdigest()[:16]

    def select(self, chosen: np.ndarray) -> "Listing":
        """The files at a mask bool [n] or indices."""
        indices = np.arange(len(self.files))[chosen]
        captions = tuple(self.captions[i] for i in indices) if self.captions else ()
        return replace(
            self,
            files=tuple(self.files[i] for i in indices),
            labels=self.labels[indices],
            captions=captions,
            heldout=self.heldout[indices],
        )


def list_folder(folder: str | Path) -> Listing:
    """Lists a folder of images in one of four layouts.

    - `CLASS/.../image.png`: every folder directly below is a class.
    - `metadata.jsonl`, with one object a line: `file_name`, and `text` (also `caption`,
      `prompt`) for captions or `label` for classes. Files without a line are ignored.
    - `image.png` beside `image.txt` (or `.caption`): captions, for every image.
    - images alone: one class.

    Folders named `train` and `test` (also `validation`, `val`, ...) hold the two
    splits, each in one of these layouts. Otherwise every tenth image of a class is held
    out. Hidden files and folders are ignored.

    Raises:
      DataError: the folder is missing, holds too few images, or mixes layouts.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(
            f"no folder of images at '{folder}'; a data set of tfds is named tfds:NAME"
        )
    splits = {p.name.lower(): p for p in _folders(folder)}
    train = [p for name, p in splits.items() if name in TRAIN]
    held = [p for name, p in splits.items() if name in HELDOUT]
    divided = len(train) == 1 and len(train) + len(held) == len(splits)
    if divided and not (folder / METADATA).is_file():
        parts = [_list_split(path) for path in (*train, *held)]
        listing = _join(folder, parts, [False] * len(train) + [True] * len(held))
        return listing if held else _with_heldout(listing)
    return _with_heldout(_join(folder, [_list_split(folder)], [False]))


@dataclass(frozen=True)
class _Split:
    files: list[Path]
    classes: list[str]
    captions: list[str]
    ignored: int


def _list_split(folder: Path) -> _Split:
    """Files, class names of files and captions of one split."""
    every = sorted(
        file
        for file in folder.rglob("*")
        if file.is_file() and not _hidden(file.relative_to(folder))
    )
    images = [file for file in every if file.suffix.lower() in SUFFIXES]
    ignored = len(every) - len(images)
    if (folder / METADATA).is_file():
        return _from_metadata(folder, images, ignored - 1)
    if not images:
        raise DataError(
            f"'{folder}' holds no images ({', '.join(SUFFIXES)}), neither directly nor "
            "in folders of classes"
        )
    sidecars = [_sidecar(file) for file in images]
    if any(sidecars):
        missing = [f for f, s in zip(images, sidecars, strict=True) if s is None]
        if missing:
            raise DataError(
                f"'{missing[0]}' has no caption beside it and "
                f"{len(images) - len(missing)} other images have one; write "
                f"'{missing[0].with_suffix('.txt').name}' or remove the image"
            )
        captions = [
            _checked_caption(read_text(s), f"'{s}'") for s in sidecars if s is not None
        ]
        return _Split(images, [""] * len(images), captions, ignored - len(images))
    depths = {len(file.relative_to(folder).parts) > 1 for file in images}
    if len(depths) > 1:
        loose = next(f for f in images if len(f.relative_to(folder).parts) == 1)
        raise DataError(
            f"'{loose}' lies beside folders of classes; move it into one of them"
        )
    classes = [file.relative_to(folder).parts[0] for file in images]
    if not depths.pop():
        classes = [""] * len(images)
    return _Split(images, classes, [], ignored)


def _from_metadata(folder: Path, images: list[Path], ignored: int) -> _Split:
    """A split whose captions or classes are in `metadata.jsonl`."""
    file = folder / METADATA
    known, files, classes, captions = set(images), [], [], []
    for number, line in enumerate(split_lines(read_text(file)), 1):
        if not line.strip():
            continue
        where = f"'{file}', line {number}"
        try:
            row = json.loads(line)
        except ValueError:
            raise DataError(f"{where}: not a JSON object") from None
        if not isinstance(row, dict) or not isinstance(row.get("file_name"), str):
            raise DataError(f"{where}: an object with a `file_name` is needed")
        path = folder / row["file_name"]
        if path not in known:
            raise DataError(f"{where}: there is no image '{row['file_name']}'")
        caption = next((row[key] for key in CAPTION_KEYS if key in row), None)
        if caption is not None:
            caption = _checked_caption(caption, where)
        if caption is None and "label" not in row:
            raise DataError(f"{where}: give a `text` or a `label`")
        files.append(path)
        classes.append(_class_of(row.get("label"), where) if caption is None else "")
        captions.append(caption)
    if not files:
        raise DataError(f"'{file}' lists no images")
    if any(c is None for c in captions) and any(c is not None for c in captions):
        raise DataError(f"'{file}': some lines have a caption and others a label")
    captions = [c for c in captions if c is not None]
    return _Split(files, classes, captions, ignored + len(images) - len(set(files)))


def _checked_caption(caption: Any, where: str) -> str:
    """A caption without surrounding space, which has a letter and is Unicode."""
    if not isinstance(caption, str):
        raise DataError(f"{where}: the caption is no text")
    if not caption.strip():
        raise DataError(f"{where}: the caption is empty; describe the image")
    if any("\ud800" <= letter <= "\udfff" for letter in caption):
        raise DataError(f"{where}: the caption is no valid Unicode")
    return caption.strip()


def _class_of(label: Any, where: str) -> str:
    if isinstance(label, str | int) and not isinstance(label, bool):
        return str(label)
    raise DataError(f"{where}: a `label` is a name or a whole number")


def _join(folder: Path, parts: list[_Split], held: list[bool]) -> Listing:
    """Joins splits, and numbers their classes by name."""
    names = sorted(
        {name for part in parts for name in part.classes}, key=order_of_names
    )
    number = {name: i for i, name in enumerate(names)}
    files = [file for part in parts for file in part.files]
    labels = [number[name] for part in parts for name in part.classes]
    captions = [text for part in parts for text in part.captions]
    if captions and len(captions) != len(files):
        raise DataError(f"'{folder}': some splits have captions and others have none")
    heldout = np.concatenate(
        [np.full(len(part.files), h) for part, h in zip(parts, held, strict=True)]
    )
    return Listing(
        folder,
        tuple(files),
        np.array(labels, np.int32),
        tuple(name or folder.resolve().name for name in names),
        tuple(captions),
        heldout,
        sum(part.ignored for part in parts),
    )


def _with_heldout(listing: Listing) -> Listing:
    heldout = heldout_mask(listing.labels, f"'{listing.folder}'")
    return replace(listing, heldout=heldout)


def heldout_mask(labels: np.ndarray, name: str) -> np.ndarray:
    """Every tenth image of a class, or of all if no class has ten, as bool [n].

    Args:
      labels: int32 [n], classes.
      name: name of the images in error messages.

    Raises:
      DataError: there are fewer than 20 images.
    """
    count = len(labels)
    if count < 2 * HELDOUT_EVERY:
        raise DataError(
            f"{name} holds {count} images; give at least {2 * HELDOUT_EVERY}"
        )
    seen, heldout = Counter(), np.zeros(count, bool)
    for i, label in enumerate(labels.tolist()):
        heldout[i] = seen[label] % HELDOUT_EVERY == HELDOUT_EVERY - 1
        seen[label] += 1
    if not heldout.any():
        heldout[HELDOUT_EVERY - 1 :: HELDOUT_EVERY] = True
    return heldout


def _folders(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_dir() and p.name[0] != ".")


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _sidecar(image: Path) -> Path | None:
    """The caption's file beside an image, or None."""
    files = (image.with_suffix(suffix) for suffix in CAPTION_SUFFIXES)
    return next((file for file in files if file.is_file()), None)


def order_of_names(name: str) -> tuple[int, int, str]:
    """Order of class names: whole numbers by value, then names."""
    number = whole_number(name)
    return (1, 0, name) if number is None else (0, number, name)
