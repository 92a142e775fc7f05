"""Results that exist already, put together into one table: results.arrow.

Three sources: a wide table (wide_table.py), lm-evaluation-harness's `results_*.json` (harness.py), and its
`samples_*.jsonl` (samples.py), which become a score store instead. The readers say what each file holds; here it is
combined with what the user says of the benchmarks (benchmark_info.py), and refused where numbers would mix: two values
for one checkpoint and benchmark, or one benchmark with different scores, numbers of few-shot examples or of items.
"""

from __future__ import annotations

import csv
import json
import math
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from evalengine.analysis.data.items import CheckpointLabels, names
from evalengine.analysis.data.panel import RESULTS_FILE
from evalengine.analysis.importing.benchmark_info import NOTHING, About, Info
from evalengine.analysis.importing.spellings import similar
from evalengine.errors import UserError
from evalengine.files import atomic
from evalengine.untrusted import printable

DATE = r"\d{4}-\d{2}-\d{2}T[\d.\-:]+"  # as lm-evaluation-harness writes it into the names of its files
APART = "import them into folders of their own (--out)"
OTHER = "Other"
COLUMNS = (  # of results.arrow
    *("checkpoint", "scale", "mixture", "stage", "benchmark", "category", "quantity"),
    *("value", "items", "stderr", "chance", "replicate"),
)
MISSING = {  # values, as spreadsheets, pandas, R and people write them
    *("", "nan", "-nan", "na", "<na>", "n/a", "#n/a", "#n/a n/a", "#na", "none", "null", "nil", "missing"),
    *("-", "--", "\N{EN DASH}", "\N{EM DASH}", ".", "?", "1.#ind", "-1.#ind", "1.#qnan", "-1.#qnan"),
    *("#value!", "#div/0!", "#ref!", "#num!", "#name?"),
}
STATED = {  # of mixtures, and how two values of one column are refused
    "shares": "has the share {value:g} of {column}, and {before:g} elsewhere: if these are different mixtures, give them "
    f"different names, or {APART}",
    "blocks": "has the {column} {value}, and {before} elsewhere: a --block column has one label per mixture",
}
AVERAGES = {"mean", "average", "avg", "median", "overall", "total", "grand total"}


class Known(NamedTuple):
    """What evalengine knows of a benchmark: its category, the score it is judged by, and what guessing scores."""

    category: str
    default_score: str
    chance: float = math.nan


UNKNOWN = Known(OTHER, "acc")


class Setting(NamedTuple):
    """How a benchmark was put to a model; None or "" where the file does not say it.

    shots: the number of few-shot examples. limit: of items. version: of the task. commit: of the model's repository. chat:
    whether a chat template was applied. template: its hash. system: the system instruction. dtype, quantised: of the weights
    as they were loaded.
    """

    shots: int | None = None
    limit: str = ""
    version: str = ""
    commit: str = ""
    chat: str = ""
    template: str = ""
    system: str = ""
    dtype: str = ""
    quantised: str = ""


class Result(NamedTuple):
    """One number of a checkpoint, and how it came about as far as its file says it.

    value: NaN where it is missing. stderr: its standard error, NaN where unknown. Both are shares of one if quantity is
    accuracy. items: 0 where their number is unknown. score: acc, acc_norm, "" where the file does not say it. category and
    chance, what guessing scores, are of the benchmark.
    """

    who: CheckpointLabels
    benchmark: str
    quantity: str
    value: float
    items: int
    stderr: float
    file: Path
    score: str
    setting: Setting = Setting()
    category: str = OTHER
    chance: float = math.nan


class FileResults(NamedTuple):
    """What one file holds.

    stated: of mixtures, (a key of STATED, column, mixture, share or label). groups: the tasks of each group of tasks.
    left_out: why a column or task is no result.
    """

    file: Path
    results: list[Result]
    stated: Sequence[tuple[str, str, str, Any]] = ()
    groups: Mapping[str, set[str]] = {}
    left_out: Mapping[str, str] = {}
    notes: Sequence[str] = ()


class Imported(NamedTuple):
    """The results of all files, what they state of mixtures by key of STATED, column and mixture, and the notes on them."""

    results: list[Result]
    stated: Mapping[str, Mapping[str, Mapping[str, Any]]]
    left_out: Mapping[str, str]
    notes: Sequence[str]


def combine(parts: Sequence[FileResults], known: Mapping[str, Known] = {}, info: Info = NOTHING) -> Imported:
    """The results of several files, with what `info` says of their benchmarks.

    Raises UserError, which names the files, where they do not belong together.
    """
    results = [result for part in parts for result in part.results]
    without = _without_results(parts)
    if not results:
        raise UserError(f"nothing to import: {without}")
    groups = sorted(_groups_with_tasks(parts, {result.benchmark for result in results}))
    left_out = {name: why for part in parts for name, why in part.left_out.items()}
    left_out |= dict.fromkeys(groups, "groups, whose tasks are there")
    results = [result for result in results if result.benchmark not in groups]
    _refuse_two_values(results)
    benchmarks = list(dict.fromkeys(result.benchmark for result in results))
    info.check(benchmarks)
    results = [_described(one, known.get(one.benchmark, UNKNOWN), info.of(one.benchmark)) for one in results]
    notes = [
        *([without] if without else []),
        *(note for part in parts for note in part.notes),
        *_compare_settings(results),
        *_nested(set(benchmarks)),
        *_averages(results),
        *_alike(results),
        *_unknown(benchmarks, known, info),
        *_without_noise(results),
    ]
    return Imported(results, _stated(parts), left_out, list(dict.fromkeys(notes)))


