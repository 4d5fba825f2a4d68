"""Speculative decoding compared with plain decoding."""

import itertools
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from tqdm import tqdm

from jaxspec.bench.costs import round_costs, target_bound
from jaxspec.bench.models import find_model
from jaxspec.bench.roofline.ceilings import measure_ceilings
from jaxspec.bench.synthetic import Forced
from jaxspec.evaluate.plot import Line, Panel, plot_panels
from jaxspec.evaluate.tables import environment, markdown_table, report_heading
from jaxspec.pipeline.bundle import Bundle
from jaxspec.pipeline.config import GenerationConfig
from jaxspec.pipeline.drafters import load_drafter
from jaxspec.pipeline.engine import make_engine
from jaxspec.pipeline.generation import GenerationResult, generate
from jaxspec.pipeline.prompts import Prompts, spread_classes
from jaxspec.pipeline.report import generation_report
from jaxspec.pipeline.timing import plot_value, shown, worst_mark
from jaxspec.sharding.device import default_dtype
from jaxspec.speculative.trees.dynamic import DynamicTree
from jaxspec.speculative.trees.parsing import parse_tree
from jaxspec.speculative.trees.tree import Tree
from jaxspec.speculative.verify import Coupled


def measure_generation(
    *,
    checkpoint: str | None = None,
    models: Sequence[str] = ("default",),
    dtype: str | None = None,
    grid: int = 24,
    repeats: int = 3,
    trees: Sequence[str] | None = None,
    cfg_scales: Sequence[float] = (2.0,),
    batches: Sequence[int] = (8,),
    num: int = 64,
    seed: int = 0,
    tokens: int | None = None,
    accept: float | None = None,
    attention: str = "xla",
    int8: bool = False,
) -> dict[str, Any]:
    """Compares speculative with plain decoding for several models.

    Args:
      checkpoint: Bundle folder that "default" refers to.
      models: Names, see `find_model`.
      dtype: Dtype of weights and caches; None for `default_dtype`.
      grid: Tokens along a side, for published sizes.
      repeats: Number of timed runs.
      trees: Names of draft trees, see `parse_tree`; None for the device's default.
      cfg_scales: CFG scales.
      batches: Batch sizes in images.
      num: Number of images.
      seed: Seed of images and noise.
      tokens: Tokens of each image; None for all.
      accept: Mean number of tokens per round that `Forced` emits; None for the
        drafter's real acceptance.
      attention: Attention of the target, see `Transformer`.
      int8: Whether weight matrices are quantized to int8.

    Returns:
      Report with the rows of `bench_generation` for each model.
    """
    dtype = dtype or default_dtype()
    for name in trees or []:  # raises before models are loaded
        parse_tree(name)
    rows = []
    for model in models:
        bundle = find_model(
            model, grid=grid, dtype=dtype, checkpoint=checkpoint, int8=int8
        )
        loaded = load_drafter("own", bundle)
        named = {"default": loaded.tree()}
        if trees:
            named = {name: loaded.tree(name) for name in trees}
        rows += bench_generation(
            bundle,
            named,
            batches,
            cfg_scales,
            num=num,
            repeats=repeats,
            seed=seed,
            forced=accept,
            length=tokens,
            attention=attention,
        )
    return {
        "dtype": dtype,
        "repeats": repeats,
        "ceilings": measure_ceilings(dtype).fields(),
        "rows": rows,
        **environment(),
    }


def bench_generation(
    bundle: Bundle,
    trees: dict[str, Tree | DynamicTree],
    batches: Sequence[int],
    cfg_scales: Sequence[float],
    *,
    num: int,
    repeats: int,
    seed: int = 0,
    forced: float | None = None,
    length: int | None = None,
    attention: str = "xla",
) -> list[dict[str, Any]]:
    """Measures every combination of tree, batch size and CFG scale.

    Classes are spread evenly. The first run of each program is a warm-up and is not
    counted. Plain decoding is measured for each batch size and CFG scale.

    Args:
      bundle: Models.
      trees: Draft trees by name.
      batches: Batch sizes in images.
      cfg_scales: CFG scales.
      num: Number of images.
      repeats: Number of timed runs.
      seed: Seed of images and noise.
      forced: Mean number of tokens per round that `Forced` emits; None for the
        drafter's real acceptance.
      length: Tokens of each image; None for all.
      attention: Attention of the target, see `Transformer`.

    Returns:
      One report of `generation_report` per combination, with these fields added:
      "hits"; "verify_cost" and "draft_cost", see `round_costs`; "expected_speedup",
      tokens per call over the sum of both costs; "fraction_of_expected", the measured
      speedup over the expected one; and the fields of `target_bound`.
    """
    prompts = Prompts.from_classes(spread_classes(len(bundle.class_names), num))
    for tree in trees.values():  # raises for impossible trees before anything is timed
        make_engine(bundle, GenerationConfig(), tree)
    rows = []
    cells = list(itertools.product(batches, cfg_scales))
    runs = len(cells) * (len(trees) + 1)
    with tqdm(total=runs * (repeats + 1) * num, desc="bench", unit="image") as bar:
        for batch, cfg_scale in cells:
            settings = GenerationConfig(
                seed=seed,
                cfg_scale=cfg_scale,
                batch_size=batch,
                max_new_tokens=length,
                attention=attention,
                verifier=Coupled() if forced is None else Forced(forced),
            )
            measure = partial(
                generate,
                bundle,
                prompts,
                settings,
                repeats=repeats,
                warm_up=True,
                progress=bar.update,
            )
            plain = measure(Tree.root())
            for name, tree in trees.items():
                cell = bundle, prompts, settings, tree
                row = _report_row(*cell, measure(tree), plain)
                rows.append({"tree_name": name, **row})
    return rows


