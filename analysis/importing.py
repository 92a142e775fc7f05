"""Results that a researcher already has, made readable for the analysis.

Three sources: a wide table (CSV: one row per checkpoint, one column per benchmark), lm-evaluation-harness's
`results_*.json` (one number per task), and its `samples_*.jsonl` (every choice's log-likelihood). The first
two become one table of results, `results.arrow`; samples become a score store, item by item, as if evalengine
had scored them.

Dims: nothing here is large but samples: one Python pass over their lines.
"""

from __future__ import annotations

import csv
import fnmatch
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from evalengine.analysis.items import names
from evalengine.analysis.panel import RESULTS_FILE
from evalengine.analysis.tables import replacing
from evalengine.errors import UserError
from evalengine.untrusted import check_label, check_name, printable, read_json

NAME_PATTERN = r"(?P<scale>[^-]+)-(?P<mixture>.+)-(?P<stage>[^-]+)"
SUFFIXES = {"acc": "accuracy", "acc_norm": "accuracy", "confidence": "confidence", "loss": "loss"}
MISSING = ("", "nan", "na", "none", "null", "-")
RESULT_COLUMNS = (
    "checkpoint",
    "scale",
    "mixture",
    "stage",
    "benchmark",
    "category",
    "quantity",
    "value",
    "items",
)


class Known(NamedTuple):
    """What evalengine knows of a benchmark: its category and the score it is judged by."""

    category: str
    default_score: str


class Result(NamedTuple):
    """One number: a row of results.arrow."""

    checkpoint: str
    scale: str | None
    mixture: str | None
    stage: str | None
    benchmark: str
    category: str
    quantity: str
    value: float
    items: int


