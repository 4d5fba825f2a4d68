"""What verifying a tree costs, in decode steps, and what a round adds to it."""

from typing import Any

import numpy as np
from tqdm import tqdm

from jaxspec.bench import passes
from jaxspec.bench.plot import Line, Panel, plot_panels
from jaxspec.bench.roofline.ceilings import measure_ceilings
from jaxspec.bench.roofline.work import pass_work
from jaxspec.bench.subjects import find_model
from jaxspec.bench.tables import environment, report_heading, table
from jaxspec.bench.timing import time_interleaved
from jaxspec.bench.variants import Variant
from jaxspec.errors import ConfigError
from jaxspec.models.transformer import Transformer
from jaxspec.spec.tree import Tree
from jaxspec.timing import Timing, worst_mark, plot_value, ratio_fields, shown
from jaxspec.trees import parse_tree

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
    """One row for each model, batch, variant and number of nodes; 1 is a decode step.

    Passes stand behind half of the tokens. Rounds have a coupled rule at temperature 1
    and drafts that are given.

    Args:
      models: see `find_model`.
      batches: images side by side.
      nodes: of the trees that are best for the embedded model; 1 is always measured.
      variants: of our own program.
      grid: tokens along a side, of published sizes.
      passes_per_run: in one program.
      dtype: of weights and caches.
      repeats: timed runs.
      checkpoint: what "default" means.
      options: of XLA's compiler.
    """
    if any(variant.cache_stages > 1 for variant in variants):
        raise ConfigError("phases are for `bench decode`: a pass has one cache")
    ceilings, rows = measure_ceilings(dtype), []
    build = passes.local_compiler(options)
    cells = [(m, b, v) for m in models for b in batches for v in variants]
    with tqdm(total=len(cells), desc="verify", unit="cell") as bar:
        for name, batch, variant in cells:
            bundle = find_model(
                name, grid=grid, dtype=dtype, int8=variant.int8, checkpoint=checkpoint
            )
            config, params = bundle.prior.config, bundle.prior.params
            model = Transformer(config, variant.attention)
            filled = config.prefix_length + config.sequence_length // 2
            room = config.sequence_length - filled - 1
            trees = {n: _tree(n) for n in sorted({1, *nodes})}
            given = model, params, batch
            calls = {}
            for size, tree in trees.items():
                rest = filled, min(passes_per_run, room), build
                calls["pass", size] = passes.verify_program(*given, tree, *rest)
                calls["round", size] = passes.round_program(*given, tree, *rest)
            times = time_interleaved(calls, repeats)
            count = min(passes_per_run, room)
            step = times["pass", 1].per(count)
            for size in trees:
                one = times["pass", size].per(count)
                work = pass_work(
                    config,
                    rows=2 * batch,
                    nodes=size,
                    filled=filled,
                    itemsize=2 if dtype == "bfloat16" else 4,
                    int8=variant.int8,
                )
                bound = work.bound(ceilings)
                whole = times["round", size].per(count)
                more = ratio_fields(round_over_pass=(whole, one))
                rows.append(
                    {
                        "model": name,
                        "batch": batch,
                        "method": f"jaxspec{variant.words}",
                        "nodes": size,
                        **one.fields(),
                        "round_seconds": whole.median,
                        "overhead": more["round_over_pass"] - 1,
                        **worst_mark("overhead", more, "round_over_pass"),
                        "bytes": work.bytes,
                        "flops": work.flops,
                        "bound_seconds": bound,
                        **ratio_fields(
                            decode_steps=(one, step),
                            achieved=(Timing.exact(bound), one),
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


def _tree(nodes: int) -> Tree:
    tree = Tree.root() if nodes == 1 else parse_tree(f"optimal-{nodes}")
    assert isinstance(tree, Tree)
    return tree


def verify_markdown(result: dict[str, Any]) -> str:
    """The rows as a table."""

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

    words = (
        "A pass of the target over a tree of so many nodes in both guidance streams, "
        'behind half of an image; 1 node is a decode step. "Bookkeeping" is what a '
        "whole round takes beyond its pass: noise, rule, commits, counters."
    )
    names = ["model", "batch", "method", "nodes", "ms a pass", "least to most"]
    columns = [*names, "steps", "bound ms", "achieved", "overhead"]
    return report_heading("Verifying", result, words) + table(
        columns, [cells(r) for r in result["rows"]]
    )


def verify_plot(result: dict[str, Any]) -> np.ndarray:
    """Decode steps over nodes, a panel for each model."""
    panels, rows = [], result["rows"]
    for model in dict.fromkeys(row["model"] for row in rows):
        own = [row for row in rows if row["model"] == model]
        lines = []
        for method, batch in dict.fromkeys((row["method"], row["batch"]) for row in own):
            points = [r for r in own if (r["method"], r["batch"]) == (method, batch)]
            x, y = (
                [p["nodes"] for p in points],
                [plot_value(p, "decode_steps") for p in points],
            )
            lines.append(Line(f"{method}, batch {batch}", x, y))
        panels.append(Panel(model, lines))
    return plot_panels(panels, "nodes", "decode steps")
