"""Watermark: detection after attacks, and the change of images."""

import io
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from docs.studies.command import run_study
from docs.studies.ways import OPTIONS, Comparison
from jaxspec.bench.description import Benchmark, Option
from jaxspec.bench.roofline.ceilings import measure_ceilings
from jaxspec.errors import ConfigError
from jaxspec.evaluate.image_metrics import frechet_distance
from jaxspec.evaluate.tables import environment, markdown_table, report_heading
from jaxspec.pipeline.bundle import load_bundle
from jaxspec.pipeline.config import GenerationConfig
from jaxspec.pipeline.decoding import decode_images
from jaxspec.pipeline.drafters import load_drafter
from jaxspec.pipeline.encoding import encode_images
from jaxspec.pipeline.generation import generate
from jaxspec.pipeline.prompts import Prompts
from jaxspec.pipeline.verifiers import parse_verifier
from jaxspec.pipeline.watermark import Watermark, codebook_of, with_encoder
from jaxspec.watermark import Detection, Key

THRESHOLDS = 0.0, 1.0, 2.0, 4.0, float("inf")
# Probability of a false alarm of the reported detections.
ALARMS = 1e-3
VERIFIERS = (
    "coupled",
    "coupled-relaxed:k=10,budget=0.2,radius=1.0",
    "lantern:k=10,lam=2",
)
Attack = Callable[[np.ndarray], np.ndarray]


def _jpeg(quality: int) -> Attack:
    def attack(image: np.ndarray) -> np.ndarray:
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=quality)
        return np.asarray(Image.open(file).convert("RGB"))

    return attack


def _noise(deviation: float) -> Attack:
    def attack(image: np.ndarray) -> np.ndarray:
        noise = np.random.default_rng(0).normal(0, deviation, image.shape)
        return np.clip(image + noise, 0, 255).round().astype(np.uint8)

    return attack


def _resized(side: int) -> Attack:
    def attack(image: np.ndarray) -> np.ndarray:
        small = Image.fromarray(image).resize((side, side), Image.Resampling.LANCZOS)
        return np.asarray(small)

    return attack


def _cropped(pixels: int) -> Attack:
    """Removes a border, which moves the grid of tokens after resizing."""
    return lambda image: image[pixels:-pixels, pixels:-pixels]


ATTACKS: dict[str, Attack] = {
    "decoded and encoded": lambda image: image,
    "JPEG 95": _jpeg(95),
    "JPEG 75": _jpeg(75),
    "JPEG 50": _jpeg(50),
    "noise 2": _noise(2),
    "noise 8": _noise(8),
    "resized to 128": _resized(128),
    "resized to 48": _resized(48),
    "cropped by 1": _cropped(1),
    "cropped by 4": _cropped(4),
}
# Attacks after which all places of the grid of tokens are also tested.
SEARCHED = "cropped by 1", "cropped by 4"


def measure_watermark(
    *,
    checkpoint: str | None = None,
    encoder: str | None = None,
    cfg_scale: float = 2.0,
    num: int = 192,
    seeds: int = 3,
    data_dir: str = "data",
    manual_dir: str | None = None,
    save=None,
) -> dict[str, Any]:
    """Marks images at several thresholds, attacks them, and tests for the mark.

    Args:
      checkpoint: Bundle of a model that generates token by token.
      encoder: Tokenizer that was trained to find tokens again; None for no such rows.
      cfg_scale: CFG scale.
      num: Number of images of each seed.
      seeds: Number of seeds, each with a key of its own.
      data_dir: Folder of the prepared data.
      manual_dir: Folder of files that tfds cannot download.
      save: Callback for unfinished reports.

    Returns:
      Report with one row for each verifier and threshold.

    Raises:
      ConfigError: The bundle's model does not generate token by token.
    """
    bundle = load_bundle(checkpoint or "fruits64")
    if bundle.drafter is None:
        raise ConfigError(f"bundle '{bundle.name}' has no drafter, for the verifiers")
    loaded = load_drafter("own", bundle)
    comparison = Comparison.on_fruits(bundle, num, seeds, data_dir, manual_dir)
    prompts = Prompts.from_classes(comparison.classes.reshape(-1).tolist())
    rows: list[dict[str, Any]] = []
    report = {
        "dtype": "float32",
        "repeats": seeds,
        "cfg_scale": cfg_scale,
        "num": num,
        "alarms": ALARMS,
        "heldout_accuracy": comparison.accuracy,
        "ceilings": measure_ceilings("float32").fields(),
        "rows": rows,
        **environment(),
    }
    keys = Key(0).paired(codebook_of(bundle))
    for name in VERIFIERS:
        sets = []
        for seed in range(seeds):
            config = GenerationConfig(
                seed=seed,
                cfg_scale=cfg_scale,
                batch_size=32,
                verifier=parse_verifier(name),
            )
            tree = loaded.tree("optimal-8")
            run = generate(bundle, prompts, config, tree, loaded=loaded)
            sets.append((config, run.tokens, decode_images(bundle, run.tokens)))
        thresholds = THRESHOLDS if name == VERIFIERS[0] else (2.0,)
        readers = {"own": bundle}
        if encoder is not None and name == VERIFIERS[0]:
            readers["trained"] = with_encoder(bundle, Path(encoder))
        for threshold in (None, *thresholds):
            for reader, read in readers.items():
                row = _row(bundle, read, prompts, comparison, sets, threshold, keys)
                first = {"verifier": name, "encoder": reader, "threshold": threshold}
                rows.append({**first, **row})
                if save is not None:
                    save(report)
    return report


