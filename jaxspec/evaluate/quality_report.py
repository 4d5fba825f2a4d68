"""Image quality as a Markdown table, and as plots against tokens per call."""

from typing import Any

import numpy as np

from jaxspec.evaluate.plot import Line, Panel, plot_panels
from jaxspec.evaluate.quality import METRICS


def quality_markdown(result: dict[str, Any]) -> str:
    """Table of means over the seeds, with standard deviations."""
    seeds = result["seeds"]
    direction = {True: "up", False: "down"}
    heads = [f"{label} ({direction[up]})" for label, up in METRICS.values()]
    lines = [
        f"# Quality: {result['checkpoint']}",
        "",
        f"`{result['command']}`",
        "",
        f"Device: {result['device']}, jax {result['jax']}. {result['images']} "
        f"images for each of the seeds {', '.join(map(str, seeds))}, temperature 1, "
        f"cfg {result['cfg_scale']:g}, {result['tree']} of {result['nodes']} nodes. "
        "Each number is a mean over seeds, with the standard deviation between seeds. "
        "Frechet distance, precision and recall are measured against an equal number "
        "of held-out images, in the features of a small classifier trained on the same "
        "data (not an FID). That classifier gets "
        f"{100 * result['heldout_accuracy']:.1f} % of the held-out images right. PSNR, "
        "code distance and equal tokens are relative to plain decoding with the same "
        "seed.",
        "",
        "| verifier | lossless | tokens/call | " + " | ".join(heads) + " |",
        "|" + "---|" * (len(heads) + 3),
    ]
    for row in result["rows"]:
        cells = [row["verifier"], "yes" if row["lossless"] else "no"]
        cells += [_cell(row[key]) for key in ("tokens_per_call", *METRICS)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(values: list[float | None]) -> str:
    """Mean and standard deviation; None stands for images equal to the plain ones."""
    finite = [x for x in values if x is not None]
    if not finite:
        return "same"
    if len(finite) < len(values):
        return f"{np.mean(finite):.3g}, same {len(values) - len(finite)} times"
    return f"{np.mean(finite):.3g} ({np.std(finite, ddof=1):.1g})"


def quality_plot(result: dict[str, Any]) -> np.ndarray:
    """Plots the mean of each metric against tokens per call, a point per verifier.

    Dashed lines are one standard deviation above and below plain decoding.
    """
    panels = []
    rows = result["rows"]
    right = max(np.mean(row["tokens_per_call"]) for row in rows)
    for key, (label, _) in METRICS.items():
        lines = []
        if None not in rows[0][key]:
            plain = np.array(rows[0][key])
            mean, deviation = plain.mean(), plain.std(ddof=1)
            for level in (mean - deviation, mean + deviation):
                lines.append(Line("plain, std", [1, right], [level] * 2, True))
        for row in rows:
            if None not in row[key]:
                x, y = np.mean(row["tokens_per_call"]), np.mean(row[key])
                lines.append(Line(row["verifier"], [x], [y]))
        panels.append(Panel(label, lines))
    return plot_panels(panels, "tokens per call", "", columns=2)
