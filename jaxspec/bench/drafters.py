"""Comparison of drafters on one target: tokens per call, cost, wall-clock time."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from tqdm import tqdm

from jaxspec.bench.costs import draft_timing, target_bound
from jaxspec.errors import ConfigError
from jaxspec.evaluate.plot import Line, Panel, plot_panels
from jaxspec.evaluate.tables import environment, markdown_table
from jaxspec.pipeline.bundle import Bundle
from jaxspec.pipeline.config import GenerationConfig
from jaxspec.pipeline.drafters import LoadedDrafter
from jaxspec.pipeline.generation import GenerationResult, batches_of, generate
from jaxspec.pipeline.prompts import Prompts
from jaxspec.pipeline.report import generation_report
from jaxspec.pipeline.timing import RATIO_NOTE, ratio_fields, shown
from jaxspec.pipeline.verifiers import parse_verifier, verifier_spec
from jaxspec.speculative.trees.dynamic import DynamicTree
from jaxspec.speculative.trees.parsing import deepest, parse_tree
from jaxspec.speculative.trees.tree import Tree

NODES = (16, 57, 128)
VERIFIERS = ("coupled",)
KEYS = ("drafter", "verifier", "cfg_scale", "nodes")


def tree_of_size(loaded: LoadedDrafter, nodes: int) -> Tree | DynamicTree:
    """Beam of a number of nodes; a static tree where the drafter needs one.

    Raises:
      ConfigError: The drafter supports neither.
    """
    depth = deepest(loaded.drafter)
    for name in (f"beam-{nodes}", f"optimal-{nodes}"):
        tree = parse_tree(name, depth)
        try:
            loaded.check_tree(tree)
        except ConfigError:
            continue
        return tree
    raise ConfigError(
        f"drafter '{loaded.name}' supports no tree of {nodes} nodes; choose fewer nodes"
    )


def bench_drafters(
    bundle: Bundle,
    loaded_drafters: Sequence[LoadedDrafter],
    prompts: Prompts,
    settings: GenerationConfig,
    *,
    nodes: Sequence[int] = NODES,
    cfg_scales: Sequence[float] = (2.0, 3.0),
    verifiers: Sequence[str] = VERIFIERS,
    repeats: int = 1,
    finished_rows: Sequence[dict[str, Any]] = (),
    save: Callable[[dict[str, Any]], None] = lambda result: None,
) -> dict[str, Any]:
    """Measures each drafter with each tree size, CFG scale and verifier.

    Plain decoding is timed once for each CFG scale and target, in the same run.

    Args:
      bundle: Models.
      loaded_drafters: Drafters to compare.
      prompts: Prompts of the images.
      settings: Generation settings; CFG scale and verifier are replaced.
      nodes: Tree sizes.
      cfg_scales: CFG scales.
      verifiers: Names of verifiers, see `parse_verifier`; combinations of drafter and
        verifier that do not fit are skipped.
      repeats: Number of timed runs; more than one are preceded by a warm-up.
      finished_rows: Rows of an earlier run, which are not measured again.
      save: Callback that receives the report after each row.

    Returns:
      Report with one row per combination.
    """
    rows: list[dict[str, Any]] = list(finished_rows)
    finished = {
        (row["drafter"], row["nodes"], row["verifier"], row["cfg_scale"])
        for row in finished_rows
    }
    cells = [
        (loaded, count, verifier)
        for loaded in loaded_drafters
        for count in nodes
        for verifier in verifiers
    ]
    result = {
        "checkpoint": bundle.name,
        "images": len(prompts),
        "batch": settings.batch_size,
        "repeats": repeats,
        "rows": rows,
        **environment(),
    }
    targets = len({id(loaded.prior) for loaded in loaded_drafters})
    total = len(cfg_scales) * (targets + len(cells))
    with tqdm(total=total, desc="drafters", unit="run") as bar:
        for cfg_scale in cfg_scales:
            plain_settings = replace(
                settings, cfg_scale=cfg_scale, verifier=parse_verifier("coupled")
            )
            run = partial(
                generate, bundle, prompts, repeats=repeats, warm_up=repeats > 1
            )
            plain_runs: dict[
                int, GenerationResult
            ] = {}  # a drafter may replace the target
            for loaded, count, name in cells:
                cell_settings = replace(plain_settings, verifier=parse_verifier(name))
                spec = verifier_spec(cell_settings.verifier)
                if (loaded.name, count, spec, cfg_scale) in finished:
                    bar.update()
                    continue
                plain = plain_runs.get(id(loaded.prior))
                if plain is None:
                    plain = run(plain_settings, Tree.root(), loaded=loaded)
                    plain_runs[id(loaded.prior)] = plain
                    bar.update()
                row = _report_row(
                    bundle, prompts, loaded, cell_settings, count, plain, run
                )
                if row is not None:
                    rows.append(row)
                    save(result)
                bar.update()
    return result


def _report_row(
    bundle, prompts, loaded, settings, count, plain: GenerationResult, run
) -> dict[str, Any] | None:
    """Measures one combination; None if drafter, tree and verifier do not fit."""
    tree = tree_of_size(loaded, count)
    try:
        fast = run(settings, tree, loaded=loaded)
    except ConfigError:
        static_tree = parse_tree(f"optimal-{count}", deepest(loaded.drafter))
        try:
            tree, fast = static_tree, run(settings, static_tree, loaded=loaded)
        except ConfigError:
            return None
    report = generation_report(bundle, prompts, settings, tree, fast, plain, loaded)
    drafting = draft_timing(bundle, prompts, settings, tree, loaded)
    batches = batches_of(bundle, len(prompts), settings.batch_size)[0]
    step = plain.timing.per(plain.calls.max() * batches)
    return {
        "drafter": loaded.name,
        "verifier": report["verifier"],
        "lossless": report["lossless"],
        "cfg_scale": settings.cfg_scale,
        "tree": type(tree).__name__,
        "nodes": tree.size,
        "depth": tree.depth,
        "tokens_per_call": fast.tokens_per_call,
        **fast.timing.fields(),
        "plain_seconds": plain.seconds,
        **ratio_fields(
            speedup=(plain.timing, fast.timing), drafter_cost=(drafting, step)
        ),
        "identical": report["identical_to_autoregressive"],
        **target_bound(bundle, prompts, settings, tree, fast, loaded),
        "parameters": loaded.size,
        "trained_seconds": loaded.trained_seconds,
    }


def drafters_markdown(result: dict[str, Any]) -> str:
    """Formats a report of `bench_drafters`, one table per CFG scale and verifier.

    Rows are sorted by tokens per call.
    """
    lines = [
        f"# Drafters: {result['checkpoint']}",
        "",
        f"`{result['command']}`",
        "",
        f"Device: {result['device']}, jax {result['versions']['jax']}. "
        f"{result['images']} sequences, batch {result['batch']}, temperature 1. "
        "Tokens per call count the prefill as a call. Draft cost is one `propose` "
        "relative to one plain decoding step. Speedup is relative to plain decoding in "
        "the same run. Achieved is the roofline bound of the target's forward passes "
        f"over the measured time. {RATIO_NOTE}",
    ]
    columns = ["drafter", "tree", "nodes", "depth", "tokens/call", "draft cost"]
    columns += ["speedup", "achieved", "identical", "parameters", "training time"]
    sections = {(row["cfg_scale"], row["verifier"]) for row in result["rows"]}
    for scale, verifier in sorted(sections):
        rows = [
            row
            for row in result["rows"]
            if (row["cfg_scale"], row["verifier"]) == (scale, verifier)
        ]
        kind = "lossless" if rows[0]["lossless"] else "LOSSY"
        cells = []
        for row in sorted(rows, key=lambda row: -row["tokens_per_call"]):
            trained = row["trained_seconds"]
            cells.append(
                [
                    row["drafter"],
                    row["tree"],
                    row["nodes"],
                    row["depth"],
                    f"{row['tokens_per_call']:.2f}",
                    shown(row, "drafter_cost"),
                    shown(row, "speedup"),
                    shown(row, "achieved", "%") if row.get("achieved") else "",
                    "yes" if row["identical"] else "no",
                    f"{row['parameters']:,}" if row["parameters"] else "",
                    f"{trained / 60:.0f} min" if trained else "",
                ]
            )
        lines += ["", f"## cfg {scale:g}, {verifier} ({kind})", ""]
        lines.append(markdown_table(columns, cells).rstrip())
    return "\n".join(lines) + "\n"


def drafters_plot(result: dict[str, Any]) -> np.ndarray:
    """Plots tokens per call over nodes, one panel per CFG scale and verifier."""
    panels = []
    rows = result["rows"]
    for scale, verifier in sorted({(r["cfg_scale"], r["verifier"]) for r in rows}):
        lines = []
        for name in dict.fromkeys(r["drafter"] for r in rows):
            cell = name, scale, verifier
            points = [
                row
                for row in rows
                if (row["drafter"], row["cfg_scale"], row["verifier"]) == cell
            ]
            x = [row["nodes"] for row in points]
            y = [row["tokens_per_call"] for row in points]
            lines.append(Line(name, x, y))
        panels.append(Panel(f"cfg {scale:g}, {verifier}", lines))
    return plot_panels(panels, "nodes", "tokens per call")
