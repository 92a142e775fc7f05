"""Figures drawn by matplotlib, once: inline SVG on the report's page, PNG, PDF and SVG files for papers.

Cost: about 0.1 s a figure and format.
"""

from __future__ import annotations

import io
import itertools
import math
import re
import warnings
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from evalengine.analysis.estimates.groups import ALL
from evalengine.analysis.estimates.tables import Row
from evalengine.analysis.figure import Curves, Figure, Heatmaps, IntervalPlot, Lines, Scatters, by
from evalengine.analysis.report import style
from evalengine.analysis.report.scatter_drawing import scatter_drawing
from evalengine.analysis.results import Method, excludes_zero, n_words, percent, with_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

CORNERS = ((-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5))  # of a cell, in cells from its middle
# Inches.
WIDTH = 1.7  # of an axis of intervals
NUMBERS = 1.5  # beside it
STEP = 0.155  # between the intervals of a line
LETTER = 0.072  # of the names beside it; an upper bound for most
CELL = 0.25  # of a heatmap
NAMES = 1.3  # of benchmarks, beside a heatmap
CURVE = 0.95  # side of a reliability curve
PLACE = 0.32  # of a line, on an axis at least WIDTH wide
LINES = 1.4  # height of an axis of lines


def draw(method: Method, figure: Figure, notes: bool = False) -> Drawing:
    """All panels of a figure, which has at least one. method: how the study was made that it is about. notes: what its stars
    stand for is written below it, as on the page."""
    if isinstance(figure, IntervalPlot):
        return _intervals(method, figure, figure.notes if notes else [])
    if isinstance(figure, Scatters):
        return scatter_drawing(figure)
    if isinstance(figure, Lines):
        return _lines(figure)
    return _heatmaps(method, figure) if isinstance(figure, Heatmaps) else _curves(method, figure)


def svg(method: Method, figure: Figure, title: str) -> str:
    """The figure as inline SVG; text stays text, and the page's fonts and colours apply."""
    sink = io.StringIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of characters that matplotlib's font lacks: the browser's have them
        drawing = draw(method, figure)
        how: dict[str, Any] = {
            "bbox_inches": style.extent(drawing),
            "facecolor": "none",
            "metadata": style.FORMATS["svg"],
        }
        drawing.savefig(sink, format="svg", **how)
    text = sink.getvalue()
    # What HTML does not need: names of groups (they repeat; those of shapes are hashes), fonts, turns by 0, indentation.
    needless = r' xmlns(:xlink)?="[^"]*"| id="[A-Za-z0-9.]+_\d+"| font-family:[^;"]*;| transform="rotate\(-0 [^"]*"|\n *'
    text = re.sub(needless, "", text[text.index("<svg") :])
    # Hundredths of a point.
    text = re.sub(r"<[^>]*>", lambda tag: re.sub(r"(\.\d\d)\d+", r"\1", tag[0]), text)
    for name, colour in style.VARIABLES.items():
        text = text.replace(colour, f"var(--{name})")
    # At least three quarters of its size (a point is 4/3 of a pixel); on a narrower screen it scrolls.
    least = text.partition('width="')[2].partition("pt")[0]
    attributes = f'role="img" aria-label="{escape(title)}" style="min-width: {least}px"'
    return text.replace("<svg", f"<svg {attributes}", 1)


def _legend(drawing: Drawing, axis: Axes, y: float) -> None:
    """The names of an axis' lines at height y; nothing to tell apart, no legend."""
    handles, names = axis.get_legend_handles_labels()
    if len(names) > 1:
        drawing.legend(handles, names, loc="lower left", bbox_to_anchor=(0, y), ncols=len(names), borderpad=0)


