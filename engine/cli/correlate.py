"""`evalengine correlate`: correlations between stages, with intervals."""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evalengine import console
from evalengine.errors import UserError
from evalengine.store import check_outside
from evalengine.store.metrics import CONFIDENCES, METRICS

if TYPE_CHECKING:
    from evalengine.analysis.estimates.tables import Row
    from evalengine.analysis.study import Analysis


RESAMPLED = ("mixtures", "items", "both")


def register(subparsers: Any) -> None:
    p = subparsers.add_parser(
        "correlate",
        help="correlate accuracy and confidence across stages, with intervals",
        description="Correlates each benchmark's value before fine-tuning with its value after, over mixtures, at each scale. "
        "Writes the tables that `evalengine report` shows. It takes 4 mixtures or more with both stages. docs/analysis.md says "
        "what each table holds.",
    )
    p.add_argument(
        "store", nargs="?", default="scores", help="score store or imported results (default: scores/)"
    )
    p.add_argument("--out", default="analysis", help="folder for the tables (default: analysis/)")
    add_options(p)
    p.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    p.set_defaults(run=run)


def add_options(p: argparse.ArgumentParser) -> list[argparse.Action]:
    """The options that `correlate` and `report` share."""
    resamples = "resamples; default: exact up to 10 mixtures, else 10000"
    kinds = ("auto", "bca", "bca-t", "percentile", "basic", "fisher", "jackknife", "jackknife-z")
    kind = "kind of interval; auto (default): for each statistic the kind whose coverage is nearest to --level (docs/analysis.md)"
    statistics = ("pearson", "spearman", "kendall")
    metric = f"one of {', '.join(METRICS)} (default: each benchmark's own)"
    confidence = "softmax over raw log-likelihoods (default), or over the score that picks the answer (own)"
    stages = (
        "stages in order (default: pt,sft, or the only two there are); the first is compared with the last; with three or more, "
        "the table `stages` has the other pairs"
    )
    add = p.add_argument
    return [
        add("--bootstrap", metavar="N|exact", help=resamples),
        add("--interval", default="auto", choices=kinds, help=kind),
        add("--level", type=float, default=0.95, help="confidence level (default 0.95)"),
        add(
            "--statistic", default="pearson", choices=statistics, help="kind of correlation (default pearson)"
        ),
        add("--metric", help=metric),
        add("--confidence", choices=CONFIDENCES, help=confidence),
        add("--stages", metavar="FIRST,...,LAST", help=stages),
        add("--resample", default="mixtures", choices=RESAMPLED, help="what is resampled (default mixtures)"),
        *add_block_options(p),
        add("--seed", type=int, default=0, help="seed of resampling (default 0)"),
    ]


def add_block_options(p: argparse.ArgumentParser) -> list[argparse.Action]:
    """Those that `explain` has too."""
    study = "study file, or the name of a shipped one: what each mixture is made of"
    block = "compare mixtures within this factor alone (auto: the study file's web source, if it has one)"
    return [
        p.add_argument("--study", metavar="FILE", help=study),
        p.add_argument("--block", default="auto", metavar="auto|none|web_source|COLUMN", help=block),
    ]


def analysis_of(args: argparse.Namespace) -> Analysis:
    """Reads the store and runs the analysis with the options of `add_options`."""
    from evalengine.analysis.data.mixtures import imported_mixtures, joined, read_study
    from evalengine.analysis.data.panel import load_panel
    from evalengine.analysis.study import CorrelateOptions, analyse
    from evalengine.checkpoints.remote import readable

    if args.bootstrap not in (None, "exact") and not str(args.bootstrap).isdecimal():
        raise UserError(f"--bootstrap takes a number or 'exact', not '{args.bootstrap}'")
    if args.seed < 0:
        raise UserError(f"--seed {args.seed} must be 0 or more")
    stages = [part.strip() for part in args.stages.split(",")] if args.stages else None
    options = CorrelateOptions(
        args.bootstrap, args.interval, args.level, args.statistic, args.seed, args.resample, args.block
    )
    panel = load_panel(readable(args.store), stages=stages, metric=args.metric, confidence=args.confidence)
    study = read_study(args.study) if args.study else None
    return analyse(panel, options, joined(study, imported_mixtures(args.store)))


