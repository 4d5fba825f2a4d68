"""Parts of a round: where the time of verification goes beside a plain step."""

import sys
from typing import Any

from docs.studies.command import run_study
from jaxspec.bench.description import Benchmark
from jaxspec.bench.registry import BATCHES, CFG_SCALES, CHECKPOINT, REPEATS, SEED
from jaxspec.bench.roofline.ceilings import measure_ceilings
from jaxspec.evaluate.tables import environment, markdown_table, report_heading
from jaxspec.models.transformer.model import Transformer
from jaxspec.pipeline.bundle import Bundle, load_bundle
from jaxspec.pipeline.config import GenerationConfig
from jaxspec.pipeline.drafters import load_drafter
from jaxspec.pipeline.generation import generate
from jaxspec.pipeline.interleaved import time_interleaved
from jaxspec.pipeline.prompts import Prompts, spread_classes
from jaxspec.pipeline.tree_choice.compiling import local_compiler
from jaxspec.pipeline.tree_choice.programs import (
    ITERATIONS,
    draft_program,
    pass_program,
    round_program,
)
from jaxspec.speculative.trees.tree import Tree

# Tree of the rounds, numbers of rows of a pass, and a capacity without much attention.
TREE, ROWS, SHORT = "optimal-5", (1, 2, 5, 10), 40


def measure_rounds(
    *,
    checkpoint: str | None = None,
    batches: tuple[int, ...] = (1, 8),
    cfg_scales: tuple[float, ...] = (2.0,),
    repeats: int = 7,
    seed: int = 0,
) -> dict[str, Any]:
    """Times passes, drafts and rounds, alone and in a generation.

    Args:
      checkpoint: Bundle of a model of classes, with a drafter.
      batches: Batch sizes in images.
      cfg_scales: CFG scales.
      repeats: Number of timed runs of each program.
      seed: Seed of images and noise.

    Returns:
      Report with a row for each batch size and CFG scale.
    """
    bundle = load_bundle(checkpoint or "fruits64")
    rows = []
    for batch in batches:
        for scale in cfg_scales:
            config = GenerationConfig(seed=seed, batch_size=batch, cfg_scale=scale)
            rows.append(_row(bundle, config, batch, repeats))
    return {
        "dtype": "float32",
        "repeats": repeats,
        "ceilings": measure_ceilings("float32").fields(),
        "rows": rows,
        **environment(),
    }


def _row(
    bundle: Bundle, config: GenerationConfig, batch: int, repeats: int
) -> dict[str, Any]:
    loaded = load_drafter("own", bundle)
    prompts = Prompts.from_classes(spread_classes(len(bundle.class_names), batch))
    model, params = Transformer(bundle.prior.config), bundle.prior.params
    whole = bundle.prior.config.prefix_length + bundle.prior.config.sequence_length
    tree, guided = loaded.tree(TREE), config.cfg_scale != 1.0

    def of_pass(rows: int, capacity: int):
        chain = Tree.chain(rows - 1) if rows > 1 else Tree.root()
        compiler = local_compiler()
        filled = min(whole // 2, SHORT - rows)
        return pass_program(
            model, params, batch, chain, filled, ITERATIONS, compiler, guided, capacity
        )

    calls = {f"pass {n}": of_pass(n, whole + n) for n in ROWS}
    calls |= {f"short {n}": of_pass(n, SHORT) for n in (1, tree.size)}
    arguments = bundle, prompts, config, tree, loaded, batch
    calls |= {"draft": draft_program(*arguments), "round": round_program(*arguments)}
    timed = time_interleaved(calls, repeats)
    found = {name: 1e3 * t.per(ITERATIONS).median for name, t in timed.items()}
    programs: dict[Any, Any] = {}
    shapes = {"plain": Tree.root(), "drafted": tree}
    runs: dict[str, list[float]] = {name: [] for name in shapes}
    for turn in range(repeats + 1):
        for name, shape in shapes.items():
            run = generate(
                bundle, prompts, config, shape, loaded=loaded, programs=programs
            )
            if turn:  # the first one warms up
                runs[name].append(1e3 * run.seconds / int(run.calls.max()))
    per_call = {name: sorted(times)[len(times) // 2] for name, times in runs.items()}
    return {
        "batch": batch,
        "cfg_scale": config.cfg_scale,
        "nodes": tree.size,
        "alone": found,
        "generation": per_call,
    }


def rounds_markdown(result: dict[str, Any]) -> str:
    """Formats a report of `measure_rounds`."""
    parts = []
    for row in result["rows"]:
        alone, n = row["alone"], row["nodes"]
        attention = {k: 1 - alone[f"short {k}"] / alone[f"pass {k}"] for k in (1, n)}
        names = {f"pass {k}": f"pass over {k}" for k in ROWS}
        names |= {"draft": "draft", "round": f"draft and pass over {n}"}
        cells = [
            [name, f"{alone[key]:.2f}", f"{alone[key] / alone['pass 1']:.2f}", share]
            for key, name in names.items()
            for share in [
                f"{100 * attention[int(key.split()[1])]:.0f} %"
                if key in (f"pass {1}", f"pass {n}")
                else ""
            ]
        ]
        plain = row["generation"]["plain"]
        for key, name in (("plain", "step"), ("drafted", f"round of {n} nodes")):
            time = row["generation"][key]
            cells.append(
                [f"{name} in a generation", f"{time:.2f}", f"{time / plain:.2f}", ""]
            )
        columns = ["part", "ms", "of a step", "attention over the cache"]
        parts += [f"## Batch {row['batch']}, CFG scale {row['cfg_scale']:g}", ""]
        parts.append(markdown_table(columns, cells))
    description = (
        "Passes of the target, drafts, and one after the other, each a program of "
        f"{ITERATIONS} in a row over a cache of a whole image; below, calls of whole "
        "generations. Their step is the unit of the last two lines, a pass over one "
        "row that of the others. The share of attention is what a pass over a cache "
        f"of {SHORT} slots saves."
    )
    heading = report_heading("Parts of a round", result, description)
    return heading + "\n".join(parts)


STUDY = Benchmark(
    "rounds",
    summary="parts of a round, beside a plain step",
    description="Times passes over several rows, drafts and rounds, alone and within "
    "generations.",
    example="Example: python -m docs.studies.rounds --out docs/reports/rounds_cpu",
    options=(CHECKPOINT, BATCHES, CFG_SCALES, REPEATS, SEED),
    measure=measure_rounds,
    markdown=rounds_markdown,
    program="python -m docs.studies.rounds",
)

if __name__ == "__main__":
    sys.exit(run_study(STUDY))
