"""A CSV with one row per checkpoint and one column per benchmark.

A column becomes a score if --benchmarks names it, if it is named after a benchmark that evalengine knows, or if it
ends in a score (`.acc`): a table also holds seeds, tokens, means and perplexities, and as one more benchmark each
would enter the statistics. What is left out is said, with the reason.
"""

from __future__ import annotations

import csv
import fnmatch
import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from evalengine.analysis.importing import UNKNOWN, Known, Part, Result, benchmark_name
from evalengine.analysis.items import Checkpoint, names
from evalengine.errors import UserError
from evalengine.untrusted import check_label, printable

QUANTITY = {"acc": "accuracy", "acc_norm": "accuracy", "confidence": "confidence", "loss": "loss"}  # by score
MISSING = {  # as spreadsheets, pandas, R and people write it
    *("", "nan", "-nan", "na", "<na>", "n/a", "#n/a", "#n/a n/a", "#na", "none", "null", "nil", "missing"),
    *("-", "--", "\N{EN DASH}", "\N{EM DASH}", ".", "?", "1.#ind", "-1.#ind", "1.#qnan", "-1.#qnan"),
    *("#value!", "#div/0!", "#ref!", "#num!", "#name?"),
}
NO_NAME = {"", "nan", "<na>", "n/a", "#n/a"}
SHOTS = ("shot", "shots", "n_shot", "n_shots", "num_shots", "fewshot", "few_shot", "n_fewshot", "num_fewshot")
MEANS = {"mean", "average", "avg", "macro", "micro", "overall", "total", "all", "score"}
ERRORS = {"stderr", "stdev", "std", "ci"}
NOT_KNOWN = "no benchmarks that evalengine knows: --benchmarks names the columns to take"
LOWER_IS_BETTER = {"ppl", "perplexity", "bpb", "nll"}
SPLITS = {"train", "training", "val", "valid", "validation", "dev", "eval", "test"}  # as in val_loss


class WideTable(NamedTuple):
    """How to read a CSV: which column is what.

    where: rows to keep, by column. constant: fields that are the same for the whole file (scale, mixture,
    stage). metric: which accuracy of a benchmark. loss: columns without a score in their name are losses.
    """

    scale: str | None = None
    mixture: str | None = None
    stage: str | None = None
    model: str | None = None
    benchmarks: tuple[str, ...] = ()
    shares: tuple[str, ...] = ()
    where: Mapping[str, str] = {}
    constant: Mapping[str, str] = {}
    loss: bool = False
    metric: str | None = None


class Line(NamedTuple):
    number: int  # in the file
    cells: dict[str, str]  # by column


class Column(NamedTuple):
    """A column of scores."""

    name: str
    benchmark: str
    quantity: str
    score: str  # "" where the name does not say it


def read_csv(path: Path, how: WideTable, known: Mapping[str, Known]) -> Part:
    """Reads a wide table. Raises UserError naming the file, the line and the column at fault."""
    header, lines = _read(path)
    _check_options(path, header, how)
    lines = [line for line in lines if all(line.cells[c] == v for c, v in how.where.items())]
    if not lines:
        raise UserError(
            f"{path}: no row fits {' and '.join(f'{c}={v}' for c, v in how.where.items()) or 'at all'}"
        )
    shots = _shots(path, header, lines, how)
    columns, left_out = _choose_columns(path, header, how, known)
    checkpoints = list(_checkpoints(path, lines, how))
    results: list[Result] = []
    percent: dict[bool, list[str]] = {True: [], False: []}
    for column in columns:
        values = [_number(path, line, column.name) for line in lines]
        if all(map(math.isnan, values)):
            left_out[column.name] = "without any value"
            continue
        if column.quantity != "loss":
            is_percent = _is_percent(path, lines, column.name, values)
            percent[is_percent].append(column.name)
            values = [value / 100.0 for value in values] if is_percent else values
        category = known.get(column.benchmark, UNKNOWN).category
        what = (column.benchmark, category, column.quantity)
        results += [
            Result(*who, *what, value, 0, path, column.score, shots)
            for who, value in zip(checkpoints, values, strict=True)
        ]
    shares = [
        (name, str(who.mixture), share)
        for name in header
        if _fits(name, how.shares)
        for line, who in zip(lines, checkpoints, strict=True)
        if not math.isnan(share := _number(path, line, name))
    ]
    said = f"{path}: read as percent: {names(percent[True], 12)}"
    said += f"; as shares of one: {names(percent[False], 12)}" if percent[False] else ""
    return Part(path, results, shares, left_out=left_out, notes=[said] if percent[True] else [])


