"""Speculative against plain decoding, side by side."""

import itertools
from typing import Any

import numpy as np
from tqdm import tqdm

from jaxspec.bench.costs import round_costs, target_bound
from jaxspec.bench.plot import Line, Panel, plot_panels
from jaxspec.bench.synthetic import Forced
from jaxspec.bench.tables import report_heading, table
from jaxspec.bundle import Bundle
from jaxspec.helpers import bundled_drafter
from jaxspec.pipeline import Settings, draw, make_engine, spread_classes
from jaxspec.report import generation_report
from jaxspec.spec.envelopes import DynamicTree
from jaxspec.spec.tree import Tree
from jaxspec.spec.verify import Coupled
from jaxspec.timing import worst_mark, plot_value, shown

KEYS = ("checkpoint", "batch", "cfg_scale", "tree_name", "tokens", "verifier")


def bench_generation(
    bundle: Bundle,
    trees: dict[str, Tree | DynamicTree],
    batches: list[int],
    scales: list[float],
    *,
    num: int,
    repeats: int,
    seed: int = 0,
    forced: float | None = None,
    length: int | None = None,
    attention: str = "xla",
) -> list[dict[str, Any]]:
    """One report (see `generation_report`) for each combination, and what it is of.

    Classes are spread evenly. The first run of each program is a warm-up and is not
    counted; plain decoding is measured anew for each batch and scale.

    Args:
      bundle: models.
      trees: by name.
      batches: images side by side.
      scales: of guidance.
      num: images.
      repeats: timed runs.
      seed: of images and noise.
      forced: tokens that a round shall emit, see `Forced`; None for what drafts earn.
      length: tokens of each image; None for all.
      attention: of the target, see `Transformer`.

    Returns:
      Each report with "hits"; "verify_cost" and "draft_cost" of a round in decode
      steps, measured in the same run; "expected_speedup", tokens per call over both;
      "fraction_of_expected", the share of it that was reached; "bound_seconds" of the target's
      passes, and "achieved".
    """
    classes = spread_classes(len(bundle.class_names), num)
    for tree in trees.values():  # an impossible one is told before anything is timed
        make_engine(bundle, Settings(classes), tree)
    rows = []
    cells = list(itertools.product(batches, scales))
    runs = len(cells) * (len(trees) + 1)
    with tqdm(total=runs * (repeats + 1) * num, desc="bench", unit="image") as bar:
        for batch, scale in cells:
            settings = Settings(
                classes=classes,
                seed=seed,
                cfg_scale=scale,
                batch=batch,
                length=length,
                attention=attention,
                verifier=Coupled() if forced is None else Forced(forced),
            )

            def measure(tree, settings=settings):
                return draw(
                    bundle,
                    settings,
                    tree,
                    repeats=repeats,
                    warm_up=True,
                    progress=bar.update,
                )

            plain = measure(Tree.root())
            for name, tree in trees.items():
                fast = measure(tree)
                report = generation_report(bundle, settings, tree, fast, plain)
                costs = round_costs(bundle, settings, tree, bundled_drafter(bundle))
                cost = costs["verify_cost"] + costs["draft_cost"]
                expected = fast.tokens_per_call / cost
                parts = "verify_cost", "draft_cost"
                rows.append(
                    {
                        "tree_name": name,
                        **report,
                        "hits": fast.hits.sum(axis=0).tolist(),
                        **costs,
                        "expected_speedup": expected,
                        **worst_mark("expected_speedup", costs, *parts),
                        "fraction_of_expected": report["speedup"] / expected,
                        **worst_mark(
                            "fraction_of_expected", {**report, **costs}, "speedup", *parts
                        ),
                        **target_bound(bundle, settings, tree, fast),
                    }
                )
    return rows


def generation_markdown(result: dict[str, Any]) -> str:
    """The rows as a table."""

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
    words = (
        f"{first['images']} images of {first['tokens'] // first['images']} "
        f"tokens, temperature {first['temperature']:g}, verifier {first['verifier']}. "
        "Tokens per call count the prefill as a call. Costs are a pass over the tree "
        "and a draft in decode steps; tokens per call over both is the speedup to "
        "expect, how much of it was reached is behind it. The bound is that of the "
        "target's passes alone."
    )
    columns = ["model", "batch", "cfg", "tree", "nodes", "depth", "tokens/call"]
    columns += ["seconds", "plain seconds", "verify cost", "draft cost", "speedup"]
    columns += ["of expected", "achieved", "identical", "near-ties decided again"]
    return report_heading("Speculative against plain decoding", result, words) + table(
        columns, [cells(row) for row in rows]
    )


def generation_plot(result: dict[str, Any]) -> np.ndarray:
    """Speedup over nodes, a panel for each model and guidance scale."""
    panels, rows = [], result["rows"]
    for model, scale in dict.fromkeys((r["checkpoint"], r["cfg_scale"]) for r in rows):
        own = [r for r in rows if (r["checkpoint"], r["cfg_scale"]) == (model, scale)]
        lines = []
        for batch in dict.fromkeys(row["batch"] for row in own):
            points = [row for row in own if row["batch"] == batch]
            points.sort(key=lambda row: row["tree"]["nodes"])
            x = [row["tree"]["nodes"] for row in points]
            y = [plot_value(row, "speedup") for row in points]
            lines.append(Line(f"batch {batch}", x, y))
        panels.append(Panel(f"{model}, cfg {scale:g}", lines))
    return plot_panels(panels, "nodes", "plain seconds / seconds")
