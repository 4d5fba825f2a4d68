"""Timings of programs, and which of their ratios count."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

# A ratio counts if both sides were timed so often, and if the middle half of the runs
# of each lies within such a factor. Beside other work on the machine one side may take
# many times its own time, in one run or in most.
RUNS, SPREAD = 3, 1.5
UNSTEADY = "unsteady"
RULE = (
    f"A ratio is of medians, and counts where both sides were timed {RUNS} times or "
    f"more and their middle halves lie within a factor of {SPREAD:g}: with fewer runs "
    f'their number stands beside it, and where times vary more it reads "{UNSTEADY}".'
)


@dataclass(frozen=True)
class Timing:
    """Seconds of one call.

    Attributes:
      median: of all timed calls.
      least: the fastest.
      most: the slowest.
      low: a quarter of the calls took no longer.
      high: three quarters took no longer.
      runs: timed calls.
    """

    median: float
    least: float
    most: float
    low: float
    high: float
    runs: int

    @classmethod
    def of(cls, seconds: Sequence[float]) -> "Timing":
        """Of the times of all calls, at least one."""
        low, median, high = np.percentile(seconds, [25, 50, 75]).tolist()
        return cls(median, min(seconds), max(seconds), low, high, len(seconds))

    @classmethod
    def exact(cls, seconds: float) -> "Timing":
        """A time that was computed, which does not vary."""
        return cls(seconds, seconds, seconds, seconds, seconds, RUNS)

    @classmethod
    def of_row(cls, row: Mapping[str, Any], runs: int) -> "Timing":
        """What `fields` wrote; older reports have neither quartiles nor `runs`."""
        median = row["seconds"]
        least, most = row.get("least_seconds", median), row.get("most_seconds", median)
        low, high = row.get("quartiles_seconds", (least, most))
        return cls(median, least, most, low, high, row.get("runs", runs))

    def per(self, units: float) -> "Timing":
        """Seconds of one of so many equal parts."""
        return Timing(
            self.median / units,
            self.least / units,
            self.most / units,
            self.low / units,
            self.high / units,
            self.runs,
        )

    def fields(self) -> dict[str, Any]:
        """As columns of a report."""
        return {
            "seconds": self.median,
            "least_seconds": self.least,
            "most_seconds": self.most,
            "quartiles_seconds": [self.low, self.high],
            "runs": self.runs,
        }


def ratio_fields(**pairs: tuple[Timing, Timing]) -> dict[str, Any]:
    """Ratios by name, one over the other; "NAME_marked" for those that do not count."""
    found: dict[str, Any] = {}
    for name, (over, under) in pairs.items():
        found[name] = over.median / under.median
        if words := _mark(over, under):
            found[f"{name}_marked"] = words
    return found


def derived_mark(name: str, row: Mapping[str, Any], *names: str) -> dict[str, str]:
    """The mark of a number that was computed from ratios: the gravest of theirs."""
    marks = [mark for n in names if (mark := row.get(f"{n}_marked"))]
    marks.sort(key=lambda mark: mark != UNSTEADY)
    return {f"{name}_marked": marks[0]} if marks else {}


def counts(row: Mapping[str, Any], name: str) -> bool:
    """Whether times were steady enough for a ratio to be shown at all."""
    return row.get(f"{name}_marked") != UNSTEADY


def plotted(row: Mapping[str, Any], name: str) -> float:
    """A ratio of a row for a plot; NaN, which is left out, where times vary much."""
    return row[name] if counts(row, name) else float("nan")


def shown(row: Mapping[str, Any], name: str, form: str = "") -> str:
    """A ratio of a row as 1.45; by `form` as 145 % ("%") or 1.45x ("x")."""
    if not counts(row, name):
        return UNSTEADY
    number = f"{100 * row[name]:.0f} %" if form == "%" else f"{row[name]:.2f}{form}"
    mark = row.get(f"{name}_marked")
    return f"{number} ({mark})" if mark else number


def _mark(*timings: Timing) -> str | None:
    if any(timing.high > SPREAD * timing.low for timing in timings):
        return UNSTEADY
    runs = min(timing.runs for timing in timings)
    return None if runs >= RUNS else "1 run" if runs == 1 else f"{runs} runs"
