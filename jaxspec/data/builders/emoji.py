"""tfds builder of captioned emoji."""

import io
import zlib
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from jaxspec.data.emoji.copies import copies
from jaxspec.data.emoji.reading import SIDE, STYLES, names_of, read_emoji

# Copies of each training image, the image itself among them.
COPIES = 12


class Emoji64(tfds.core.GeneratorBasedBuilder):
    """Captioned emoji over white at 64x64, in three styles.

    Noto Emoji (Google, Apache-2.0) and Fluent Emoji in 3D and flat (Microsoft, MIT);
    names from emojibase (MIT). The split `train` has changed copies of each image,
    see `data.emoji.copies`; `originals` has the training images alone, and `test` the
    images of held-out emoji. Labels are the styles. The metadata has the names of the
    emoji by their characters.
    """

    name = "emoji64"
    VERSION = tfds.core.Version("1.1.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = """
    The manual folder holds four packages, as `npm pack` downloads them:
    emoji-datasource-google@16.0.0, @lobehub/fluent-emoji-3d@1.1.0,
    @iconify-json/fluent-emoji-flat@1.2.6 and emojibase-data@17.0.0. Flat emoji are
    drawn by the Python package resvg_py.
    """

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(
                        shape=(SIDE, SIDE, 3), encoding_format="png"
                    ),
                    "label": tfds.features.ClassLabel(names=list(STYLES.values())),
                    "caption": tfds.features.Text(),
                    "code": tfds.features.Text(),
                }
            ),
            supervised_keys=("image", "label"),
            description="Captioned emoji. Google, Apache-2.0; Microsoft, MIT.",
            homepage="https://github.com/googlefonts/noto-emoji",
            metadata=tfds.core.MetadataDict(),
        )

    def _split_generators(self, dl_manager):
        folder = Path(dl_manager.manual_dir)
        assert self.info.metadata is not None  # `_info`
        self.info.metadata["names"] = names_of(read_emoji(folder))
        counts = {"train": COPIES, "originals": 1, "test": 1}
        return {
            split: self._generate_examples(folder, split, count)
            for split, count in counts.items()
        }

    def _generate_examples(self, folder: Path, split: str, count: int):
        for emoji in read_emoji(folder):
            if emoji.heldout != (split == "test"):
                continue
            name = f"{emoji.style} {emoji.code}"
            rng = np.random.default_rng(zlib.crc32(name.encode()))
            for i, (image, caption) in enumerate(copies(emoji, count, rng)):
                yield (
                    f"{name} {i}",
                    {
                        "image": _png(image),
                        "label": STYLES[emoji.style],
                        "caption": caption,
                        "code": emoji.code,
                    },
                )


def _png(image: np.ndarray) -> io.BytesIO:
    """File of an image uint8 [h, w, 3]."""
    out = io.BytesIO()
    Image.fromarray(image).save(out, "PNG")
    out.seek(0)
    return out
