"""The means that tables show: of each category and of all benchmarks, then of each benchmark."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from html import escape
from typing import Any, Protocol, TypeVar

from evalengine.analysis.groups import ALL
from evalengine.analysis.panel import category_key


class Named(Protocol):
    """A benchmark's values."""

    @property
    def category(self) -> str: ...

    @property
    def benchmark(self) -> str: ...


C = TypeVar("C", bound=Named)


def grouped(every: Sequence[C]) -> Iterator[tuple[str, str, list[C]]]:
    """(category, "", its benchmarks) for each category and for all, then (category, benchmark, itself)."""
    if not every:
        return
    for category in sorted({cell.category for cell in every}, key=category_key):
        yield category, "", [cell for cell in every if cell.category == category]
    yield ALL, "", list(every)
    for cell in every:
        yield cell.category, cell.benchmark, [cell]


def notes(rows: Iterable[Any]) -> str:
    """What means over benchmarks rest on, as lines of the report: of all of them, or of a category."""
    said = dict.fromkeys((row.category, row.note) for row in rows if row.note and not row.benchmark)
    return "".join(f'<p class="hint">{escape(category)}: {escape(note)}.</p>' for category, note in said)
