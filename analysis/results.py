"""The tables that `correlate` wrote, read back: what the report and the figures start from.

They read a folder and never the store, so a report can be made on a laptop from tables computed elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from evalengine.analysis.estimates.tables import Row
from evalengine.analysis.together import read_together

MANIFEST = "analysis.json"
TABLES_VERSION = "4"  # of the columns of Row and of analysis.json
OTHERS = ("cells", "curves", "verdicts")  # beside the tables of rows


Method = dict[str, Any]  # how a study's tables were made: the content of its manifest


class Results(NamedTuple):
    """Tables by name, the cells of the panel, reliability curves, verdicts and how all was made."""

    method: Method
    tables: dict[str, list[Row]]
    cells: list[dict[str, Any]]
    curves: list[dict[str, Any]]
    verdicts: list[dict[str, str]]

    def rows(self, table: str, **fixed: str) -> list[Row]:
        """Rows of a table whose named fields have the given values; no differences unless `contrast` names a kind."""
        fixed = {"contrast": "", **fixed}
        found = self.tables.get(table, [])
        return [row for row in found if all(getattr(row, key) == value for key, value in fixed.items())]

    def values(self, quantity: str, scale: str) -> dict[tuple[str, str, str], Any]:
        """The cells of a scale by benchmark, stage and mixture; None where one has no value."""
        mine = (cell for cell in self.cells if cell["scale"] == scale)
        return {(cell["benchmark"], cell["stage"], cell["mixture"]): cell.get(quantity) for cell in mine}

    @property
    def scales(self) -> list[str]:
        return list(self.method["scales"])

    def where(self, scale: str) -> str:
        """The scale as a claim names it: "" where there is but one."""
        return scale if len(self.scales) > 1 else ""

    @property
    def categories(self) -> list[str]:
        return list(dict.fromkeys(self.method["categories"]))

    @property
    def chance(self) -> dict[str, float]:
        """The accuracy of guessing, of the benchmarks where it is known."""
        known = zip(self.method["benchmarks"], self.method.get("chance", ()), strict=False)
        return {benchmark: chance for benchmark, chance in known if chance is not None}


def load_results(folder: Path) -> Results:
    """Reads a folder that `evalengine correlate` wrote. Raises UserError where it is none or incomplete."""
    command = f"evalengine correlate STORE --out {folder}"
    method, tables, others = read_together(
        folder, MANIFEST, TABLES_VERSION, command, lambda name: Row, OTHERS
    )
    return Results(method, tables, *others)


def p_value(p: float) -> str:
    """A p or q as it is printed."""
    return "–" if math.isnan(p) else "< 0.001" if p < 0.001 else f"{p:.3f}"


def percent(level: float) -> str:
    """A confidence level as it is printed: 95%, 99.9%."""
    return f"{100.0 * level:.10g}%"


def interval_words(results: Results) -> str:
    """Which intervals are shown."""
    method = results.method
    kinds = {
        "auto": "BCa bootstrap for one r, on Student's t for coherence, jackknife for differences and on Fisher's z for means",
        "bca": "BCa bootstrap",
        "bca-t": "BCa bootstrap on Student's t",
        "fisher": "Fisher's z",
        "jackknife": "jackknife t",
        "jackknife-z": "jackknife t on Fisher's z",
    }
    if method["block"]:
        within = "jackknife within blocks, on Fisher's z for r and means"
        kinds["auto"] = f"{within}; BCa on Student's t for coherence"
    kind = kinds.get(method["interval"], f"{method['interval']} bootstrap")
    return f"{percent(method['level'])} intervals: {kind}, {method['resamples']:,} resamples"


def signed(value: float, digits: int = 2) -> str:
    """With its sign, a true minus."""
    return _said(value, f"+.{digits}f")


def _said(value: float, how: str) -> str:
    """With a true minus sign; a dash where undefined."""
    return f"{value:{how}}".replace("-", "−") if math.isfinite(value) else "–"


def _with_interval(row: Any, unit: float, how: str) -> str:
    """An end of an interval that leaves out 0 is not shown as 0: "−22.3 [−44.8, −0.02]"."""
    if row is None or not math.isfinite(row.estimate):
        return "–"
    ends = []
    for end in (unit * row.low, unit * row.high):
        touches = excludes_zero(row) and float(f"{end:{how}}") == 0.0
        digits = math.ceil(-math.log10(abs(end))) if touches and end else 0  # up to the first that is not 0
        ends.append(_said(end, f"{how[0]}.{digits}f" if digits else how))
    return f"{_said(unit * row.estimate, how)} [{', '.join(ends)}]"


def with_interval(row: Any) -> str:
    """ "+0.57 [−0.15, +0.94]"."""
    return _with_interval(row, 1.0, "+.2f")


def share_with_interval(row: Any) -> str:
    """A share or a difference in percent: "58.2 [51.0, 64.1]"; -0.04 is 0.0, not -0.0."""
    return _with_interval(row, 100.0, "z.1f")


def in_its_unit(row: Any) -> str:
    """A value that may be of any size, such as a difference of losses, to three digits: "0.00387 [0.001, 0.00912]"."""
    return _with_interval(row, 1.0, "z.3g")


def n_words(rows: Iterable[Any]) -> str:
    """ "n = 9", or "n = 7 to 9": the mixtures behind the rows that have an estimate, or behind all where none has one."""
    every = [row for row in rows if row.n]
    n = sorted({row.n for row in every if math.isfinite(row.estimate)} or {row.n for row in every} or {0})
    return f"n = {n[0]}" if len(n) == 1 else f"n = {n[0]} to {n[-1]}"


def excludes_zero(row: Any) -> bool:
    return row.low > 0 or row.high < 0
