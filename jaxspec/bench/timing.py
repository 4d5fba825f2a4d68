"""Medians of programs that are timed in turn."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np


@dataclass(frozen=True)
class Timing:
    """Seconds of one call.

    Attributes:
      median: of all timed calls.
      least: the fastest.
      most: the slowest.
    """

    median: float
    least: float
    most: float

    def per(self, units: float) -> "Timing":
        """Seconds of one of so many equal parts."""
        return Timing(self.median / units, self.least / units, self.most / units)

    def fields(self) -> dict[str, float]:
        """As columns of a report."""
        return {
            "seconds": self.median,
            "least_seconds": self.least,
            "most_seconds": self.most,
        }


def side_by_side(
    calls: Mapping[Any, Callable[[], Any]],
    repeats: int,
    progress: Callable[[], object] = lambda: None,
) -> dict[Any, Timing]:
    """Times every call `repeats` times, in turn, so that all see the same machine.

    Each is made once before, which compiles what was not and warms it up. Arrays that
    a call returns are waited for.
    """
    times: dict[Any, list[float]] = {name: [] for name in calls}
    for run in range(repeats + 1):
        for name, call in calls.items():
            began = time.perf_counter()
            jax.block_until_ready(call())
            if run:
                times[name].append(time.perf_counter() - began)
            progress()
    return {
        name: Timing(float(np.median(each)), min(each), max(each))
        for name, each in times.items()
    }