def _intervals(method: Method, figure: IntervalPlot, notes: Sequence[str]) -> Drawing:
    """A forest plot: a line for each label, with a bar, an interval and its numbers for each scale; notes below."""
    shown = figure.rows
    found = dict.fromkeys(row.at for row in shown)
    scales = method["scales"] if found.keys() <= set(method["scales"]) else list(found)
    starred = figure.starred
    place: dict[tuple[str, str], float] = {}  # of a line's first interval, in inches from the top
    texts: list[tuple[float, str, str]] = []  # beside the axis: place, text, weight
    bands: list[tuple[float, float]] = []  # behind every second group
    height = 0.0
    for g, (heading, rows) in enumerate(by(shown, figure.group).items()):
        top = height
        if heading:
            texts.append((height + 0.12, heading, "bold"))
            height += 0.2
        for name in dict.fromkeys(map(figure.label, rows)):
            place[heading, name] = height + 0.5 * STEP
            middle = height + 0.5 * STEP * len(scales)
            texts.append((middle, style.short(name) + "*" * (name in starred), "normal"))
            height += STEP * len(scales) + 0.05
        if heading and g % 2 == 0:
            bands.append((top, height))
    by_panel = by(shown, figure.panel)
    drawing, axes = style.canvas(len(by_panel), len(by_panel), (WIDTH, height), (NUMBERS, 0))
    for axis, (title, rows) in zip(axes, by_panel.items(), strict=True):
        for s, scale in enumerate(scales):
            mine = [row for row in rows if row.at == scale]
            at = [place[figure.group(row), figure.label(row)] + STEP * s for row in mine]
            _series(axis, mine, at, style.SERIES[s % len(style.SERIES)], scale)
        axis.axvline(0, color=style.SOFT, lw=0.7, ls=":")
        axis.set(xlim=(-1.02 * figure.limit, 1.02 * figure.limit), ylim=(height, 0), yticks=[])
        axis.set_xticks([-figure.limit, 0, figure.limit])
        axis.set_xlabel(f"{figure.measure}, {percent(method['level'])} intervals, {n_words(shown)}")
        axis.spines["left"].set_visible(False)
        if len(by_panel) > 1:
            axis.set_title(title)
    margin = axes[0].get_yaxis_transform()
    left = -LETTER * max(len(text) for _, text, _ in texts) / WIDTH - 0.05
    right = len(axes) * (1 + NUMBERS / WIDTH)
    for top, bottom in bands:
        corners = [(left, top), (right, top), (right, bottom), (left, bottom)]
        axes[0].fill(
            *zip(*corners, strict=True), color=style.BAND, lw=0, transform=margin, clip_on=False, zorder=-1
        )
    for y, text, weight in texts:
        axes[0].text(-0.03, y, text, transform=margin, ha="right", va="center", weight=weight)
    _legend(drawing, axes[0], height + (0.25 if len(by_panel) > 1 else 0.05))
    style.paragraphs(drawing, notes, WIDTH * left, -0.5, WIDTH * (right - left))
    return drawing


def _series(axis: Axes, rows: Sequence[Row], at: Sequence[float], colour: str, scale: str) -> None:
    estimates = [row.estimate for row in rows]
    axis.hlines(at, 0, estimates, color=colour, alpha=0.3, lw=6)
    axis.hlines(at, [row.low for row in rows], [row.high for row in rows], color=style.INK, lw=0.9)
    axis.plot(estimates, at, "o", ms=3, color=colour, label=scale)
    margin = axis.get_yaxis_transform()
    for row, y in zip(rows, at, strict=True):
        axis.text(1.04, y, with_interval(row), transform=margin, va="center", size=6.5, color=colour)


def _heatmaps(method: Method, figure: Heatmaps) -> Drawing:
    """A cell for each pair of benchmarks, with its r; lines between the categories."""
    from matplotlib.collections import PolyCollection

    names, categories = method["benchmarks"], method["categories"]
    edges = [b for b in range(1, len(names)) if categories[b] != categories[b - 1]]
    middles = {name: b + 0.5 for b, name in enumerate(names)}
    side = CELL * len(names)
    by_panel = by(figure.rows, figure.panel)
    drawing, axes = style.canvas(len(by_panel), len(method["scales"]), (side, side), (NAMES, NAMES + 0.3))
    for axis, (title, rows) in zip(axes, by_panel.items(), strict=True):
        squares = []
        for row in rows:
            x, y = middles[row.other], middles[row.name]
            squares.append([(x + dx, y + dy) for dx, dy in CORNERS])
            _number(axis, row, x, y)
        shades = [_shade(row.estimate) for row in rows]
        cells = PolyCollection(squares, facecolors=shades, edgecolors=style.PAPER, lw=0.5, clip_on=False)
        axis.add_collection(cells)
        axis.vlines(edges, 0, len(names), color=style.SOFT, lw=0.7)
        axis.hlines(edges, 0, len(names), color=style.SOFT, lw=0.7)
        for left, right in itertools.pairwise([0, *edges, len(names)]):
            if LETTER * len(categories[left]) < CELL * (right - left):
                middle = 0.5 * (left + right)
                axis.text(middle, -0.4, categories[left], ha="center", size=7, weight="bold")
        axis.set(xlim=(0, len(names)), ylim=(len(names), 0))
        axis.set(xlabel=figure.column_title, ylabel=figure.row_title)
        labels = [style.short(name) for name in names]
        axis.set_xticks(
            list(middles.values()), labels, rotation=90, ha="right", va="center", rotation_mode="anchor"
        )
        axis.set_yticks(list(middles.values()), labels)
        axis.tick_params(length=0, labelsize=7, labelcolor=style.INK)
        if len(by_panel) > 1:
            axis.set_title(title, pad=18)
    return drawing


