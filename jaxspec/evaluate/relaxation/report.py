"""Report of a comparison of verifiers: Markdown and plot."""

from typing import Any

import numpy as np

from jaxspec.evaluate.plot import Line, Panel, plot_panels
from jaxspec.evaluate.tables import markdown_table

COLUMNS = {
    "verifier": "verifier",
    "lossless": "lossless",
    "acceptance": "acceptance",
    "tokens_per_call": "tokens per call",
    "tv": "TV",
    "w1": "W1",
    "shift": "W1 bound",
    "entropy_change": "entropy change",
}


def comparison_report(result: dict[str, Any]) -> str:
    """Formats a report of `run_comparison`."""
    rows = []
    for row in result["rows"]:
        cells: list[str] = [f"`{row['verifier']}`"]
        cells.append("yes" if row["lossless"] else "LOSSY")
        cells.append(_with_error(row["acceptance"], row["acceptance_error"]))
        cells.append(_with_error(row["tokens_per_call"], row["tokens_error"]))
        cells.append(_with_error(row["tv"], row["tv_error"]))
        cells += [_number(row[name]) for name in ("w1", "shift", "entropy_change")]
        rows.append(cells)
    size = f"{result['positions']} positions, {result['vocab_size']} tokens"
    head = [
        f"# Verifiers on {size}",
        "",
        f"`{result['command']}`",
        "",
        f"Device: {result['device']}, jax {result['versions']['jax']}.",
        "",
        result["origin"] + f" They overlap by {result['overlap']:.3f} (sum of the "
        "smaller probabilities), the acceptance of exact rejection of one child.",
        "",
        _DESCRIPTION.format(**result).strip(),
        "",
    ]
    return "\n".join(head) + "\n" + markdown_table(list(COLUMNS.values()), rows)


_DESCRIPTION = """
Acceptance is the probability that a drafted child of the root is accepted; the root has
{children}. Tokens per call are those of {rounds} simulated rounds for each position on
the tree `{tree}`, with the same `p` and `q` at every node: a model's distributions
depend on the path, so compare verifiers with each other, not with measured speed. TV is
the total variation distance of the emitted token's distribution from `p`, W1 their
Wasserstein-1 distance in the Euclidean metric of the codebook, "W1 bound" the mean
distance from the target's sample under the same noise, and the entropy change is in
nats. All numbers are means over positions. "+-" is a standard error, and for TV the
part that sampling errors can be expected to cause. Acceptance and TV without it are
exact, or the same in all samples; W1, its bound and the entropy change come from the
same drafts and have no error of their own.
"""


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{0.0 if abs(value) < 5e-4 else value:.3f}"


def _with_error(value: float, error: float) -> str:
    return _number(value) + (f" +- {error:.3f}" if error > 0 else "")


def family(verifier: str) -> str:
    """Name of a verifier without the values of its amounts, such as `lam`.

    Verifiers that differ in an amount alone form one curve of the plot.
    """
    name, _, settings = verifier.partition(":")
    words = []
    for setting in filter(None, settings.split(",")):
        key, _, value = setting.partition("=")
        amount = key in ("delta", "lam", "budget", "radius", "epsilon", "distance")
        words.append(key if amount else f"{key}={value}")
    return f"{name}, {', '.join(words)}" if words else name


def comparison_plot(result: dict[str, Any]) -> np.ndarray:
    """Plots the distance from the target over acceptance, uint8 [height, width, 3]."""
    panels = [("tv", "total variation distance")]
    if all(row["w1"] is not None for row in result["rows"]):
        panels.append(("w1", "Wasserstein-1 distance in the codebook"))
    families: dict[str, list[dict[str, Any]]] = {}
    for row in result["rows"]:
        families.setdefault(family(row["verifier"]), []).append(row)
    drawn = []
    for key, title in panels:
        lines = []
        for label, rows in families.items():
            points = sorted((row["acceptance"], row[key]) for row in rows)
            x, y = zip(*points, strict=True)
            lines.append(Line(label, x, y))
        drawn.append(Panel(title, lines))
    return plot_panels(drawn, "acceptance", "distance from the target")
