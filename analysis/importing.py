"""Results that exist already, put together into one table: results.arrow.

Three sources: a wide table (wide_table.py), lm-evaluation-harness's `results_*.json` (harness.py), and its
`samples_*.jsonl` (samples.py), which become a score store instead. The readers say what each file holds; here it is
combined, and refused where numbers would mix: two values for one checkpoint and benchmark, or one benchmark with
different scores, numbers of few-shot examples or numbers of items.
"""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from evalengine.analysis.items import names
from evalengine.analysis.panel import RESULTS_FILE
from evalengine.errors import UserError
from evalengine.files import atomic
from evalengine.untrusted import printable

DATE = r"\d{4}-\d{2}-\d{2}T[\d.\-:]+"  # as lm-evaluation-harness writes it into the names of its files
A_GROUP = "groups, whose tasks are there"
APART = "import them into folders of their own (--out)"

Shares = dict[str, dict[str, float]]  # by column, then mixture


class Known(NamedTuple):
    """What evalengine knows of a benchmark: its category and the score it is judged by."""

    category: str
    default_score: str


UNKNOWN = Known("Other", "acc")


class Identity(NamedTuple):
    """A checkpoint's name, and its place in the study where its name says it."""

    checkpoint: str
    scale: str | None
    mixture: str | None
    stage: str | None


class Result(NamedTuple):
    """One number: a row of results.arrow. `value` is NaN where it is missing."""

    checkpoint: str
    scale: str | None
    mixture: str | None
    stage: str | None
    benchmark: str
    category: str
    quantity: str
    value: float
    items: int


class Found(NamedTuple):
    """A result, and how it came about as far as its file says it.

    score: acc, acc_norm. shots: the number of few-shot examples. limit: of items, where their number is not known.
    version: of the task. commit: of the model's repository.
    """

    result: Result
    file: Path
    score: str = ""
    shots: int | None = None
    limit: str = ""
    version: str = ""
    commit: str = ""


class Part(NamedTuple):
    """What one file holds. groups: the tasks of each group of tasks. left_out: why a column or task is no result."""

    file: Path
    found: list[Found]
    shares: Mapping[str, Mapping[str, float]] = {}
    groups: Mapping[str, Sequence[str]] = {}
    left_out: Mapping[str, str] = {}
    notes: Sequence[str] = ()


class Imported(NamedTuple):
    """The results of all files, and the notes on them."""

    results: list[Result]
    shares: Mapping[str, Mapping[str, float]] = {}
    left_out: Mapping[str, str] = {}
    notes: Sequence[str] = ()

    def missing(self) -> list[str]:
        """The missing values, such as "piqa of 1B-m0-pt"."""
        return [f"{r.benchmark} of {r.checkpoint}" for r in self.results if math.isnan(r.value)]


def benchmark_name(name: str, known: Mapping[str, Known], alias: Mapping[str, str]) -> str:
    """evalengine's name for a benchmark that others call, say, "ARC-Easy" or "social_iqa"; else the name itself."""
    plain = re.sub(r"[-:. ]", "_", name.strip().lower())
    plain = alias.get(plain, plain)
    return plain if plain in known else name


def combine(parts: Sequence[Part]) -> Imported:
    """The results of several files. Raises UserError, which names the files, where they do not belong together."""
    found = [one for part in parts for one in part.found]
    without = _without_results(parts)
    if not found:
        raise UserError(f"nothing to import: {without}")
    left_out = {name: why for part in parts for name, why in part.left_out.items()}
    groups: dict[str, set[str]] = {}
    for part in parts:
        for name, tasks in part.groups.items():
            groups.setdefault(name, set()).update(tasks)
    present = {one.result.benchmark for one in found}
    left_out |= dict.fromkeys((g for g in sorted(present) if present & _tasks(g, groups)), A_GROUP)
    found = [one for one in found if left_out.get(one.result.benchmark) != A_GROUP]
    _refuse_two_values(found)
    _refuse_different_settings(found)
    shares: Shares = {}
    for part in parts:
        for column, by_mixture in part.shares.items():
            for mixture, share in by_mixture.items():
                add_share(shares, column, mixture, share, part.file)
    notes = [
        *([without] if without else []),
        *(note for part in parts for note in part.notes),
        *_changes(found),
        *_nested({one.result.benchmark for one in found}),
    ]
    return Imported([one.result for one in found], shares, left_out, list(dict.fromkeys(notes)))


def _without_results(parts: Sequence[Part]) -> str:
    """A note on files that hold no accuracy, and what the first one holds instead."""
    empty = [part for part in parts if not part.found]
    if not empty:
        return ""
    files = ", ".join(str(part.file) for part in empty[:3])
    more = f" and {len(empty) - 3} more" if len(empty) > 3 else ""
    said = "; ".join(f"{printable(task[:60])}: {why}" for task, why in list(empty[0].left_out.items())[:3])
    advice = "; --metric acc_norm takes those" if "only acc_norm" in said else ""
    return f"no accuracies in {files}{more} ({said or 'no numbers at all'}{advice})"


