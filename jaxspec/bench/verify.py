"""Cost of verifying draft trees in decode steps, and overhead of a round."""

from typing import Any

import numpy as np
from tqdm import tqdm

from jaxspec.bench import programs
from jaxspec.bench.models import find_model
from jaxspec.bench.roofline.ceilings import measure_ceilings
from jaxspec.bench.roofline.work import pass_work
from jaxspec.bench.timing import time_interleaved
from jaxspec.bench.variants import Variant
from jaxspec.errors import ConfigError
from jaxspec.evaluate.plot import Line, Panel, plot_panels
from jaxspec.evaluate.tables import environment, markdown_table, report_heading
from jaxspec.models.transformer.model import Transformer
from jaxspec.pipeline.timing import Timing, plot_value, ratio_fields, shown, worst_mark
from jaxspec.speculative.trees.parsing import parse_tree
from jaxspec.speculative.trees.tree import Tree

KEYS = ("model", "batch", "method", "nodes")


def bench_verify(
    models: list[str],
    batches: list[int],
    nodes: list[int],
    variants: list[Variant],
    *,
    grid: int,
    passes_per_run: int,
    dtype: str,
    repeats: int,
    checkpoint: str | None = None,
    options: dict[str, str] | None = None,
) -> dict[str, Any]:
    """Times forward passes over trees, and whole rounds, for each model and batch size.

    Caches are filled by half of an image. Rounds use the `Coupled` verifier at
    temperature 1 and fixed drafts.

    Args:
      models: Names, see `find_model`.
      batches: Batch sizes in images.
      nodes: Sizes of the trees, which are optimal for the embedded model; size 1, a
        decode step, is always included.
      variants: Variants of the decoder.
      grid: Tokens along a side, for published sizes.
      passes_per_run: Number of forward passes in one program.
      dtype: Dtype of weights and caches.
      repeats: Number of timed runs.
      checkpoint: Bundle folder that "default" refers to.
      options: Compiler options of XLA.

    Returns:
      Report with one row per model, batch size, variant and tree size.

    Raises:
      ConfigError: A variant has several cache stages.
    """
    if any(variant.cache_stages > 1 for variant in variants):
        raise ConfigError(
            "stagesN needs `bench decode`: a forward pass uses one cache size"
        )
    ceilings, rows = measure_ceilings(dtype), []
    compiler = programs.local_compiler(options)
    cells = [(m, b, v) for m in models for b in batches for v in variants]
    with tqdm(total=len(cells), desc="verify", unit="cell") as bar:
        for name, batch, variant in cells:
            bundle = find_model(
                name, grid=grid, dtype=dtype, int8=variant.int8, checkpoint=checkpoint
            )
            config, params = bundle.prior.config, bundle.prior.params
            model = Transformer(config, variant.attention)
            filled = config.prefix_length + config.sequence_length // 2
            iterations = min(passes_per_run, config.sequence_length - filled - 1)
            trees = {n: _static_tree(n) for n in sorted({1, *nodes})}
            calls = {}
            for size, tree in trees.items():
                args = model, params, batch, tree, filled, iterations, compiler
                calls["pass", size] = programs.verify_program(*args)
                calls["round", size] = programs.round_program(*args)
            times = time_interleaved(calls, repeats)
            step = times["pass", 1].per(iterations)
            for size in trees:
                pass_timing = times["pass", size].per(iterations)
                work = pass_work(
                    config,
                    sequences=2 * batch,
                    nodes=size,
                    filled=filled,
                    itemsize=2 if dtype == "bfloat16" else 4,
                    int8=variant.int8,
                )
                bound = work.bound(ceilings)
                round_timing = times["round", size].per(iterations)
                ratio = ratio_fields(round_over_pass=(round_timing, pass_timing))
                rows.append(
                    {
                        "model": name,
                        "batch": batch,
                        "method": f"jaxspec{variant.suffix}",
                        "nodes": size,
                        **pass_timing.fields(),
                        "round_seconds": round_timing.median,
                        "overhead": ratio["round_over_pass"] - 1,
                        **worst_mark("overhead", ratio, "round_over_pass"),
                        "bytes": work.bytes,
                        "flops": work.flops,
                        "bound_seconds": bound,
                        **ratio_fields(
                            decode_steps=(pass_timing, step),
                            achieved=(Timing.exact(bound), pass_timing),
                        ),
                    }
                )
            bar.update()
    return {
        "dtype": dtype,
        "repeats": repeats,
        "compiler_options": options or {},
        "ceilings": ceilings.fields(),
        "rows": rows,
        **environment(),
    }


def _static_tree(nodes: int) -> Tree:
    """Tree of a size; the root alone for size 1."""
    tree = Tree.root() if nodes == 1 else parse_tree(f"optimal-{nodes}")
    assert isinstance(tree, Tree)
    return tree


def verify_markdown(result: dict[str, Any]) -> str:
    """Formats a report of `bench_verify`."""

    def cells(row):
        return [
            row["model"],
            row["batch"],
            row["method"],
            row["nodes"],
            f"{1e3 * row['seconds']:.3f}",
            f"{1e3 * row['min_seconds']:.3f} to {1e3 * row['max_seconds']:.3f}",
            shown(row, "decode_steps"),
            f"{1e3 * row['bound_seconds']:.3f}",
            shown(row, "achieved", "%"),
            shown(row, "overhead", "%"),
        ]

    description = (
        "Forward passes of the target over a draft tree in both CFG branches, with "
        "caches filled by half of an image; 1 node is a decode step. Overhead is the "
        "time of a whole round beyond its pass: noise, verifier, commits, counters."
    )
    names = ["model", "batch", "method", "nodes", "ms per pass", "min to max"]
    columns = [*names, "decode steps", "bound ms", "achieved", "overhead"]
    return report_heading("Verification", result, description) + markdown_table(
        columns, [cells(row) for row in result["rows"]]
    )


def verify_plot(result: dict[str, Any]) -> np.ndarray:
    """Plots decode steps over nodes, one panel per model."""
    panels, rows = [], result["rows"]
    for model in dict.fromkeys(row["model"] for row in rows):
        model_rows = [row for row in rows if row["model"] == model]
        lines = []
        for cell in dict.fromkeys((row["method"], row["batch"]) for row in model_rows):
            points = [r for r in model_rows if (r["method"], r["batch"]) == cell]
            x = [p["nodes"] for p in points]
            y = [plot_value(p, "decode_steps") for p in points]
            method, batch = cell
            lines.append(Line(f"{method}, batch {batch}", x, y))
        panels.append(Panel(model, lines))
    return plot_panels(panels, "nodes", "decode steps")
