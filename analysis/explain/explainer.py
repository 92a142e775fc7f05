"""What an explainer is: one table of its own columns, with its section of the report.

An explainer is one file that ends in `EXPLAINER = Explainer(...)`, and one line of `registry.EXPLAINERS`. Computing, report
and figures iterate the registry and know none by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from evalengine.analysis.explain.choices import Scores
from evalengine.analysis.explain.design import Design
from evalengine.analysis.figure import Figure, Table
from evalengine.analysis.protocol import Claim
from evalengine.analysis.results import Results

T = TypeVar("T")


class Options(NamedTuple):
    """What the user may choose. data: the folder of the benchmarks' files, for the texts of items. exposure: the folder that
    `evalengine expose` wrote."""

    level: float = 0.95
    seed: int = 0
    data: Path | None = None
    exposure: Path | None = None


@dataclass(frozen=True)
class Study:
    """What explainers compute from. `formats`: what `score --formats` stored. `kept`: what several need and one has computed."""

    scores: Scores
    design: Design
    options: Options
    formats: Scores | None = None
    kept: dict[Any, Any] = field(default_factory=dict)

    def once(self, key: Any, make: Callable[[], T]) -> T:
        if key not in self.kept:
            self.kept[key] = make()
        found: T = self.kept[key]
        return found


class Findings(NamedTuple):
    """The tables that `evalengine explain` wrote, by name, and how they were made; all that a section may use."""

    method: dict[str, Any]
    tables: dict[str, list[Any]]

    @property
    def drawing(self) -> Results:
        """What `page` and `drawing` need to know of the study."""
        return Results(self.method, {}, [], [], [])

    def rows(self, table: str, **fixed: Any) -> list[Any]:
        """Rows of a table whose named fields have the given values."""
        return [row for row in self.tables[table] if all(getattr(row, key) == v for key, v in fixed.items())]


class Explainer(NamedTuple):
    """table: the name of the stored table. row: a NamedTuple of its columns (str, int, float; NaN where unknown), whose fields
    are called scale, category, benchmark, mixture, estimate, low, high, n and note where they mean that. rows: computes it, no
    rows where the study does not allow it. section: HTML, "" without data. figures, latex: by file name. claims: what the
    table supports and what not."""

    table: str
    row: type[Any]
    rows: Callable[[Study], list[Any]]
    section: Callable[[Findings], str] = lambda findings: ""
    figures: Callable[[Findings], Mapping[str, Figure]] = lambda findings: {}
    latex: Callable[[Findings], Mapping[str, Table]] = lambda findings: {}
    claims: Callable[[Findings], Iterable[Claim]] = lambda findings: ()
