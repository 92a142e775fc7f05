"""The means that tables show: of each category and of all benchmarks, then of each benchmark."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol, TypeVar

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
