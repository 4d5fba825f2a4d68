"""Line plots with nothing but pillow: axes, ticks, markers, one legend."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

# Okabe and Ito's colors, which color-independent readers can tell apart.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
MARKERS = ("circle", "square", "triangle", "diamond")
_FINE = 3  # drawn this many times larger and then shrunk, which smooths every edge


@dataclass(frozen=True)
class Line:
    """Points joined in the order given.

    Attributes:
      label: what the legend says; equal labels look alike and are listed once.
      x: numbers.
      y: as many.
      dashed: draw with gaps.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    dashed: bool = False


@dataclass(frozen=True)
class Panel:
    """One pair of axes."""

    title: str
    lines: Sequence[Line]


def plot_panels(
    panels: Sequence[Panel],
    x_label: str,
    y_label: str,
    *,
    columns: int = 2,
    width: int = 520,
    height: int = 360,
) -> np.ndarray:
    """Panels in rows of `columns` over one legend, `uint8 [H, W, 3]`.

    Every panel has its own axes, which start at 0 or below its least value.

    Args:
      panels: at least one; points that are not finite are left out.
      x_label: below every panel.
      y_label: above every panel's vertical axis.
      columns: panels side by side.
      width: of a panel, in pixels.
      height: of a panel.
    """
    labels = list(dict.fromkeys(line.label for p in panels for line in p.lines))
    dashed = {line.label: line.dashed for p in panels for line in p.lines}
    columns = min(columns, len(panels))
    rows, listed = -(-len(panels) // columns), 2 * columns
    legend = 24 * -(-len(labels) // listed) + 16
    size = columns * width * _FINE, (rows * height + legend) * _FINE
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for i, panel in enumerate(panels):
        corner = i % columns * width * _FINE, i // columns * height * _FINE
        _panel(draw, panel, labels, (x_label, y_label), corner, (width, height))
    for i, label in enumerate(labels):
        x = (24 + i % listed * (columns * width - 24) // listed) * _FINE
        y = (rows * height + 16 + i // listed * 24) * _FINE
        ends = [(x, y), (x + 36 * _FINE, y)]
        _line(draw, ends, dashed[label], _color(labels, label))
        _marker(draw, (x + 18 * _FINE, y), labels.index(label), _color(labels, label))
        _text(draw, (x + 44 * _FINE, y), label, "lm")
    return np.asarray(
        sheet.resize((size[0] // _FINE, size[1] // _FINE), Image.Resampling.LANCZOS)
    )


def ticks(low: float, high: float, most: int = 7) -> np.ndarray:
    """DraftContext numbers, at most `most`, that cover `low` to `high`."""
    if high <= low:
        low, high = low - 0.5, low + 0.5
    power = 10.0 ** np.floor(np.log10((high - low) / most))
    for step in power * np.array([1, 2, 2.5, 5, 10, 20, 25, 50]):
        first, last = np.floor(low / step + 1e-9), np.ceil(high / step - 1e-9)
        if last - first + 1 <= most:
            break
    return np.arange(first, last + 1) * step


def _panel(draw, panel, labels, axis_labels, corner, size):
    """Draws one panel whose upper left corner and size are given."""
    points = [_finite(line) for line in panel.lines]
    every = np.concatenate([*points, np.zeros((0, 2))])
    every = every if len(every) else np.array([[0.0, 0.0], [1.0, 1.0]])
    x_ticks = ticks(every[:, 0].min(), every[:, 0].max())
    y_ticks = ticks(min(0.0, every[:, 1].min()), every[:, 1].max())
    left, right = corner[0] + 58 * _FINE, corner[0] + (size[0] - 22) * _FINE
    top, bottom = corner[1] + 50 * _FINE, corner[1] + (size[1] - 46) * _FINE

    def place(x, y):
        across = (x - x_ticks[0]) / (x_ticks[-1] - x_ticks[0])
        up = (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
        return left + across * (right - left), bottom - up * (bottom - top)

    for x in x_ticks:
        at = place(x, y_ticks[0])[0]
        draw.line([(at, top), (at, bottom + 4 * _FINE)], "#dddddd", _FINE)
        _text(draw, (at, bottom + 8 * _FINE), f"{x:.3g}", "mt")
    for y in y_ticks:
        at = place(x_ticks[0], y)[1]
        draw.line([(left - 4 * _FINE, at), (right, at)], "#dddddd", _FINE)
        _text(draw, (left - 8 * _FINE, at), f"{y:.3g}", "rm")
    draw.line([(left, top), (left, bottom), (right, bottom)], "black", _FINE)
    middle = (left + right) / 2
    _text(draw, (middle, corner[1] + 14 * _FINE), panel.title, "mt", 15)
    _text(draw, (middle, bottom + 26 * _FINE), axis_labels[0], "mt")
    _text(draw, (left, top - 6 * _FINE), axis_labels[1], "ls")
    for line, path in zip(panel.lines, points, strict=True):
        color, kind = _color(labels, line.label), labels.index(line.label)
        path = [place(x, y) for x, y in path]
        _line(draw, path, line.dashed, color)
        for point in path:
            _marker(draw, point, kind, color)


def _finite(line: Line) -> np.ndarray:
    """Points `[n, 2]` of a line that can be drawn."""
    points = np.stack([np.asarray(line.x, float), np.asarray(line.y, float)], axis=1)
    return points[np.isfinite(points).all(axis=1)]


def _color(labels: Sequence[str], label: str) -> str:
    return COLORS[labels.index(label) % len(COLORS)]


def _line(draw, path, dashed: bool, color: str) -> None:
    if not dashed and len(path) > 1:
        draw.line(path, color, 2 * _FINE, joint="curve")
        return
    for start, end in zip(path[:-1], path[1:], strict=True):
        start, end = np.array(start), np.array(end)
        length = np.hypot(*(end - start))
        for at in np.arange(0, length, 9 * _FINE):
            stop = min(at + 5 * _FINE, length)
            ends = [tuple(start + (end - start) * x / length) for x in (at, stop)]
            draw.line(ends, color, 2 * _FINE)


def _marker(draw, point, kind: int, color: str) -> None:
    x, y, r = *point, 4 * _FINE
    shape = MARKERS[kind % len(MARKERS)]
    if shape == "circle":
        draw.ellipse((x - r, y - r, x + r, y + r), color)
    elif shape == "square":
        draw.rectangle((x - r, y - r, x + r, y + r), color)
    elif shape == "triangle":
        draw.polygon([(x, y - r), (x + r, y + r), (x - r, y + r)], color)
    else:
        draw.polygon([(x, y - r), (x + r, y), (x, y + r), (x - r, y)], color)


def _text(draw: Any, at, text: str, anchor: str, size: int = 12) -> None:
    font = ImageFont.load_default(size * _FINE)
    draw.text(at, text, "black", font, anchor)
