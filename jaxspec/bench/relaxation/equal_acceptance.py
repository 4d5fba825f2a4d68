"""Our rules beside LANTERN where both accept the same."""

from collections.abc import Sequence
from typing import Any

import numpy as np

EXACT = ("coupled", "coupled")  # rule and drafts of lossless coupled decoding
COMPARED = ("lossless", "ours, radius", "ours, budget, k=50", "ours, lam, k=50")


def equal_acceptance(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of ours, each with what LANTERN shows at the same acceptance added.

    Those of `COMPARED` that accept at least what `Coupled` does with coupled children;
    see `lantern_at` for `lantern` and `lantern_optimal`.
    """
    compared = []
    for row in rows:
        beside = [
            r for r in rows if all(r[k] == row[k] for k in ("setting", "children"))
        ]
        least = next(r for r in beside if (r["verifier"], r["drafts"]) == EXACT)
        if row["curve"] in COMPARED and row["verifier"] != "rejection":
            if row["acceptance"] >= least["acceptance"]:
                theirs = {
                    "lantern": lantern_at(beside, row["acceptance"], "published"),
                    "lantern_optimal": lantern_at(beside, row["acceptance"], "optimal"),
                }
                compared.append(row | theirs)
    return compared


def lantern_at(
    rows: Sequence[dict[str, Any]], acceptance: float, residual: str
) -> dict[str, Any] | None:
    """What the best LANTERN of a sweep shows at an acceptance.

    Of all curves with this residual, each from `Rejection` on and linear between swept
    settings, the one with the least total variation; `rule` is its nearest setting.
    Where `Rejection` accepts as much, that is the answer; None where no LANTERN does.
    """
    base = next(r for r in rows if r["verifier"] == "rejection")
    if acceptance <= base["acceptance"]:
        return {k: base[k] for k in ("verifier", "tv", "w1")}
    curves: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if row["curve"].startswith("LANTERN") and residual in row["curve"]:
            curves.setdefault(row["curve"], []).append(row)
    found = []
    for swept in curves.values():
        curve = sorted([base, *swept], key=lambda row: row["acceptance"])
        if acceptance > curve[-1]["acceptance"]:
            continue
        nearest = min(swept, key=lambda row: abs(row["acceptance"] - acceptance))
        here = {"verifier": nearest["verifier"], "w1": None}
        x = [row["acceptance"] for row in curve]
        for name in ("tv", "w1"):
            y = [row[name] for row in curve]
            if None not in y:
                here[name] = float(np.interp(acceptance, x, y))
        found.append(here)
    return min(found, key=lambda here: here["tv"], default=None)