def _shade(r: float) -> tuple[str, float]:
    """The colour of a cell: its sign's, as strong as r; grey without an r."""
    if not math.isfinite(r):
        return style.RULE, 0.5
    return (style.POSITIVE if r >= 0 else style.NEGATIVE), min(1.0, abs(r))


def _number(axis: Axes, row: Row, x: float, y: float) -> None:
    if math.isfinite(row.estimate):
        text = f"{row.estimate:.2f}".replace("0.", ".").replace("-", "−")
        colour = style.PAPER if abs(row.estimate) > 0.75 else style.INK
        weight = "bold" if excludes_zero(row) else "normal"
        number = axis.text(x, y, text, ha="center", va="center_baseline", size=6, weight=weight, color=colour)
        number.set_in_layout(False)  # within the axis: its extent need not be measured


def _curves(method: Method, figure: Curves) -> Drawing:
    """Accuracy against confidence, an axis for each benchmark; whiskers are intervals over mixtures."""
    by_benchmark = by(figure.rows, lambda point: str(point["benchmark"]))
    columns = min(5, math.ceil(math.sqrt(len(by_benchmark))))
    drawing, axes = style.canvas(len(by_benchmark), columns, (CURVE, CURVE), (0.22, 0.35))
    for axis, (name, points) in zip(axes, by_benchmark.items(), strict=True):
        axis.plot([0, 1], [0, 1], color=style.SOFT, lw=0.7, ls="--")
        for stage, colour in zip(method["stages"], style.SERIES[2:], strict=True):
            mine = [point for point in points if point["stage"] == stage]
            x, y, low, high = ([p[key] for p in mine] for key in ("confidence", "accuracy", "low", "high"))
            axis.plot(x, y, color=colour, lw=1.3, label=stage)
            axis.vlines(x, low, high, color=colour, lw=0.7, alpha=0.5)
        axis.set(xlim=(0, 1), ylim=(0, 1), xticks=(0, 1), yticks=(0, 1))
        axis.set_title(style.short(name, 16), size=7, pad=3)
    axes[0].set_ylabel("accuracy", labelpad=-4)
    axes[(len(axes) - 1) // columns * columns].set_xlabel("confidence", labelpad=-4)
    _legend(drawing, axes[0], CURVE + 0.2)
    return drawing


def _lines(figure: Lines) -> Drawing:
    """An axis for each panel; the categories' lines stand a little beside each other, the mean of all is the black one."""
    by_panel = by(figure.rows, figure.panel)
    width = max(WIDTH, PLACE * len(figure.places))
    labels = [style.short(place, 14) for place in figure.places]
    turned = max(map(len, labels)) * 0.07 > width / len(labels)
    below = 0.55 + (0.07 * max(map(len, labels)) if turned else 0.0) + (0.15 if figure.across else 0.0)
    between = 0.5 + (0.15 if figure.up else 0.0)
    drawing, axes = style.canvas(len(by_panel), min(2, len(by_panel)), (width, LINES), (between, below))
    middles = {place: k for k, place in enumerate(figure.places)}
    for axis, (title, rows) in zip(axes, by_panel.items(), strict=True):
        lines = by(rows, lambda row: row.category)
        for k, (category, mine) in enumerate(lines.items()):
            every = category == ALL
            colour = style.INK if every else style.SERIES[k % len(style.SERIES)]
            aside = 0.5 * (k - 0.5 * (len(lines) - 1)) / len(lines)
            mine = sorted(mine, key=lambda row: middles[figure.x(row)])
            at = [middles[figure.x(row)] + aside for row in mine]
            dash = "-" if every or k < len(style.SERIES) else "--"
            estimates = [row.estimate for row in mine]
            axis.plot(
                at, estimates, dash, marker="o", ms=2, lw=1.6 if every else 1.0, color=colour, label=category
            )
            axis.vlines(
                at, [row.low for row in mine], [row.high for row in mine], color=colour, lw=0.7, alpha=0.6
            )
        axis.set_xticks(range(len(labels)), labels, rotation=90 if turned else 0)
        axis.tick_params(axis="x", labelcolor=style.INK)
        axis.set_xlim(-0.5, len(labels) - 0.5)
        axis.set_xlabel(figure.across)
        axis.set_ylabel(figure.up)
        if figure.limits is not None:
            axis.axhline(0, color=style.SOFT, lw=0.7, ls=":")
            axis.set_ylim(*figure.limits)
        if len(by_panel) > 1:
            axis.set_title(title)
    _legend(drawing, axes[0], LINES + (0.25 if len(by_panel) > 1 else 0.1))
    return drawing
