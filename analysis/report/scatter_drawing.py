"""Scatters drawn in one pair of axes, whose coordinates are inches from the top left corner.

An axes of its own for every benchmark would take most of the report's time; here the dots, the bars and the frames of all
boxes are one path each.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from evalengine.analysis.figure import Points, Scatters, by
from evalengine.analysis.report.style import BAND, INK, LETTER, POSITIVE, SOFT, canvas, paragraphs, short
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
DOT = 0.026  # from the middle of a dot to what may stand beside it
NEAR = 0.05  # a name this far from its point, and at least this much further from all others, needs no line
CROWDED = 0.25  # points this near take each other's places
BEYOND = 0.06  # how far a name may stand over the right end of a box
# Places of a name around its point: sixteen directions, scaled to the sides of a square, and distances.
_ANGLES = 2 * np.pi * (np.arange(16) + 14) / 16  # from the upper right on
PLACES = np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], axis=1)
PLACES /= np.abs(PLACES).max(axis=1, keepdims=True)
GAPS = np.array([0.03, 0.06, 0.1, 0.15, 0.2, 0.26, 0.33, 0.4])
ALONG = np.linspace(0.15, 0.95, 9)  # points of a line that must be free

Box = tuple[float, float, float, float]  # left, top, right, bottom
Array = NDArray[np.float64]


class PointLabel(NamedTuple):
    """A mixture's name and its middle, and a line from its point to it, where it needs one."""

    x: float
    y: float
    text: str
    line: Box | None = None


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
    top, left_out = 0.0, {}
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
            box = (left, above, left + SIDE, above + SIDE)
            left_out[one.benchmark] = _box(axis, one, figure.unit, box, label)
        top += cell[1] * rows[category]
    lost = {name: count for name, count in left_out.items() if count}
    said = (
        f"labels without room are left out: {', '.join(f'{short(b, 20)} {n}' for b, n in lost.items())}"
        if lost
        else ""
    )
    paragraphs(drawing, [key, _legend(figure), said], 0.06, -0.13, width)
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


def _box(axis: Axes, one: Points, unit: float, box: Box, label: dict[str, str]) -> int:
    """Draws a benchmark; returns how many points there was no room to label."""
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
    texts = [label.get(name, "") for name in one.mixtures]
    marks = place_labels(points, texts, box, bars)
    _segments(axis, [mark.line for mark in marks if mark.line], color=INK, lw=0.4)
    for mark in marks:
        axis.text(mark.x, mark.y, mark.text, size=SMALL, ha="center", va="center_baseline")
    for value in _ticks(across):
        axis.text(place_x(value), bottom + 0.1, f"{value:g}", size=6, color=SOFT, ha="center", va="center")
    for value in _ticks(up):
        axis.text(
            left - 0.05, place_y(value), f"{value:g}", size=6, color=SOFT, ha="right", va="center_baseline"
        )
    axis.text(left, top - 0.22, short(one.benchmark, 20), size=7, weight="bold", va="center_baseline")
    axis.text(left, top - 0.09, with_interval(one.row), size=6, color=SOFT, va="center_baseline")
    return len(list(filter(None, texts))) - len(marks)


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
) -> list[PointLabel]:
    """A place for each name that covers no dot and no other name, near its point and off the bars where it can be; a line leads
    to its point where it is away from it or nearer to another. Names without such a place are left out."""
    if not any(names):
        return []
    point_N2 = np.asarray(points, dtype=np.float64)
    bar_B4 = _grown(np.asarray(bars, dtype=np.float64).reshape(-1, 4), 0.005)
    dot_N4 = _grown(np.hstack([point_N2, point_N2]), DOT)
    apart_NN = np.abs(point_N2[:, None] - point_N2).max(axis=2)
    taken_X4 = np.zeros((0, 4))  # names, and points of their lines
    found: dict[int, PointLabel] = {}
    # the most crowded first
    for k in np.argsort(-(apart_NN < CROWDED).sum(axis=1), kind="stable").tolist():
        if not names[k]:
            continue
        half_2 = 0.5 * SMALL * np.array([LETTER * len(names[k]), 1 / 72])
        middle_P2 = point_N2[k] + (PLACES[:, None] * (half_2 + GAPS[:, None])).reshape(-1, 2)
        box_P4 = np.hstack([middle_P2 - half_2, middle_P2 + half_2])
        to_P2, away_P = _nearest(box_P4, point_N2[k])
        others_N2, others_N4 = np.delete(point_N2, k, axis=0), np.delete(dot_N4, k, axis=0)
        other_P = np.min([_nearest(box_P4, other)[1] for other in others_N2], axis=0, initial=math.inf)
        led_P = (away_P > NEAR) | (other_P < away_P + NEAR)
        cost_P = away_P + 2.0 * _overlaps(box_P4, bar_B4).sum(axis=1) ** 0.5 + 0.02 * led_P
        free_P = np.asarray(~_overlaps(box_P4, np.vstack([dot_N4, taken_X4])).any(axis=1))
        free_P &= (box_P4[:, :2] >= (box[0] + DOT, box[1])).all(axis=1)
        free_P &= (box_P4[:, 2:] <= (box[2] + BEYOND, box[3])).all(axis=1)
        order_P = np.argsort(cost_P, kind="stable")
        for p in order_P[free_P[order_P]].tolist():
            along_S2 = (
                point_N2[k] + ALONG[:, None] * (to_P2[p] - point_N2[k]) if led_P[p] else np.zeros((0, 2))
            )
            line_S4 = _grown(np.hstack([along_S2, along_S2]), 0.002)
            if _overlaps(line_S4, np.vstack([others_N4, taken_X4])).any():
                continue
            x, y = middle_P2[p].tolist()
            found[k] = PointLabel(x, y, names[k], (*points[k], *to_P2[p].tolist()) if led_P[p] else None)
            taken_X4 = np.vstack([taken_X4, box_P4[[p]], line_S4])
            break
    return [found[k] for k in sorted(found)]


def _nearest(box_P4: Array, point_2: Array) -> tuple[Array, Array]:
    """The point of each box that is nearest to a point, (P, 2), and how far it is, (P,)."""
    to_P2 = np.clip(point_2, box_P4[:, :2], box_P4[:, 2:])
    return to_P2, np.hypot(*(to_P2 - point_2).T)


def _grown(box_X4: Array, margin: float) -> Array:
    return box_X4 + margin * np.array([-1.0, -1.0, 1.0, 1.0])


def _overlaps(one_P4: Array, other_X4: Array) -> Array:
    """The areas that boxes have in common, (P, X)."""
    low_PX2 = np.maximum(one_P4[:, None, :2], other_X4[:, :2])
    high_PX2 = np.minimum(one_P4[:, None, 2:], other_X4[:, 2:])
    return np.asarray(np.maximum(high_PX2 - low_PX2, 0.0).prod(axis=2))
