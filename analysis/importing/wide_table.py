"""A CSV with one row per checkpoint and one column per benchmark: what its rows and cells say.

score_columns.py says which columns are scores. Each of them is in shares of one or in percent as a whole.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from evalengine.analysis.data.items import CheckpointLabels, names
from evalengine.analysis.importing.benchmark_info import Line, read_lines
from evalengine.analysis.importing.imported import MISSING, FileResults, Known, Result, Setting
from evalengine.analysis.importing.score_columns import ITEMS, Column, WideTable, choose_columns, fits
from evalengine.errors import UserError
from evalengine.untrusted import NAME_BYTES, check_label, printable

NO_NAME = {"", "nan", "<na>", "n/a", "#n/a"}
SHOTS = ("shot", "shots", "n_shot", "n_shots", "num_shots", "fewshot", "few_shot", "n_fewshot", "num_fewshot")
UNLIKE = 100.0  # how many times more items one standard error may imply than another: percent among shares are 10,000 times
ITEMS_MOST = 100_000  # of a benchmark, where its file does not say


def read_csv(path: Path, how: WideTable, known: Mapping[str, Known]) -> FileResults:
    """Reads a wide table. Raises UserError naming the file, the line and the column at fault."""
    header, lines = _read(path)
    _check_options(path, header, how)
    lines = [line for line in lines if all(line.cells[c].strip() == v.strip() for c, v in how.where.items())]
    if not lines:
        raise UserError(
            f"{path}: no row fits {' and '.join(f'{c}={v}' for c, v in how.where.items()) or 'at all'}"
        )
    setting = Setting(shots=_shots(path, header, lines, how))
    columns, left_out = choose_columns(path, header, how, known)
    checkpoints = list(_checkpoints(path, lines, how))
    results: list[Result] = []
    percent: dict[bool, list[str]] = {True: [], False: []}
    for column in columns:
        values = [_number(path, line, column.name) for line in lines]
        if all(map(math.isnan, values)):
            left_out[column.name] = "without any value"
            continue
        items = _counts(path, lines, column, how, left_out)
        stderr = column.stderr
        errors = [_number(path, line, stderr) if stderr else math.nan for line in lines]
        if column.quantity == "loss":
            _is_signed(path, lines, column.name, values)
        else:
            is_percent = _is_percent(path, lines, column.name, values)
            percent[is_percent].append(column.name)
            if is_percent:
                values, errors = ([value / 100.0 for value in numbers] for numbers in (values, errors))
        if column.quantity == "accuracy":
            _check_errors(path, lines, column, values, errors, items)
        results += [
            Result(who, column.benchmark, column.quantity, value, count, error, path, column.score, setting)
            for who, value, count, error in zip(checkpoints, values, items, errors, strict=True)
        ]
    stated: list[tuple[str, str, str, Any]] = [
        ("blocks", column, str(who.mixture), _label(path, line, column, line.cells[column].strip()))
        for column in how.blocks
        for line, who in zip(lines, checkpoints, strict=True)
    ]
    stated += [
        ("shares", name, str(who.mixture), share)
        for name in header
        if fits(name, how.shares)
        for share, who in zip(_shares(path, lines, name), checkpoints, strict=True)
        if not math.isnan(share)
    ]
    said = f"{path}: read as percent: {names(percent[True], 12)}"
    said += f"; as shares of one: {names(percent[False], 12)}" if percent[False] else ""
    return FileResults(path, results, stated, left_out=left_out, notes=[said] if percent[True] else [])


def _read(path: Path) -> tuple[list[str], list[Line]]:
    """The header and the lines below it."""
    header, lines = read_lines(path, "give a comma-separated table with a header")
    at: dict[str, int] = {}
    for number, name in enumerate(header, 1):
        if name and at.setdefault(name, number) != number:
            raise UserError(
                f"{path}: columns {at[name]} and {number} are both called {printable(name[:60])}: "
                "rename or delete one of them"
            )
    return header, lines


def _check_options(path: Path, header: Sequence[str], how: WideTable) -> None:
    for column in (how.scale, how.mixture, how.stage, how.model, how.replicate, *how.blocks, *how.where):
        if column is not None and column not in header:
            raise UserError(
                f"{path} has no column '{column}': its columns are {names(filter(None, header), 12)}"
            )
    if how.mixture is None and "mixture" not in how.constant:
        raise UserError(f"say which column of {path} names the mixture: --mixture COLUMN")
    if how.stage is None and "stage" not in how.constant:
        raise UserError(
            f"say which column of {path} names the stage (--stage COLUMN), or one for the file: {path.name}@stage=pt"
        )
    for pattern in how.benchmarks:
        if not any(fits(name, (pattern,)) for name in header):
            raise UserError(
                f"{path}: no column looks like a benchmark '{pattern}' of --benchmarks: "
                f"its columns are {names(header, 12)}"
            )


def _shots(path: Path, header: Sequence[str], lines: Sequence[Line], how: WideTable) -> int | None:
    """The number of few-shot examples of all rows, if a column says it. Raises UserError if they differ."""
    for name in header:
        if re.sub(r"[- ]", "_", name.lower()) in SHOTS and name not in how.about_rows - {*how.where}:
            said, *others = dict.fromkeys(line.cells[name].strip() for line in lines)
            if others:
                raise UserError(
                    f"{path}: the rows differ in {name} ({names([said, *others])}): "
                    f"choose one with --where {name}=VALUE"
                )
            return int(said) if said.isdecimal() and len(said) < 10 else None
    return None


def _checkpoints(path: Path, lines: Sequence[Line], how: WideTable) -> Iterator[CheckpointLabels]:
    """The checkpoint of every line. Raises UserError where two lines are of one, or a name is missing."""
    columns = {"scale": how.scale, "mixture": how.mixture, "stage": how.stage, "replicate": how.replicate}
    seen: dict[tuple[str | None, ...], int] = {}
    for line in lines:
        place = {
            key: how.constant.get(key) or (line.cells[column].strip() if column else None)
            for key, column in columns.items()
        }
        said = {key: _label(path, line, key, value) for key, value in place.items() if value is not None}
        first = seen.setdefault(tuple(place.values()), line.number)
        if first != line.number:
            raise UserError(
                f"{path}: lines {first} and {line.number} are both "
                f"{', '.join(f'{key} {value}' for key, value in said.items())}: choose rows with --where COLUMN=VALUE, "
                f"or name {'another' if how.replicate else 'the'} column that tells runs of one mixture apart: --replicate"
            )
        seed = said.pop("replicate", "")
        model = [line.cells[how.model].strip()] if how.model else []
        run = [f"{how.replicate or 'replicate'}{seed}"] if seed else []
        name = "-".join([*model, *said.values(), *run])
        if len(name.encode()) > NAME_BYTES:  # each part may be that long
            name = f"{name.encode()[: NAME_BYTES - 20].decode(errors='ignore')}-{sha256(name.encode()).hexdigest()[:16]}"
        check_label(name, f"{path}, line {line.number}, checkpoint")
        yield CheckpointLabels(name, place["scale"], place["mixture"], place["stage"], seed)


def _label(path: Path, line: Line, what: str, text: str) -> str:
    """A name or label of a line. Raises UserError where it says nothing."""
    if text.lower() in NO_NAME:
        raise UserError(f"{path}, line {line.number} says no {what}: add it, or leave the line out")
    return check_label(text, f"{path}, line {line.number}, {what}")


def _number(path: Path, line: Line, column: str) -> float:
    """A cell's number, NaN where it is missing; of "68.2%" the 68.2."""
    text = line.cells[column].strip()
    if text.lower() in MISSING:
        return math.nan
    try:
        value = math.inf if "_" in text else float(text.removesuffix("%"))  # float takes 6_2 for 62
    except ValueError:
        value = math.inf
    if math.isinf(value):
        raise UserError(
            f"{path}, line {line.number}, column {column}: '{printable(text[:60])}' is not a number"
        )
    return value


