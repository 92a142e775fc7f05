"""What an explainer is: one table of its own columns, with its section of the report.

An explainer is one file that ends in `EXPLAINER = Explainer(...)`, and one line of `registry.EXPLAINERS`. Computing and report
iterate the registry and know none by name.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from evalengine.analysis.claims import Claim
from evalengine.analysis.data.blocks import AUTO, blocks_of
from evalengine.analysis.data.items import factors_of
from evalengine.analysis.data.mixtures import Mixtures, joined
from evalengine.analysis.data.panel import Blocks
from evalengine.analysis.explain.choices import StoreScores
from evalengine.analysis.explain.design import Design
from evalengine.analysis.figure import Heading, Part
from evalengine.analysis.results import Method

F = TypeVar("F", bound=Callable[..., Any])


class ExplainOptions(NamedTuple):
    """What the user may choose. data: the folder of the benchmarks' files, for the texts of items. exposure: the folder that
    `evalengine expose` wrote. block, made_of: as `correlate --block` and `--study`."""

    level: float = 0.95
    seed: int = 0
    data: Path | None = None
    exposure: Path | None = None
    block: str = AUTO
    made_of: Mixtures | None = None


@dataclass(frozen=True)
class StudyScores:
    """What explainers compute from. `formats`: what `score --formats` stored. `kept`: what several need and one has computed."""

    scores: StoreScores
    design: Design
    options: ExplainOptions
    formats: StoreScores | None = None
    kept: dict[Any, Any] = field(default_factory=dict)

    @functools.cached_property
    def blocks(self) -> Blocks | None:
        """Within which mixtures are compared. Raises UserError as `blocks_of` does."""
        stated = Mixtures({}, factors_of(self.scores.checkpoints.values()))
        return blocks_of(self.design.mixtures, self.options.block, joined(self.options.made_of, stated))

    def block_of(self, mixtures: Sequence[str]) -> NDArray[np.int64] | None:
        """The number of each mixture's block, None where all are exchangeable."""
        if self.blocks is None:
            return None
        label = dict(zip(self.design.mixtures, self.blocks.labels, strict=True))
        return np.unique([label[m] for m in mixtures], return_inverse=True)[1].astype(np.int64)


def once(make: F) -> F:
    """A function of a study, and of what can be a key, whose results the study keeps."""

    @functools.wraps(make)
    def kept(study: StudyScores, *about: Any) -> Any:
        key = (make, *about)
        if key not in study.kept:
            study.kept[key] = make(study, *about)
        return study.kept[key]

    return cast(F, kept)


class Findings(NamedTuple):
    """The tables that `evalengine explain` wrote, by name, and how they were made; all that a section may use."""

    method: Method
    tables: dict[str, list[Any]]

    def rows(self, table: str, **fixed: Any) -> list[Any]:
        """Rows of a table whose named fields have the given values."""
        return [row for row in self.tables[table] if all(getattr(row, key) == v for key, v in fixed.items())]

    def means(self, table: str, benchmarks: bool = False, **fixed: Any) -> list[Any]:
        """The same of means over benchmarks, or of single benchmarks."""
        return [row for row in self.rows(table, **fixed) if bool(row.benchmark) == benchmarks]


EVERYWHERE = "a benchmark that every checkpoint of a scale has"


def lacks_mixtures(study: StudyScores, least: int = 1) -> str:
    """What a study lacks for a table that needs so many mixtures of one scale."""
    most = max(study.design.paired.values())
    return f"{least} mixtures of one scale, not {most}" if most < least else EVERYWHERE


class Explainer(NamedTuple):
    """table: the name of the stored table. row: a NamedTuple of its columns (str, int, float; NaN where unknown), whose fields
    are called scale, category, benchmark, mixture, estimate, low, high, n and note where they mean that. rows: computes it, no
    rows where the study does not allow it.

    title, level: the heading of its section, "" where it is shown in another one's. opens: whether rows make a section. lacks:
    what the study lacks where they do not, as it follows "needs". The others are asked only where there are rows. shown: what
    stands under the heading. said: what the table supports and what not.
    """

    table: str
    row: type[Any]
    rows: Callable[[StudyScores], list[Any]]
    title: str = ""
    level: int = 2
    opens: Callable[[list[Any]], bool] = bool
    lacks: Callable[[StudyScores], str] = lacks_mixtures
    shown: Callable[[Findings], Iterable[Part]] = lambda findings: ()
    said: Callable[[Findings], Iterable[Claim]] = lambda findings: ()

    def section(self, findings: Findings) -> list[Part]:
        """Its section of the report, [] without data."""
        parts = list(self.shown(findings)) if findings.tables[self.table] else []
        return [Heading(self.title, self.level), *parts] if parts else []

    def claims(self, findings: Findings) -> Iterable[Claim]:
        return self.said(findings) if findings.tables[self.table] else ()