def _read(path: Path) -> tuple[list[str], list[Line]]:
    """The header and the lines below it."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as handle:
            reader = csv.DictReader(handle, restval="")
            header = [name.strip() for name in reader.fieldnames or ()]
            reader.fieldnames = header
            lines = [Line(reader.line_num, cells) for cells in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(
            f"cannot read {path} as CSV ({error}): give a comma-separated table with a header"
        ) from None
    at: dict[str, int] = {}
    for number, name in enumerate(header, 1):
        if name and at.setdefault(name, number) != number:
            raise UserError(
                f"{path}: columns {at[name]} and {number} are both called {printable(name[:60])}: "
                "rename or delete one of them"
            )
    for line in lines:
        if None in line.cells:  # where DictReader puts what the header has no name for
            raise UserError(
                f"{path}, line {line.number} has more than the header's {len(header)} fields: correct that line"
            )
    return header, lines


def _check_options(path: Path, header: Sequence[str], how: WideTable) -> None:
    for column in (how.scale, how.mixture, how.stage, how.model, *how.where):
        if column is not None and column not in header:
            raise UserError(f"{path} has no column '{column}': its columns are {names(header, 12)}")
    if how.mixture is None and "mixture" not in how.constant:
        raise UserError(f"say which column of {path} names the mixture: --mixture COLUMN")
    if how.stage is None and "stage" not in how.constant:
        raise UserError(
            f"say which column of {path} names the stage (--stage COLUMN), or one for the file: {path.name}@stage=pt"
        )
    for pattern in how.benchmarks:
        if not any(_fits(name, (pattern,)) for name in header):
            raise UserError(
                f"{path}: no column looks like a benchmark '{pattern}' of --benchmarks: "
                f"its columns are {names(header, 12)}"
            )


def _shots(path: Path, header: Sequence[str], lines: Sequence[Line], how: WideTable) -> int | None:
    """The number of few-shot examples of all rows, if a column says it. Raises UserError if they differ."""
    for name in header:
        if re.sub(r"[- ]", "_", name.lower()) in SHOTS and name not in (how.scale, how.mixture, how.stage):
            said, *others = dict.fromkeys(line.cells[name].strip() for line in lines)
            if others:
                raise UserError(
                    f"{path}: the rows differ in {name} ({names([said, *others])}): "
                    f"choose one with --where {name}=VALUE"
                )
            return int(said) if said.isdecimal() and len(said) < 10 else None
    return None


def _checkpoints(path: Path, lines: Sequence[Line], how: WideTable) -> Iterator[Checkpoint]:
    """The checkpoint of every line. Raises UserError where two lines are of one, or a name is missing."""
    seen: dict[tuple[str | None, ...], int] = {}
    for line in lines:
        place = {
            key: how.constant.get(key) or (line.cells[column].strip() if column else None)
            for key, column in (("scale", how.scale), ("mixture", how.mixture), ("stage", how.stage))
        }
        said = {key: value for key, value in place.items() if value is not None}
        for key, value in said.items():
            if value.lower() in NO_NAME:
                raise UserError(f"{path}, line {line.number} says no {key}: add it, or leave the line out")
            check_label(value, f"{path}, line {line.number}, {key}")
        identity = tuple(place.values())
        first = seen.setdefault(identity, line.number)
        if first != line.number:
            raise UserError(
                f"{path}: lines {first} and {line.number} are both "
                f"{', '.join(f'{key} {value}' for key, value in said.items())}: "
                "choose rows with --where COLUMN=VALUE"
            )
        model = [line.cells[how.model].strip()] if how.model else []
        name = "-".join([*model, *said.values()])
        check_label(name, f"{path}, line {line.number}, checkpoint")
        yield Checkpoint(name, *identity)


def _choose_columns(
    path: Path, header: Sequence[str], how: WideTable, known: Mapping[str, Known]
) -> tuple[list[Column], dict[str, str]]:
    """The columns of scores, and why each other one is none.

    Where a benchmark has several accuracies, the one it is judged by is taken, or `how.metric`. Raises UserError
    where that leaves two columns, or none at all.
    """
    used = {"", how.scale, how.mixture, how.stage, how.model, *how.where}
    left_out: dict[str, str] = {}
    candidates: dict[tuple[str, str], list[Column]] = defaultdict(list)
    for name in header:
        if name in used or _fits(name, how.shares):
            continue
        column = _column(path, name, how, known)
        if isinstance(column, str):
            left_out[name] = column
        else:
            candidates[column.benchmark, column.quantity].append(column)
    if not candidates:
        others = [printable(name) for name, why in left_out.items() if why == NOT_KNOWN]
        raise UserError(
            f"{path}: no column looks like a benchmark that evalengine knows: name those that are with "
            f"--benchmarks '{','.join(others) or 'COLUMN,PATTERN*'}'"
        )
    chosen = []
    for (benchmark, _), columns in candidates.items():
        wanted = how.metric or known.get(benchmark, UNKNOWN).default_score
        best = [column for column in columns if column.score == wanted] or columns
        if len(best) > 1:
            raise UserError(
                f"{path}: the columns {names([column.name for column in best])} are all scores of {benchmark}: "
                "name the one to take with --benchmarks"
            )
        chosen += best
        left_out |= {c.name: "another score is taken: --metric chooses" for c in columns if c is not best[0]}
    return chosen, left_out


def _column(path: Path, name: str, how: WideTable, known: Mapping[str, Known]) -> Column | str:
    """The column of scores that `name` is, or why it is none."""
    base, score = split_column(name)
    benchmark = benchmark_name(base, known)
    words = set(re.split(r"[^a-z0-9]+", name.lower()))
    lower_is_better = words & LOWER_IS_BETTER and not how.loss
    if name in how.benchmarks:
        if lower_is_better:
            raise UserError(
                f"{path}: of {name}, lower is better: say --loss, or leave it out of --benchmarks"
            )
    elif how.benchmarks and not _fits(name, how.benchmarks):
        return "not in --benchmarks"
    elif words & {"average", "avg"} or set(re.split(r"[^a-z0-9]+", base.lower())) <= MEANS:
        return "means of others"
    elif words & ERRORS:
        return "errors, no scores"
    elif lower_is_better:
        return "lower is better: --benchmarks with --loss takes them"
    elif not how.benchmarks and benchmark not in known and (not score or base.lower() in SPLITS):
        return NOT_KNOWN
    quantity = QUANTITY.get(score, "loss" if how.loss else "accuracy")
    if how.metric and quantity == "accuracy" and score not in ("", how.metric):
        return f"not --metric {how.metric}"
    return Column(name, benchmark, quantity, score)


def split_column(column: str) -> tuple[str, str]:
    """("piqa", "acc") from "piqa.acc", "metric/piqa,acc,none", "piqa_acc" or "piqa/acc"; score "" where there is none."""
    found = re.fullmatch(r"(?:.*/)?([^/]+?)(?:_val)?[.,_/](acc|acc_norm|confidence|loss)(?:,none)?", column)
    return (found[1], found[2]) if found else (column.rsplit("/", 1)[-1], "")


def _fits(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _number(path: Path, line: Line, column: str) -> float:
    """A cell's number, NaN where it is missing; of "68.2%" the 68.2."""
    text = line.cells[column].strip()
    if text.lower() in MISSING:
        return math.nan
    try:
        value = float(text.removesuffix("%"))
    except ValueError:
        value = math.inf
    if math.isinf(value):
        raise UserError(
            f"{path}, line {line.number}, column {column}: '{printable(text[:60])}' is not a number"
        )
    return value


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