def _shares(path: Path, lines: Sequence[Line], column: str) -> list[float]:
    """A column of shares, NaN where they are missing; "25%" is 0.25. Raises UserError where only some have that sign."""
    values = [_number(path, line, column) for line in lines]
    return [value / 100.0 for value in values] if _is_signed(path, lines, column, values) else values


def _is_signed(path: Path, lines: Sequence[Line], column: str, values: Sequence[float]) -> bool:
    """Whether the values of a column have a percent sign. Raises UserError where only some have; 0 may go without."""
    signed = [
        line.cells[column].strip().endswith("%")
        for line, value in zip(lines, values, strict=True)
        if value != 0.0 and not math.isnan(value)
    ]
    if any(signed) and not all(signed):
        raise UserError(
            f"{path}: {column} has values with and without a percent sign: write all of them one way"
        )
    return any(signed)


def _counts(
    path: Path, lines: Sequence[Line], column: Column, how: WideTable, left_out: dict[str, str]
) -> list[int]:
    """The numbers of items behind a column of scores, 0 where they are not known.

    Raises UserError where the columns of --items hold something else; one that only looks like it is left out.
    """
    name = column.items
    if name is None:
        return [0] * len(lines)
    values = [0.0 if math.isnan(value := _number(path, line, name)) else value for line in lines]
    if all(value.is_integer() and 0 <= value < 2**31 for value in values):
        return [int(value) for value in values]
    if how.items is not ITEMS:
        raise UserError(
            f"{path}: {name} holds something else than numbers of items: name other columns with --items"
        )
    left_out[name] = "not whole, so no numbers of items"
    return [0] * len(lines)


