"""Line plots with Pillow: axes, ticks, markers, one legend."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

# Palette of Okabe and Ito, which color-blind readers can distinguish.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
MARKERS = ("circle", "square", "triangle", "diamond")
_FINE = 3  # supersampling factor, for antialiasing


@dataclass(frozen=True)
class Line:
    """Points that are joined in order.

    Attributes:
      label: Name in the legend; lines of equal label share a color and one entry.
      x: Horizontal coordinates.
      y: Vertical coordinates, as many as `x`.
      dashed: Whether the line is dashed.
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
    """Draws panels in rows of `columns` above a legend, `uint8 [height, width, 3]`.

    Every panel has its own axes. The vertical axis starts at 0 or at its least value.

    Args:
      panels: Panels, at least one; points that are not finite are omitted.
      x_label: Label of the horizontal axes.
      y_label: Label of the vertical axes.
      columns: Maximum number of panels in a row.
      width: Width of a panel in pixels.
      height: Height of a panel in pixels.
    """
    labels = list(dict.fromkeys(line.label for p in panels for line in p.lines))
    dashed = {line.label: line.dashed for p in panels for line in p.lines}
    columns = min(columns, len(panels))
    rows, entries = -(-len(panels) // columns), 2 * columns
    legend = 24 * -(-len(labels) // entries) + 16
    size = columns * width * _FINE, (rows * height + legend) * _FINE
    canvas = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(canvas)
    for i, panel in enumerate(panels):
        corner = i % columns * width * _FINE, i // columns * height * _FINE
        _panel(draw, panel, labels, (x_label, y_label), corner, (width, height))
    for i, label in enumerate(labels):
        x = (24 + i % entries * (columns * width - 24) // entries) * _FINE
        y = (rows * height + 16 + i // entries * 24) * _FINE
        ends = [(x, y), (x + 36 * _FINE, y)]
        _line(draw, ends, dashed[label], _color(labels, label))
        _marker(draw, (x + 18 * _FINE, y), labels.index(label), _color(labels, label))
        _text(draw, (x + 44 * _FINE, y), label, "lm")
    return np.asarray(
        canvas.resize((size[0] // _FINE, size[1] // _FINE), Image.Resampling.LANCZOS)
    )


def ticks(low: float, high: float, limit: int = 7) -> np.ndarray:
    """Round numbers, at most `limit` where possible, that cover `low` to `high`."""
    if high <= low:
        low, high = low - 0.5, low + 0.5
    power = 10.0 ** np.floor(np.log10((high - low) / limit))
    for step in power * np.array([1, 2, 2.5, 5, 10, 20, 25, 50]):
        first, last = np.floor(low / step + 1e-9), np.ceil(high / step - 1e-9)
        if last - first + 1 <= limit:
            break
    return np.arange(first, last + 1) * step


def _panel(draw, panel, labels, axis_labels, corner, size):
    """Draws one panel.

    Args:
      draw: Drawing context.
      panel: Panel.
      labels: Labels of the whole plot, which define colors and markers.
      axis_labels: Labels of the horizontal and the vertical axis.
      corner: Upper left corner on the canvas.
      size: Width and height, before supersampling.
    """
    points = [_finite(line) for line in panel.lines]
    all_points = np.concatenate([*points, np.zeros((0, 2))])
    if not len(all_points):
        all_points = np.array([[0.0, 0.0], [1.0, 1.0]])
    x_ticks = ticks(all_points[:, 0].min(), all_points[:, 0].max())
    y_ticks = ticks(min(0.0, all_points[:, 1].min()), all_points[:, 1].max())
    left, right = corner[0] + 58 * _FINE, corner[0] + (size[0] - 22) * _FINE
    top, bottom = corner[1] + 50 * _FINE, corner[1] + (size[1] - 46) * _FINE

    def to_pixels(x, y):
        across = (x - x_ticks[0]) / (x_ticks[-1] - x_ticks[0])
        up = (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
        return left + across * (right - left), bottom - up * (bottom - top)

    for x in x_ticks:
        column = to_pixels(x, y_ticks[0])[0]
        draw.line([(column, top), (column, bottom + 4 * _FINE)], "#dddddd", _FINE)
        _text(draw, (column, bottom + 8 * _FINE), f"{x:.3g}", "mt")
    for y in y_ticks:
        line = to_pixels(x_ticks[0], y)[1]
        draw.line([(left - 4 * _FINE, line), (right, line)], "#dddddd", _FINE)
        _text(draw, (left - 8 * _FINE, line), f"{y:.3g}", "rm")
    draw.line([(left, top), (left, bottom), (right, bottom)], "black", _FINE)
    middle = (left + right) / 2
    _text(draw, (middle, corner[1] + 14 * _FINE), panel.title, "mt", 15)
    _text(draw, (middle, bottom + 26 * _FINE), axis_labels[0], "mt")
    _text(draw, (left, top - 6 * _FINE), axis_labels[1], "ls")
    for line, path in zip(panel.lines, points, strict=True):
        color, kind = _color(labels, line.label), labels.index(line.label)
        path = [to_pixels(x, y) for x, y in path]
        _line(draw, path, line.dashed, color)
        for point in path:
            _marker(draw, point, kind, color)


def _finite(line: Line) -> np.ndarray:
    """Finite points `[M, 2]` of a line."""
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
        for begin in np.arange(0, length, 9 * _FINE):
            stop = min(begin + 5 * _FINE, length)
            ends = [tuple(start + (end - start) * x / length) for x in (begin, stop)]
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


def _text(draw: Any, position, text: str, anchor: str, size: int = 12) -> None:
    font = ImageFont.load_default(size * _FINE)
    draw.text(position, text, "black", font, anchor)
