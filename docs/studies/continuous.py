"""Continuous tokens: time and quality of plain and of drafted generation (MAR)."""

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from docs.studies.command import run_study
from jaxspec.bench.description import Benchmark, Option
from jaxspec.bench.roofline.ceilings import measure_ceilings
from jaxspec.checkpoint import checkpoint_of, load_checkpoint
from jaxspec.config import MARConfig
from jaxspec.core.diffusion import DiffusionSchedule
from jaxspec.core.generator import generate
from jaxspec.core.noise import batch_keys
from jaxspec.core.sampling import Sampling
from jaxspec.data.tfds_images import tfds_images
from jaxspec.errors import ConfigError
from jaxspec.evaluate.image_metrics import frechet_distance
from jaxspec.evaluate.plot import Line, Panel, plot_panels
from jaxspec.evaluate.quality import classifier_features, read_heldout
from jaxspec.evaluate.tables import environment, markdown_table, report_heading
from jaxspec.mar import (
    RELEASED,
    CoupledMAR,
    DensityTest,
    MARGenerator,
    MARVariables,
    SpeculativeMAR,
    UnmaskingSchedule,
)
from jaxspec.models.mar.model import MAR
from jaxspec.pipeline.bundle import load_bundle
from jaxspec.pipeline.decoding import decode_images
from jaxspec.pipeline.embedded import find_folder

BATCH = 32


@dataclass(frozen=True)
class Way:
    """One way of generating.

    Attributes:
      family: Name of its line in the plot.
      name: Name of its row.
      generator: Generator.
      variables: Its parameters.
      rows: Number of rows of a pass of the large model, for one image and one branch.
      tokens: Number of tokens of a row that the head samples.
    """

    family: str
    name: str
    generator: Any
    variables: MARVariables
    rows: int
    tokens: int


