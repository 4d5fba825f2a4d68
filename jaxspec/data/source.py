"""Random access to the images of a tfds data set."""

import io
import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from jaxspec.errors import DataError
from jaxspec.io.rgb import as_rgb, fit_square
from jaxspec.io.writing import write_file

# Largest decoded split, in bytes, that is held in memory after the first read.
_MEMORY_BYTES = 1 << 30


class ImageSource:
    """Images of one split as squares of `side` pixels, converted by `as_rgb`.

    Attributes:
      labels: int32 [n], classes.
      class_names: class names, indexed by label; decimal numbers if tfds has no names.
    """

    def __init__(
        self,
        name: str,
        split: str,
        side: int,
        data_dir: str | Path,
        manual_dir: str | Path | None = None,
    ):
        """Opens a data set, and prepares it under `data_dir` on first use.

        Args:
          name: data set, one of `fruits360_64`, `cifar10_packed` and all tfds names
            with features `image` and `label` (`cifar10`, `imagenet2012`).
          split: tfds split.
          side: side in pixels; images of another size are resized (shorter side) and
            cropped.
          data_dir: folder of prepared tfds data.
          manual_dir: folder of files that tfds cannot download.

        Raises:
          DataError: the data set is unknown or cannot be prepared, or an image cannot
            be read.
        """
        self._side = side
        self._origin = f"of split '{split}' of data set '{name}'"
        self._records: Any = _records(name, split, data_dir, manual_dir)
        self.class_names = _class_names(name, self._records, data_dir, manual_dir)
        self._images = None
        if len(self._records) * side * side * 3 <= _MEMORY_BYTES:
            shape = (len(self._records), side, side, 3)
            self._images = np.empty(shape, np.uint8)
            self.labels = np.empty(len(self._records), np.int32)
            for start in tqdm(range(0, len(self), 1024), desc=f"reading {split}"):
                indices = range(start, min(start + 1024, len(self)))
                for i, example in zip(indices, self._read(indices), strict=True):
                    self._images[i], self.labels[i] = example
        else:
            records = tqdm(self._records, desc=f"labels of {split}")
            self.labels = np.array([r["label"] for r in records], np.int32)

    def __len__(self) -> int:
        return len(self._records)

    def take(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Images uint8 [B, side, side, 3] at `indices` [B]."""
        if self._images is not None:
            return self._images[np.asarray(indices)]
        return np.stack([image for image, _ in self._read(indices)])

    def _read(self, indices: Iterable[int]) -> Iterator[tuple[np.ndarray, int]]:
        """Yields images uint8 [side, side, 3] and labels."""
        indices = [int(i) for i in indices]
        records = self._records.__getitems__(indices)
        for i, record in zip(indices, records, strict=True):
            image = as_rgb(record["image"], f"image {i} {self._origin}")
            yield fit_square(image, self._side), record["label"]


def _records(name, split, data_dir, manual_dir):
    """Opens records whose "image" is the bytes of a file, or an array.

    Files are not decoded by tfds: its result depends on whether OpenCV is installed,
    and it supports neither 16-bit scaling nor CMYK nor palettes.
    """
    import tensorflow_datasets as tfds

    options = name, split, data_dir, manual_dir
    records: Any = _open(*options)
    features = records.dataset_info.features
    if missing := [key for key in ("image", "label") if key not in features]:
        raise DataError(
            f"data set '{name}' has no feature {' and no '.join(missing)}; choose a "
            "data set of images with labels"
        )
    image = features["image"]
    # tfds stores float images in files whose four channels are the bytes of a float.
    if isinstance(image, tfds.features.Image) and image.np_dtype != np.float32:
        return _open(*options, decoders={"image": tfds.decode.SkipDecoding()})
    return records


def _open(name, split, data_dir, manual_dir, decoders=None):
    import tensorflow_datasets as tfds

    from jaxspec.data import builders  # registers the builders  # noqa: F401

    prepare = {}
    if manual_dir is not None:
        prepare["download_config"] = tfds.download.DownloadConfig(
            manual_dir=str(manual_dir)
        )
    level = logging.getLogger("absl").level
    logging.getLogger("absl").setLevel(logging.ERROR)
    try:
        with redirect_stdout(io.StringIO()):
            return tfds.data_source(
                name,
                split=split,
                data_dir=str(data_dir),
                decoders=decoders,
                builder_kwargs={"file_format": "array_record"},
                download_and_prepare_kwargs=prepare,
            )
    except DataError:
        raise
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else error
        raise DataError(
            f"cannot open data set '{name}' ({split}): {reason}. Choose a tfds data "
            "set, and set --manual-dir to the folder of its files if it cannot be "
            "downloaded"
        ) from error
    finally:
        logging.getLogger("absl").setLevel(level)


def _class_names(name, records, data_dir, manual_dir):
    """Class names by label; those of the packed sets are stored with the data."""
    from jaxspec.data import builders

    packed = {b.name: b for b in (builders.Fruits360, builders.Cifar10Packed)}
    if name not in packed:
        return list(getattr(records.dataset_info.features["label"], "names", []))
    file = Path(data_dir) / name / "class_names.json"
    if not file.is_file():
        if manual_dir is None:
            raise DataError(f"'{file}' is missing; set --manual-dir to write it again")
        names = packed[name].class_names(Path(manual_dir))
        write_file(file, json.dumps(names).encode())
    return json.loads(file.read_bytes())