def _row(bundle, read, prompts, comparison, sets, threshold, keys) -> dict[str, Any]:
    """Detections, and the change of images, of one threshold; None for no mark.

    Images are encoded by the bundle `read`.
    """
    searched = tuple(f"{name}, searched" for name in SEARCHED)
    names = ("tokens", *ATTACKS, *searched)
    detected: dict[str, list[float]] = {name: [] for name in names}
    distances, accuracies, psnr, shares = [], [], [], []
    for key, (config, tokens, images) in enumerate(sets):
        nats = float("inf") if threshold is None else threshold
        mark = Watermark.of(bundle, replace(keys, secret=key), nats)
        marked, shown = tokens, images
        if threshold is not None:
            marked = mark.mark(bundle, prompts, config, tokens)
            shown = decode_images(bundle, marked)
        shares.append(mark.detect(marked).share)
        detected["tokens"].append(_rate(map(mark.detect, marked)))
        for name, attack in ATTACKS.items():
            attacked = [attack(image) for image in shown]
            found = map(mark.detect, encode_images(read, attacked))
            detected[name].append(_rate(found))
            if name in SEARCHED:
                found = (mark.detect_crop(read, image) for image in attacked)
                detected[f"{name}, searched"].append(_rate(found))
        error = np.mean((shown - images.astype(np.float64)) ** 2, axis=(1, 2, 3))
        psnr.append(float(np.mean(10 * np.log10(255**2 / np.maximum(error, 0.1)))))
        features, classes = comparison.extract(shown)
        distances.append(frechet_distance(comparison.real, features))
        accuracies.append(float((classes == comparison.classes.reshape(-1)).mean()))
    return {
        "green": shares,
        "detected": detected,
        "psnr": psnr if threshold is not None else None,
        "distance": distances,
        "accuracy": accuracies,
    }


def _rate(found: Iterable[Detection]) -> float:
    """Share of the images in which the mark is found."""
    return float(np.mean([x.p_value <= ALARMS for x in found]))


def watermark_markdown(result: dict[str, Any]) -> str:
    """Formats a report of `measure_watermark`."""
    cells = []
    for row in result["rows"]:
        threshold = row["threshold"]
        cells.append(
            [
                row["verifier"].partition(":")[0],
                row["encoder"],
                "no mark" if threshold is None else f"{threshold:g}",
                f"{100 * np.mean(row['green']):.0f} %",
                *(f"{100 * np.mean(x):.0f}" for x in row["detected"].values()),
                f"{np.mean(row['psnr']):.1f}" if row["psnr"] else "",
                f"{np.mean(row['distance']):.2f}",
                f"{100 * np.mean(row['accuracy']):.0f} %",
            ]
        )
    attacks = list(result["rows"][0]["detected"])
    columns = ["verifier", "encoder", "nats", "green", *attacks]
    columns += ["dB to unmarked", "Frechet distance", "class accuracy"]
    description = (
        f"{result['num']} images of each of {result['repeats']} seeds and keys, CFG "
        f'scale {result["cfg_scale"]:g}. Columns from "tokens" on are shares of '
        "single images in percent in which the mark is found, with at most "
        f"{result['alarms']:g} false alarms. Nats are the largest loss of "
        "log-probability of a swap. Distances are those of features of the embedded "
        "classifier to as many held-out images, of which it gets "
        f"{100 * result['heldout_accuracy']:.0f} % right."
    )
    return report_heading("Watermark", result, description) + markdown_table(
        columns, cells
    )


STUDY = Benchmark(
    "watermark",
    summary="detection of a watermark after attacks",
    description="Marks images of the embedded fruit at several thresholds, and tests "
    "for the mark in tokens, in decoded images, and after attacks.",
    example="Example: python -m docs.studies.watermark --out reports/watermark",
    options=(
        Option("checkpoint", "bundle folder", metavar="DIR"),
        Option("encoder", "tokenizer trained to find tokens again", metavar="DIR"),
        Option("cfg-scale", "CFG scale", float, default=2.0, metavar="S"),
        *OPTIONS,
    ),
    measure=measure_watermark,
    markdown=watermark_markdown,
    saves=True,
    program="python -m docs.studies.watermark",
)

if __name__ == "__main__":
    sys.exit(run_study(STUDY))
