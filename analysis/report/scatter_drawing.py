"""Scatters drawn in one pair of axes, whose coordinates are inches from the top left corner.

An axes of its own for every benchmark would take most of the report's time; here the dots, the bars and the frames of all
boxes are one path each.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from evalengine.analysis.figure import Points, Scatters, by
from evalengine.analysis.report.style import BAND, POSITIVE, SOFT, canvas, short
from evalengine.analysis.results import with_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

COLUMNS = 5
# Inches.
SIDE = 1.4  # of a box
LEFT, ABOVE, BELOW = 0.45, 0.36, 0.3  # a box: the numbers of its axes, and the two lines of its title
HEADING = 0.26  # of a category
MARGIN = 0.1  # of the values within a box
NAMED, NUMBERED = 12, 30  # mixtures that are named, and numbered; the points of more have no label
NAME = 6  # characters of a name that fits beside a point
SMALL = 5.5  # points, of the labels
LETTER = 0.62 / 72  # width of a letter of one point, an upper bound for most

Box = tuple[float, float, float, float]  # left, top, right, bottom
Array = NDArray[np.float64]


class PointLabel(NamedTuple):
    """A mixture's name and its middle."""

    x: float
    y: float
    text: str


def scatter_drawing(figure: Scatters) -> Drawing:
    """A box for each benchmark, in bands for the categories where there are several; a key and a legend below."""
    by_category = by(figure.rows, figure.panel)
    cell = SIDE + LEFT, SIDE + ABOVE + BELOW
    heading = HEADING if len(by_category) > 1 else 0.0
    width = cell[0] * min(COLUMNS, max(map(len, by_category.values())))
    rows = {category: math.ceil(len(points) / COLUMNS) for category, points in by_category.items()}
    height = sum(heading + cell[1] * count for count in rows.values())
    names = list(dict.fromkeys(name for one in figure.rows for name in one.mixtures))
    label, key = labels(names)
    drawing, (axis,) = canvas(1, 1, (width, height), (0.0, 0.0))
    axis.set(xlim=(0.0, width), ylim=(height, 0.0))
    axis.axis("off")
    top = 0.0
    for k, (category, points) in enumerate(by_category.items()):
        if heading:
            if k % 2 == 0:
                bottom = top + heading + cell[1] * rows[category]
                axis.fill_between([0.0, width], top, bottom, color=BAND, lw=0)
            axis.text(0.06, top + 0.16, category, weight="bold", va="center")
            top += heading
        for place, one in enumerate(points):
            left = cell[0] * (place % COLUMNS) + LEFT - 0.06
            above = top + cell[1] * (place // COLUMNS) + ABOVE
            _box(axis, one, figure.unit, (left, above, left + SIDE, above + SIDE), label)
        top += cell[1] * rows[category]
    letters = int(width / (LETTER * 6.5))
    texts = (key, _legend(figure))
    lines = [line for text in texts for line in textwrap.wrap(text, letters, break_on_hyphens=False)]
    for k, line in enumerate(lines):
        axis.text(0.06, height + 0.13 + 0.13 * k, line, size=6.5, color=SOFT, va="center")
    return drawing


def labels(names: Sequence[str]) -> tuple[dict[str, str], str]:
    """What stands beside the points of each mixture, and the key to it: names where they are few and short, else numbers."""
    if len(names) > NUMBERED:
        return {}, ""
    if len(names) <= NAMED and max(map(len, names)) <= NAME:
        return {name: name for name in names}, ""
    numbers = {name: str(k) for k, name in enumerate(names, 1)}
    return numbers, ", ".join(f"{number}\u00a0{short(name)}" for name, number in numbers.items())


def _legend(figure: Scatters) -> str:
    before, after = figure.stages
    text = f"x: {before}, y: {after}" + (", in percent" if figure.unit == 100.0 else "")
    if any(math.isfinite(error) for one in figure.rows for error in one.error):
        text += "; bars: one standard error of item noise"
    return text + "; dotted: chance, where it is in range" * any(
        math.isfinite(one.chance) for one in figure.rows
    )


def _box(axis: Axes, one: Points, unit: float, box: Box, label: dict[str, str]) -> None:
    left, top, right, bottom = box
    x, y = (unit * np.asarray(values) for values in (one.before, one.after))
    dx, dy = (unit * error if math.isfinite(error) else 0.0 for error in one.error)
    across, up = _span(x, dx), _span(y, dy)

    def place_x(values: Any) -> Any:
        return left + SIDE * (values - across[0]) / (across[1] - across[0])

    def place_y(values: Any) -> Any:
        return bottom - SIDE * (values - up[0]) / (up[1] - up[0])

    bar_x, bar_y = SIDE * dx / (across[1] - across[0]), SIDE * dy / (up[1] - up[0])
    axis.plot([left, left, right], [top, bottom, bottom], color=SOFT, lw=0.6)
    chance = unit * one.chance
    if across[0] < chance < across[1]:
        axis.plot([place_x(chance)] * 2, [top, bottom], color=SOFT, lw=0.7, ls=":")
    if up[0] < chance < up[1]:
        axis.plot([left, right], [place_y(chance)] * 2, color=SOFT, lw=0.7, ls=":")
    points = list(zip(place_x(x).tolist(), place_y(y).tolist(), strict=True))
    bars: list[Box] = []
    if bar_x or bar_y:
        bars = [(a - bar_x, b, a + bar_x, b) for a, b in points]
        bars += [(a, b - bar_y, a, b + bar_y) for a, b in points]
        _segments(axis, bars, color=SOFT, lw=0.5, alpha=0.6)
    # A dot is a line almost without length and with round ends: one path for all of them.
    dots = [(a, b, a + 1e-3, b) for a, b in points]
    _segments(axis, dots, color=POSITIVE, lw=3, solid_capstyle="round", snap=False, zorder=3)
    for mark in place_labels(points, [label.get(name, "") for name in one.mixtures], box, bars):
        axis.text(mark.x, mark.y, mark.text, size=SMALL, ha="center", va="center_baseline")
    for value in _ticks(across):
        axis.text(place_x(value), bottom + 0.1, f"{value:g}", size=6, color=SOFT, ha="center", va="center")
    for value in _ticks(up):
        axis.text(
            left - 0.05, place_y(value), f"{value:g}", size=6, color=SOFT, ha="right", va="center_baseline"
        )
    axis.text(left, top - 0.22, short(one.benchmark, 20), size=7, weight="bold", va="center_baseline")
    axis.text(left, top - 0.09, with_interval(one.row), size=6, color=SOFT, va="center_baseline")


def _segments(axis: Axes, lines: Sequence[Box], **style: object) -> None:
    """Lines from (x, y) to (x', y'), as one path."""
    ends = np.array([[(x, y), (x2, y2), (math.nan, math.nan)] for x, y, x2, y2 in lines]).reshape(-1, 2)
    axis.plot(ends[:, 0], ends[:, 1], **style)  # type: ignore[arg-type]


def _span(values: Array, error: float) -> tuple[float, float]:
    """What an axis shows: all values with their bars, and a margin."""
    low, high = float(values.min()) - error, float(values.max()) + error
    margin = MARGIN * (high - low)
    return low - margin, high + margin


def _ticks(span: tuple[float, float]) -> list[float]:
    from matplotlib.ticker import MaxNLocator

    found = MaxNLocator(nbins=3, steps=[1, 2, 5, 10]).tick_values(*span)
    return [value for value in map(float, found) if span[0] <= value <= span[1]]


def place_labels(
    points: Sequence[tuple[float, float]], names: Sequence[str], box: Box, bars: Sequence[Box] = ()
) -> Iterator[PointLabel]:
    """A place for each name beside its point, in turn where it covers least of points, bars and the names before it."""
    taken = [(a - 0.03, b - 0.03, a + 0.03, b + 0.03) for a, b in points]
    taken += [(a - 0.005, b - 0.005, c + 0.005, d + 0.005) for a, b, c, d in bars]
    for (a, b), name in zip(points, names, strict=True):
        if not name:
            continue
        half, tall = 0.5 * LETTER * SMALL * len(name), 0.5 * SMALL / 72
        near = [
            (a + dx * (half + 0.02 + 0.07 * ring), b + dy * (tall + 0.02 + 0.07 * ring))
            for ring in range(4)
            for dx, dy in ((1, -1), (-1, -1), (1, 1), (-1, 1), (0, -2), (0, 2), (1.3, 0), (-1.3, 0))
        ]
        boxes = [(p - half, q - tall, p + half, q + tall) for p, q in near]
        cost = [sum(_overlap(mine, other) for other in taken) + 4.0 * _outside(mine, box) for mine in boxes]
        best = int(np.argmin(cost))  # the first of equals, so the nearest
        taken.append(boxes[best])
        yield PointLabel(*near[best], name)


def _overlap(one: Box, other: Box) -> float:
    across = min(one[2], other[2]) - max(one[0], other[0])
    down = min(one[3], other[3]) - max(one[1], other[1])
    return max(across, 0.0) * max(down, 0.0)


def _outside(one: Box, box: Box) -> float:
    """The area of `one` beyond `box`."""
    return (one[2] - one[0]) * (one[3] - one[1]) - _overlap(one, box)
