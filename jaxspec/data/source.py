"""Random access to the pictures of a tfds data set."""

import io
import json
import logging
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from jaxspec.errors import DataError
from jaxspec.writing import write_file

# Pictures are kept in memory after the first read when all of them fit in this.
_MEMORY_BYTES = 1 << 30


class ImageSource:
    """Pictures of one split, each a square of `side` pixels.

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
          side: pictures of another size are resized (shorter side) and cropped.
          data_dir: where tfds keeps prepared data.
          manual_dir: folder of files that tfds cannot download itself.

        Raises:
          DataError: the set is unknown or cannot be prepared.
        """
        self._side = side
        self._records: Any = _open(name, split, data_dir, manual_dir)
        self.class_names = _class_names(name, self._records, data_dir, manual_dir)
        self._pictures = None
        if len(self._records) * side * side * 3 <= _MEMORY_BYTES:
            shape = (len(self._records), side, side, 3)
            self._pictures = np.empty(shape, np.uint8)
            self.labels = np.empty(len(self._records), np.int32)
            for start in tqdm(range(0, len(self), 1024), desc=f"reading {split}"):
                indices = range(start, min(start + 1024, len(self)))
                rows = self._records.__getitems__(list(indices))
                for i, row in zip(indices, rows, strict=True):
                    self._pictures[i] = fit_square(row["image"], side)
                    self.labels[i] = row["label"]
        else:
            raw = _open(name, split, data_dir, manual_dir, decode=False)
            self.labels = np.array(
                [r["label"] for r in tqdm(raw, desc=f"labels of {split}")], np.int32
            )

    def __len__(self) -> int:
        return len(self._records)

    def take(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Pictures `uint8 [n, side, side, 3]` at the given places."""
        if self._pictures is not None:
            return self._pictures[np.asarray(indices)]
        rows = self._records.__getitems__([int(i) for i in indices])
        return np.stack([fit_square(row["image"], self._side) for row in rows])


def fit_square(picture: np.ndarray, side: int) -> np.ndarray:
    """Resizes the shorter side to `side` and crops the centre; `uint8` RGB."""
    if picture.shape == (side, side, 3):
        return picture
    image = Image.fromarray(np.squeeze(picture)).convert("RGB")
    scale = side / min(image.size)
    width, height = (max(side, round(s * scale)) for s in image.size)
    image = image.resize((width, height), Image.Resampling.LANCZOS)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return np.asarray(image.crop((left, top, left + side, top + side)))


def _open(name, split, data_dir, manual_dir, decode=True):
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
                decoders=None if decode else {"image": tfds.decode.SkipDecoding()},
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
