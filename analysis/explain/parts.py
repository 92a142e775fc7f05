"""Parts that the sections and tables of several explainers share."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from evalengine.analysis.explain.explainer import Findings
from evalengine.analysis.figure import Part, pivot


def notes(rows: Iterable[Any]) -> list[Part]:
    """What means over benchmarks rest on: of all of them, or of a category."""
    said = dict.fromkeys((row.category, row.note) for row in rows if row.note and not row.benchmark)
    return [f"{category}: {note}." for category, note in said]


def signed(value: float, digits: int = 2) -> str:
    """With its sign, a true minus."""
    return f"{value:+.{digits}f}".replace("-", "−")


def when_said(stage: str, minus: str) -> str:
    """A stage, or a change from another one."""
    return f"{stage} minus {minus}" if minus else stage


def over(benchmarks: bool) -> str:
    """The heading of the column that says what a line is of."""
    return "benchmark" if benchmarks else "mean over"


def lines_of(
    findings: Findings, table: str, benchmarks: bool, cell: str, **fixed: Any
) -> list[tuple[str, str, dict[Any, Any]]]:
    """Means by category, or benchmarks, at each scale: name, scale, and the rows by the fields `cell`."""
    at = pivot(findings.means(table, benchmarks, **fixed), "scale category benchmark", cell)
    return [(benchmark or category, scale, of) for (scale, category, benchmark), of in at.items()]
