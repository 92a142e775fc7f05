"""The means that tables show, of each category and of all benchmarks, then of each benchmark; their notes; how they are shown."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from evalengine.analysis.data.panel import category_key
from evalengine.analysis.estimates.groups import ALL
from evalengine.analysis.explain.explainer import Findings, StudyScores
from evalengine.analysis.figure import Lines, Part, by, pivot
from evalengine.analysis.statistics.correlation import benjamini_hochberg


@dataclass(frozen=True)
class Member:
    """A benchmark that a mean is over; subclasses add its values."""

    category: str
    benchmark: str


C = TypeVar("C", bound=Member)
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


def left_out(study: StudyScores, there: Collection[str], category: str, masses: bool = False) -> str:
    """Which benchmarks the mean over those `there` of a category, or of all, does not hold, and why. masses: it is of what
    choices behind contexts of their own do not have."""
    whys: dict[str, list[str]] = {}
    for one in study.scores.benchmarks:
        if one.name not in there and category in (one.category, ALL):
            own = masses and one.own_contexts
            why = "contexts differ by choice" if own else "not on every checkpoint"
            whys.setdefault(why, []).append(one.name)
    return joined(*(f"without {', '.join(lost)} ({why})" for why, lost in whys.items()))


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


# --- the report


def notes(rows: Iterable[Any]) -> list[Part]:
    """What means over benchmarks rest on: of all of them, or of a category."""
    said = dict.fromkeys((row.category, row.note) for row in rows if row.note and not row.benchmark)
    return [f"{category}: {note}." for category, note in said]


def when_said(stage: str, minus: str) -> str:
    """A stage, or a change from another one."""
    return f"{stage} minus {minus}" if minus else stage


def over(benchmarks: bool) -> str:
    """The heading of the column that says what a line is of."""
    return "benchmark" if benchmarks else "mean over"


def over_bins(rows: Sequence[Any], panel: Callable[[Any], str], across: str, up: str) -> Lines:
    """A line over the bins of rows with a field `bin`, which are counted from 1."""
    places = [str(k + 1) for k in sorted({row.bin for row in rows})]
    return Lines(rows, places, lambda row: str(row.bin + 1), panel, across=across, up=up)


def lines_of(
    findings: Findings, table: str, benchmarks: bool, cell: str, **fixed: Any
) -> list[tuple[str, str, dict[Any, Any]]]:
    """Means by category, or benchmarks, at each scale: name, scale, and the rows by the fields `cell`."""
    at = pivot(findings.means(table, benchmarks, **fixed), "scale category benchmark", cell)
    return [(benchmark or category, scale, of) for (scale, category, benchmark), of in at.items()]
