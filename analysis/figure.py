"""Figures as values: what a protocol shows. `drawing` draws them, for the page and as files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

from evalengine.analysis.tables import Row

T = TypeVar("T")
K = TypeVar("K")


class Intervals(NamedTuple):
    """Estimates with their intervals: a panel for each `panel(row)`, a line for each `label(row)`, a colour for each `row.at`.

    group: a heading above the lines that share it. limit: the axis runs from -limit to limit. measure: what is on it.
    """

    rows: Sequence[Row]
    label: Callable[[Row], str]
    panel: Callable[[Row], str] = lambda row: row.quantity
    group: Callable[[Row], str] = lambda row: ""
    limit: float = 1.0
    measure: str = "r"


class Heatmaps(NamedTuple):
    """The r of pairs of benchmarks, a panel for each quantity and scale; bold where the interval excludes 0."""

    rows: Sequence[Row]
    row_title: str
    column_title: str


class Curves(NamedTuple):
    """Reliability curves of benchmarks at one scale, a line for each stage, a panel for each category.

    rows: of the table `curves`.
    """

    rows: Sequence[dict[str, Any]]


class Lines(NamedTuple):
    """Estimates with their intervals over places in order: a panel for each `panel(row)`, a line for each category.

    places: all of them, left to right; x: the place of a row. limits: of the axis up, by the values if None.
    """

    rows: Sequence[Row]
    places: Sequence[str]
    x: Callable[[Row], str]
    panel: Callable[[Row], str]
    limits: tuple[float, float] | None = None


Figure = Intervals | Heatmaps | Curves | Lines


def panels(figure: Figure) -> dict[str, Figure]:
    """A figure for each of the panels, by title: the page shows them one by one, so that they fit a phone."""
    if isinstance(figure, Intervals):
        return {title: figure._replace(rows=rows) for title, rows in by(figure.rows, figure.panel).items()}
    if isinstance(figure, Heatmaps):
        return {title: figure._replace(rows=rows) for title, rows in by(figure.rows, heatmap_title).items()}
    if isinstance(figure, Lines):
        return {title: figure._replace(rows=rows) for title, rows in by(figure.rows, figure.panel).items()}
    return {title: Curves(rows) for title, rows in by(figure.rows, lambda row: str(row["category"])).items()}


def heatmap_title(row: Row) -> str:
    return f"{row.quantity}, {row.scale}"


def by(rows: Sequence[T], key: Callable[[T], K]) -> dict[K, list[T]]:
    """Groups rows, in order."""
    out: dict[K, list[T]] = {}
    for row in rows:
        out.setdefault(key(row), []).append(row)
    return out