def ways(
    large: MAR, small: MAR, params: tuple[Any, Any], steps: int, head: int
) -> Iterator[Way]:
    """All ways that are compared.

    Args:
      large: The target.
      small: The drafter.
      params: Parameters of both.
      steps: Largest number of steps.
      head: Largest number of steps of a chain.
    """
    length, trained = large.config.sequence_length, large.config.diffusion_steps
    chain = DiffusionSchedule(trained, head)
    full = MARGenerator(large, UnmaskingSchedule(length, steps), chain)
    own, both = MARVariables(params[0]), MARVariables(*params)

    def plain(family, name, generator, variables=own):
        most = generator.schedule.most_of(1)
        return Way(family, name, generator, variables, 1, most)

    yield plain("steps", f"plain, {steps} steps", full)
    for count in (steps // 2, steps // 4, steps // 8):
        fewer = replace(full, schedule=UnmaskingSchedule(length, count))
        yield plain("steps", f"plain, {count} steps", fewer)
    yield plain(
        "head", f"chains of {head} to {head // 10} (DiSA)",
        replace(full, last_count=head // 10),
    )  # fmt: skip
    for count in (head // 2, head // 5, head // 10):
        short = replace(full, head=replace(chain, count=count))
        yield plain("head", f"chains of {count}", short)
    for count in (head, head // 5, head // 10):
        ddim = replace(full, head=DiffusionSchedule(trained, count, "ddim"))
        yield plain("DDIM", f"DDIM chains of {count}", ddim)
    drafter = replace(full, model=small)
    yield plain("drafter", "the drafter alone", drafter, MARVariables(params[1]))
    for radius in (0.0, 0.25, 0.5, 0.75, 1.0):
        coupled = CoupledMAR(full, drafter, window=4, radius=radius)
        most = full.schedule.most_of(1)
        yield Way("coupled", f"coupled, radius {radius:g}", coupled, both, 5, most)
    tests = {
        "ours": DensityTest(),
        "paper's product": DensityTest("paper"),
        "released code": RELEASED,
    }
    for name, test in tests.items():
        for window in (2, 4) if name == "ours" else (4,):
            density = SpeculativeMAR(full, drafter, window=window, test=test)
            most = full.schedule.most_of(window)
            title = f"CSpD, {name}, window {window}"
            yield Way("CSpD", title, density, both, 1, most)


def measure_continuous(
    *,
    checkpoint: str | None = None,
    drafter: str | None = None,
    steps: int = 32,
    head: int = 50,
    cfg_scale: float = 2.0,
    num: int = 192,
    seeds: int = 3,
    data_dir: str = "data",
    manual_dir: str | None = None,
    save=None,
) -> dict[str, Any]:
    """Generates images of all classes in every way, and measures them.

    Args:
      checkpoint: Bundle folder of the target.
      drafter: Folder of the model that drafts.
      steps: Steps of plain generation.
      head: Steps of a chain of the head.
      cfg_scale: CFG scale.
      num: Number of images.
      seeds: Number of seeds.
      data_dir: Folder of the prepared data.
      manual_dir: Folder of files that tfds cannot download.
      save: Callback for unfinished reports.

    Returns:
      Report with one row for each way.

    Raises:
      ConfigError: A model is no MAR, or its drafter is missing.
    """
    if num % BATCH:
        raise ConfigError(f"--num {num}: choose a multiple of {BATCH}")
    bundle = load_bundle(checkpoint)
    if drafter is None or not isinstance(bundle.prior.config, MARConfig):
        raise ConfigError(
            "name two models of continuous tokens: --checkpoint --drafter"
        )
    small = load_checkpoint(checkpoint_of(drafter, "prior"), "mar")
    models = bundle.prior.model, small.model
    params = bundle.prior.params, small.params
    classifier = load_checkpoint(find_folder("fruits64") / "classifier", "classifier")
    extract = classifier_features(classifier)
    side = bundle.tokenizer.config.image_size
    source = tfds_images("fruits360_64", "test", side, data_dir, manual_dir)
    held = read_heldout(source, extract, num)
    classes = np.arange(num) % bundle.prior.config.classes
    batches = classes.reshape(-1, BATCH).astype(np.int32)
    rows: list[dict[str, Any]] = []
    report = {
        "dtype": "float32",
        "repeats": seeds,
        "steps": steps,
        "head": head,
        "cfg_scale": cfg_scale,
        "num": num,
        "parameters": [bundle.prior.size, small.size],
        "heldout_accuracy": held.accuracy,
        "ceilings": measure_ceilings("float32").fields(),
        "rows": rows,
        **environment(),
    }
    for way in ways(*models, params, steps, head):
        rows.append(
            _row(way, bundle, batches, cfg_scale, seeds, extract, held.features)
        )
        if save is not None:
            save(report)
    return report


def _row(way, bundle, batches, cfg_scale, seeds, extract, real) -> dict[str, Any]:
    """Measurements of one way over all seeds."""
    generator, sampling = way.generator, Sampling.create(cfg_scale=cfg_scale)
    run = jax.jit(partial(generate, generator))
    distances, accuracies, calls, kept, seconds = [], [], [], [], []

    def batch_of(i, seed):
        keys = batch_keys(seed, jnp.arange(i * BATCH, (i + 1) * BATCH))
        out = run(way.variables, batches[i], sampling=sampling, keys=keys)
        return jax.block_until_ready(out)

    batch_of(0, 0)  # compiles
    for seed in range(seeds):
        began = time.perf_counter()
        parts = [batch_of(i, seed) for i in range(len(batches))]
        seconds.append((time.perf_counter() - began) / batches.size)
        tokens = np.concatenate([np.asarray(part.tokens) for part in parts])
        images = decode_images(bundle, tokens)
        features, found = extract(images)
        distances.append(frechet_distance(real, features))
        accuracies.append(float((found == batches.reshape(-1)).mean()))
        calls.append(float(np.mean([part.stats.calls.mean() for part in parts])))
        proposed = sum(int(part.stats.proposed.sum()) for part in parts)
        accepted = [np.asarray(part.stats.accepted).sum(0) for part in parts]
        counts = np.sum(accepted, axis=0) @ np.arange(len(accepted[0]))
        kept.append(float(counts) / proposed if proposed else None)
    chains = (generator if hasattr(generator, "chains") else generator.target).chains
    mean_chain = float(np.mean([chains[0][i].count for i in chains[1]]))
    return {
        "family": way.family,
        "way": way.name,
        "calls": float(np.mean(calls)),
        "row_passes": float(np.mean(calls)) * way.rows,
        "head_evaluations": float(np.mean(calls)) * way.rows * way.tokens * mean_chain,
        "kept": kept,
        "seconds": seconds,
        "distance": distances,
        "accuracy": accuracies,
    }


def continuous_markdown(result: dict[str, Any]) -> str:
    """Formats a report of `measure_continuous`."""
    columns = ["generation", "calls", "rows", "head", "ms an image"]
    columns += ["Frechet distance", "class accuracy"]
    cells = []
    for row in result["rows"]:
        times, distances = 1e3 * np.array(row["seconds"]), np.array(row["distance"])
        cells.append(
            [
                row["way"],
                f"{row['calls']:.1f}",
                f"{row['row_passes']:.0f}",
                f"{row['head_evaluations']:.0f}",
                f"{np.median(times):.0f} ({times.min():.0f} to {times.max():.0f})",
                f"{distances.mean():.2f} ± {distances.std(ddof=1):.2f}",
                f"{100 * np.mean(row['accuracy']):.0f} %",
            ]
        )
    large, small = (f"{n / 1e6:.1f} M" for n in result["parameters"])
    description = (
        f"Two models over continuous tokens of Fruits-360 ({large} and {small} "
        f"parameters), {result['num']} images of each of {result['repeats']} seeds, "
        f'batch {BATCH}, CFG scale {result["cfg_scale"]:g}. "Calls" are passes of the '
        'large model for an image, "rows" passes times rows of a sequence and branch, '
        '"head" evaluations of its head for a token and branch (the drafter alone: '
        "those of the small model). The distance is that of features of the embedded "
        f"classifier to as many held-out images, of which the classifier gets "
        f"{100 * result['heldout_accuracy']:.0f} % right; mean and standard deviation "
        f"over seeds. A window has 4 steps, and plain generation {result['steps']}."
    )
    title = "Continuous tokens, plain and drafted"
    return report_heading(title, result, description) + markdown_table(columns, cells)


def continuous_plot(result: dict[str, Any]) -> np.ndarray:
    """Distance over time and over calls, one line for each family."""
    families: dict[str, list[dict[str, Any]]] = {}
    for row in result["rows"]:
        families.setdefault(row["family"], []).append(row)

    def lines(value):
        points = {name: sorted(map(value, rows)) for name, rows in families.items()}
        return [
            Line(name, [x for x, _ in found], [y for _, y in found])
            for name, found in points.items()
        ]

    def by_time(row):
        return 1e3 * float(np.median(row["seconds"])), float(np.mean(row["distance"]))

    def by_calls(row):
        return row["calls"], float(np.mean(row["distance"]))

    panels = [
        Panel("milliseconds an image", lines(by_time)),
        Panel("calls of the large model", lines(by_calls)),
    ]
    return plot_panels(panels, "", "Frechet distance")


STUDY = Benchmark(
    "continuous",
    summary="plain and drafted generation of continuous tokens",
    description="Generates images with a model over continuous tokens in several "
    "ways, and measures time, calls and Frechet distance.",
    example="Example: python -m docs.studies.continuous --checkpoint runs/mar "
    "--drafter runs/mar_small --out docs/reports/continuous_cpu",
    options=(
        Option("checkpoint", "bundle folder of the target", metavar="DIR"),
        Option("drafter", "folder of the model that drafts", metavar="DIR"),
        Option("steps", "steps of plain generation", int, default=32, least=8),
        Option("head", "steps of a chain of the head", int, default=50, least=20),
        Option("cfg-scale", "CFG scale", float, default=2.0, metavar="S"),
        Option("num", "number of images", int, default=192, least=BATCH),
        Option("seeds", "number of seeds", int, default=3, least=2),
        Option("data-dir", "folder of prepared data", default="data", metavar="DIR"),
        Option("manual-dir", "folder of files of the data set", metavar="DIR"),
    ),
    measure=measure_continuous,
    markdown=continuous_markdown,
    plot=continuous_plot,
    saves=True,
    program="python -m docs.studies.continuous",
)

if __name__ == "__main__":
    sys.exit(run_study(STUDY))
