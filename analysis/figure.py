"""What the report shows, as values: texts, tables and figures.

`page` makes the report's page of them, with the figures by `drawing`; `drawing` and `latex` write those that are a `File` for
papers.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from hashlib import sha256
from typing import Any, NamedTuple, TypeVar

from evalengine.analysis.estimates.tables import Row
from evalengine.analysis.results import with_interval

T = TypeVar("T")
K = TypeVar("K")
Key = str | Callable[[Any], Any]


class IntervalPlot(NamedTuple):
    """Estimates with their intervals: a panel for each `panel(row)`, a line for each `label(row)`, a colour for each `row.at`.

    group: a heading above the lines that share it. limit: the axis runs from -limit to limit. measure: what is on it.
    """

    rows: Sequence[Row]
    label: Callable[[Row], str]
    panel: Callable[[Row], str] = lambda row: row.quantity
    group: Callable[[Row], str] = lambda row: ""
    limit: float = 1.0
    measure: str = "r"

    def of_differences(self, limit: float = 2.0) -> IntervalPlot:
        """The same figure where its rows are differences of two of the measure."""
        return self._replace(limit=limit, measure=f"difference of {self.measure}")

    @property
    def starred(self) -> set[str]:
        """The labels of lines with a note of their own; one that all lines share is nobody's own."""
        notes = {row.note for row in self.rows}
        return set() if len(notes) == 1 else {self.label(row) for row in self.rows if row.note}

    @property
    def notes(self) -> list[str]:
        """What the stars stand for, or the note that all lines share."""
        groups = {label: set(map(self.group, mine)) for label, mine in by(self.rows, self.label).items()}
        several = len({self.panel(row) for row in self.rows}) > 1

        def name(row: Row) -> str:
            label = self.label(row)
            return label if len(groups[label]) == 1 else f"{self.group(row)}, {label}"

        def where(row: Row) -> str:
            return f"{self.panel(row)}, {row.at}" if several else row.at

        every = by(self.rows, name)
        lines = []
        for note, rows in by([row for row in self.rows if row.note], lambda row: row.note).items():
            named = [
                one if len(mine) == len(every[one]) else f"{one} ({'; '.join(map(where, mine))})"
                for one, mine in by(rows, name).items()
            ]
            lines.append(f"* {', '.join(named)}: {note}" if self.starred else note)
        return lines


class Heatmaps(NamedTuple):
    """The r of pairs of benchmarks, a panel for each quantity and scale; bold where the interval excludes 0."""

    rows: Sequence[Row]
    row_title: str
    column_title: str

    def panel(self, row: Row) -> str:
        return f"{row.quantity}, {row.scale}"


class Curves(NamedTuple):
    """Reliability curves of benchmarks at one scale, a line for each stage, a panel for each category.

    rows: of the table `curves`.
    """

    rows: Sequence[dict[str, Any]]

    def panel(self, row: dict[str, Any]) -> str:
        return str(row["category"])


class Lines(NamedTuple):
    """Estimates with their intervals over places in order: a panel for each `panel(row)`, a line for each category.

    rows: with the fields category, estimate, low and high. places: all of them, left to right; x: the place of a row. limits:
    of the axis up, by the values if None. across, up: what is on the axes, where the panels do not say so.
    """

    rows: Sequence[Any]
    places: Sequence[str]
    x: Callable[[Any], str]
    panel: Callable[[Any], str]
    limits: tuple[float, float] | None = None
    across: str = ""
    up: str = ""


class Points(NamedTuple):
    """One benchmark at one scale: a point for each mixture that has a value at both stages.

    error: standard errors of the values before and after, NaN where unknown. chance: accuracy of guessing, NaN where there
    is none. row: of the correlation.
    """

    benchmark: str
    category: str
    mixtures: Sequence[str]
    before: Sequence[float]
    after: Sequence[float]
    error: tuple[float, float]
    chance: float
    row: Row