def _report_row(
    bundle: Bundle,
    prompts: Prompts,
    settings: GenerationConfig,
    tree: Tree | DynamicTree,
    fast: GenerationResult,
    plain: GenerationResult,
) -> dict[str, Any]:
    """Fields of one combination, see `bench_generation`."""
    report = generation_report(bundle, prompts, settings, tree, fast, plain)
    costs = round_costs(bundle, prompts, settings, tree, load_drafter("own", bundle))
    names = "verify_cost", "draft_cost"
    expected = fast.tokens_per_call / sum(costs[name] for name in names)
    marks = {**report, **costs}
    return {
        **report,
        "hits": fast.hits.sum(axis=0).tolist(),
        **costs,
        "expected_speedup": expected,
        **worst_mark("expected_speedup", costs, *names),
        "fraction_of_expected": report["speedup"] / expected,
        **worst_mark("fraction_of_expected", marks, "speedup", *names),
        **target_bound(bundle, prompts, settings, tree, fast),
    }


def generation_markdown(result: dict[str, Any]) -> str:
    """Formats a report of `measure_generation`."""

    def cells(row):
        tree = row["tree"]
        return [
            row["checkpoint"],
            row["batch"],
            f"{row['cfg_scale']:g}",
            row["tree_name"],
            tree["nodes"],
            tree["depth"],
            f"{row['tokens_per_call']:.2f}",
            f"{row['seconds']:.2f}",
            f"{row['baseline_seconds']:.2f}",
            *(shown(row, k) for k in ("verify_cost", "draft_cost", "speedup")),
            *(shown(row, k, "%") for k in ("fraction_of_expected", "achieved")),
            "yes" if row["identical_to_autoregressive"] else "no",
            row["near_ties_decided_again"],
        ]

    rows = result["rows"]
    first = rows[0]
    description = (
        f"{first['images']} images of {first['tokens'] // first['images']} "
        f"tokens, temperature {first['temperature']:g}, verifier {first['verifier']}. "
        "Tokens per call count the prefill as a call. Verify and draft cost are a "
        "forward pass over the tree and a draft, in decode steps. The expected speedup "
        "is tokens per call over the sum of both costs. The bound is that of the "
        "target's forward passes."
    )
    columns = ["model", "batch", "cfg", "tree", "nodes", "depth", "tokens/call"]
    columns += ["seconds", "plain seconds", "verify cost", "draft cost", "speedup"]
    columns += ["speedup / expected", "achieved", "identical", "rescored near-ties"]
    title = "Speculative and plain decoding"
    return report_heading(title, result, description) + markdown_table(
        columns, [cells(row) for row in rows]
    )


def generation_plot(result: dict[str, Any]) -> np.ndarray:
    """Plots the speedup over nodes, one panel per model and CFG scale."""
    panels, rows = [], result["rows"]
    for cell in dict.fromkeys((r["checkpoint"], r["cfg_scale"]) for r in rows):
        panel_rows = [r for r in rows if (r["checkpoint"], r["cfg_scale"]) == cell]
        lines = []
        for batch in dict.fromkeys(row["batch"] for row in panel_rows):
            points = [row for row in panel_rows if row["batch"] == batch]
            points.sort(key=lambda row: row["tree"]["nodes"])
            x = [row["tree"]["nodes"] for row in points]
            y = [plot_value(row, "speedup") for row in points]
            lines.append(Line(f"batch {batch}", x, y))
        model, cfg_scale = cell
        panels.append(Panel(f"{model}, cfg {cfg_scale:g}", lines))
    return plot_panels(panels, "nodes", "plain seconds / seconds")
