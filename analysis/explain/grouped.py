"""The means that tables show: of each category and of all benchmarks, then of each benchmark; and their notes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np

from evalengine.analysis.correlation import benjamini_hochberg
from evalengine.analysis.figure import by
from evalengine.analysis.groups import ALL
from evalengine.analysis.panel import category_key


class Named(Protocol):
    """A benchmark's values."""

    @property
    def category(self) -> str: ...

    @property
    def benchmark(self) -> str: ...


C = TypeVar("C", bound=Named)
R = TypeVar("R", bound=Any)


def grouped(every: Sequence[C]) -> Iterator[tuple[str, str, list[C]]]:
    """(category, "", its benchmarks) for each category and for all, then (category, benchmark, itself)."""
    if not every:
        return
    for category in sorted({cell.category for cell in every}, key=category_key):
        yield category, "", [cell for cell in every if cell.category == category]
    yield ALL, "", list(every)
    for cell in every:
        yield cell.category, cell.benchmark, [cell]


def joined(*notes: str) -> str:
    """Those that say something, as one."""
    return "; ".join(filter(None, notes))


def partly(there: Sequence[Any], every: Sequence[Any]) -> str:
    """Says that some benchmarks are not there."""
    if len(there) == len(every):
        return ""
    return f"over the {len(there)} of {len(every)} benchmarks that every run was scored on"


def with_q(rows: Sequence[R], family: Callable[[R], Any]) -> list[R]:
    """Rows with Benjamini and Hochberg's q over the p of those of one family; as they are where that is None."""
    out = list(rows)
    for members in by(
        [k for k, row in enumerate(rows) if family(row) is not None], lambda k: family(rows[k])
    ).values():
        q = benjamini_hochberg(np.array([rows[k].p for k in members]))
        for k, value in zip(members, q, strict=True):
            out[k] = rows[k]._replace(q=float(value))
    return out
