"""Random access to the images of a tfds data set."""

import io
import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from jaxspec.data.pictures import as_rgb
from jaxspec.errors import DataError
from jaxspec.writing import write_file

# Images are kept in memory after the first read when all of them fit in this.
_MEMORY_BYTES = 1 << 30


class ImageSource:
    """Images of one split, each a square of `side` pixels; see `images.as_rgb`.

    Attributes:
      labels: int32 [n].
      class_names: names by label; decimal numbers where the set has none.
    """

    def __init__(
        self,
        name: str,
        split: str,
        side: int,
        data_dir: str | Path,
        manual_dir: str | Path | None = None,
    ):
        """Opens a data set, preparing it under `data_dir` on first use.

        Args:
          name: `fruits360_64`, `cifar10_packed`, or any tfds name with features
            `image` and `label` (`cifar10`, `imagenet2012`).
          split: a tfds split.
          side: images of another size are resized (shorter side) and cropped.
          data_dir: where tfds keeps prepared data.
          manual_dir: folder of files that tfds cannot download itself.

        Raises:
          DataError: the set is unknown or cannot be prepared, or an image cannot be
            read.
        """
        self._side, self._words = side, f"of split '{split}' of data set '{name}'"
        self._records: Any = _records(name, split, data_dir, manual_dir)
        self.class_names = _class_names(name, self._records, data_dir, manual_dir)
        self._images = None
        if len(self._records) * side * side * 3 <= _MEMORY_BYTES:
            shape = (len(self._records), side, side, 3)
            self._images = np.empty(shape, np.uint8)
            self.labels = np.empty(len(self._records), np.int32)
            for start in tqdm(range(0, len(self), 1024), desc=f"reading {split}"):
                indices = range(start, min(start + 1024, len(self)))
                for i, row in zip(indices, self._rows(indices), strict=True):
                    self._images[i], self.labels[i] = row
        else:
            rows = tqdm(self._records, desc=f"labels of {split}")
            self.labels = np.array([row["label"] for row in rows], np.int32)

    def __len__(self) -> int:
        return len(self._records)

    def take(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Images `uint8 [n, side, side, 3]` at the given places."""
        if self._images is not None:
            return self._images[np.asarray(indices)]
        return np.stack([image for image, _ in self._rows(indices)])

    def _rows(self, indices: Iterable[int]) -> Iterator[tuple[np.ndarray, int]]:
        """Images `uint8 [side, side, 3]` and labels."""
        places = [int(i) for i in indices]
        for i, row in zip(places, self._records.__getitems__(places), strict=True):
            image = as_rgb(row["image"], f"image {i} {self._words}")
            yield fit_square(image, self._side), row["label"]


def fit_square(image: np.ndarray, side: int) -> np.ndarray:
    """Resizes the shorter side of `uint8 [H, W, 3]` to `side` and crops the center."""
    if image.shape == (side, side, 3):
        return image
    whole = Image.fromarray(image)
    scale = side / min(whole.size)
    width, height = (max(side, round(s * scale)) for s in whole.size)
    whole = whole.resize((width, height), Image.Resampling.LANCZOS)
    left, top = (whole.width - side) // 2, (whole.height - side) // 2
    return np.asarray(whole.crop((left, top, left + side, top + side)))


def _records(name, split, data_dir, manual_dir):
    """Records whose "image" is the bytes of a file, or an array.

    Files are not decoded by tfds, which does so in one way with OpenCV and in another
    without, and has no scale for 16 bits, no CMYK and no palettes.
    """
    import tensorflow_datasets as tfds

    given = name, split, data_dir, manual_dir
    records: Any = _open(*given)
    features = records.dataset_info.features
    if missing := [key for key in ("image", "label") if key not in features]:
        raise DataError(
            f"data set '{name}' has no feature {' and no '.join(missing)}; choose one "
            "of images with labels"
        )
    image = features["image"]
    # Floats are kept in files whose four channels are the bytes of one number.
    if isinstance(image, tfds.features.Image) and image.np_dtype != np.float32:
        return _open(*given, decoders={"image": tfds.decode.SkipDecoding()})
    return records


def _open(name, split, data_dir, manual_dir, decoders=None):
    import tensorflow_datasets as tfds

    from jaxspec.data import builders  # registers our own sets  # noqa: F401

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
            f"cannot open data set '{name}' ({split}): {reason}. Name a tfds data set, "
            "and give the folder of its files where it cannot be downloaded "
            "(--manual-dir)"
        ) from error
    finally:
        logging.getLogger("absl").setLevel(level)


def _class_names(name, records, data_dir, manual_dir):
    """Names by label; those of our own sets are kept beside the prepared data."""
    from jaxspec.data import builders

    own = {b.name: b for b in (builders.Fruits360, builders.Cifar10Packed)}
    if name not in own:
        return list(getattr(records.dataset_info.features["label"], "names", []))
    kept = Path(data_dir) / name / "class_names.json"
    if not kept.is_file():
        if manual_dir is None:
            raise DataError(f"'{kept}' is missing; give --manual-dir once more")
        names = own[name].class_names(Path(manual_dir))
        write_file(kept, json.dumps(names).encode())
    return json.loads(kept.read_bytes())
