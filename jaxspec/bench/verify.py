"""Cost of verifying draft trees in decode steps, and overhead of a round."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from jaxspec.bench import programs
from jaxspec.bench.models import find_model
from jaxspec.bench.roofline.ceilings import measure_ceilings
from jaxspec.bench.roofline.work import bound_fields, pass_work
from jaxspec.bench.variants import Variant, find_variant
from jaxspec.errors import ConfigError
from jaxspec.evaluate.plot import Line, Panel, plot_panels
from jaxspec.evaluate.tables import environment, markdown_table, report_heading
from jaxspec.models.transformer.model import Transformer
from jaxspec.pipeline.interleaved import time_interleaved
from jaxspec.pipeline.timing import Timing, plot_value, ratio_fields, shown, worst_mark
from jaxspec.pipeline.tree_choice.compiling import Program, local_compiler
from jaxspec.pipeline.tree_choice.programs import pass_program
from jaxspec.sharding.device import default_dtype
from jaxspec.speculative.trees.parsing import parse_tree
from jaxspec.speculative.trees.tree import Tree


def measure_verify(
    *,
    checkpoint: str | None = None,
    models: Sequence[str] = ("default",),
    dtype: str | None = None,
    grid: int = 24,
    repeats: int = 5,
    variants: Sequence[str] = ("xla",),
    compiler_options: Sequence[str] = (),
    batches: Sequence[int] = (1,),
    nodes: Sequence[int] = (8, 26, 64),
    passes: int = 16,
) -> dict[str, Any]:
    """Times forward passes over trees, and whole rounds, for each model and batch size.

    Caches are filled by half of an image. Rounds use the `Coupled` verifier at
    temperature 1 and fixed drafts.

    Args:
      checkpoint: Bundle folder that "default" refers to.
      models: Names, see `find_model`.
      dtype: Dtype of weights and caches; None for `default_dtype`.
      grid: Tokens along a side, for published sizes.
      repeats: Number of timed runs.
      variants: Variants of the decoder, see `find_variant`.
      compiler_options: Options of XLA, see `parse_compiler_options`.
      batches: Batch sizes in images.
      nodes: Sizes of the trees, which are optimal for the embedded model; size 1, a
        decode step, is always included.
      passes: Number of forward passes in one program.

    Returns:
      Report with one row per model, batch size, variant and tree size.

    Raises:
      ConfigError: A variant has several cache stages.
    """
    dtype = dtype or default_dtype()
    options = programs.parse_compiler_options(compiler_options)
    decoders = _find_variants(variants)
    ceilings, rows = measure_ceilings(dtype), []
    trees = {n: _static_tree(n) for n in sorted({1, *nodes})}
    cells = [(m, b, v) for m in models for b in batches for v in decoders]
    for name, batch, variant in tqdm(cells, desc="verify", unit="cell"):
        bundle = find_model(
            name, grid=grid, dtype=dtype, int8=variant.int8, checkpoint=checkpoint
        )
        config = bundle.prior.config
        filled = config.prefix_length + config.sequence_length // 2
        work = partial(
            pass_work,
            config,
            sequences=2 * batch,
            filled=filled,
            itemsize=jnp.dtype(dtype).itemsize,
            int8=variant.int8,
        )
        iterations = min(passes, config.sequence_length - filled - 1)
        args = Transformer(config, variant.attention), bundle.prior.params, batch
        calls = _programs(args, trees, filled, iterations, options)
        times = {
            key: timing.per(iterations)
            for key, timing in time_interleaved(calls, repeats).items()
        }
        method = f"jaxspec{variant.suffix}"
        for size in trees:
            row = {"model": name, "batch": batch, "method": method, "nodes": size}
            row |= _time_fields(times, size)
            rows.append(
                row | bound_fields(work(nodes=size), ceilings, times["pass", size])
            )
    return {
        "dtype": dtype,
        "repeats": repeats,
        "compiler_options": options,
        "ceilings": ceilings.fields(),
        "rows": rows,
        **environment(),
    }


def _find_variants(names: Sequence[str]) -> list[Variant]:
    """Variants with one cache size."""
    variants = [find_variant(name) for name in names]
    if any(variant.cache_stages > 1 for variant in variants):
        raise ConfigError(
            "stagesN needs `bench decode`: a forward pass uses one cache size"
        )
    return variants


def _programs(
    args: tuple[Transformer, Any, int],
    trees: dict[int, Tree],
    filled: int,
    iterations: int,
    options: dict[str, str],
) -> dict[tuple[str, int], Program]:
    """Compiles "pass" and "round" for each tree.

    Args:
      args: Model, parameters and batch size.
      trees: Draft trees by size.
      filled: Number of cache slots in use.
      iterations: Number of passes or rounds in one program.
      options: Options of XLA.
    """
    compiler, calls = local_compiler(options), {}
    for size, tree in trees.items():
        tree_args = *args, tree, filled, iterations, compiler
        calls["pass", size] = pass_program(*tree_args)
        calls["round", size] = programs.round_program(*tree_args)
    return calls


def _time_fields(times: dict[tuple[str, int], Timing], nodes: int) -> dict[str, Any]:
    """Fields of a pass over a tree, and of a round with it.

    Args:
      times: Timings of "pass" and "round" by number of nodes.
      nodes: Number of nodes.
    """
    pass_timing, round_timing = times["pass", nodes], times["round", nodes]
    ratio = ratio_fields(round_over_pass=(round_timing, pass_timing))
    return {
        **pass_timing.fields(),
        "round_seconds": round_timing.median,
        "overhead": ratio["round_over_pass"] - 1,
        **worst_mark("overhead", ratio, "round_over_pass"),
        **ratio_fields(decode_steps=(pass_timing, times["pass", 1])),
    }


def _static_tree(nodes: int) -> Tree:
    """Tree of a size; the root alone for size 1."""
    tree = Tree.root() if nodes == 1 else parse_tree(f"optimal-{nodes}")
    assert isinstance(tree, Tree)
    return tree


def verify_markdown(result: dict[str, Any]) -> str:
    """Formats a report of `measure_verify`."""

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
