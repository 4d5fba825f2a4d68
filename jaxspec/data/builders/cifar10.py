"""tfds builder of packed CIFAR-10."""

import io
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from jaxspec.data.packed import read_class_names, read_packed


class Cifar10Packed(tfds.core.GeneratorBasedBuilder):
    """CIFAR-10 from a packed file of JPEG images; research use only.

    A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009.
    """

    name = "cifar10_packed"
    VERSION = tfds.core.Version("1.0.0")
    PACKED = "cifar10_jpeg.npz"
    MANUAL_DOWNLOAD_INSTRUCTIONS = f"""
    The manual folder holds the packed file `{PACKED}`. Without it, use the data set
    `cifar10` of tfds, which downloads the original.
    """

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(
                        shape=(32, 32, 3), encoding_format="jpeg"
                    ),
                    "label": tfds.features.Scalar(np.int64),
                }
            ),
            supervised_keys=("image", "label"),
            description="CIFAR-10, JPEG packed. Research use.",
            homepage="https://www.cs.toronto.edu/~kriz/cifar.html",
        )

    def _split_generators(self, dl_manager):
        path = Path(dl_manager.manual_dir) / self.PACKED
        splits = ("train", "test")
        return {split: self._generate_examples(path, split) for split in splits}

    def _generate_examples(self, path: Path, split: str):
        for i, (jpeg, label) in enumerate(read_packed(path, split)):
            yield i, {"image": io.BytesIO(jpeg), "label": label}

    @classmethod
    def class_names(cls, folder: Path) -> list[str]:
        """Class names, indexed by label."""
        return read_class_names(folder / cls.PACKED)
