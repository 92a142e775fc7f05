"""`evalengine report`: the analysis as one HTML file, and its figures."""

from __future__ import annotations

import argparse
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from evalengine import console
from evalengine.cli.correlate import add_options, analysis_of
from evalengine.errors import UserError
from evalengine.store import check_outside


def register(subparsers: Any) -> None:
    p = subparsers.add_parser(
        "report",
        help="write the analysis as one HTML file with figures",
        description="Writes report.html and figures/ from the tables of `correlate`, and of `explain` where they are in the same "
        "folder. Given a score store, it runs `correlate` first, with the options below from --bootstrap on.",
    )
    p.add_argument(
        "store",
        nargs="?",
        default="scores",
        help="score store, imported results, or a folder that correlate wrote (default: scores/)",
    )
    p.add_argument("--out", help="folder to write (default: analysis/, or the folder that correlate wrote)")
    formats = "formats of the figures, comma-separated, or none (default: png,pdf)"
    p.add_argument("--figures", default="png,pdf", help=formats)
    p.add_argument(
        "--latex", action="store_true", help="write the tables as LaTeX too (tables/*.tex, needs booktabs)"
    )
    options = add_options(p)
    p.add_argument("--json", action="store_true", help="print one JSON object")
    p.set_defaults(run=run, analysis_options=options)


def run(args: argparse.Namespace) -> int:
    source = Path(args.store)
    if (source / "analysis.json").is_file():
        given = [o.option_strings[0] for o in args.analysis_options if getattr(args, o.dest) != o.default]
        if given:
            raise UserError(
                f"{source} holds the tables of `evalengine correlate`, which {', '.join(given)} cannot change: give that to "
                "correlate, or give report the score store"
            )
        folder = Path(args.out) if args.out else source
        tables = source
    elif (source / "explain.json").is_file():
        raise UserError(
            f"{source} holds the tables of `evalengine explain` and none of `evalengine correlate`, which the report is built "
            f"on: run `evalengine correlate STORE --out {source}` first"
        )
    else:
        folder = tables = Path(args.out or "analysis")
        check_outside(folder, source)
        analysis_of(args).write(folder)
    from evalengine.analysis.report.report import (
        differences,
        load_both,
        write_figures,
        write_latex,
        write_report,
    )

    formats = [part.strip() for part in args.figures.split(",") if part.strip() and part.strip() != "none"]
    # Drawn in a process of their own, as long as the page takes.
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        drawn = pool.submit(write_figures, tables, folder / "figures", formats) if formats else None
        page = write_report(tables, folder)
        figures = drawn.result() if drawn else []
    results, explained = load_both(tables)
    for note in differences(results, explained) if explained else ():
        console.warn(note)
    latex = write_latex(tables, folder / "tables") if args.latex else []
    if args.json:
        written = {"figures": list(map(str, figures)), "latex": list(map(str, latex))}
        console.emit_json({"report": str(page), **written})
        return 0
    said = [f"Report: {page}"]
    said += [f"{len(figures)} figures in {folder}/figures/"] if figures else []
    said += [f"{len(latex)} LaTeX tables in {folder}/tables/"] if latex else []
    console.say("; ".join(said))
    return 0
