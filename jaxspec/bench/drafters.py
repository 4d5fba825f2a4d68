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
from jaxspec.helpers import Helper
from jaxspec.pipeline import Run, Settings, batches_of, draw
from jaxspec.report import generation_report
from jaxspec.rules import find_rule, rule_words
from jaxspec.spec.envelopes import Envelope
from jaxspec.spec.tree import Tree
from jaxspec.timing import RULE, ratio_fields, shown
from jaxspec.trees import deepest, find_tree

NODES = (16, 57, 128)
RULES = ("coupled",)
KEYS = ("drafter", "rule", "cfg_scale", "nodes")


def tree_for(helper: Helper, nodes: int) -> Tree | Envelope:
    """A layered beam of so many nodes; a static tree where the drafter needs one.

    Raises:
      ConfigError: the drafter can fill neither.
    """
    depth = deepest(helper.drafter)
    for name in (f"beam-{nodes}", f"optimal-{nodes}"):
        tree = find_tree(name, depth)
        try:
            helper.check_tree(tree)
        except ConfigError:
            continue
        return tree
    raise ConfigError(f"{helper.name} can fill no tree of {nodes} nodes")


def bench_drafters(
    bundle: Bundle,
    helpers: Sequence[Helper],
    settings: Settings,
    *,
    nodes: Sequence[int] = NODES,
    scales: Sequence[float] = (2.0, 3.0),
    rules: Sequence[str] = RULES,
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
      rules: by name, see `find_rule`; a drafter that a rule refuses is left out there.
      repeats: timed runs; after a warm-up, if there is more than one.
      known: rows of an earlier run, kept as they are and not measured again.
      keep: called with the result so far after each row.
    """
    rows: list[dict[str, Any]] = list(known)
    have = {(r["drafter"], r["nodes"], r["rule"], r["cfg_scale"]) for r in known}
    cells = [(h, n, r) for h in helpers for n in nodes for r in rules]
    result = {
        "checkpoint": bundle.name,
        "pictures": len(settings.classes),
        "batch": settings.batch,
        "repeats": repeats,
        "rows": rows,
        **environment(),
    }
    targets = len({id(h.prior) for h in helpers})
    total = len(scales) * (targets + len(cells))
    with tqdm(total=total, desc="drafters", unit="run") as bar:
        for scale in scales:
            here = replace(settings, guidance=scale, rule=find_rule("coupled"))
            run = partial(draw, bundle, repeats=repeats, warm_up=repeats > 1)
            plains: dict[int, Run] = {}  # a drafter may bring the target with it
            for helper, count, name in cells:
                given = replace(here, rule=find_rule(name))
                if (helper.name, count, rule_words(given.rule), scale) in have:
                    bar.update()
                    continue
                plain = plains.get(id(helper.prior))
                if plain is None:
                    plain = run(here, Tree.root(), helper=helper)
                    plains[id(helper.prior)] = plain
                    bar.update()
                row = _row(bundle, helper, given, count, plain, run)
                if row is not None:
                    rows.append(row)
                    keep(result)
                bar.update()
    return result


def _row(bundle, helper, settings, count, plain: Run, run) -> dict[str, Any] | None:
    tree = tree_for(helper, count)
    try:
        fast = run(settings, tree, helper=helper)
    except ConfigError:
        static = find_tree(f"optimal-{count}", deepest(helper.drafter))
        try:
            tree, fast = static, run(settings, static, helper=helper)
        except ConfigError:
            return None
    report = generation_report(bundle, settings, tree, fast, plain, helper)
    drafting = draft_timing(bundle, settings, tree, helper)
    step = plain.timing.per(plain.calls.max() * batches_of(bundle, settings)[0])
    return {
        "drafter": helper.name,
        "rule": report["rule"],
        "lossless": report["lossless"],
        "cfg_scale": settings.guidance,
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
        **target_bound(bundle, settings, tree, fast, helper),
        "parameters": helper.size,
        "trained_seconds": helper.trained_seconds,
    }


def drafters_markdown(result: dict[str, Any]) -> str:
    """The rows as a table, best first within each guidance scale and rule."""
    lines = [
        f"# Drafters: {result['checkpoint']}",
        "",
        f"`{result['command']}`",
        "",
        f"Device: {result['device']}, jax {result['versions']['jax']}. "
        f"{result['pictures']} sequences, {result['batch']} at a time, temperature 1. "
        "Tokens per call count the prefill as a call; draft cost is one `propose` "
        "beside one plain step; speedup is against plain decoding in the same run; of "
        "bound: what the target's passes must take at least, over the time "
        f"taken. {RULE}",
    ]
    keys = sorted({(row["cfg_scale"], row["rule"]) for row in result["rows"]})
    for scale, rule in keys:
        rows = [
            r for r in result["rows"] if (r["cfg_scale"], r["rule"]) == (scale, rule)
        ]
        kind = "lossless" if rows[0]["lossless"] else "LOSSY"
        lines += [
            "",
            f"## cfg {scale:g}, {rule} ({kind})",
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
    for scale, rule in sorted({(r["cfg_scale"], r["rule"]) for r in rows}):
        lines = []
        for name in dict.fromkeys(r["drafter"] for r in rows):
            own = [
                r
                for r in rows
                if (r["drafter"], r["cfg_scale"], r["rule"]) == (name, scale, rule)
            ]
            x, y = [r["nodes"] for r in own], [r["tokens_per_call"] for r in own]
            lines.append(Line(name, x, y))
        panels.append(Panel(f"cfg {scale:g}, {rule}", lines))
    return plot_panels(panels, "nodes", "tokens per call")
