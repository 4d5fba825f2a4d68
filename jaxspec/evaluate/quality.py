"""Quality of images by way of drawing them, beside the plain ones of one seed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import numpy as np

from jaxspec.bundle import Bundle
from jaxspec.checkpoint import Checkpoint
from jaxspec.data.source import ImageSource
from jaxspec.device import device_name
from jaxspec.errors import ConfigError, DataError
from jaxspec.evaluate.likelihood import guided_nll
from jaxspec.evaluate.picture_sets import frechet_distance, precision_recall
from jaxspec.helpers import LoadedDrafter
from jaxspec.images import to_unit
from jaxspec.models.classifier import Classifier
from jaxspec.models.transformer import Transformer
from jaxspec.pipeline import (
    Progress,
    Run,
    Settings,
    bundle_for,
    decode_images,
    draw,
)
from jaxspec.rules import parse_verifier
from jaxspec.spec.envelopes import DynamicTree
from jaxspec.spec.tree import Tree

# images uint8 [n, H, W, 3] -> features float [n, E], class ids int [n]
Extractor = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]

# What is measured of a set: name, words, and whether more is better.
METRICS = {
    "frechet": ("Frechet distance", False),
    "precision": ("precision", True),
    "recall": ("recall", True),
    "accuracy": ("class accuracy", True),
    "nll": ("nats a token", False),
    "psnr": ("dB to plain", True),
    "code_distance": ("code distance to plain", False),
    "same_tokens": ("tokens as plain", True),
}


@dataclass(frozen=True)
class HeldOut:
    """Features of held-out images: as many as are drawn, where there are so many."""

    features: np.ndarray
    accuracy: float


def classifier_features(checkpoint: Checkpoint, batch: int = 64) -> Extractor:
    """Features and classes by a trained classifier."""
    model = Classifier(checkpoint.config)
    run = jax.jit(model.__call__)

    def extract(images):
        features, classes = [], []
        for start in range(0, len(images), batch):
            part = images[start : start + batch]
            full = np.resize(part, (batch, *part.shape[1:]))
            one, logits = run(checkpoint.params, to_unit(full))
            features.append(np.asarray(one)[: len(part)])
            classes.append(np.asarray(logits).argmax(-1)[: len(part)])
        return np.concatenate(features), np.concatenate(classes)

    return extract


def read_heldout(source: ImageSource, extract: Extractor, count: int) -> HeldOut:
    """Features of `count` images spread over a split.

    Raises:
      DataError: the split has fewer.
    """
    if len(source) < count:
        raise DataError(
            f"the split has {len(source)} images, fewer than the {count} drawn"
        )
    rows = np.linspace(0, len(source) - 1, count).astype(np.int64)
    features, classes = extract(source.take(rows))
    return HeldOut(features, float((classes == source.labels[rows]).mean()))


def measure_run(
    bundle: Bundle,
    settings: Settings,
    run: Run,
    plain: Run,
    heldout: HeldOut,
    extract: Extractor,
) -> dict[str, float | None]:
    """All of `METRICS` for what was drawn; "psnr" is None for equal images.

    "nll" is of the law that is sampled from: guided, temperature 1, without filters.
    Code distances are Euclidean, between the tokenizer's vectors.
    """
    images = decode_images(bundle, run.tokens)
    features, classes = extract(images)
    precision, recall = precision_recall(heldout.features, features)
    book = np.asarray(bundle.tokenizer.params["codebook"], np.float64)
    apart = np.linalg.norm(book[run.tokens] - book[plain.tokens], axis=-1)
    own = decode_images(bundle, plain.tokens).astype(np.float64)
    error = np.mean((images - own) ** 2)
    return {
        "frechet": frechet_distance(heldout.features, features),
        "precision": precision,
        "recall": recall,
        "accuracy": float((classes == np.array(settings.classes)).mean()),
        "nll": guided_nll(
            Transformer(bundle.prior.config),
            bundle.prior.params,
            run.tokens,
            np.array(settings.classes),
            settings.cfg_scale,
        ),
        "psnr": float(10 * np.log10(255**2 / error)) if error else None,
        "code_distance": float(apart.mean()),
        "same_tokens": float((run.tokens == plain.tokens).mean()),
    }


def measure_quality(
    bundle: Bundle,
    settings: Settings,
    rules: Sequence[str],
    tree: Tree | DynamicTree,
    heldout: HeldOut,
    extract: Extractor,
    *,
    seeds: Sequence[int],
    loaded: LoadedDrafter | None = None,
    progress: Progress = lambda count: None,
) -> dict[str, Any]:
    """One row for plain decoding and each rule, each over all seeds.

    Args:
      bundle: models.
      settings: what is drawn; its seed and rule are replaced.
      rules: by name, see `parse_verifier`.
      tree: shape of the drafts.
      heldout: what images are compared with.
      extract: features and classes of images.
      seeds: of noise; at least two, so that there is a spread.
      loaded: who drafts; by default the bundle's own drafter.
      progress: called with the number of images drawn.

    Raises:
      ConfigError: fewer than two seeds, or a rule that the drafter cannot serve.
    """
    if len(seeds) < 2 or len(set(seeds)) < len(seeds):
        raise ConfigError("quality needs at least two seeds, all different")
    bundle = bundle_for(bundle, loaded)
    chosen = {name: parse_verifier(name) for name in rules}
    cells: dict[str, list[dict[str, float | None]]] = {
        "plain": [],
        **{n: [] for n in rules},
    }
    for seed in seeds:
        here = replace(settings, seed=seed, verifier=parse_verifier("coupled"))
        measure = partial(measure_run, heldout=heldout, extract=extract)
        plain = draw(bundle, here, Tree.root(), loaded=loaded, progress=progress)
        cells["plain"].append(
            {"tokens_per_call": 1.0, **measure(bundle, here, plain, plain)}
        )
        for name, verifier in chosen.items():
            given = replace(here, verifier=verifier)
            run = draw(bundle, given, tree, loaded=loaded, progress=progress)
            values = measure(bundle, given, run, plain)
            cells[name].append({"tokens_per_call": run.tokens_per_call, **values})
    return {
        "checkpoint": bundle.name,
        "images": len(settings.classes),
        "cfg_scale": settings.cfg_scale,
        "tree": type(tree).__name__,
        "nodes": tree.size,
        "seeds": list(seeds),
        "heldout_accuracy": heldout.accuracy,
        "device": device_name(),
        "jax": jax.__version__,
        "rows": [
            {
                "verifier": name,
                "lossless": name == "plain" or chosen[name].lossless,
                **{key: [row[key] for row in values] for key in values[0]},
            }
            for name, values in cells.items()
        ],
    }