def _without_results(parts: Sequence[FileResults]) -> str:
    """A note on files that hold no accuracy, and what the first one holds instead."""
    empty = [part for part in parts if not part.results]
    if not empty:
        return ""
    files = ", ".join(str(part.file) for part in empty[:3])
    more = f" and {len(empty) - 3} more" if len(empty) > 3 else ""
    said = "; ".join(f"{printable(task[:60])}: {why}" for task, why in list(empty[0].left_out.items())[:3])
    advice = "; --metric acc_norm takes those" if "only acc_norm" in said else ""
    return f"no accuracies in {files}{more} ({said or 'no numbers at all'}{advice})"


def _groups_with_tasks(parts: Sequence[FileResults], present: set[str]) -> set[str]:
    """Those of the benchmarks `present` that are groups of others, directly or through groups of groups."""
    tasks_of: dict[str, set[str]] = defaultdict(set)
    for part in parts:
        for group, tasks in part.groups.items():
            tasks_of[group] |= tasks - {group}
    found: set[str] = set()
    while more := {group for group, tasks in tasks_of.items() if tasks & (present | found)} - found:
        found |= more
    return found & present


def _described(result: Result, known: Known, said: About) -> Result:
    """A result with what is known of its benchmark. Raises UserError where its file and the user say two numbers of items."""
    if said.items and result.items not in (0, said.items):
        raise UserError(
            f"{result.file} holds {result.items} items of {result.benchmark}, and you say {said.items}: leave one out"
        )
    chance = known.chance if math.isnan(said.chance) else said.chance
    return result._replace(
        items=result.items or said.items,
        category=said.category or known.category,
        chance=chance if result.quantity == "accuracy" else math.nan,
    )


def _unknown(benchmarks: Iterable[str], known: Mapping[str, Known], info: Info) -> Iterator[str]:
    """Notes on benchmarks that have no category, and on the known one that each may be."""
    lost = [name for name in benchmarks if name not in known and not info.of(name).category]
    likely = {name: close for name in lost if (close := similar(name, known))}
    for name, close in likely.items():
        yield f"{name} is not known, category {OTHER} (if it is {close}, call it that)"
    rest = [name for name in lost if name not in likely]
    if rest:
        yield f"not known, category {OTHER} (--category gives another): {names(rest, 8)}"


def _without_noise(results: Iterable[Result]) -> Iterator[str]:
    """A note on benchmarks whose item noise cannot be computed."""
    accuracies = [r for r in results if r.quantity == "accuracy"]
    counted = {r.benchmark for r in accuracies if r.items}  # of which one row says the number for all
    bare = [r.benchmark for r in accuracies if math.isnan(r.stderr) and r.benchmark not in counted]
    if bare:
        yield (
            "neither numbers of items nor standard errors, so no item noise (--items, --stderr): "
            f"{names(dict.fromkeys(bare), 8)}"
        )


def _refuse_two_values(results: Iterable[Result]) -> None:
    first: dict[tuple[str, str, str], Result] = {}
    for one in results:
        other = first.setdefault((one.who.name, one.benchmark, one.quantity), one)
        if other is one:
            continue
        what = f"{one.benchmark} of {one.who.name}"
        if other.file == one.file:
            raise UserError(f"{one.file} holds {what} twice: leave one in it")
        refuse_two_files(other.file, one.file, what, other.setting.shots, one.setting.shots)


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


def _compare_settings(results: Iterable[Result]) -> list[str]:
    """Refuses one benchmark with different scores, few-shot examples or items, or at one stage with different chat formats or
    system instructions, where the files say them.

    Returns notes on what may have changed between two files: the version of a task, the weights behind a hub name, a chat
    template; and on stages that were asked differently, as before and after learning a chat format they may be.
    """
    first: dict[tuple[str, str, str], tuple[str, Path]] = {}
    notes: dict[tuple[str, str, str], str] = {}
    for one in results:
        how = one.setting
        shots = "" if how.shots is None else str(how.shots)
        at_stage = f"{one.benchmark} at {one.who.stage}"
        refused = APART if one.who.stage else ""
        for subject, setting, value, advice in (
            (one.benchmark, "scores", one.score, f"choose one with --metric, or {APART}"),
            (one.benchmark, "numbers of few-shot examples", shots, APART),
            (one.benchmark, "numbers of items", str(one.items or ""), APART),
            (one.benchmark, "limits of items", "" if one.items else how.limit, APART),
            (at_stage, "chat formats", how.chat, refused),
            (at_stage, "system instructions", how.system, refused),
            (at_stage, "chat templates", how.template, ""),
            (one.benchmark, "chat formats", how.chat, ""),
            (one.benchmark, "system instructions", how.system, ""),
            (one.benchmark, "versions of the task", how.version, ""),
            (one.who.name, "commits of the model", how.commit, ""),
            ("the checkpoints", "dtypes", how.dtype, ""),
            ("the checkpoints", "quantisations", how.quantised, ""),
        ):
            key = (subject, one.quantity, setting)
            other, file = first.setdefault(key, (value, one.file)) if value else (value, one.file)
            if other == value:
                continue
            if advice:
                raise UserError(
                    f"{subject} has different {setting}: {other} in {file}, {value} in {one.file}; {advice}"
                )
            notes.setdefault(
                key, f"{subject}: different {setting}, {other} in {file} and {value} in {one.file}"
            )
    return list(notes.values())