class WideTable(NamedTuple):
    """How to read a CSV: which column is what.

    where: rows to keep, by column. constant: fields that are the same for the whole file (scale, mixture,
    stage).
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


class Imported(NamedTuple):
    """Results of one file, and shares of its mixtures by column."""

    results: list[Result]
    shares: dict[str, dict[str, float]]


def read_csv(path: Path, how: WideTable, known: Mapping[str, Known]) -> Imported:
    """Reads a wide table. Raises UserError naming the file, the line and the column at fault."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as handle:
            reader = csv.DictReader(handle, restval="")
            header = list(reader.fieldnames or [])
            lines = [(reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(
            f"cannot read {path} as CSV ({error}): give a comma-separated table with a header"
        ) from None
    for column in (how.scale, how.mixture, how.stage, how.model, *how.where):
        if column is not None and column not in header:
            raise UserError(f"{path} has no column '{column}': its columns are {names(header, 12)}")
    if how.mixture is None and "mixture" not in how.constant:
        raise UserError(f"say which column of {path} names the mixture: --mixture COLUMN")
    if how.stage is None and "stage" not in how.constant:
        raise UserError(
            f"say which column of {path} names the stage (--stage COLUMN), or one for the file: {path.name}@stage=pt"
        )
    for number, row in lines:
        if None in row:
            raise UserError(f"{path}, line {number} has more than the header's {len(header)} fields: mend it")
    lines = [(n, row) for n, row in lines if all(row[c] == v for c, v in how.where.items())]
    if not lines:
        raise UserError(
            f"{path}: no row fits {' and '.join(f'{c}={v}' for c, v in how.where.items()) or 'at all'}"
        )
    chosen = choose_columns(path, header, lines, how, known)
    results: list[Result] = []
    seen: dict[tuple[str | None, ...], int] = {}
    shares: dict[str, dict[str, float]] = {}
    share_columns = [c for c in header if any(fnmatch.fnmatchcase(c, pattern) for pattern in how.shares)]
    for number, row in lines:
        scale, mixture, stage = (
            how.constant.get(key) or (row[column].strip() if column else None)
            for key, column in (("scale", how.scale), ("mixture", how.mixture), ("stage", how.stage))
        )
        identity = (scale, mixture, stage)
        for key, value in zip(("scale", "mixture", "stage"), identity, strict=True):
            if value is not None:
                check_label(value, f"{path}, line {number}, {key}")
        if identity in seen:
            named = zip(("scale", "mixture", "stage"), identity, strict=True)
            said = ", ".join(f"{key} {value}" for key, value in named if value)
            raise UserError(
                f"{path}: lines {seen[identity]} and {number} are both {said}: choose rows with --where COLUMN=VALUE"
            )
        seen[identity] = number
        checkpoint = "-".join(value for value in identity if value)
        if how.model:
            checkpoint = f"{row[how.model]}-{checkpoint}"
        for column in share_columns:
            shares.setdefault(column, {})[str(mixture)] = _number(path, number, column, row[column])
        for benchmark, (column, quantity) in chosen.items():
            category = known[benchmark].category if benchmark in known else "Other"
            value = _number(path, number, column, row[column])
            results.append(Result(checkpoint, scale, mixture, stage, benchmark, category, quantity, value, 0))
    return Imported(_as_shares_of_one(results), shares)


def choose_columns(
    path: Path,
    header: Sequence[str],
    lines: Sequence[tuple[int, Mapping[str, str]]],
    how: WideTable,
    known: Mapping[str, Known],
) -> dict[str, tuple[str, str]]:
    """Benchmark -> (column, quantity). A column may be `piqa`, `piqa.acc`, `piqa.acc_norm`, `metric/piqa`.

    Where a benchmark has several, the score it is judged by wins, or `how.metric`. Without `how.benchmarks`
    every numeric column that is no other field and whose suffix is a known score is taken.
    """
    used = {how.scale, how.mixture, how.stage, how.model, *how.where}
    taken: dict[str, tuple[str, str, str]] = {}
    scored = any(split_column(column)[1] in SUFFIXES for column in header)  # then plain numbers are no scores
    for column in header:
        if column in used or any(fnmatch.fnmatchcase(column, p) for p in how.shares):
            continue
        named = any(fnmatch.fnmatchcase(column, pattern) for pattern in how.benchmarks)
        if how.benchmarks and not named:
            continue
        base, suffix = split_column(column)
        if not named and (suffix == "?" or (scored and not suffix) or not _all_numbers(lines, column)):
            continue
        if how.metric and suffix not in ("", how.metric):
            continue
        quantity = "loss" if how.loss else SUFFIXES.get(suffix, "accuracy")
        wanted = how.metric or (known[base].default_score if base in known else "acc")
        if base in taken and (suffix != wanted or taken[base][2] == wanted):
            continue
        taken[base] = (column, quantity, suffix)
    if not taken:
        raise UserError(
            f"{path}: no column looks like a benchmark: name them with --benchmarks 'COLUMN,PATTERN*'"
        )
    return {benchmark: (column, quantity) for benchmark, (column, quantity, _) in taken.items()}


def split_column(column: str) -> tuple[str, str]:
    """("piqa", "acc") from "piqa.acc", "metric/piqa,acc" or "piqa_acc"; suffix "" without a score, "?" for
    others."""
    base = column.rsplit("/", 1)[-1]
    found = re.fullmatch(r"(.+?)[.,_](acc|acc_norm|confidence|loss)", base)
    if found:
        return found[1].removesuffix("_val"), found[2]
    dotted = re.fullmatch(r"(.+)[.,](\w+)", base)
    return (dotted[1], "?") if dotted else (base, "")


def _all_numbers(lines: Sequence[tuple[int, Mapping[str, str]]], column: str) -> bool:
    try:
        values = [
            float(text) for _, row in lines if (text := row[column] or "").strip().lower() not in MISSING
        ]
    except (ValueError, TypeError):
        return False
    return bool(values)


def _number(path: Path, line: int, column: str, text: str | None) -> float:
    if text is None or text.strip().lower() in MISSING:
        return math.nan
    try:
        value = float(text)
    except ValueError:
        value = math.inf
    if math.isinf(value):
        raise UserError(f"{path}, line {line}, column {column}: '{printable(text[:60])}' is not a number")
    return value


def _as_shares_of_one(results: list[Result]) -> list[Result]:
    """Accuracies in percent become shares of one (all of a file, or none)."""
    values = [r.value for r in results if r.quantity == "accuracy" and not math.isnan(r.value)]
    if not values or (max(values) <= 1.0 and min(values) >= 0.0):
        return results
    if max(values) > 100.0 or min(values) < 0.0:
        raise UserError(
            f"accuracies lie between {min(values):g} and {max(values):g}, so they are neither shares nor percent: "
            "choose columns with --benchmarks, or say --loss if lower is better"
        )
    return [r._replace(value=r.value / 100.0) if r.quantity == "accuracy" else r for r in results]


def read_lm_eval(path: Path, pattern: str, known: Mapping[str, Known], alias: Mapping[str, str]) -> Imported:
    """Reads lm-evaluation-harness's results_*.json: accuracies and numbers of items of one model."""
    raw = read_json(path, "give a results_*.json of lm-evaluation-harness", constants=True)
    tasks = _mapping(raw, "results")
    if not tasks:
        raise UserError(f"{path} is no results file of lm-evaluation-harness (no `results` in it)")
    model = raw.get("model_name") or path.parent.name
    who = identify(str(model), pattern)
    results = []
    for task in tasks:
        scores = _mapping(tasks, task)
        benchmark = alias.get(task, task)
        score = known[benchmark].default_score if benchmark in known else "acc"
        found = {key.split(",")[0]: value for key, value in scores.items() if isinstance(value, int | float)}
        value = found.get(score, found.get("acc"))
        if value is None:
            continue
        if not 0 <= value <= 1:
            raise UserError(
                f"{path}: the accuracy of {printable(task[:60])} is no share between 0 and 1: mend it"
            )
        check_label(benchmark, f"{path}, task")
        count = _mapping(_mapping(raw, "n-samples"), task).get("effective", 0)
        items = count if isinstance(count, int) and 0 <= count < 2**31 else 0
        category = known[benchmark].category if benchmark in known else "Other"
        results.append(Result(*who, benchmark, category, "accuracy", float(value), items))
    if not results:
        raise UserError(f"{path} holds no accuracies: nothing to import")
    return Imported(results, {})


def _mapping(raw: Any, key: str) -> dict[str, Any]:
    """`raw[key]` where both are JSON objects, else an empty one."""
    value = raw.get(key) if isinstance(raw, dict) else None
    return value if isinstance(value, dict) else {}


def identify(model: str, pattern: str) -> tuple[str, str | None, str | None, str | None]:
    """(checkpoint, scale, mixture, stage) from a model's path or name by a pattern with those groups."""
    name = re.split(r"/|__", model.rstrip("/").split(",")[0])[-1] or model
    try:
        found = re.fullmatch(pattern, name)
    except re.error as error:
        raise UserError(f"--pattern is not a regular expression ({error})") from None
    groups = found.groupdict() if found else {}
    check_name(name, "checkpoint")
    for key, value in groups.items():
        if value is not None:
            check_label(value, f"{printable(name)}, {key}")
    return name, groups.get("scale"), groups.get("mixture"), groups.get("stage")


def write_results(folder: Path, imported: Iterable[Imported]) -> int:
    """Writes results.arrow (with shares in its metadata) and results.csv; returns the number of
    rows."""
    import pyarrow as pa

    from evalengine import sealed

    parts = list(imported)
    rows = [row for part in parts for row in part.results]
    shares: dict[str, dict[str, float]] = {}
    for part in parts:
        for column, by_mixture in part.shares.items():
            shares.setdefault(column, {}).update(by_mixture)
    kinds = [pa.string()] * 7 + [pa.float64(), pa.int64()]
    columns = [pa.array([row[c] for row in rows], type=kind) for c, kind in enumerate(kinds)]
    metadata = {"shares": json.dumps(shares)} if shares else {}
    table = pa.Table.from_arrays(columns, names=list(RESULT_COLUMNS))
    sealed.write(folder / RESULTS_FILE, table, metadata)
    with replacing(folder / "results.csv") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerow(RESULT_COLUMNS)
        writer.writerows(rows)
    return len(rows)
