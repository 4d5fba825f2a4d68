"""Images of a folder, divided into training and held out."""

import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import numpy as np
from tqdm import tqdm

from jaxspec.data.folder import Listing, list_folder
from jaxspec.data.source import Fit, ImageSource, Reader
from jaxspec.errors import DataError
from jaxspec.io.rgb import as_rgb

OnBadImage = Literal["skip", "stop"]
_NAMED = 5  # damaged files that are named


def check_folder(
    folder: str | Path, on_bad: OnBadImage = "skip"
) -> tuple[Listing, int]:
    """Lists a folder, and decodes every image once to find the damaged ones.

    Args:
      folder: folder in one of the layouts of `list_folder`.
      on_bad: "skip" names damaged files on stderr and leaves them out; "stop" raises.

    Returns:
      The files that can be decoded, and the median of their shorter sides in pixels.

    Raises:
      DataError: the folder cannot be used, or holds damaged images and `on_bad` is
        "stop", or too few others.
    """
    listing = list_folder(folder)
    with ThreadPoolExecutor() as pool:
        sides = list(
            tqdm(
                pool.map(_shorter_side, listing.files),
                total=len(listing.files),
                desc="checking images",
                unit="image",
            )
        )
    bad = [side for side in sides if isinstance(side, DataError)]
    if bad:
        shown = "\n".join(f"  {error}" for error in bad[:_NAMED])
        more = f"\n  and {len(bad) - _NAMED} more" if len(bad) > _NAMED else ""
        if on_bad == "stop":
            raise DataError(
                f"{len(bad)} of {len(sides)} images are damaged:\n{shown}{more}"
            )
        print(
            f"left out {len(bad)} of {len(sides)} images that cannot be used:\n"
            f"{shown}{more}",
            file=sys.stderr,
        )
        listing = listing.select(np.array([isinstance(s, int) for s in sides]))
    good = [side for side in sides if isinstance(side, int)]
    if not listing.heldout.any() or listing.heldout.all():
        raise DataError(f"'{listing.folder}' has too few images that can be decoded")
    return listing, int(np.median(good))


def folder_images(listing: Listing, side: int) -> tuple[ImageSource, ImageSource]:
    """Training images and held-out images of a folder, as squares of `side` pixels."""
    train, heldout = (
        ImageSource(_file_reader(listing.select(mask), name), side)
        for name, mask in (("train", ~listing.heldout), ("held out", listing.heldout))
    )
    return train, heldout


def _file_reader(listing: Listing, name: str) -> Reader:
    pool = ThreadPoolExecutor()

    def read(indices: Sequence[int], fit: Fit) -> Iterator[tuple[np.ndarray, int]]:
        def decode(i: int) -> tuple[np.ndarray, int]:
            file = listing.files[i]
            return fit(as_rgb(file, f"'{file}'")), int(listing.labels[i])

        return pool.map(decode, indices)

    return Reader(
        name,
        len(listing.files),
        read,
        lambda: listing.labels,
        listing.class_names,
        listing.captions,
    )


def _shorter_side(file: Path) -> int | DataError:
    try:
        return min(as_rgb(file, f"'{file}'").shape[:2])
    except DataError as error:
        return error
