"""`evalengine import`: results that exist already, made ready for `correlate` and `report`."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evalengine import console
from evalengine.errors import UserError

if TYPE_CHECKING:
    from evalengine.analysis.data.items import CheckpointLabels
    from evalengine.analysis.importing.benchmark_info import Info
    from evalengine.analysis.importing.imported import FileResults, Known

EPILOG = """
CSV: a row for each checkpoint and a column for each benchmark (piqa, piqa.acc, metric/piqa). Columns that are not called
after a benchmark that evalengine knows, and do not end in a score (.acc), become scores only by --benchmarks. Standard
errors and numbers of items are read from columns named after a score: piqa.acc_stderr, piqa_stderr, piqa_n, piqa_items.
  evalengine import table.csv --scale size --mixture data --stage step --where shots=0
  evalengine import small.csv@scale=60M large.csv@scale=1B --mixture index --stage step
  evalengine import seeds.csv --mixture data --stage step --replicate seed --benchmarks piqa,mine --items 500,piqa=1838
lm-evaluation-harness: give results_*.json, samples_*.jsonl, or the folders that hold them. A checkpoint is called
MODEL@REVISION; scale, mixture and stage are read from the model's name, {scale}-{mixture}-{stage} by default. A
--pattern of your own may also fit the whole name: --pattern '(?P<scale>.+)-(?P<mixture>.+)@step(?P<stage>.+)'.
"""
CONSTANT = ("scale", "mixture", "stage", "replicate")  # what may stand behind a file's name
FIELDS = f"@{'=, '.join(CONSTANT[:-1])}= and {CONSTANT[-1]}="
AS_GIVEN = ("scale", "mixture", "stage", "model", "replicate", "loss", "metric")  # fields of WideTable
Source = tuple[Path, tuple[tuple[str, str], ...]]  # a file, and what stands behind its name
CSV_ALONE = (
    *("scale", "mixture", "stage", "model", "replicate", "block"),
    *("benchmarks", "shares", "where", "stderr", "loss"),
)


def register(subparsers: Any) -> None:
    p = subparsers.add_parser(
        "import",
        help="read results from a CSV, lm-evaluation-harness or lighteval",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument(
        "paths", nargs="+", metavar="FILE[@field=value]", help="CSV, results_*.json, samples_*.jsonl"
    )
    p.add_argument("--out", default="imported", help="folder to write (default: imported/)")
    p.add_argument("--metric", choices=("acc", "acc_norm"), help="which of a benchmark's accuracies")
    p.add_argument("--json", action="store_true", help="print one JSON object")

    def add(group: Any, name: str, metavar: str, words: str, **how: Any) -> None:
        group.add_argument(f"--{name}", metavar=metavar, help=words, **how)

    several: dict[str, Any] = {"action": "append", "default": []}
    rows = p.add_argument_group("what a row of a CSV is")
    for field in ("scale", "mixture", "stage", "model"):
        add(rows, field, "COLUMN", f"column of the {field}")
    add(rows, "replicate", "COLUMN", "column that tells runs of one mixture apart, such as seed")
    add(rows, "block", "COLUMN", "column of a factor of the mixtures, such as the web source", **several)
    add(rows, "where", "COLUMN=VALUE", "rows to keep", **several)

    columns = p.add_argument_group("what a column of a CSV is")
    scores = "scores, comma-separated, * allowed (default: known benchmarks)"
    add(columns, "benchmarks", "COLUMNS", scores, default="")
    columns.add_argument("--loss", action="store_true", help="plain columns are losses, lower is better")
    add(columns, "shares", "COLUMNS", "what a mixture is made of, comma-separated, * allowed", default="")
    add(columns, "stderr", "NAME", "columns of standard errors, {} for a score's name (default: {}_stderr)")

    values = "One VALUE for all, or benchmark=VALUE for some, comma-separated, * allowed."
    about = p.add_argument_group("what is known of the benchmarks", values)
    add(about, "items", "VALUE", "numbers of items, or their columns as {}_n")
    add(about, "chance", "VALUE", "accuracy of guessing, such as 0.25")
    add(about, "category", "VALUE", "category")
    add(about, "benchmark-info", "FILE", "the same as a CSV with columns benchmark, items, chance, category")

    names = p.add_argument_group("lm-evaluation-harness")
    add(names, "pattern", "REGEX", "groups scale, mixture, stage, replicate in a model's name")
    p.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from evalengine.analysis.importing.benchmark_info import read_info
    from evalengine.analysis.importing.imported import Known
    from evalengine.benchmarks import BENCHMARKS

    sources = list(dict.fromkeys(source for path in args.paths for source in _sources(path)))
    suffixes = {file.suffix for file, _ in sources}
    _refuse_unused(args, suffixes)
    if {".jsonl"} < suffixes:
        raise UserError(
            "tables of results and samples cannot share a folder: import them one after the other, two --out"
        )
    known = {
        name: Known(b.category, b.default_score, 1 / int(b.choices) if b.choices.isdecimal() else math.nan)
        for name, b in BENCHMARKS.items()
    }
    items = "" if _is_pattern(args.items) else args.items
    said = {"items": items, "chance": args.chance, "category": args.category}
    info = read_info(Path(args.benchmark_info) if args.benchmark_info else None, said, known)
    if suffixes == {".jsonl"}:
        return _samples(sources, args, known, info)
    return _results(sources, args, known, info)


def _results(sources: Sequence[Source], args: argparse.Namespace, known: dict[str, Known], info: Info) -> int:
    """Tables of results, into results.arrow."""
    from evalengine.analysis.data.items import names
    from evalengine.analysis.figure import by
    from evalengine.analysis.importing.imported import combine, write_results

    imported = combine(_parts(sources, args, known), known, info)
    rows = write_results(Path(args.out), imported)
    missing = [f"{row.benchmark} of {row.who.name}" for row in imported.results if math.isnan(row.value)]
    if args.json:
        said = {"left_out": imported.left_out, "missing": missing, "notes": imported.notes}
        console.emit_json({"out": str(Path(args.out)), "results": rows, "samples": [], **said})
        return 0
    checkpoints = {row.who.name for row in imported.results}
    benchmarks = sorted({row.benchmark for row in imported.results})
    console.say(
        f"Imported {_count(rows, 'result')} of {_count(len(checkpoints), 'checkpoint')} on "
        f"{_count(len(benchmarks), 'benchmark')} ({names(benchmarks, 20)}) into {Path(args.out)}/."
    )
    for note in imported.notes:
        console.warn(note)
    reasons = by(list(imported.left_out), imported.left_out.__getitem__)
    if reasons:
        console.say(f"Left out: {'; '.join(f'{names(some, 12)} ({why})' for why, some in reasons.items())}.")
    if missing:
        console.say(
            f"Missing: {_count(len(missing), 'value')} ({names(missing, 3)}); correlate leaves those cells out."
        )
    console.say(f"Next: evalengine correlate {Path(args.out)}")
    return 0


def _samples(sources: Sequence[Source], args: argparse.Namespace, known: dict[str, Known], info: Info) -> int:
    """Samples, into a score store."""
    from evalengine.analysis.importing.harness import NAME_PATTERN
    from evalengine.analysis.importing.samples import import_samples

    if any(constant for _, constant in sources):
        raise UserError(f"{FIELDS} are for tables: samples are named by --pattern")
    out, files = Path(args.out), [file for file, _ in sources]
    written = import_samples(files, out, args.pattern or NAME_PATTERN, known, info)
    if args.json:
        console.emit_json(
            {"out": str(Path(args.out)), "results": 0, "samples": [str(path) for path in written]}
        )
        return 0
    checkpoints = {path.parent.name for path in written}
    console.say(
        f"Imported {_count(len(written), 'sample file')} of {_count(len(checkpoints), 'checkpoint')} into {out}/, "
        "a score store."
    )
    console.say(f"Next: evalengine correlate {out}")
    return 0


def _refuse_unused(args: argparse.Namespace, suffixes: set[str]) -> None:
    """Refuses options that none of the files would use."""
    items = ("items",)
    for options, used_by in (
        (CSV_ALONE + items * _is_pattern(args.items), {".csv"}),
        (("chance", *items), {".csv", ".json"}),
        (("pattern",), {".json", ".jsonl"}),
    ):
        given = [f"--{option.replace('_', '-')}" for option in options if getattr(args, option)]
        if given and not suffixes & used_by:
            raise UserError(
                f"{' and '.join(given)} would do nothing: only {' and '.join(sorted(used_by))} files use "
                f"{'it' if len(given) == 1 else 'them'}"
            )


def _sources(text: str) -> list[Source]:
    """The files that an argument names, and what stands behind it: FILE@field=value."""
    name, *parts = [text] if Path(text).exists() else text.split("@")
    constant = {}
    for part in ",".join(parts).split(",") if parts else []:
        key, _, value = part.partition("=")
        if key not in CONSTANT or not value:
            raise UserError(f"{text}: after @ come {FIELDS}, such as {name}@scale=1B")
        constant[key] = value
    if not Path(name).exists():
        raise UserError(
            f"there is no {name}: give a CSV, results_*.json, samples_*.jsonl or a folder of them"
        )
    return [(file, tuple(constant.items())) for file in _files(Path(name))]


def _files(path: Path) -> list[Path]:
    if path.is_file():
        if path.suffix not in (".csv", ".json", ".jsonl"):
            raise UserError(f"{path}: cannot import '{path.suffix}' files: give .csv, .json or .jsonl")
        return [path]
    samples, results = sorted(path.rglob("samples_*.jsonl")), sorted(path.rglob("results_*.json"))
    if samples and results:
        console.warn(f"{path}: of the results_*.json no numbers are read, as samples_*.jsonl hold every item")
    found = samples or results or sorted(path.rglob("*.json"))  # the harness before 0.4 took any name
    if not found:
        raise UserError(f"{path} holds no samples_*.jsonl and no results_*.json of lm-evaluation-harness")
    return found


def _parts(sources: Sequence[Source], args: argparse.Namespace, known: dict[str, Known]) -> list[FileResults]:
    """What each table holds."""
    from evalengine.analysis.importing.harness import (
        NAME_PATTERN,
        identities,
        model_of,
        read_lm_eval,
        read_results,
    )
    from evalengine.analysis.importing.score_columns import ITEMS, STDERR, WideTable
    from evalengine.analysis.importing.wide_table import read_csv

    where = {}
    for text in args.where:
        column, equals, value = text.partition("=")
        if not equals:
            raise UserError(f"--where {text}: write COLUMN=VALUE")
        where[column] = value
    how = WideTable(
        **{field: getattr(args, field) for field in AS_GIVEN},
        blocks=tuple(args.block),
        stderr=_pattern("stderr", args.stderr) if args.stderr else STDERR,
        items=_pattern("items", args.items) if _is_pattern(args.items) else ITEMS,
        benchmarks=_listed(args.benchmarks),
        shares=_listed(args.shares),
        where=where,
    )
    models = {file: model_of(file, read_results(file)) for file, _ in sources if file.suffix == ".json"}
    whose = identities(models.values(), args.pattern or NAME_PATTERN)
    return [
        read_lm_eval(file, _with(whose[models[file]], dict(constant)), known, args.metric)
        if file in models
        else read_csv(file, how._replace(constant=dict(constant)), known)
        for file, constant in sources
    ]


def _with(who: CheckpointLabels, constant: dict[str, Any]) -> CheckpointLabels:
    """A checkpoint with what stands behind its file's name."""
    if seed := constant.pop("replicate", ""):
        who = who._replace(name=f"{who.name}-replicate{seed}", seed=seed)
    return who._replace(**constant)


def _is_pattern(text: str | None) -> bool:
    return "{" in (text or "")


def _pattern(option: str, text: str) -> tuple[str]:
    if text.count("{}") != 1:
        raise UserError(
            f"--{option} '{text}': write {{}} where the name of a score's column stands, as in '{{}}_{option}'"
        )
    return (text,)


def _listed(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _count(number: int, word: str) -> str:
    return f"{number:,} {word}{'' if number == 1 else 's'}"
