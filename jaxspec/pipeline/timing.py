"""Timings of programs, and ratios of timings with a check of their spread."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

# A ratio is reported without a mark if both timings have at least `MIN_RUNS` runs, and
# reported as a number only if the interquartile range of each spans at most a factor of
# `MAX_SPREAD`. On a machine with other load, single runs can take many times longer.
MIN_RUNS, MAX_SPREAD = 3, 1.5
UNSTEADY = "unsteady"
RATIO_NOTE = (
    f"Ratios are ratios of medians. With fewer than {MIN_RUNS} runs on either side the "
    "number of runs is shown in parentheses; where the quartiles of either side differ "
    f'by more than a factor of {MAX_SPREAD:g}, the ratio is shown as "{UNSTEADY}".'
)


@dataclass(frozen=True)
class Timing:
    """Statistics of repeated timings of one call, in seconds.

    Attributes:
      median: Median.
      minimum: Fastest call.
      maximum: Slowest call.
      lower_quartile: 25th percentile.
      upper_quartile: 75th percentile.
      runs: Number of timed calls.
    """

    median: float
    minimum: float
    maximum: float
    lower_quartile: float
    upper_quartile: float
    runs: int

    @classmethod
    def of(cls, seconds: Sequence[float]) -> "Timing":
        """Statistics of the times of all calls; needs at least one."""
        lower, median, upper = np.percentile(seconds, [25, 50, 75]).tolist()
        return cls(median, min(seconds), max(seconds), lower, upper, len(seconds))

    @classmethod
    def exact(cls, seconds: float) -> "Timing":
        """Wraps a computed time, which has no variance."""
        return cls(seconds, seconds, seconds, seconds, seconds, MIN_RUNS)

    @classmethod
    def from_report(cls, row: Mapping[str, Any], runs: int) -> "Timing":
        """Reads what `fields` wrote.

        Args:
          row: Report row with "seconds"; the other fields are optional.
          runs: Number of runs for rows without "runs".
        """
        median = row["seconds"]
        minimum = row.get("min_seconds", median)
        maximum = row.get("max_seconds", median)
        lower, upper = row.get("quartiles_seconds", (minimum, maximum))
        return cls(median, minimum, maximum, lower, upper, row.get("runs", runs))

    def per(self, units: float) -> "Timing":
        """Divides all times by a number of equal parts of the call."""
        return Timing(
            self.median / units,
            self.minimum / units,
            self.maximum / units,
            self.lower_quartile / units,
            self.upper_quartile / units,
            self.runs,
        )

    def fields(self) -> dict[str, Any]:
        """Columns of a report row."""
        return {
            "seconds": self.median,
            "min_seconds": self.minimum,
            "max_seconds": self.maximum,
            "quartiles_seconds": [self.lower_quartile, self.upper_quartile],
            "runs": self.runs,
        }


def ratio_fields(**pairs: tuple[Timing, Timing]) -> dict[str, Any]:
    """Ratios of medians, as columns of a report row.

    Args:
      **pairs: Numerator and denominator of each ratio, by name.

    Returns:
      Ratio under each name, and under "NAME_marked" the reason if it is unreliable:
      "unsteady" or the number of runs.
    """
    fields: dict[str, Any] = {}
    for name, (numerator, denominator) in pairs.items():
        fields[name] = numerator.median / denominator.median
        if mark := _mark(numerator, denominator):
            fields[f"{name}_marked"] = mark
    return fields


def worst_mark(name: str, row: Mapping[str, Any], *ratios: str) -> dict[str, str]:
    """Mark of a number that was computed from ratios.

    Args:
      name: Column of the computed number.
      row: Report row that holds the ratios.
      *ratios: Columns of the ratios.

    Returns:
      "NAME_marked" with the worst mark of the ratios, "unsteady" before a number of
      runs; empty if no ratio is marked.
    """
    marks = [mark for ratio in ratios if (mark := row.get(f"{ratio}_marked"))]
    marks.sort(key=lambda mark: mark != UNSTEADY)
    return {f"{name}_marked": marks[0]} if marks else {}


def is_steady(row: Mapping[str, Any], name: str) -> bool:
    """Whether the timings of a ratio vary little enough to report it."""
    return row.get(f"{name}_marked") != UNSTEADY


def plot_value(row: Mapping[str, Any], name: str) -> float:
    """Ratio of a row for a plot; NaN, which plots omit, if it is unsteady."""
    return row[name] if is_steady(row, name) else float("nan")


def shown(row: Mapping[str, Any], name: str, form: str = "") -> str:
    """Ratio of a row as text with its mark.

    Args:
      row: Report row.
      name: Column of the ratio.
      form: Format: "" for 1.45, "x" for 1.45x, "%" for 145 %.
    """
    if not is_steady(row, name):
        return UNSTEADY
    number = f"{100 * row[name]:.0f} %" if form == "%" else f"{row[name]:.2f}{form}"
    mark = row.get(f"{name}_marked")
    return f"{number} ({mark})" if mark else number


def _mark(*timings: Timing) -> str | None:
    """Reason why a ratio of timings is unreliable, if it is."""
    for timing in timings:
        if timing.upper_quartile > MAX_SPREAD * timing.lower_quartile:
            return UNSTEADY
    runs = min(timing.runs for timing in timings)
    return None if runs >= MIN_RUNS else "1 run" if runs == 1 else f"{runs} runs"
