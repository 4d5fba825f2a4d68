"""Quality as a table and as plots of speed against each metric."""

from typing import Any

import numpy as np

from jaxspec.bench.plot import Line, Panel, plot_panels
from jaxspec.evaluate.quality import METRICS


def quality_markdown(result: dict[str, Any]) -> str:
    """Means over the seeds, with the spread between them."""
    seeds = result["seeds"]
    arrow = {True: "up", False: "down"}
    heads = [f"{words} ({arrow[up]})" for words, up in METRICS.values()]
    lines = [
        f"# Quality: {result['checkpoint']}",
        "",
        f"`{result['command']}`",
        "",
        f"Device: {result['device']}, jax {result['jax']}. {result['images']} "
        f"images for each of the seeds {', '.join(map(str, seeds))}, temperature 1, "
        f"cfg {result['cfg_scale']:g}, {result['tree']} of {result['nodes']} nodes. "
        "Each number is a mean over seeds, with the standard deviation between seeds. "
        "Distances are in the features of a small classifier trained on the same data "
        "(this is no FID), against as many held-out images; that classifier is right "
        f"about {100 * result['heldout_accuracy']:.1f} % of those. Distortions are "
        "against the plain image of the same seed.",
        "",
        "| rule | lossless | tokens/call | " + " | ".join(heads) + " |",
        "|" + "---|" * (len(heads) + 3),
    ]
    for row in result["rows"]:
        cells = [row["verifier"], "yes" if row["lossless"] else "no"]
        cells += [_cell(row[key]) for key in ("tokens_per_call", *METRICS)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(values: list[float | None]) -> str:
    some = [x for x in values if x is not None]
    if not some:
        return "same"
    if len(some) < len(values):
        return f"{np.mean(some):.3g}, same {len(values) - len(some)} times"
    return f"{np.mean(some):.3g} ({np.std(some, ddof=1):.1g})"


def quality_plot(result: dict[str, Any]) -> np.ndarray:
    """A panel for each metric: its mean over tokens per call, a point for each rule.

    Dashed lines: what plain decoding gives, one standard deviation either way.
    """
    panels = []
    rows = result["rows"]
    right = max(np.mean(row["tokens_per_call"]) for row in rows)
    for key, (words, _) in METRICS.items():
        lines = []
        if None not in rows[0][key]:
            plain = np.array(rows[0][key])
            middle, spread = plain.mean(), plain.std(ddof=1)
            for level in (middle - spread, middle + spread):
                lines.append(Line("plain, spread", [1, right], [level] * 2, True))
        for row in rows:
            if None not in row[key]:
                x, y = np.mean(row["tokens_per_call"]), np.mean(row[key])
                lines.append(Line(row["verifier"], [x], [y]))
        panels.append(Panel(words, lines))
    return plot_panels(panels, "tokens per call", "", columns=2)
