"""Images of tfds data sets."""

import io
import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from jaxspec.data.source import Fit, ImageSource, Reader
from jaxspec.errors import DataError
from jaxspec.io.rgb import as_rgb
from jaxspec.io.writing import write_file


def tfds_images(
    name: str,
    split: str,
    side: int,
    data_dir: str | Path,
    manual_dir: str | Path | None = None,
) -> ImageSource:
    """Opens a split, and prepares the data set under `data_dir` on first use.

    Args:
      name: data set, one of `fruits360_64`, `cifar10_packed`, `emoji64` and all tfds
        names with features `image` and `label` (`cifar10`, `imagenet2012`). Those with
        a feature `caption` are captioned.
      split: tfds split.
      side: side in pixels.
      data_dir: folder of prepared tfds data.
      manual_dir: folder of files that tfds cannot download.

    Raises:
      DataError: the data set is unknown or cannot be prepared, or an image cannot be
        read.
    """
    records: Any = _records(name, split, data_dir, manual_dir)
    origin = f"of split '{split}' of data set '{name}'"

    def read(indices: Sequence[int], fit: Fit) -> Iterator[tuple[np.ndarray, int]]:
        found = records.__getitems__(list(indices))
        for i, record in zip(indices, found, strict=True):
            yield fit(as_rgb(record["image"], f"image {i} {origin}")), record["label"]

    def labels() -> np.ndarray:
        labeled = tqdm(records, desc=f"labels of {split}")
        return np.array([record["label"] for record in labeled], np.int32)

    captions = _captions(records, split)
    names = _class_names(name, records, data_dir, manual_dir)
    metadata = records.dataset_info.metadata or {}
    characters = metadata.get("names", {})
    reader = Reader(split, len(records), read, labels, names, captions, characters)
    return ImageSource(reader, side)


def _captions(records: Any, split: str) -> list[str]:
    """Captions of all images; none where the data set has no feature for them."""
    if "caption" not in records.dataset_info.features:
        return []
    captioned = tqdm(records, desc=f"captions of {split}")
    return [record["caption"].decode() for record in captioned]


class Splits(NamedTuple):
    """Splits of a tfds data set to train on.

    Attributes:
      names: split to train on and held-out split.
      count: number of training images.
      side: length of the shorter side of the first image, in pixels.
      class_names: class names, indexed by label; numbers where tfds has none.
      captioned: whether every image has a caption.
    """

    names: tuple[str, str]
    count: int
    side: int
    class_names: tuple[str, ...]
    captioned: bool


def tfds_splits(
    name: str, data_dir: str | Path, manual_dir: str | Path | None = None
) -> Splits:
    """Chooses the splits of a data set: `train`, and `validation` or `test`.

    A data set without a second split is divided nine to one.

    Raises:
      DataError: the data set is unknown or cannot be prepared.
    """
    records: Any = _records(name, "train", data_dir, manual_dir)
    known = list(records.dataset_info.splits)
    held = [split for split in ("validation", "test") if split in known]
    names = ("train", held[0]) if held else ("train[:90%]", "train[90%:]")
    classes = _class_names(name, records, data_dir, manual_dir)
    if not classes:
        most = int(max(record["label"] for record in records))
        classes = [str(i) for i in range(most + 1)]
    image = as_rgb(records[0]["image"], f"image 0 of data set '{name}'")
    count = records.dataset_info.splits[names[0]].num_examples
    captioned = "caption" in records.dataset_info.features
    return Splits(names, count, min(image.shape[:2]), tuple(classes), captioned)


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
