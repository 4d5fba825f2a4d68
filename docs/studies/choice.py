"""Automatic choice of the tree: what it expects, and what each tree then takes."""

import sys
import time
from typing import Any

import numpy as np

from docs.studies.command import run_study
from jaxspec.bench.description import Benchmark
from jaxspec.bench.registry import BATCHES, CFG_SCALES, CHECKPOINT, NUM, REPEATS, SEED
from jaxspec.bench.roofline.ceilings import measure_ceilings
from jaxspec.errors import ConfigError
from jaxspec.evaluate.tables import environment, markdown_table, report_heading
from jaxspec.pipeline.bundle import Bundle, load_bundle
from jaxspec.pipeline.config import GenerationConfig
from jaxspec.pipeline.drafters import load_drafter
from jaxspec.pipeline.embedded import CLASSES
from jaxspec.pipeline.generation import generate
from jaxspec.pipeline.loaded_drafter import LoadedDrafter
from jaxspec.pipeline.prompts import Prompts, spread_classes
from jaxspec.pipeline.tree_choice import TreeChoice, choose_tree
from jaxspec.speculative.trees.tree import Tree

PLAIN = "plain"


# Trees that a choice on a CPU can be.
NAMES = "optimal-2", "optimal-4", "optimal-8", "optimal-16"


def measure_choice(
    *,
    checkpoint: str | None = None,
    batches: tuple[int, ...] = (1,),
    cfg_scales: tuple[float, ...] = (2.0,),
    num: int = 16,
    repeats: int = 10,
    seed: int = 0,
) -> dict[str, Any]:
    """Chooses a tree again and again, and times it and the others in turns.

    Args:
      checkpoint: Bundle folder; None for the embedded bundle.
      batches: Batch sizes in images.
      cfg_scales: CFG scales.
      num: Number of images.
      repeats: Number of choices for each batch size and CFG scale.
      seed: Seed of images and noise.

    Returns:
      Report with one row for each choice: the tree, the expected speed, the measured
      speed of every tree and of the choice, with plain decoding of the same turn as 1.
    """
    bundle = load_bundle(checkpoint or CLASSES)
    prompts = Prompts.from_classes(spread_classes(len(bundle.class_names), num))
    rows = []
    for batch in batches:
        for cfg_scale in cfg_scales:
            config = GenerationConfig(seed=seed, batch_size=batch, cfg_scale=cfg_scale)
            rows += _choices(bundle, prompts, config, repeats)
    return {
        "dtype": "float32",
        "repeats": repeats,
        "ceilings": measure_ceilings("float32").fields(),
        "rows": rows,
        **environment(),
    }


def _choices(
    bundle: Bundle, prompts: Prompts, config: GenerationConfig, repeats: int
) -> list[dict[str, Any]]:
    """Rows of one batch size and CFG scale."""
    loaded, programs = load_drafter("own", bundle), {}
    trees = {PLAIN: Tree.root()}
    trees |= {name: loaded.tree(name) for name in NAMES}

    def seconds(tree) -> float:
        run = generate(bundle, prompts, config, tree, loaded=loaded, programs=programs)
        return run.seconds

    for tree in trees.values():  # compiles
        seconds(tree)
    rows = []
    for _ in range(repeats):
        choice, took = _choose(bundle, prompts, config, loaded)
        times = {name: seconds(tree) for name, tree in trees.items()}
        chosen = [name for name, tree in trees.items() if tree == choice.tree]
        if not chosen:
            raise ConfigError(f"the choice {choice} is none of {', '.join(trees)}")
        speeds = {name: times[PLAIN] / times[name] for name in trees}
        rows.append(
            {
                "batch": config.batch_size,
                "cfg_scale": config.cfg_scale,
                "chosen": chosen[0],
                "expected": choice.speedup,
                "reason": choice.reason,
                "choosing_seconds": took,
                "seconds": times,
                "speeds": speeds,
                "speed": speeds[chosen[0]],
                "best": max(speeds, key=speeds.__getitem__),
            }
        )
    return rows


def _choose(
    bundle: Bundle, prompts: Prompts, config: GenerationConfig, loaded: LoadedDrafter
) -> tuple[TreeChoice, float]:
    """A choice from new measurements, and the time it took in seconds."""
    began = time.perf_counter()
    choice = choose_tree(bundle, prompts, config, loaded, {})
    return choice, time.perf_counter() - began


def choice_markdown(result: dict[str, Any]) -> str:
    """Formats a report of `measure_choice`."""
    rows = result["rows"]
    others = [name for name in rows[0]["speeds"] if name != PLAIN]
    columns = ["batch", "cfg", "choosing, s", "chosen", "expected", "measured"]
    cells = [
        [
            row["batch"],
            f"{row['cfg_scale']:g}",
            f"{row['choosing_seconds']:.1f}",
            row["chosen"],
            f"{row['expected']:.2f}",
            f"{row['speed']:.2f}",
            *(f"{row['speeds'][name]:.2f}" for name in others),
        ]
        for row in rows
    ]
    speeds = np.array([row["speed"] for row in rows])
    description = (
        "Every row is a new choice, and one run of every tree after it. Speeds have "
        "plain decoding of the same row as 1. "
        f"The choice reached {speeds.min():.2f} at least, {np.median(speeds):.2f} in "
        "the median."
    )
    title = "Automatic choice of the tree"
    return report_heading(title, result, description) + markdown_table(
        [*columns, *others], cells
    )


STUDY = Benchmark(
    "choice",
    summary="automatic choice of the tree",
    description="Chooses the draft tree from new measurements, and times every tree "
    "and plain decoding after each choice.",
    example="Example: python -m docs.studies.choice --out docs/reports/choice_cpu",
    options=(CHECKPOINT, BATCHES, CFG_SCALES, NUM, REPEATS, SEED),
    measure=measure_choice,
    markdown=choice_markdown,
    program="python -m docs.studies.choice",
)

if __name__ == "__main__":
    sys.exit(run_study(STUDY))