def _nested(benchmarks: set[str]) -> Iterator[str]:
    """Notes on benchmarks that may be the mean of others, as `mmlu` is beside `mmlu_anatomy` and `mmlu_virology`."""
    for name in sorted(benchmarks):
        inner = sorted(other for other in benchmarks if other.startswith(f"{name}_"))
        if len(inner) > 1:
            yield f"{name} stands beside {names(inner, 2)}: if it is their mean, leave it out, or they count twice"


def _averages(results: Iterable[Result]) -> Iterator[str]:
    """A note on rows that may be the mean of the mixtures, as spreadsheets end in."""
    mixtures = dict.fromkeys(one.who.mixture for one in results if one.who.mixture is not None)
    if len(mixtures) > 1 and (found := [name for name in mixtures if name.lower() in AVERAGES]):
        yield f"a mixture is called {names(found)}: if it is the mean of others, leave it out, or it counts as one more"


def _alike(results: Iterable[Result]) -> Iterator[str]:
    """Notes on scales, mixtures and stages that may be one, written in two ways: 1 and 1.0, A and a, two Unicode forms."""
    every = [one.who for one in results]
    for what in ("scale", "mixture", "stage"):
        forms: dict[str, list[str]] = defaultdict(list)
        for name in dict.fromkeys(getattr(who, what) for who in every):
            if name is not None:
                forms[_plain_form(name)].append(name)
        for same in forms.values():
            if len(same) > 1:
                yield f"{what}s {' and '.join(map(ascii, same[:3]))} count as different: if they are one, write it in one way"


def _plain_form(name: str) -> str:
    """A name without what people and programs write differently."""
    text = "".join(unicodedata.normalize("NFKC", name).casefold().split())
    try:
        return repr(float(text)) if "_" not in text else text
    except ValueError:
        return text


def _stated(parts: Iterable[FileResults]) -> dict[str, dict[str, dict[str, Any]]]:
    """What is stated of mixtures. Raises UserError where a mixture has two shares, or labels, of one column."""
    found: dict[str, dict[str, dict[str, Any]]] = {kind: {} for kind in STATED}
    for part in parts:
        for kind, column, mixture, value in part.stated:
            before = found[kind].setdefault(column, {}).setdefault(mixture, value)
            alike = before == value
            if kind == "shares":
                alike = math.isclose(before, value, rel_tol=1e-6, abs_tol=1e-9)
            if not alike:
                why = STATED[kind].format(column=column, value=value, before=before)
                raise UserError(printable(f"{part.file}: mixture {mixture} {why}"))
    return found


def write_results(folder: Path, imported: Imported) -> int:
    """Writes results.arrow (with shares and blocks in its metadata) and results.csv; returns the number of rows."""
    import pyarrow as pa

    from evalengine.store import sealed

    scores = next(folder.glob("[!.]*/*.arrow"), None)
    if scores is not None:
        raise UserError(
            f"{folder} holds scores ({scores}), and correlate reads one or the other: give another --out"
        )
    numbers = {"value": pa.float64(), "items": pa.int64(), "stderr": pa.float64(), "chance": pa.float64()}
    rows = list(map(_stored, imported.results))
    columns = zip(COLUMNS, zip(*rows, strict=True), strict=True)
    table = pa.table({name: pa.array(values, numbers.get(name, pa.string())) for name, values in columns})
    metadata = {key: json.dumps(by_column) for key, by_column in imported.stated.items() if by_column}
    sealed.write(folder / RESULTS_FILE, table, metadata)
    with atomic(folder / "results.csv") as path, path.open("w", encoding="utf-8", newline="") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(rows)
    return table.num_rows


def _stored(row: Result) -> tuple[object, ...]:
    """A row of results.arrow: what is not known of an error, of chance and of a replicate is null."""
    name, scale, mixture, stage, replicate, *_ = row.who
    stderr, chance = (None if math.isnan(value) else value for value in (row.stderr, row.chance))
    about = (row.benchmark, row.category, row.quantity, row.value, row.items)
    return name, scale, mixture, stage, *about, stderr, chance, replicate or None