def run(args: argparse.Namespace) -> int:
    check_outside(args.out, args.store)
    analysis = analysis_of(args)
    analysis.write(Path(args.out))
    if args.json:
        console.emit_json(
            {**analysis.method, "transfer": [as_json(row) for row in analysis.tables["transfer"]]}
        )
        return 0
    for note in analysis.panel.notes:
        console.warn(note)
    for quantity in analysis.panel.quantities:
        show_transfer(analysis, quantity)
        show_verdicts(analysis, quantity)
    filled = [name for name, rows in analysis.tables.items() if rows]
    console.say(f"Tables: {args.out}/ ({', '.join(sorted([*filled, 'verdicts']))}; csv, arrow, json)")
    console.say(f"Next: evalengine report {args.out}")
    return 0


def as_json(row: Row) -> dict[str, Any]:
    return {key: None if isinstance(v, float) and v != v else v for key, v in row._asdict().items()}


def show_transfer(analysis: Analysis, quantity: str) -> None:
    """One table: each category with its benchmarks below it, a line for each scale; then the reasons of missing numbers."""
    from evalengine.analysis.estimates.groups import PARTIAL, SCALE
    from evalengine.analysis.figure import Mark
    from evalengine.analysis.protocols.transfer_table import transfer_table, words
    from evalengine.analysis.results import Results, n_words, percent

    method = analysis.method
    results = Results(method, analysis.tables, [], [], [v._asdict() for v in analysis.verdicts])
    shown = transfer_table(results, quantity, results.scales)
    before, after = method["stages"]
    kind = "Pearson's r" if method["statistic"] == "pearson" else method["statistic"]
    interval = "interval" if method["interval"] == "auto" else f"{method['interval']} interval"
    console.say(
        f"Transfer of {quantity}, {before} to {after}: {kind} over mixtures [{percent(method['level'])} {interval}]"
    )

    def text(cell: str | Mark, k: int) -> str:
        return plain(cell.text if isinstance(cell, Mark) else f" {cell}" if k == 0 else cell)

    rows = [[text(cell, k) for k, cell in enumerate(row)] for block in shown.blocks for row in block]
    every = analysis.tables["transfer"]
    found = [row for row in every if row.quantity == quantity and row.contrast in ("", SCALE)]
    console.table(
        "",
        shown.columns,
        rows,
        left=shown.texts,
        caption=f"{method['resamples']:,} resamples of the {method['resampled']} ({method['resampling']}), {n_words(found)} "
        f"mixtures. An interval that contains 0 does not show any transfer. {words(results, quantity)}",
        optional=("r without noise", "n", "items", "ceiling", "p", "q"),
    )
    reasons: dict[str, dict[str, list[str]]] = {}  # a note -> of what -> at which scales
    for r in found:
        if r.note and (r.estimate != r.estimate or r.note_kind == PARTIAL):
            of = f"{r.category}, " * (r.protocol == "category_transfer") + r.name
            reasons.setdefault(r.note, {}).setdefault(of, []).append(r.at)
    for note, which in reasons.items():
        listed = ", ".join(f"{of} ({', '.join(dict.fromkeys(scales))})" for of, scales in which.items())
        console.say(plain(f"  {listed}: {note}"))


def plain(text: str) -> str:
    """Signs that every terminal has, and that a search finds."""
    return text.replace("−", "-").replace("–", "-")


def show_verdicts(analysis: Analysis, quantity: str) -> None:
    """One line: how many benchmarks of each verdict, and which are reliable."""
    found = [v for v in analysis.verdicts if v.quantity == quantity]
    counts = Counter(v.verdict for v in found)
    reliable = [v.benchmark for v in found if v.verdict == "reliable"]
    listed = f" (reliable: {', '.join(reliable)})" if reliable else ""
    console.say(
        f"Verdicts on {quantity}: {', '.join(f'{n} {name}' for name, n in counts.most_common())}{listed}"
    )
    console.say("")
