"""Comparison of `CoupledRelaxed` with LANTERN at equal acceptance."""

from collections.abc import Sequence
from typing import Any

import numpy as np

# Verifier and drafts of lossless coupled decoding.
LOSSLESS_COUPLED = ("coupled", "coupled")
COMPARED = (
    "lossless",
    "coupled-relaxed, radius",
    "coupled-relaxed, budget, k=50",
    "coupled-relaxed, lam, k=50",
)


def equal_acceptance(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Adds LANTERN's distortion at the same acceptance to rows of coupled verifiers.

    Includes rows of `COMPARED` curves that accept at least as much as lossless
    `Coupled` with coupled children.

    Returns:
      Copies of the rows with "lantern" and "lantern_optimal", results of `lantern_at`
      for the published and for the optimal residual.
    """
    compared = []
    for row in rows:
        section = [
            r for r in rows if all(r[k] == row[k] for k in ("setting", "children"))
        ]
        least = next(
            r for r in section if (r["verifier"], r["drafts"]) == LOSSLESS_COUPLED
        )
        if row["curve"] in COMPARED and row["verifier"] != "rejection":
            if row["acceptance"] >= least["acceptance"]:
                acceptance = row["acceptance"]
                lantern = {
                    "lantern": lantern_at(section, acceptance, "published"),
                    "lantern_optimal": lantern_at(section, acceptance, "optimal"),
                }
                compared.append(row | lantern)
    return compared


def lantern_at(
    rows: Sequence[dict[str, Any]], acceptance: float, residual: str
) -> dict[str, Any] | None:
    """Least distortion of LANTERN at an acceptance rate.

    Every curve starts at `Rejection` and is interpolated linearly between its settings.

    Args:
      rows: Rows of one setting and number of children.
      acceptance: Acceptance rate.
      residual: Residual of the curves, "published" or "optimal".

    Returns:
      "tv" and "w1" of the curve with the least total variation, and "verifier", its
      setting with the nearest acceptance. The row of `Rejection` if that accepts as
      much; None if no curve does.
    """
    rejection = next(r for r in rows if r["verifier"] == "rejection")
    if acceptance <= rejection["acceptance"]:
        return {k: rejection[k] for k in ("verifier", "tv", "w1")}
    curves: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if row["curve"].startswith("LANTERN") and residual in row["curve"]:
            curves.setdefault(row["curve"], []).append(row)
    points = []
    for settings in curves.values():
        curve = sorted([rejection, *settings], key=lambda row: row["acceptance"])
        if acceptance > curve[-1]["acceptance"]:
            continue
        nearest = min(settings, key=lambda row: abs(row["acceptance"] - acceptance))
        point = {"verifier": nearest["verifier"], "w1": None}
        x = [row["acceptance"] for row in curve]
        for name in ("tv", "w1"):
            y = [row[name] for row in curve]
            if None not in y:
                point[name] = float(np.interp(acceptance, x, y))
        points.append(point)
    return min(points, key=lambda point: point["tv"], default=None)
