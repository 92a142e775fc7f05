"""What a protocol is: a table of the study, what the report shows of it, and what it lets one claim.

A protocol is one file that ends in `PROTOCOL = Protocol(...)`, and one line of `registry.PROTOCOLS`. Computing, report and
summary iterate the registry and know no protocol by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

from evalengine.analysis.claims import Claim
from evalengine.analysis.data.mixtures import Mixtures
from evalengine.analysis.data.panel import Panel
from evalengine.analysis.estimates.groups import Data, Group
from evalengine.analysis.estimates.inverting import inverted
from evalengine.analysis.estimates.tables import CorrelateOptions, Row, Tests, rows_of
from evalengine.analysis.figure import Part
from evalengine.analysis.results import Results
from evalengine.analysis.statistics.bootstrap import Resamples


@dataclass(frozen=True)
class StudyData:
    """What protocols compute from. mixtures: what the mixtures are made of, None where that is not known. across: the same
    without blocks, where there are blocks."""

    data: Data
    plan: Resamples
    options: CorrelateOptions
    mixtures: Mixtures | None = None
    across: StudyData | None = None

    @property
    def panel(self) -> Panel:
        return self.data.panel

    def rows(self, group: Group, tests: Tests | None = None) -> list[Row]:
        """Rows of a group with the user's intervals (`tables.rows_of`); contrasts without a test get p from their interval."""
        return rows_of(group, self.plan, self.options, {**inverted(group, self.plan), **(tests or {})})


class Protocol(NamedTuple):
    """table: the name of the stored table. rows: computes it; no rows where the study does not allow it. shown: its section
    of the report, nothing without data. claims: what the table supports and what not."""

    table: str
    rows: Callable[[StudyData], list[Row]]
    shown: Callable[[Results], Iterable[Part]]
    claims: Callable[[Results], Iterable[Claim]] = lambda results: ()
