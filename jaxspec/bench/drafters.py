"""Drafters side by side on one target: tokens a call, cost, wall-clock."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from tqdm import tqdm

from jaxspec.bench.costs import draft_timing, target_bound
from jaxspec.bench.plot import Line, Panel, plot_panels
from jaxspec.bench.tables import environment
from jaxspec.bundle import Bundle
from jaxspec.errors import ConfigError
from jaxspec.helpers import LoadedDrafter
from jaxspec.pipeline import Run, Settings, batches_of, draw
from jaxspec.report import generation_report
from jaxspec.rules import parse_verifier, verifier_spec
from jaxspec.spec.envelopes import DynamicTree
from jaxspec.spec.tree import Tree
from jaxspec.timing import RATIO_NOTE, ratio_fields, shown
from jaxspec.trees import deepest, parse_tree

NODES = (16, 57, 128)
VERIFIERS = ("coupled",)
KEYS = ("drafter", "verifier", "cfg_scale", "nodes")


def tree_for(loaded: LoadedDrafter, nodes: int) -> Tree | DynamicTree:
    """A layered beam of so many nodes; a static tree where the drafter needs one.

    Raises:
      ConfigError: the drafter can fill neither.
    """
    depth = deepest(loaded.drafter)
    for name in (f"beam-{nodes}", f"optimal-{nodes}"):
        tree = parse_tree(name, depth)
        try:
            loaded.check_tree(tree)
        except ConfigError:
            continue
        return tree
    raise ConfigError(f"{loaded.name} can fill no tree of {nodes} nodes")


def bench_drafters(
    bundle: Bundle,
    loaded_drafters: Sequence[LoadedDrafter],
    settings: Settings,
    *,
    nodes: Sequence[int] = NODES,
    scales: Sequence[float] = (2.0, 3.0),
    rules: Sequence[str] = VERIFIERS,
    repeats: int = 1,
    known: Sequence[dict[str, Any]] = (),
    keep: Callable[[dict[str, Any]], None] = lambda result: None,
) -> dict[str, Any]:
    """One row for each drafter, number of nodes, guidance scale and rule.

    Plain decoding is timed once for each scale, in the same run.

    Args:
      bundle: models.
      helpers: the drafters.
      settings: what is drawn; its guidance and rule are replaced.
      nodes: sizes of trees.
      scales: guidance.
      rules: by name, see `parse_verifier`; a drafter that a rule refuses is left out
        there.
      repeats: timed runs; after a warm-up, if there is more than one.
      known: rows of an earlier run, kept as they are and not measured again.
      keep: called with the result so far after each row.
    """
    rows: list[dict[str, Any]] = list(known)
    have = {(r["drafter"], r["nodes"], r["verifier"], r["cfg_scale"]) for r in known}
    cells = [(h, n, r) for h in loaded_drafters for n in nodes for r in rules]
    result = {
        "checkpoint": bundle.name,
        "images": len(settings.classes),
        "batch": settings.batch,
        "repeats": repeats,
        "rows": rows,
        **environment(),
    }
    targets = len({id(h.prior) for h in loaded_drafters})
    total = len(scales) * (targets + len(cells))
    with tqdm(total=total, desc="drafters", unit="run") as bar:
        for scale in scales:
            here = replace(
                settings, cfg_scale=scale, verifier=parse_verifier("coupled")
            )
            run = partial(draw, bundle, repeats=repeats, warm_up=repeats > 1)
            plains: dict[int, Run] = {}  # a drafter may bring the target with it
            for loaded, count, name in cells:
                given = replace(here, verifier=parse_verifier(name))
                if (loaded.name, count, verifier_spec(given.verifier), scale) in have:
                    bar.update()
                    continue
                plain = plains.get(id(loaded.prior))
                if plain is None:
                    plain = run(here, Tree.root(), loaded=loaded)
                    plains[id(loaded.prior)] = plain
                    bar.update()
                row = _row(bundle, loaded, given, count, plain, run)
                if row is not None:
                    rows.append(row)
                    keep(result)
                bar.update()
    return result


def _row(bundle, loaded, settings, count, plain: Run, run) -> dict[str, Any] | None:
    tree = tree_for(loaded, count)
    try:
        fast = run(settings, tree, loaded=loaded)
    except ConfigError:
        static = parse_tree(f"optimal-{count}", deepest(loaded.drafter))
        try:
            tree, fast = static, run(settings, static, loaded=loaded)
        except ConfigError:
            return None
    report = generation_report(bundle, settings, tree, fast, plain, loaded)
    drafting = draft_timing(bundle, settings, tree, loaded)
    step = plain.timing.per(plain.calls.max() * batches_of(bundle, settings)[0])
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
        **target_bound(bundle, settings, tree, fast, loaded),
        "parameters": loaded.size,
        "trained_seconds": loaded.trained_seconds,
    }


def drafters_markdown(result: dict[str, Any]) -> str:
    """The rows as a table, best first within each guidance scale and rule."""
    lines = [
        f"# Drafters: {result['checkpoint']}",
        "",
        f"`{result['command']}`",
        "",
        f"Device: {result['device']}, jax {result['versions']['jax']}. "
        f"{result['images']} sequences, {result['batch']} at a time, temperature 1. "
        "Tokens per call count the prefill as a call; draft cost is one `propose` "
        "beside one plain step; speedup is against plain decoding in the same run; of "
        "bound: what the target's passes must take at least, over the time "
        f"taken. {RATIO_NOTE}",
    ]
    keys = sorted({(row["cfg_scale"], row["verifier"]) for row in result["rows"]})
    for scale, verifier in keys:
        rows = [
            r
            for r in result["rows"]
            if (r["cfg_scale"], r["verifier"]) == (scale, verifier)
        ]
        kind = "lossless" if rows[0]["lossless"] else "LOSSY"
        lines += [
            "",
            f"## cfg {scale:g}, {verifier} ({kind})",
            "",
            "| drafter | tree | nodes | depth | tokens/call | draft cost | speedup "
            "| of bound | identical | parameters | trained for |",
            "|---|---|---|---|---|---|---|---|---|---|---|",
        ]
        for row in sorted(rows, key=lambda r: -r["tokens_per_call"]):
            trained = row["trained_seconds"]
            cells = [
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
            lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


def drafters_plot(result: dict[str, Any]) -> np.ndarray:
    """Tokens per call over nodes, a panel for each guidance scale and rule."""
    panels = []
    rows = result["rows"]
    for scale, verifier in sorted({(r["cfg_scale"], r["verifier"]) for r in rows}):
        lines = []
        for name in dict.fromkeys(r["drafter"] for r in rows):
            own = [
                r
                for r in rows
                if (r["drafter"], r["cfg_scale"], r["verifier"]) == (name, scale, verifier)
            ]
            x, y = [r["nodes"] for r in own], [r["tokens_per_call"] for r in own]
            lines.append(Line(name, x, y))
        panels.append(Panel(f"cfg {scale:g}, {verifier}", lines))
    return plot_panels(panels, "nodes", "tokens per call")
