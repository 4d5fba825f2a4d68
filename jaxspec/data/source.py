"""Random access to the images of a data set, whatever it is read from."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from tqdm import tqdm

from jaxspec.io.rgb import fit_square

Fit = Callable[[np.ndarray], np.ndarray]
# Largest decoded split, in bytes, that is held in memory after the first read.
_MEMORY_BYTES = 1 << 30


@dataclass(frozen=True)
class Reader:
    """Access to the files of one split, before they are decoded and cropped.

    Attributes:
      name: split and data set, for the progress bar.
      count: number of images.
      read: function from indices, and a function that makes squares of images uint8 RGB
        [h, w, 3], to these squares and labels.
      labels: labels int32 [n] of all images, without decoding them.
      class_names: class names, indexed by label; empty if there are none.
      captions: caption of each image; empty if there are none.
      names: words for single characters of captions, such as emoji; mostly none.
    """

    name: str
    count: int
    read: Callable[[Sequence[int], Fit], Iterator[tuple[np.ndarray, int]]]
    labels: Callable[[], np.ndarray]
    class_names: Sequence[str] = ()
    captions: Sequence[str] = ()
    names: Mapping[str, str] = field(default_factory=dict)


class ImageSource:
    """Images of one split as squares of `side` pixels, converted by `as_rgb`.

    Images of another size are resized (shorter side) and cropped to their center. A
    split of at most 1 GiB is decoded once and held in memory.

    Attributes:
      labels: int32 [n], classes.
      class_names: class names, indexed by label; empty if there are none.
      captions: caption of each image; empty if there are none.
      names: words for characters of captions; empty if there are none.
    """

    def __init__(self, reader: Reader, side: int):
        """Reads the labels, and the images if they fit into memory.

        Args:
          reader: access to the images.
          side: side in pixels.

        Raises:
          DataError: an image cannot be read.
        """
        self._reader, self._side = reader, side
        self.class_names = list(reader.class_names)
        self.captions = list(reader.captions)
        self.names = dict(reader.names)
        self._images = None
        if reader.count * side * side * 3 > _MEMORY_BYTES:
            self.labels = reader.labels()
            return
        self._images = np.empty((reader.count, side, side, 3), np.uint8)
        self.labels = np.empty(reader.count, np.int32)
        batches = range(0, reader.count, 1024)
        for start in tqdm(batches, desc=f"reading {reader.name}"):
            indices = range(start, min(start + 1024, reader.count))
            for i, example in zip(indices, self._read(indices), strict=True):
                self._images[i], self.labels[i] = example

    def __len__(self) -> int:
        return self._reader.count

    def take(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Images uint8 [B, side, side, 3] at `indices` [B]."""
        if self._images is not None:
            return self._images[np.asarray(indices)]
        return np.stack([image for image, _ in self._read(indices)])

    def _read(self, indices) -> Iterator[tuple[np.ndarray, int]]:
        """Yields images uint8 [side, side, 3] and labels."""
        return self._reader.read([int(i) for i in indices], self._fit)

    def _fit(self, image: np.ndarray) -> np.ndarray:
        return fit_square(image, self._side)
