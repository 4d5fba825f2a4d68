"""Images of captions: whether they fit, and how near they are to training images."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxspec.checkpoint import Checkpoint
from jaxspec.data.batches import evenly_spaced
from jaxspec.data.source import ImageSource
from jaxspec.errors import DataError
from jaxspec.evaluate.matching import first_share
from jaxspec.evaluate.nearest import Nearest, nearest_images
from jaxspec.evaluate.tables import markdown_table
from jaxspec.io.images import grid_image
from jaxspec.models.matcher.model import Matcher
from jaxspec.pipeline.captions import TOKENIZER, tokenize
from jaxspec.pipeline.pipeline import Pipeline
from jaxspec.pipeline.settings import resolve_config
from jaxspec.sharding.device import device_name

# Captions among which the asked one is ranked, and pairs of the sheet.
AMONG, PAIRS = 100, 24


@dataclass(frozen=True)
class CaptionImages:
    """Result of `measure_captions`.

    Attributes:
      result: report, with one row a split.
      images: generated images of all splits, uint8 [n, h, w, 3].
      twins: nearest training image of each, uint8 [n, h, w, 3].
      distances: float [n], root mean squared difference of each pair, 0 to 255.
    """

    result: dict[str, Any]
    images: np.ndarray
    twins: np.ndarray
    distances: np.ndarray


def measure_captions(
    pipe: Pipeline,
    matcher: Checkpoint,
    folder: Path,
    splits: Mapping[str, ImageSource],
    training: ImageSource,
    *,
    count: int,
    seed: int = 0,
    cfg_scale: float | None = None,
    batch: int = 16,
) -> CaptionImages:
    """Generates an image for captions of each split, and measures it.

    Args:
      pipe: model of captions, decoded plainly.
      matcher: matcher of images and captions.
      folder: folder of the matcher, with its vocabulary.
      splits: images and captions by name of the split.
      training: images that the model was trained on.
      count: number of images of each split, evenly spaced.
      seed: seed of the images and of the choice of other captions.
      cfg_scale: CFG scale; None for the checkpoint's.
      batch: images generated together.

    Raises:
      DataError: a split has no captions, or too few.
    """
    model = Matcher(matcher.config)
    config = resolve_config(pipe.bundle, {"cfg_scale": cfg_scale})
    rows, images, found = [], [], []
    for split, source in splits.items():
        if not source.captions:
            raise DataError(f"the split {split!r} has no captions")
        indices = evenly_spaced(len(source), min(count, len(source)))
        captions = [source.captions[i] for i in indices]
        out = pipe(
            prompts=captions, seed=seed, cfg_scale=config.cfg_scale, batch_size=batch
        )
        drawn = np.stack([np.asarray(image) for image in out.images])
        ids = tokenize(folder / TOKENIZER, captions, matcher.config.text.length)
        real = source.take(indices)
        shares = {
            name: first_share(model, matcher.params, shown, ids, among=AMONG, seed=seed)
            for name, shown in (("generated", drawn), ("real", real))
        }
        near = nearest_images(drawn, training)
        rows.append(
            {
                "split": split,
                "images": len(captions),
                "among": min(AMONG, len(np.unique(ids, axis=0))),
                "ranked_first": shares["generated"],
                "real_ranked_first": shares["real"],
                "nearest_median": float(np.median(near.distances)),
                "nearest_least": float(near.distances.min()),
                "real_nearest_median": float(
                    np.median(nearest_images(real, training).distances)
                ),
            }
        )
        images.append(drawn)
        found.append(near)
    near = Nearest(
        np.concatenate([x.indices for x in found]),
        np.concatenate([x.distances for x in found]),
    )
    result = {
        "checkpoint": pipe.bundle.name,
        "cfg_scale": config.cfg_scale,
        "seed": seed,
        "device": device_name(),
        "jax": jax.__version__,
        "rows": rows,
    }
    return CaptionImages(
        result, np.concatenate(images), training.take(near.indices), near.distances
    )


def captions_markdown(result: dict[str, Any]) -> str:
    """Formats a report of `measure_captions`."""
    cells = [
        [
            row["split"],
            row["images"],
            row["among"],
            f"{row['ranked_first']:.0%}",
            f"{row['real_ranked_first']:.0%}",
            f"{row['nearest_median']:.1f}",
            f"{row['nearest_least']:.1f}",
            f"{row['real_nearest_median']:.1f}",
        ]
        for row in result["rows"]
    ]
    columns = ["captions of", "images", "among", "ranked first", "real images"]
    columns += ["nearest, median", "nearest, least", "real images, median"]
    lines = [
        f"# Captions and images of {result['checkpoint']}",
        "",
        f"`{result['command']}`",
        "",
        f"Device: {result['device']}, jax {result['jax']}. CFG scale "
        f"{result['cfg_scale']:g}, temperature and filters of the checkpoint, seed "
        f"{result['seed']}.",
        "",
        '"Ranked first": a matcher scores the asked caption highest, of as many of '
        'the split as the column "among" counts; "real images" is its figure for the '
        'images that the captions belong to. "Nearest" is the root mean squared '
        "difference (0 to 255) to the nearest image of the training split; that of "
        "real images is 0 where they are in it. The sheet shows the nearest pairs, "
        "each generated image left of its training image.",
        "",
        markdown_table(columns, cells),
    ]
    return "\n".join(lines)


def nearest_sheet(found: CaptionImages) -> np.ndarray:
    """Sheet of the nearest pairs, uint8: generated images left of training images."""
    order = np.argsort(found.distances)[:PAIRS]
    pairs = np.concatenate([found.images[order], found.twins[order]], axis=2)
    return grid_image(pairs)
