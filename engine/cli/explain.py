"""`evalengine explain`: what single choices and items say of what survives fine-tuning, and why."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from evalengine import console
from evalengine.cli.correlate import add_block_options, plain
from evalengine.store import check_outside
from evalengine.store.metrics import METRICS


def register(subparsers: Any) -> None:
    p = subparsers.add_parser(
        "explain",
        help="what predicts fine-tuning, what it teaches, and which items it flips",
        description="Explains a score store choice by choice and item by item; `evalengine report` shows the tables beside the "
        "correlations of the same folder.",
    )
    add = p.add_argument
    add("store", nargs="?", default="scores", help="score store (default: scores/)")
    add("--out", type=Path, default=Path("analysis"), help="folder for the tables (default: analysis/)")
    add("--stages", metavar="FIRST,LAST", help="the stages to compare (default: pt,sft)")
    add("--metric", help=f"one of {', '.join(METRICS)} (default: each benchmark's own)")
    add("--level", type=float, default=0.95, help="confidence level (default 0.95)")
    add_block_options(p)
    add("--seed", type=int, default=0, help="of what is resampled (default 0)")
    files = "folder of <benchmark>.jsonl or .parquet files, or one with them in bench/"
    add("--data", type=Path, help=f"{files}: the report then shows the texts of the items it lists")
    held = "how often and how similarly the mixtures' text holds the items"
    add("--exposure", type=Path, metavar="FOLDER", help=f"folder that `evalengine expose` wrote: {held}")
    add("--json", action="store_true", help="print one JSON object instead of tables")
    p.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from evalengine.analysis.claims import HEADINGS, by_kind
    from evalengine.analysis.data.mixtures import read_study
    from evalengine.analysis.explain.explainer import ExplainOptions
    from evalengine.analysis.explain.findings import explain, no_report, not_shown, write
    from evalengine.analysis.explain.registry import EXPLAINERS
    from evalengine.checkpoints.remote import formats_of, readable

    check_outside(args.out, args.store)
    stages = [part.strip() for part in args.stages.split(",")] if args.stages else None
    study = read_study(args.study) if args.study else None
    options = ExplainOptions(args.level, args.seed, args.data, args.exposure, args.block, study)
    formats = readable(formats_of(args.store))
    findings = explain(readable(args.store), options, stages, args.metric, formats)
    write(findings, args.out)
    claims = by_kind(claim for explainer in EXPLAINERS for claim in explainer.claims(findings))
    if args.json:
        console.emit_json({**findings.method, "tables": list(findings.tables), "claims": claims})
        return 0
    for note in findings.method["notes"]:
        console.warn(note)
    for kind, texts in claims.items():
        if texts:
            console.say(HEADINGS[kind])
        for text in texts:
            console.say(f"  {plain(text)}")
    made = [name for name, rows in findings.tables.items() if rows]
    console.say(f"Tables: {args.out}/ ({', '.join(made)}; csv, arrow, json)")
    if said := not_shown(findings):
        console.say(plain(said))
    if said := no_report(findings):
        console.say(said)
        return 0
    correlated = (args.out / "analysis.json").is_file()
    first = "" if correlated else f"evalengine correlate {args.store} --out {args.out}, then "
    console.say(f"Next: {first}evalengine report {args.out}")
    return 0
