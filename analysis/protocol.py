"""What a protocol is: a table of the study with its place in the report, its figures and what it lets one claim.

A protocol is one file that ends in `PROTOCOL = Protocol(...)`, and one line of `registry.PROTOCOLS`. Computing, report,
figures and summary iterate the registry and know no protocol by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from evalengine.analysis.bootstrap import Array, Resamples
from evalengine.analysis.figure import Figure
from evalengine.analysis.groups import Data, Group
from evalengine.analysis.mixtures import Mixtures
from evalengine.analysis.panel import Panel
from evalengine.analysis.results import Results
from evalengine.analysis.tables import Row, Settings, rows_of


class Options(NamedTuple):
    """What the user may choose.

    bootstrap: "exact", a number of resamples, or None for exact up to 10 mixtures. resample: what is drawn:
    mixtures, items, or both.
    """

    bootstrap: str | int | None = None
    interval: str = "auto"
    level: float = 0.95
    statistic: str = "pearson"
    seed: int = 0
    resample: str = "mixtures"

    @property
    def settings(self) -> Settings:
        return Settings(self.interval, self.level, self.statistic)


@dataclass(frozen=True)
class Study:
    """What protocols compute from. mixtures: what the mixtures are made of, None where that is not known."""

    data: Data
    plan: Resamples
    options: Options
    mixtures: Mixtures | None = None

    @property
    def panel(self) -> Panel:
        return self.data.panel

    def rows(self, group: Group, p_by_scale: Mapping[str, tuple[Array, Array]] | None = None) -> list[Row]:
        """Rows of a group with the user's intervals; see `tables.rows_of`."""
        return rows_of(group, self.plan, self.options.settings, p_by_scale)


class Claim(NamedTuple):
    """A sentence of the summary, with its estimate, its interval and n. kind: one of the constants below."""

    kind: str
    text: str


SUPPORTED, UNSUPPORTED, CAUTION = "supported", "unsupported", "caution"


def _no_figures(results: Results) -> Mapping[str, Figure]:
    return {}


def _no_claims(results: Results) -> Iterable[Claim]:
    return ()


class Protocol(NamedTuple):
    """table: the name of the stored table. rows: computes it; no rows where the study does not allow it. section: its
    HTML, "" without data. figures: by file name. claims: what the table supports and what not."""

    table: str
    rows: Callable[[Study], list[Row]]
    section: Callable[[Results], str]
    figures: Callable[[Results], Mapping[str, Figure]] = _no_figures
    claims: Callable[[Results], Iterable[Claim]] = _no_claims
