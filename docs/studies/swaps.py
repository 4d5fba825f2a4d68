"""Decoders trained against swaps of similar codes, under relaxed verifiers."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from docs.studies.command import run_study
from docs.studies.ways import OPTIONS, Comparison
from jaxspec.bench.description import Benchmark, Option
from jaxspec.bench.roofline.ceilings import measure_ceilings
from jaxspec.checkpoint import load_checkpoint
from jaxspec.data.batches import evenly_spaced
from jaxspec.data.tfds_images import tfds_images
from jaxspec.errors import ConfigError
from jaxspec.evaluate.image_metrics import frechet_distance
from jaxspec.evaluate.tables import environment, markdown_table, report_heading
from jaxspec.io.images import to_unit
from jaxspec.pipeline.bundle import Bundle, load_bundle
from jaxspec.pipeline.config import GenerationConfig
from jaxspec.pipeline.decoding import decode_images
from jaxspec.pipeline.drafters import load_drafter
from jaxspec.pipeline.generation import generate
from jaxspec.pipeline.prompts import Prompts
from jaxspec.pipeline.verifiers import parse_verifier
from jaxspec.train.start import with_codes_of

VERIFIERS = (
    "coupled",
    "coupled-relaxed:k=50,budget=1.0,radius=0.4",
    "lantern:k=10,lam=5",
    "lantern:k=5,lam=20",
    "lantern:k=100,lam=20",
)
# Shares of swapped tokens and numbers of nearest codes of reconstructions.
SWAPS = ((0.0, 1), (0.25, 10), (0.5, 10), (0.5, 100), (1.0, 10))


def measure_swaps(
    *,
    decoders: list[str],
    checkpoint: str | None = None,
    cfg_scale: float = 2.0,
    num: int = 192,
    seeds: int = 3,
    data_dir: str = "data",
    manual_dir: str | None = None,
    save=None,
) -> dict[str, Any]:
    """Decodes the same tokens with several decoders.

    All decoders have the tokens of one tokenizer, so that a verifier accepts the same
    drafts whatever decodes them.

    Args:
      decoders: Folders of trainings of the decoder alone.
      checkpoint: Bundle of a model that generates token by token, with a drafter.
      cfg_scale: CFG scale.
      num: Number of images of each seed.
      seeds: Number of seeds.
      data_dir: Folder of the prepared data.
      manual_dir: Folder of files that tfds cannot download.
      save: Callback for unfinished reports.

    Returns:
      Report with a row for each verifier, and for each share of swapped tokens of
      held-out images, with a list of measures by decoder.

    Raises:
      ConfigError: a decoder is for other tokens, or two have the same name.
    """
    bundle = load_bundle(checkpoint or "fruits64")
    loaded = load_drafter("own", bundle)
    bundles = {"own": bundle}
    names = [Path(folder).name for folder in decoders]
    if len({"own", *names}) <= len(names):
        raise ConfigError(f"--decoders: give folders of different names, not {names}")
    for name, folder in zip(names, decoders, strict=True):
        bundles[name] = _with_decoder(bundle, folder)
    comparison = Comparison.on_fruits(bundle, num, seeds, data_dir, manual_dir)
    prompts = Prompts.from_classes(comparison.classes.reshape(-1).tolist())
    rows: list[dict[str, Any]] = []
    report = {
        "dtype": "float32",
        "repeats": seeds,
        "cfg_scale": cfg_scale,
        "num": num,
        "decoders": list(bundles),
        "heldout_accuracy": comparison.accuracy,
        "ceilings": measure_ceilings("float32").fields(),
        "rows": rows,
        **environment(),
    }
    plain = {}
    for name in VERIFIERS:
        found: dict[str, list[Any]] = {other: [] for other in bundles}
        per_call = []
        for seed in range(seeds):
            config = GenerationConfig(
                seed=seed,
                cfg_scale=cfg_scale,
                batch_size=32,
                verifier=parse_verifier(name),
            )
            tree = loaded.tree("optimal-8")
            run = generate(bundle, prompts, config, tree, loaded=loaded)
            per_call.append(run.tokens_per_call)
            plain.setdefault(seed, run.tokens)
            for other, models in bundles.items():
                images = decode_images(models, run.tokens)
                exact = decode_images(models, plain[seed])
                asked = comparison.classes.reshape(-1)
                found[other].append(_measures(comparison, images, exact, asked))
        rows.append({"verifier": name, "tokens_per_call": per_call, **found})
        if save is not None:
            save(report)
    side = bundle.tokenizer.config.image_size
    source = tfds_images("fruits360_64", "test", side, data_dir, manual_dir)
    indices = evenly_spaced(len(source), num)
    images, labels = source.take(indices), source.labels[indices]
    for share, nearest in SWAPS:
        found = {other: [] for other in bundles}
        for seed in range(seeds):
            codes = _swapped(bundle, images, share, nearest, seed)
            for other, models in bundles.items():
                shown = decode_images(models, codes)
                found[other].append(_measures(comparison, shown, images, labels))
        rows.append({"share": share, "nearest": nearest, **found})
        if save is not None:
            save(report)
    return report


def _with_decoder(bundle: Bundle, folder: str) -> Bundle:
    path = Path(folder) / "checkpoint" / "tokenizer"
    found = load_checkpoint(path, "tokenizer")
    own = bundle.tokenizer
    changed = with_codes_of(own.params, found.params)
    if found.config != own.config or not jax.tree.all(
        jax.tree.map(np.array_equal, changed, found.params)
    ):
        raise ConfigError(f"'{path}' makes other tokens than bundle '{bundle.name}'")
    return replace(bundle, image_tokenizer=found)


def _swapped(bundle, images, share, nearest, seed):
    """Tokens of images, a share of them swapped for one of their nearest codes."""
    tokenizer = bundle.tokenizer
    encode = jax.jit(tokenizer.model.encode)
    codes = np.concatenate(
        [
            encode(tokenizer.params, to_unit(part))
            for part in np.split(images, len(images) // 32)
        ]
    )
    rng = np.random.default_rng(seed)
    rank = rng.integers(0, nearest, codes.shape)
    other = np.asarray(tokenizer.neighbors.ids)[codes, rank]
    return np.where(rng.random(codes.shape) < share, other, codes).astype(np.int32)


def _measures(comparison, images, exact, labels):
    """Fréchet distance, class accuracy, and dB to other images."""
    features, classes = comparison.extract(images)
    error = np.mean((images - exact.astype(np.float64)) ** 2)
    return [
        frechet_distance(comparison.real, features),
        float((classes == labels).mean()),
        float(10 * np.log10(255**2 / error)) if error else None,
    ]


def swaps_markdown(result: dict[str, Any]) -> str:
    """Formats a report of `measure_swaps`."""
    names = result["decoders"]
    verified, swapped = [], []
    for row in result["rows"]:
        cells = [cell for name in names for cell in _cells(row[name])]
        if "verifier" in row:
            rate = f"{np.mean(row['tokens_per_call']):.2f}"
            verified.append([row["verifier"], rate, *cells])
        else:
            swapped.append([f"{row['share']:g}", str(row["nearest"]), *cells])
    columns = [
        f"{name}: {measure}"
        for name in names
        for measure in ("Frechet distance", "class accuracy", "dB")
    ]
    description = (
        f"{result['num']} images of each of {result['repeats']} seeds, CFG scale "
        f"{result['cfg_scale']:g}, trees of 8 nodes. Each decoder decodes the same "
        "tokens. Decibels are those to the plain image of the same decoder; in the "
        "second table, of held-out images whose tokens are swapped, to the image "
        "itself. Distances are those of features of the embedded classifier to as many "
        f"held-out images, of which it gets {100 * result['heldout_accuracy']:.0f} % "
        "right; numbers are means and standard deviations over seeds."
    )
    heading = report_heading("Swaps between similar codes", result, description)
    first = markdown_table(["verifier", "tokens a call", *columns], verified)
    if not swapped:
        return heading + first
    second = markdown_table(["share of tokens", "nearest codes", *columns], swapped)
    return heading + first + "\n" + second


def _cells(values):
    distance, accuracy, decibels = zip(*values, strict=True)
    noise = "same" if None in decibels else f"{np.mean(decibels):.1f}"
    return [
        f"{np.mean(distance):.2f} ({np.std(distance):.2f})",
        f"{100 * np.mean(accuracy):.0f} %",
        noise,
    ]


STUDY = Benchmark(
    "swaps",
    summary="decoders under relaxed verifiers",
    description="Decodes the tokens of lossless and relaxed verifiers, and of swaps, "
    "with several decoders of one tokenizer.",
    example="Example: python -m docs.studies.swaps --decoders runs/robust "
    "--out reports/swaps",
    options=(
        Option("checkpoint", "bundle folder", metavar="DIR"),
        Option(
            "decoders",
            "working folders of trainings of the decoder alone",
            several=True,
            default=(),
            metavar="DIR",
        ),
        Option("cfg-scale", "CFG scale", float, default=2.0, metavar="S"),
        *OPTIONS,
    ),
    measure=measure_swaps,
    markdown=swaps_markdown,
    saves=True,
    program="python -m docs.studies.swaps",
)

if __name__ == "__main__":
    sys.exit(run_study(STUDY))
