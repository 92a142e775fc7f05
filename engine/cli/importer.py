"""`evalengine import`: results that exist already, made ready for `correlate` and `report`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evalengine import console
from evalengine.errors import UserError

if TYPE_CHECKING:
    from evalengine.analysis.importing import Imported, Known

EPILOG = """
A CSV has a row for each checkpoint and a column for each benchmark (piqa, piqa.acc, metric/piqa):
  evalengine import table.csv --scale size --mixture data --stage step --where shots=0
  evalengine import small.csv@scale=60M large.csv@scale=1B --mixture index --stage step
lm-evaluation-harness: give results_*.json, samples_*.jsonl, or the folders that hold them. Checkpoints are read from the
model's name by --pattern, {scale}-{mixture}-{stage} by default.
"""


def register(subparsers: Any) -> None:
    p = subparsers.add_parser(
        "import",
        help="read results from a CSV or from lm-evaluation-harness",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument(
        "paths", nargs="+", metavar="FILE[@field=value]", help="CSV, results_*.json, samples_*.jsonl"
    )
    p.add_argument("--out", default="imported", help="folder to write (default: imported/)")
    for field in ("scale", "mixture", "stage", "model"):
        p.add_argument(f"--{field}", metavar="COLUMN", help=f"CSV column of the {field}")
    p.add_argument(
        "--benchmarks", default="", help="CSV columns, comma-separated, * allowed (default: those that fit)"
    )
    p.add_argument("--shares", default="", help="CSV columns that say what a mixture is made of, * allowed")
    p.add_argument("--where", action="append", default=[], metavar="COLUMN=VALUE", help="CSV rows to keep")
    p.add_argument("--metric", choices=("acc", "acc_norm"), help="CSV: which of a benchmark's scores")
    p.add_argument("--loss", action="store_true", help="CSV: the values are losses, lower is better")
    p.add_argument("--pattern", help="regular expression with the groups scale, mixture, stage")
    p.add_argument("--json", action="store_true", help="print one JSON object")
    p.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from evalengine.analysis.importing import write_results

    console.set_json(args.json)
    out = Path(args.out)
    tables: list[Imported] = []
    stores: list[Path] = []
    for text in args.paths:
        path, constant = _split(text)
        for file in _files(path):
            if file.suffix == ".jsonl":
                stores.append(_samples(file, out, args))
            else:
                tables.append(_table(file, constant, args))
    if tables and stores:
        raise UserError(
            "tables of results and samples cannot share a folder: import them one after the other, two --out"
        )
    rows = write_results(out, tables) if tables else 0
    found = sorted({r.benchmark for table in tables for r in table.results})
    done = (
        f"{rows:,} results on {len(found)} benchmarks ({', '.join(found)})"
        if tables
        else f"{len(stores)} sample files as a score store"
    )
    if args.json:
        console.emit_json({"out": str(out), "results": rows, "samples": [str(path) for path in stores]})
    else:
        console.say(f"Imported {done} into {out}/. Next: evalengine correlate {out}")
    return 0


def _split(text: str) -> tuple[Path, dict[str, str]]:
    if Path(text).exists():
        return Path(text), {}
    name, *parts = text.split("@")
    constant = {}
    for part in ",".join(parts).split(",") if parts else []:
        key, _, value = part.partition("=")
        if key not in ("scale", "mixture", "stage") or not value:
            raise UserError(f"{text}: after @ comes scale=, mixture= or stage=, such as {name}@scale=1B")
        constant[key] = value
    if not Path(name).exists():
        raise UserError(
            f"there is no {name}: give a CSV, results_*.json, samples_*.jsonl or a folder of them"
        )
    return Path(name), constant


def _files(path: Path) -> list[Path]:
    if path.is_file():
        if path.suffix not in (".csv", ".json", ".jsonl"):
            raise UserError(f"{path}: cannot import '{path.suffix}' files: give .csv, .json or .jsonl")
        return [path]
    found = sorted(path.rglob("samples_*.jsonl")) or sorted(path.rglob("results_*.json"))
    if not found:
        raise UserError(f"{path} holds no samples_*.jsonl and no results_*.json of lm-evaluation-harness")
    return found


def _table(file: Path, constant: dict[str, str], args: argparse.Namespace) -> Imported:
    from evalengine.analysis.importing import NAME_PATTERN, WideTable, read_csv, read_lm_eval

    known, alias = _benchmarks()
    if file.suffix == ".json":
        return read_lm_eval(file, args.pattern or NAME_PATTERN, known, alias)
    where = {}
    for text in args.where:
        column, equals, value = text.partition("=")
        if not equals:
            raise UserError(f"--where {text}: write COLUMN=VALUE")
        where[column] = value
    how = WideTable(
        scale=args.scale,
        mixture=args.mixture,
        stage=args.stage,
        model=args.model,
        benchmarks=tuple(part.strip() for part in args.benchmarks.split(",") if part.strip()),
        shares=tuple(part.strip() for part in args.shares.split(",") if part.strip()),
        where=where,
        constant=constant,
        loss=args.loss,
        metric=args.metric,
    )
    return read_csv(file, how, known)


def _samples(file: Path, out: Path, args: argparse.Namespace) -> Path:
    from evalengine.analysis.importing import NAME_PATTERN
    from evalengine.analysis.samples import import_samples

    return import_samples(file, out, args.pattern or NAME_PATTERN, *_benchmarks())


def _benchmarks() -> tuple[dict[str, Known], dict[str, str]]:
    """What evalengine knows of its benchmarks, and the names lm-evaluation-harness has for them."""
    from evalengine.analysis.importing import Known
    from evalengine.benchmarks.catalogue import BENCHMARKS

    known = {name: Known(b.category, b.default_score) for name, b in BENCHMARKS.items()}
    return known, {"social_iqa": "siqa", "wsc.fixed": "wsc"}