def _check_errors(
    path: Path,
    lines: Sequence[Line],
    column: Column,
    values: Sequence[float],
    errors: Sequence[float],
    items: Sequence[int],
) -> None:
    """Raises UserError where standard errors cannot be those of the accuracies beside them, as in another unit."""
    implied: dict[int, float] = {}  # items, by line
    for line, value, error in zip(lines, values, errors, strict=True):
        if error < 0 or (error == 0 and 0 < value < 1):
            raise UserError(
                f"{path}, line {line.number}: {column.stderr} is {error:g} beside {value:g}, which no standard error "
                "is: leave the cell empty where it is not known"
            )
        if error > 0 and 0 < value < 1:
            implied[line.number] = value * (1 - value) / error / error  # a tiny square would be 0
    if not implied:
        return
    middle = sorted(implied.values())[len(implied) // 2]
    counted = [count for count in items if count]
    least, most = (min(counted) / 30, max(counted) * 30) if counted else (2, ITEMS_MOST)
    if not least <= middle <= most:
        raise UserError(
            f"{path}: standard errors as in {column.stderr} would take about {middle:.2g} items of {column.benchmark}: "
            f"write them in the unit of {column.name}, share of one or percent, or delete that column"
        )
    for number, count in implied.items():
        if not middle / UNLIKE <= count <= middle * UNLIKE:
            raise UserError(
                f"{path}, line {number}: the standard error as in {column.stderr} would take about {count:.2g} items of "
                f"{column.benchmark}, and others about {middle:.2g}: write all of them in one unit, or leave that cell empty"
            )


def _is_percent(path: Path, lines: Sequence[Line], column: str, values: Sequence[float]) -> bool:
    """Whether a column of accuracies is in percent rather than shares of one. Raises UserError where it is neither,
    or both."""
    found = [value for value in values if not math.isnan(value)]
    signed = [line.cells[column].strip().endswith("%") for line in lines]
    if min(found) < 0.0 or max(found) > 100.0:
        raise UserError(
            f"{path}: {column} lies between {min(found):g} and {max(found):g}, so its values are neither shares nor "
            "percent: choose columns with --benchmarks, or say --loss if lower is better"
        )
    if max(found) <= 1.0 and not any(signed):
        return False
    for line, value, is_signed in zip(lines, values, signed, strict=True):
        if 0.0 < value <= 1.0 and not is_signed:
            raise UserError(
                f"{path}, line {line.number}: {column} is {value:g} here and up to {max(found):g} elsewhere, a share "
                "of one among percent: write the whole column one way (0.5% with its sign, if it is that)"
            )
    return True