class Scatters(NamedTuple):
    """After against before, a box for each benchmark, a panel for each category.

    stages: the names of the axes. unit: the values are multiplied by it (100 for percent).
    """

    rows: Sequence[Points]
    stages: tuple[str, str]
    unit: float = 1.0

    def panel(self, row: Points) -> str:
        return row.category


Figure = IntervalPlot | Heatmaps | Curves | Lines | Scatters


class Mark(NamedTuple):
    """A cell that stands out; kind: a class of report.css."""

    text: str
    kind: str


class Table(NamedTuple):
    """Texts in columns.

    blocks: rows that belong together. texts: how many of the first columns hold text; the others hold numbers. prose: the
    last column holds a sentence. stacked: on a narrow screen every row becomes a list of its cells.
    """

    title: str
    columns: Sequence[str]
    blocks: Sequence[Sequence[Sequence[str | Mark]]]
    texts: int = 1
    prose: bool = False
    stacked: bool = False


class Heading(NamedTuple):
    text: str
    level: int = 2


class File(NamedTuple):
    """A table or a figure that is also written as a file of this name, for papers. shown: on the page as well."""

    name: str
    of: Table | Figure
    shown: bool = True


class Folded(NamedTuple):
    """What a click unfolds."""

    title: str
    parts: Iterable[Part]
    opened: bool = False


# A text is a paragraph of small print, and "" none.
Part = str | Heading | Table | Figure | File | Folded


def with_benchmarks(name: str, means: Table, single: Table, between: Iterable[Part] = ()) -> list[Part]:
    """A table of means and, folded, the same of single benchmarks, each a file."""
    return [File(name, means), *between, Folded("Benchmarks", [File(f"{name}_benchmarks", single)])]


def files(parts: Iterable[Part]) -> Iterator[File]:
    """The files among the parts, folded ones too."""
    for part in parts:
        if isinstance(part, File):
            yield part
        elif isinstance(part, Folded):
            yield from files(part.parts)


def numbers(title: str, rows: Sequence[Row], scales: Sequence[str], about: str) -> Table:
    """Estimates with their intervals: a line for each quantity and each value of the fields `about`, a column for each scale."""
    fields = f"quantity {about}"
    lines = [
        [*what, *(with_interval(at.get(scale)) for scale in scales)]
        for what, at in pivot(rows, fields, "scale").items()
    ]
    heads = fields.split()
    return Table(title, [*heads, *scales], blocks(lines, 0), texts=len(heads))


def panels(figure: Figure) -> dict[str, Figure]:
    """A figure for each of the panels, by title: the page shows them one by one, so that they fit a phone."""
    rows: Sequence[Any] = figure.rows
    return {title: figure._replace(rows=mine) for title, mine in by(rows, figure.panel).items()}


def blocks(lines: Iterable[Sequence[T]], *columns: int) -> list[list[Sequence[T]]]:
    """Lines of a table that belong together: those that are alike in the given columns."""
    return list(by(list(lines), operator.itemgetter(*columns)).values())


def file_part(text: str) -> str:
    """A stage or a scale as part of a file's name: they come from anyone's table, and may hold a slash.

    What is changed gets a checksum, so that two of them never share a file.
    """
    part = re.sub(r"[^A-Za-z0-9._-]", "_", text)
    if part == text and len(part) <= 60:
        return part
    return f"{part[:47]}-{sha256(text.encode(errors='replace')).hexdigest()[:12]}"


def by(rows: Sequence[T], key: Callable[[T], K]) -> dict[K, list[T]]:
    """Groups rows, in order."""
    out: dict[K, list[T]] = {}
    for row in rows:
        out.setdefault(key(row), []).append(row)
    return out


def pivot(rows: Iterable[Any], line: Key, cell: Key) -> dict[Any, dict[Any, Any]]:
    """Rows by the line of a table that they are in, then by the cell. Both are names of fields ("scale stage"), or a function."""
    line_of, cell_of = (operator.attrgetter(*k.split()) if isinstance(k, str) else k for k in (line, cell))
    return {place: {cell_of(row): row for row in mine} for place, mine in by(list(rows), line_of).items()}
