"""Figures as values: what is drawn, once for the report (page.py, inline SVG) and for papers (figures.py, matplotlib)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from evalengine.analysis.tables import Row


class Axis(NamedTuple):
    """The range of estimates."""

    low: float
    high: float

    def percent(self, value: float) -> float:
        """A value's place between the ends, 0 to 100."""
        return 100.0 * (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)


R_AXIS = Axis(-1.0, 1.0)


class Intervals(NamedTuple):
    """Estimates with their intervals: a panel for each `panel(row)`, a line for each `label(row)`, a colour for each scale.

    group: a heading within a panel, in the report. contrast: shows the differences between scales instead of the scales.
    """

    rows: Sequence[Row]
    label: Callable[[Row], str]
    panel: Callable[[Row], str] = lambda row: row.quantity
    group: Callable[[Row], str] = lambda row: ""
    axis: Axis = R_AXIS
    contrast: bool = False

    @property
    def shown(self) -> list[Row]:
        return [row for row in self.rows if bool(row.contrast) == self.contrast]


class Heatmaps(NamedTuple):
    """The r of every pair of benchmarks, a panel for each quantity and scale; marks where the interval excludes 0.

    protocol: of the rows. triangle: r of (a, b) is that of (b, a), and stored once.
    """

    protocol: str
    row_title: str
    column_title: str
    triangle: bool


class Curves(NamedTuple):
    """Reliability curves of every benchmark at one scale, a line for each stage."""

    scale: str


Figure = Intervals | Heatmaps | Curves


def by(rows: Sequence[Row], key: Callable[[Row], str]) -> dict[str, list[Row]]:
    """Groups rows, in order."""
    out: dict[str, list[Row]] = {}
    for row in rows:
        out.setdefault(key(row), []).append(row)
    return out