def _tasks(group: str, groups: Mapping[str, set[str]]) -> set[str]:
    """All that a group holds, directly or in its groups."""
    held: set[str] = set()
    waiting = [group]
    while waiting:
        inner = set(groups.get(waiting.pop(), ())) - held - {group}
        held |= inner
        waiting += inner
    return held


def _refuse_two_values(found: Iterable[Found]) -> None:
    first: dict[tuple[str, str, str], Found] = {}
    for one in found:
        row = one.result
        other = first.setdefault((row.checkpoint, row.benchmark, row.quantity), one)
        if other is one:
            continue
        what = f"{row.benchmark} of {row.checkpoint}"
        if other.file == one.file:
            raise UserError(f"{one.file} holds {what} twice: leave one in it")
        refuse_two_files(other.file, one.file, what, other.shots, one.shots)


def refuse_two_files(a: Path, b: Path, what: str, shots_a: int | None, shots_b: int | None) -> None:
    """Raises UserError: two files hold one thing. Says how they differ, or which one is older."""
    if shots_a != shots_b and None not in (shots_a, shots_b):
        raise UserError(
            f"{a} and {b} both hold {what}, with {shots_a} and {shots_b} few-shot examples: {APART}"
        )
    dates = [found[0] if (found := re.search(DATE, file.stem)) else "" for file in (a, b)]
    older = a if dates[0] < dates[1] else b
    which = f"remove {older}, the older one" if all(dates) and dates[0] != dates[1] else "remove one of them"
    raise UserError(f"{a} and {b} both hold {what}: {which}, or {APART}")


def _refuse_different_settings(found: Iterable[Found]) -> None:
    """Refuses one benchmark with different scores, few-shot examples or items, where the files say them."""
    first: dict[tuple[str, str, str], tuple[str, Path]] = {}
    for one in found:
        row = one.result
        shots = "" if one.shots is None else str(one.shots)
        for setting, value, advice in (
            ("scores", one.score, "choose one with --metric"),
            ("numbers of few-shot examples", shots, APART),
            ("numbers of items", str(row.items or ""), APART),
            ("limits of items", one.limit, APART),
        ):
            if not value:
                continue
            other, file = first.setdefault((row.benchmark, row.quantity, setting), (value, one.file))
            if other != value:
                raise UserError(
                    f"{row.benchmark} has different {setting}: {other} in {file}, {value} in {one.file}; {advice}"
                )


def add_share(shares: Shares, column: str, mixture: str, share: float, file: Path) -> None:
    """Adds a mixture's share, found in `file`. Raises UserError where it has another one already."""
    if math.isnan(share):
        return
    before = shares.setdefault(column, {}).setdefault(mixture, share)
    if not math.isclose(before, share, rel_tol=1e-6, abs_tol=1e-9):
        raise UserError(
            f"{file}: mixture {mixture} has the share {share:g} of {column}, and {before:g} elsewhere: if these are "
            f"different mixtures, give them different names, or {APART}"
        )


def _changes(found: Iterable[Found]) -> Iterator[str]:
    """Notes on what may have changed between two files: the version of a task, or the weights behind a hub name."""
    first: dict[tuple[str, str], tuple[str, Path]] = {}
    said = set()
    for one in found:
        for name, what, value in (
            (one.result.benchmark, "versions of the task", one.version),
            (one.result.checkpoint, "commits of the model", one.commit),
        ):
            other, file = first.setdefault((name, what), (value, one.file)) if value else (value, one.file)
            if other != value and (name, what) not in said:
                said.add((name, what))
                yield f"{name}: different {what}, {other} in {file} and {value} in {one.file}"


def _nested(benchmarks: set[str]) -> Iterator[str]:
    """Notes on benchmarks that may be the mean of others, as `mmlu` is beside `mmlu_anatomy` and `mmlu_virology`."""
    for name in sorted(benchmarks):
        inner = sorted(other for other in benchmarks if other.startswith(f"{name}_"))
        if len(inner) > 1:
            yield f"{name} stands beside {names(inner, 2)}: if it is their mean, leave it out, or they count twice"


def write_results(folder: Path, imported: Imported) -> int:
    """Writes results.arrow (with shares in its metadata) and results.csv; returns the number of rows."""
    import pyarrow as pa

    from evalengine import sealed

    scores = next(folder.glob("[!.]*/*.arrow"), None)
    if scores is not None:
        raise UserError(
            f"{folder} holds scores ({scores}), and correlate reads one or the other: give another --out"
        )
    rows = imported.results
    kinds = [pa.string()] * 7 + [pa.float64(), pa.int64()]
    columns = [pa.array([row[c] for row in rows], type=kind) for c, kind in enumerate(kinds)]
    metadata = {"shares": json.dumps(imported.shares)} if imported.shares else {}
    table = pa.Table.from_arrays(columns, names=list(Result._fields))
    sealed.write(folder / RESULTS_FILE, table, metadata)
    with atomic(folder / "results.csv") as path, path.open("w", encoding="utf-8", newline="") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerow(Result._fields)
        writer.writerows(rows)
    return len(rows)
