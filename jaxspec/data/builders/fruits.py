"""tfds builder of Fruits-360."""

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from jaxspec.data.packed import read_class_names, read_packed
from jaxspec.errors import DataError
from jaxspec.io.rgb import SUFFIXES, as_rgb, image_files

# Folders of the public archive of Fruits-360, sorted by name.
HALVES = ("Test", "Training")


class Fruits360(tfds.core.GeneratorBasedBuilder):
    """Fruits-360 in color at 64x64, with one class per variety.

    Author: Mihai Oltean, Fruits-360, 2017-. License: CC BY-SA 4.0.
    """

    name = "fruits360_64"
    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = """
    The manual folder holds either the packed file `fruits360_64_jpeg.npz`, or the
    public archive (github.com/fruits-360/fruits-360-3-body-problem) unpacked, with
    its folders `Training` and `Test`. From the archive every third file of each
    variety is taken, resized to 64x64 and stored as JPEG; every tenth of these is
    in the split `test`.
    """
    PACKED = "fruits360_64_jpeg.npz"

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(
                        shape=(64, 64, 3), encoding_format="jpeg"
                    ),
                    "label": tfds.features.Scalar(np.int64),
                }
            ),
            supervised_keys=("image", "label"),
            description="Fruits-360 at 64x64. Mihai Oltean, CC BY-SA 4.0.",
            homepage="https://github.com/fruits-360",
        )

    def _split_generators(self, dl_manager):
        folder = Path(dl_manager.manual_dir)
        splits = ("train", "test")
        return {split: self._generate_examples(folder, split) for split in splits}

    def _generate_examples(self, folder: Path, split: str):
        if (folder / self.PACKED).is_file():
            images = read_packed(folder / self.PACKED, split)
        else:
            images = _public_fruits(folder, split)
        for i, (jpeg, label) in enumerate(images):
            yield i, {"image": io.BytesIO(jpeg), "label": label}

    @classmethod
    def class_names(cls, folder: Path) -> list[str]:
        """Class names, indexed by label."""
        if (folder / cls.PACKED).is_file():
            return read_class_names(folder / cls.PACKED)
        return list(_varieties(folder))


def _varieties(folder: Path) -> dict[str, list[Path]]:
    """Image files of each variety, sorted by name; hidden folders are skipped."""
    halves = [half for name in HALVES if (half := folder / name).is_dir()]
    folders = [p for half in halves for p in half.iterdir() if p.is_dir()]
    names = sorted({p.name for p in folders if not p.name.startswith(".")})
    if not names:
        raise DataError(
            f"'{folder}' holds neither {Fruits360.PACKED} nor the public archive's "
            "folders Training and Test"
        )
    varieties = {
        name: [file for half in halves for file in image_files(half / name)]
        for name in names
    }
    if empty := [name for name, files in varieties.items() if not files]:
        raise DataError(
            f"'{folder}' has a folder '{empty[0]}' without images "
            f"({', '.join(SUFFIXES)}); remove it, since every folder is a class"
        )
    return varieties


def _public_fruits(folder: Path, split: str) -> Iterator[tuple[bytes, int]]:
    """Every third image of each variety at 64x64; every tenth of these is for test."""
    for label, files in enumerate(_varieties(folder).values()):
        for i, file in enumerate(files[::3]):
            if (i % 10 == 9) == (split == "test"):
                image = Image.fromarray(as_rgb(file, f"'{file}'"))
                image = image.resize((64, 64), Image.Resampling.LANCZOS)
                out = io.BytesIO()
                image.save(out, "JPEG", quality=90, subsampling=0)
                yield out.getvalue(), label
