"""Image quality by verifier, compared with plain decoding at the same seeds."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import numpy as np

from jaxspec.checkpoint import Checkpoint
from jaxspec.data.batches import evenly_spaced
from jaxspec.data.source import ImageSource
from jaxspec.errors import ConfigError, DataError
from jaxspec.evaluate.image_metrics import frechet_distance, precision_recall
from jaxspec.evaluate.likelihood import guided_nll
from jaxspec.io.images import to_unit
from jaxspec.models.classifier.model import Classifier
from jaxspec.models.transformer.model import Transformer
from jaxspec.pipeline.bundle import Bundle
from jaxspec.pipeline.config import GenerationConfig
from jaxspec.pipeline.decoding import decode_images
from jaxspec.pipeline.engine import bundle_for
from jaxspec.pipeline.generation import GenerationResult, Progress, generate
from jaxspec.pipeline.loaded_drafter import LoadedDrafter
from jaxspec.pipeline.prompts import Prompts
from jaxspec.pipeline.verifiers import parse_verifier
from jaxspec.sharding.device import device_name
from jaxspec.speculative.trees.dynamic import DynamicTree
from jaxspec.speculative.trees.tree import Tree

# images uint8 [n, h, w, 3] -> features float [n, E], predicted classes int [n]
Extractor = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]

# Metrics of a set of images: key, label, and whether higher is better.
METRICS = {
    "frechet": ("Frechet distance", False),
    "precision": ("precision", True),
    "recall": ("recall", True),
    "accuracy": ("class accuracy", True),
    "nll": ("nats per token", False),
    "psnr": ("dB to plain", True),
    "code_distance": ("code distance to plain", False),
    "same_tokens": ("tokens equal to plain", True),
}


@dataclass(frozen=True)
class HeldOut:
    """Features of held-out images.

    Attributes:
      features: float [n, E], of as many images as are generated.
      accuracy: share of these images that the classifier gets right.
    """

    features: np.ndarray
    accuracy: float


def classifier_features(checkpoint: Checkpoint, batch: int = 64) -> Extractor:
    """Function from images to a trained classifier's features and classes.

    Args:
      checkpoint: the classifier.
      batch: images per forward pass.
    """
    model = Classifier(checkpoint.config)
    run = jax.jit(model.__call__)

    def extract(images):
        features, classes = [], []
        for start in range(0, len(images), batch):
            part = images[start : start + batch]
            full = np.resize(part, (batch, *part.shape[1:]))
            batch_features, logits = run(checkpoint.params, to_unit(full))
            features.append(np.asarray(batch_features)[: len(part)])
            classes.append(np.asarray(logits).argmax(-1)[: len(part)])
        return np.concatenate(features), np.concatenate(classes)

    return extract


def read_heldout(source: ImageSource, extract: Extractor, count: int) -> HeldOut:
    """Features of `count` evenly spaced images of a split.

    Raises:
      DataError: the split has fewer than `count` images.
    """
    if len(source) < count:
        raise DataError(
            f"the split has {len(source)} images, fewer than the {count} to generate"
        )
    indices = evenly_spaced(len(source), count)
    features, classes = extract(source.take(indices))
    return HeldOut(features, float((classes == source.labels[indices]).mean()))


def measure_run(
    bundle: Bundle,
    prompts: Prompts,
    settings: GenerationConfig,
    run: GenerationResult,
    plain: GenerationResult,
    heldout: HeldOut,
    extract: Extractor,
) -> dict[str, float | None]:
    """All `METRICS` of generated images; "psnr" is None for equal images.

    "nll" is measured under the sampling distribution: after CFG, at temperature 1 and
    without filters. Code distances are Euclidean distances of codebook vectors.

    Args:
      bundle: models.
      prompts: class labels of the images.
      settings: generation settings; the CFG scale is used.
      run: result to measure.
      plain: result of plain decoding with the same seed.
      heldout: features of held-out images.
      extract: features and classes of images.
    """
    images = decode_images(bundle, run.tokens)
    features, classes = extract(images)
    precision, recall = precision_recall(heldout.features, features)
    codebook = np.asarray(bundle.tokenizer.params["codebook"], np.float64)
    distance = codebook[run.tokens] - codebook[plain.tokens]
    distance = np.linalg.norm(distance, axis=-1)
    plain_images = decode_images(bundle, plain.tokens).astype(np.float64)
    error = np.mean((images - plain_images) ** 2)
    return {
        "frechet": frechet_distance(heldout.features, features),
        "precision": precision,
        "recall": recall,
        "accuracy": float((classes == np.asarray(prompts.values)).mean()),
        "nll": guided_nll(
            Transformer(bundle.prior.config),
            bundle.prior.params,
            run.tokens,
            np.asarray(prompts.values),
            settings.cfg_scale,
        ),
        "psnr": float(10 * np.log10(255**2 / error)) if error else None,
        "code_distance": float(distance.mean()),
        "same_tokens": float((run.tokens == plain.tokens).mean()),
    }


def measure_quality(
    bundle: Bundle,
    prompts: Prompts,
    settings: GenerationConfig,
    verifiers: Sequence[str],
    tree: Tree | DynamicTree,
    heldout: HeldOut,
    extract: Extractor,
    *,
    seeds: Sequence[int],
    loaded: LoadedDrafter | None = None,
    progress: Progress = lambda count: None,
) -> dict[str, Any]:
    """Measures plain decoding and each verifier over several seeds.

    Args:
      bundle: models.
      prompts: class labels of the images.
      settings: batch size and CFG scale; seed and verifier are replaced.
      verifiers: names of verifiers, see `parse_verifier`.
      tree: shape of the drafts.
      heldout: features of held-out images.
      extract: features and classes of images.
      seeds: seeds of the noise, at least two for a standard deviation.
      loaded: drafter; None for the bundle's own.
      progress: callback with the number of images generated since the last call.

    Raises:
      ConfigError: there are fewer than two different seeds, or a verifier does not
        support the drafter.
    """
    if len(seeds) < 2 or len(set(seeds)) < len(seeds):
        raise ConfigError("quality needs at least two seeds, all different")
    bundle = bundle_for(bundle, loaded)
    parsed = {name: parse_verifier(name) for name in verifiers}
    cells: dict[str, list[dict[str, float | None]]] = {
        "plain": [],
        **{n: [] for n in verifiers},
    }
    for seed in seeds:
        seeded = replace(settings, seed=seed, verifier=parse_verifier("coupled"))
        measure = partial(measure_run, heldout=heldout, extract=extract)
        plain = generate(
            bundle, prompts, seeded, Tree.root(), loaded=loaded, progress=progress
        )
        cells["plain"].append(
            {"tokens_per_call": 1.0, **measure(bundle, prompts, seeded, plain, plain)}
        )
        for name, verifier in parsed.items():
            verified = replace(seeded, verifier=verifier)
            run = generate(
                bundle, prompts, verified, tree, loaded=loaded, progress=progress
            )
            values = measure(bundle, prompts, verified, run, plain)
            cells[name].append({"tokens_per_call": run.tokens_per_call, **values})
    return {
        "checkpoint": bundle.name,
        "images": len(prompts),
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
                "lossless": name == "plain" or parsed[name].lossless,
                **{key: [cell[key] for cell in values] for key in values[0]},
            }
            for name, values in cells.items()
        ],
    }
