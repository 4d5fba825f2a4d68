"""Continuous tokens: time and quality of plain and of drafted generation (MAR)."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from docs.studies import ways
from docs.studies.command import run_study
from docs.studies.ways import TIME_AND_QUALITY, Columns, Comparison, measure_way
from jaxspec.bench.description import Benchmark, Option
from jaxspec.bench.roofline.ceilings import measure_ceilings
from jaxspec.checkpoint import Checkpoint, checkpoint_of, load_checkpoint
from jaxspec.config import MARConfig
from jaxspec.core.diffusion import DiffusionSchedule
from jaxspec.errors import ConfigError
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
from jaxspec.pipeline.bundle import Bundle, load_bundle

FAMILIES = "steps", "head", "DDIM", "drafter", "coupled", "CSpD"


@dataclass(frozen=True)
class Way(ways.Way):
    """One way of generating.

    Attributes:
      rows: Number of rows of a pass of the large model, for one image and one branch.
      tokens: Number of tokens of a row that the head samples.
    """

    rows: int
    tokens: int


def all_ways(
    bundle: Bundle, small: Checkpoint, cfg_scale: float, steps: int, head: int
) -> Iterator[Way]:
    """All ways that are compared.

    Args:
      bundle: The target, with its tokenizer.
      small: The drafter.
      cfg_scale: CFG scale.
      steps: Largest number of steps.
      head: Largest number of steps of a chain.
    """
    large, params = bundle.prior.model, (bundle.prior.params, small.params)
    length, trained = large.config.sequence_length, large.config.diffusion_steps
    chain = DiffusionSchedule(trained, head)
    full = MARGenerator(large, UnmaskingSchedule(length, steps), chain)
    own, both = MARVariables(params[0]), MARVariables(*params)

    def way(family, name, generator, variables, rows, tokens):
        models = variables, bundle, cfg_scale
        return Way(family, name, generator, *models, rows, tokens)

    def plain(family, name, generator, variables=own):
        most = generator.schedule.most_of(1)
        return way(family, name, generator, variables, 1, most)

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
    drafter = replace(full, model=small.model)
    yield plain("drafter", "the drafter alone", drafter, MARVariables(params[1]))
    for radius in (0.0, 0.25, 0.5, 0.75, 1.0):
        coupled = CoupledMAR(full, drafter, window=4, radius=radius)
        most = full.schedule.most_of(1)
        yield way("coupled", f"coupled, radius {radius:g}", coupled, both, 5, most)
    tests = {
        "ours": DensityTest(),
        "paper's product": DensityTest("paper"),
        # As many drafts are kept as with radius .25, and with radius .5.
        "flattened by 42": DensityTest(flattening=42),
        "flattened by 170": DensityTest(flattening=170),
        "released code": RELEASED,
    }
    for name, test in tests.items():
        for window in (2, 4) if name == "ours" else (4,):
            density = SpeculativeMAR(full, drafter, window=window, test=test)
            most = full.schedule.most_of(window)
            title = f"CSpD, {name}, window {window}"
            yield way("CSpD", title, density, both, 1, most)


def measure_continuous(
    *,
    checkpoint: str | None = None,
    drafter: str | None = None,
    families: Sequence[str] = FAMILIES,
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
      families: Families of ways.
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
    bundle = load_bundle(checkpoint)
    if drafter is None or not isinstance(bundle.prior.config, MARConfig):
        raise ConfigError(
            "name two models of continuous tokens: --checkpoint --drafter"
        )
    small = load_checkpoint(checkpoint_of(drafter, "prior"), "mar")
    comparison = Comparison.on_fruits(bundle, num, seeds, data_dir, manual_dir)
    rows: list[dict[str, Any]] = []
    report = {
        "dtype": "float32",
        "repeats": seeds,
        "steps": steps,
        "head": head,
        "cfg_scale": cfg_scale,
        "num": num,
        "parameters": [bundle.prior.size, small.size],
        "heldout_accuracy": comparison.accuracy,
        "ceilings": measure_ceilings("float32").fields(),
        "rows": rows,
        **environment(),
    }
    for way in all_ways(bundle, small, cfg_scale, steps, head):
        if way.family not in families:
            continue
        row = measure_way(way, comparison).fields
        rows.append({**row, **_costs(way, row["calls"])})
        if save is not None:
            save(report)
    return report


def _costs(way: Way, calls: float) -> dict[str, float]:
    """Rows of passes of the large model, and evaluations of its head."""
    generator = way.generator
    chains = (generator if hasattr(generator, "chains") else generator.target).chains
    mean_chain = float(np.mean([chains[0][i].count for i in chains[1]]))
    rows = calls * way.rows
    return {"row_passes": rows, "head_evaluations": rows * way.tokens * mean_chain}


def _kept(row: dict[str, Any]) -> str:
    """Share of the drafted tokens that are kept."""
    found = [share for share in row.get("kept", ()) if share is not None]
    return f"{100 * np.mean(found):.0f} %" if found else ""


COLUMNS: Columns = {
    "generation": lambda row: row["way"],
    "calls": lambda row: f"{row['calls']:.1f}",
    "rows": lambda row: f"{row['row_passes']:.0f}",
    "head": lambda row: f"{row['head_evaluations']:.0f}",
    "kept": _kept,
    **TIME_AND_QUALITY,
}


def continuous_markdown(result: dict[str, Any]) -> str:
    """Formats a report of `measure_continuous`."""
    large, small = (f"{n / 1e6:.1f} M" for n in result["parameters"])
    description = (
        f"Two models over continuous tokens of Fruits-360 ({large} and {small} "
        f"parameters), {result['num']} images of each of {result['repeats']} seeds, "
        f'batch {ways.BATCH}, CFG scale {result["cfg_scale"]:g}. "Calls" are passes of '
        'the large model for an image, "rows" passes times rows of a sequence and '
        "branch, "
        '"head" evaluations of its head for a token and branch (the drafter alone: '
        "those of the small model). The distance is that of features of the embedded "
        f"classifier to as many held-out images, of which the classifier gets "
        f"{100 * result['heldout_accuracy']:.0f} % right; mean and standard deviation "
        f"over seeds. A window has 4 steps, and plain generation {result['steps']}."
    )
    title = "Continuous tokens, plain and drafted"
    return report_heading(title, result, description) + markdown_table(
        [*COLUMNS], ways.cells_of(result["rows"], COLUMNS)
    )


def continuous_plot(result: dict[str, Any]) -> np.ndarray:
    """Distance over time and over calls, one line for each family."""
    return ways.plot_distances(result["rows"])


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
        Option(
            "families",
            "families of ways",
            default=FAMILIES,
            several=True,
            choices=FAMILIES,
        ),
        Option("steps", "steps of plain generation", int, default=32, least=8),
        Option("head", "steps of a chain of the head", int, default=50, least=20),
        Option("cfg-scale", "CFG scale", float, default=2.0, metavar="S"),
        *ways.OPTIONS,
    ),
    measure=measure_continuous,
    markdown=continuous_markdown,
    plot=continuous_plot,
    saves=True,
    program="python -m docs.studies.continuous",
)

if __name__ == "__main__":
    sys.exit(run_study(STUDY))
