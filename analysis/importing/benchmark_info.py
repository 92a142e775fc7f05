"""What a user says of the benchmarks of imported results: numbers of items, chance levels and categories.

From a table with a row per benchmark (--benchmark-info), and from the command line, where "0.25,piqa=0.5" means 0.25 for
every benchmark but piqa, and "mmlu_*=Knowledge" is about all that begin so. What is said of one benchmark goes before what
is said of several, the command line before the table.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

from evalengine.analysis.data.items import names
from evalengine.analysis.importing.spellings import benchmark_name
from evalengine.errors import UserError, nearest
from evalengine.untrusted import check_label, printable

SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars"}  # of tables that are not comma-separated


class Line(NamedTuple):
    """A line of a CSV: its number in the file, and its cells by column."""

    number: int
    cells: dict[str, str]


def read_lines(path: Path, advice: str, skipinitialspace: bool = False) -> tuple[list[str], list[Line]]:
    """The header of a CSV and the lines below it. Raises UserError with the advice where it is none."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as handle:
            reader = csv.DictReader(handle, restval="", skipinitialspace=skipinitialspace)
            header = [name.strip() for name in reader.fieldnames or ()]
            if not any(header):
                raise UserError(f"{path} is empty: {advice}")
            if len(header) == 1 and (
                found := [word for sign, word in SEPARATORS.items() if sign in header[0]]
            ):
                raise UserError(
                    f"{path} is separated by {found[0]}: save it with commas, and numbers with points"
                )
            reader.fieldnames = header
            lines = [Line(reader.line_num, cells) for cells in reader]
    except UnicodeDecodeError:
        raise UserError(
            f"{path} is not in UTF-8: save it in that encoding (spreadsheets: CSV UTF-8)"
        ) from None
    except (OSError, csv.Error) as error:
        raise UserError(f"cannot read {path} as CSV ({error}): {advice}") from None
    for line in lines:
        if None in line.cells:  # where DictReader puts what the header has no name for
            raise UserError(
                f"{path}, line {line.number} has more than the header's {len(header)} fields: correct that line"
            )
    return header, lines


class About(NamedTuple):
    """What is said of a benchmark: number of items (0: nothing), chance (NaN: nothing) and category ("": nothing)."""

    items: int = 0
    chance: float = math.nan
    category: str = ""


class Info(NamedTuple):
    """What is said of benchmarks by name or pattern, and of all. `named`: those that must be there."""

    by_name: Mapping[str, Mapping[str, Any]] = {}  # fields of About
    of_all: Mapping[str, Any] = {}
    named: Mapping[str, str] = {}  # benchmark -> the option that names it

    def of(self, benchmark: str) -> About:
        said = dict(self.of_all)
        for name, fields in self.by_name.items():
            if "*" in name and fnmatchcase(benchmark, name):
                said |= fields
        return About(**said | dict(self.by_name.get(benchmark, {})))

    def check(self, benchmarks: Iterable[str]) -> None:
        """Raises UserError where an option names a benchmark that is not among those imported."""
        there = list(benchmarks)
        for name, option in self.named.items():
            if not any(fnmatchcase(one, name) for one in there):
                raise UserError(
                    f"{option}: no benchmark '{printable(name[:60])}' is imported{nearest(name, there)}"
                )


NOTHING = Info()


def read_info(table: Path | None, said: Mapping[str, str | None], known: Iterable[str]) -> Info:
    """What the table and the options say; `said` holds the text of each option by field of About.

    Raises UserError for a value that cannot be what it is for, and for a benchmark that is named twice.
    """
    known = set(known)
    by_name = _read_table(table, known) if table else {}
    of_all: dict[str, Any] = {}
    named: dict[str, str] = {}
    for field, text in said.items():
        seen = set()
        for part in filter(None, map(str.strip, (text or "").split(","))):
            name, _, value = (piece.strip() for piece in part.rpartition("="))
            name = benchmark_name(name, known)
            option = f"--{field} {printable(part[:60])}"
            if name in seen:
                raise UserError(
                    f"{option}: {'all benchmarks have' if not name else f'{name} has'} a value already"
                )
            seen.add(name)
            if name:
                named[name] = option
            (by_name.setdefault(name, {}) if name else of_all)[field] = READ[field](value, option)
    return Info(by_name, of_all, named)


def _read_table(path: Path, known: set[str]) -> dict[str, dict[str, Any]]:
    header, lines = read_lines(path, f"give a table with the columns {COLUMNS}", skipinitialspace=True)
    strange = [name for name in header if name not in ("benchmark", *READ)]
    if strange or "benchmark" not in header or len(header) < 2:
        raise UserError(f"{path} has the columns {names(header, 12)}: it may have {COLUMNS}")
    by_name: dict[str, dict[str, Any]] = {}
    for number, cells in lines:
        where = f"{path}, line {number}"
        name = benchmark_name(cells["benchmark"].strip(), known)
        if not name:
            raise UserError(f"{where} names no benchmark: correct that line")
        if name in by_name:
            raise UserError(f"{where}: {name} appears twice; remove one of its lines")
        by_name[name] = {
            field: READ[field](cells[field].strip(), f"{where}, {field}")
            for field in READ
            if cells.get(field, "").strip()
        }
    return by_name


def _items(text: str, where: str) -> int:
    if text.isascii() and text.isdigit() and len(text) < 10 and int(text) > 1:
        return int(text)
    raise UserError(f"{where}: a number of items is a whole number above 1")


def _chance(text: str, where: str) -> float:
    try:
        chance = float(text)
    except ValueError:
        chance = math.nan
    if not 0.0 <= chance < 1.0:
        raise UserError(
            f"{where}: chance is the accuracy of guessing, a number from 0 to below 1, such as 0.25"
        )
    return chance


READ: Mapping[str, Callable[[str, str], Any]] = {"items": _items, "chance": _chance, "category": check_label}
COLUMNS = f"benchmark and one or more of {', '.join(READ)}"
