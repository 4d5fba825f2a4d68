"""Images to train on: a folder, a data set of tfds, or a Python iterable."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxspec.data.folder import heldout_mask, order_of_names
from jaxspec.data.folder_images import OnBadImage, check_folder, folder_images
from jaxspec.data.source import Fit, ImageSource, Reader
from jaxspec.data.tfds_images import tfds_images, tfds_splits
from jaxspec.errors import DataError
from jaxspec.io.rgb import as_rgb

TFDS = "tfds:"
Sources = tuple[ImageSource, ImageSource]


@dataclass(frozen=True)
class ImageDataset:
    """Images before the size is chosen at which they are trained on.

    Attributes:
      name: name for files and model cards.
      count: number of training images.
      side: typical length of the shorter side, in pixels.
      class_names: class names, indexed by label.
      captioned: whether every image has a caption.
      open: function from a side in pixels to training images and held-out images.
      heldout: number of held-out images; None if it is not known yet.
    """

    name: str
    count: int
    side: int
    class_names: tuple[str, ...]
    captioned: bool
    open: Callable[[int], Sources]
    heldout: int | None = None


def open_dataset(
    images: str | Path | Iterable[tuple[Any, Any]],
    *,
    on_bad: OnBadImage = "skip",
    data_dir: str | Path = "data",
    manual_dir: str | Path | None = None,
) -> ImageDataset:
    """Opens images of any of the three kinds.

    Args:
      images: folder, see `data.folder.list_folder`; "tfds:NAME"; or pairs of an image
        (file, PIL image, or array that `as_rgb` takes) and its class (name or number).
      on_bad: treatment of damaged files of a folder, see `check_folder`.
      data_dir: folder of prepared tfds data.
      manual_dir: folder of files that tfds cannot download.

    Raises:
      DataError: the images cannot be used.
    """
    if not isinstance(images, str | Path):
        return _from_pairs(images)
    if str(images).startswith(TFDS):
        return _from_tfds(str(images).removeprefix(TFDS), data_dir, manual_dir)
    listing, side = check_folder(images, on_bad)
    name = f"{Path(images).resolve().name}-{listing.digest()[:8]}"
    return ImageDataset(
        name,
        int((~listing.heldout).sum()),
        side,
        listing.class_names,
        bool(listing.captions),
        lambda side: folder_images(listing, side),
        int(listing.heldout.sum()),
    )


def _from_tfds(name: str, data_dir, manual_dir) -> ImageDataset:
    splits = tfds_splits(name, data_dir, manual_dir)

    def sources(side: int) -> Sources:
        train, heldout = (
            tfds_images(name, split, side, data_dir, manual_dir)
            for split in splits.names
        )
        train.class_names = heldout.class_names = list(splits.class_names)
        return train, heldout

    return ImageDataset(
        name, splits.count, splits.side, splits.class_names, splits.captioned, sources
    )


def _from_pairs(pairs: Iterable[tuple[Any, Any]]) -> ImageDataset:
    """Pairs of images and classes, which are held in memory at their own size."""
    images, classes = [], []
    for i, pair in enumerate(pairs):
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise DataError(f"example {i} is no pair of an image and its class")
        image, label = pair
        source = Path(image) if isinstance(image, str) else image
        images.append(as_rgb(source, f"image {i}"))
        classes.append(str(label))
    names = sorted(set(classes), key=order_of_names)
    number = {name: i for i, name in enumerate(names)}
    labels = np.array([number[name] for name in classes], np.int32)
    heldout = heldout_mask(labels, "the iterable")
    text = hashlib.sha256(repr(classes).encode())
    for image in images:
        text.update(image.tobytes())
    digest = text.hexdigest()[:16]

    def sources(side: int) -> Sources:
        train, held = (
            ImageSource(_pairs_reader(images, labels, mask, names), side)
            for mask in (~heldout, heldout)
        )
        return train, held

    side = int(np.median([min(image.shape[:2]) for image in images]))
    count = int((~heldout).sum())
    return ImageDataset(
        f"images-{digest[:8]}",
        count,
        side,
        tuple(names),
        False,
        sources,
        int(heldout.sum()),
    )


def _pairs_reader(images, labels, mask, names) -> Reader:
    chosen = np.flatnonzero(mask)

    def read(indices: Sequence[int], fit: Fit) -> Iterator[tuple[np.ndarray, int]]:
        return ((fit(images[chosen[i]]), int(labels[chosen[i]])) for i in indices)

    return Reader("images", len(chosen), read, lambda: labels[chosen], names)
