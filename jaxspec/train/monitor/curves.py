"""Curves of all metrics of a training, in one PNG file."""

import json
from collections import defaultdict

from jaxspec.evaluate.plot import Line, Panel, plot_panels
from jaxspec.io.images import png_bytes
from jaxspec.io.writing import write_file
from jaxspec.train.events import TrainingEvent

CURVES = "curves.png"
# Metrics that share a panel, by title; every other metric has one of its own.
_PANELS = {
    "loss": ("loss", "heldout_loss", "entropy"),
    "overlap of drafter and target": ("overlap_1", "overlap_2", "overlap_4"),
}
_LEFT_OUT = ("step", "gradient_norm", "psnr_of_mean")
_POINTS = 400  # of one line


def write_curves(event: TrainingEvent) -> None:
    """Writes `curves.png` from `metrics.jsonl` at every evaluation."""
    if event.params is None:
        return
    series: dict[str, tuple[list, list]] = defaultdict(lambda: ([], []))
    with open(event.workdir / "metrics.jsonl", encoding="utf-8") as lines:
        for line in lines:
            record = json.loads(line)
            for name, value in record.items():
                if name not in _LEFT_OUT:
                    series[name][0].append(record["step"])
                    series[name][1].append(value)
    if "psnr" in series:  # the held-out loss of a tokenizer is its negative
        series.pop("heldout_loss", None)
    image = plot_panels(_panels(series), "step", "")
    write_file(event.workdir / CURVES, png_bytes(image))


def _panels(series: dict[str, tuple[list, list]]) -> list[Panel]:
    panels = []
    for title, names in _PANELS.items():
        lines = [_line(name, *series.pop(name)) for name in names if name in series]
        if lines:
            panels.append(Panel(title, lines))
    for name in [name for name in series if not name.startswith("overlap_")]:
        panels.append(Panel(name, [_line(name, *series[name])]))
    return panels


def _line(name: str, steps: list, values: list) -> Line:
    """A line of at most `_POINTS` points, each the mean of its neighbors."""
    size = -(-len(steps) // _POINTS)
    groups = range(0, len(steps), size)
    means = [sum(values[i : i + size]) / len(values[i : i + size]) for i in groups]
    return Line(name, [steps[i] for i in groups], means)
