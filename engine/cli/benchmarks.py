"""`evalengine benchmarks`: the list, one rendered item, a check of data files, or which answer formats a study's text has."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from evalengine.untrusted import printable

if TYPE_CHECKING:
    from evalengine.benchmarks import Benchmark


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "benchmarks",
        help="list the benchmarks, show a rendered item, check data files, count answer formats",
        description="Without an action, lists the benchmarks.",
    )
    _common(parser, names=False)
    parser.set_defaults(run=run)
    actions = parser.add_subparsers(dest="action", metavar="ACTION")
    show = actions.add_parser("show", help="print one item as it is scored, continuations marked")
    show.add_argument("name", metavar="NAME", help="a benchmark")
    show.add_argument("--item", type=int, default=0, metavar="N", help="which item, from 0 (default 0)")
    fewshot = "solved train items before the item (default 0)"
    show.add_argument("--fewshot", type=int, default=0, metavar="K", help=fewshot)
    show.add_argument("--seed", type=int, default=0, help="seed of the few-shot examples (default 0)")
    show.add_argument("--variant", choices=["lm_eval"], help="render as lm-evaluation-harness does")
    _common(show)
    check = actions.add_parser("check", help="validate data files and name the first bad line of each")
    check.add_argument("--benchmarks", dest="names", default="all", help="names or categories (default all)")
    _common(check)
    what = "count answer formats in a study's sources, for score --formats"
    count = actions.add_parser("formats", help=what)
    count.add_argument("study", metavar="STUDY", help="a study file, or the name of one that ships")
    count.add_argument(
        "--data", type=Path, metavar="DIR", help="folder that the study's paths are relative to"
    )
    what = "YAML file of formats (name: template with {choice} or {letter}; default: those that ship)"
    count.add_argument("--formats", type=Path, metavar="YAML", help=what)
    most = "documents read of each source, at most (default 100000)"
    count.add_argument("--documents", type=int, default=100_000, metavar="N", help=most)
    what = "write the formats that were found to this file, for score --formats"
    count.add_argument("--out", type=Path, metavar="YAML", help=what)
    count.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print one JSON object")


def _common(parser: argparse.ArgumentParser, *, names: bool = True) -> None:
    keep = argparse.SUPPRESS if names else None  # an action's own options must not reset those before it
    if names:
        files = "folder of <benchmark>.jsonl or .parquet files, or one with them in bench/"
        parser.add_argument("--data", type=Path, metavar="DIR", help=files)
    own = "a benchmark of your own"
    parser.add_argument(
        "--benchmark-file", type=Path, action="append", default=keep, metavar="YAML", help=own
    )
    parser.add_argument("--json", action="store_true", default=keep or False, help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    actions = {"show": _show, "check": _check, "formats": _formats}
    return actions.get(args.action, _list)(args)


def _list(args: argparse.Namespace) -> int:
    from evalengine.benchmarks import resolve
    from evalengine.console import emit_json, table

    benchmarks = resolve("all", args.benchmark_file or ())
    if args.json:
        fields = ("category", "default_score", "choices", "hub", "version")
        emit_json({b.name: {field: getattr(b, field) for field in fields} for b in benchmarks})
        return 0
    rows = [(b.name, b.category, b.default_score, b.choices, _source(b), b.version) for b in benchmarks]
    columns = ["benchmark", "category", "default score", "choices", "hub path / config / split", "version"]
    table(f"{len(rows)} benchmarks", columns, rows, left=5)
    return 0


def _source(benchmark: Benchmark) -> str:
    if benchmark.hub is None:
        return str(benchmark.file or "a folder given with --data")
    return " / ".join(part for part in benchmark.hub if part)


def _show(args: argparse.Namespace) -> int:
    from evalengine.benchmarks import load_items, resolve
    from evalengine.console import console, emit_json, say, shown
    from evalengine.errors import UserError

    found = resolve(args.name, args.benchmark_file or ())
    if len(found) != 1:
        raise UserError(f"'{args.name}' names {len(found)} benchmarks: show one")
    loaded = load_items(found[0], args.data, variant=args.variant, seed=args.seed, fewshot=args.fewshot)
    if not 0 <= args.item < len(loaded.items):
        raise UserError(
            f"{args.name} has items 0 to {len(loaded.items) - 1}, not {args.item}: choose one of them"
        )
    item = loaded.items[args.item]
    if args.json:
        emit_json({"benchmark": loaded.benchmark, "variant": loaded.variant, **item._asdict()})
        return 0
    from rich.text import Text

    variant = loaded.variant or "default"
    say(
        f"{loaded.benchmark} ({loaded.category}), item {args.item} of {len(loaded.items):,}, id {item.id}, "
        f"variant {variant}; the scored text is between » and «"
    )
    one_context = len(set(item.contexts)) == 1
    out = console()
    if one_context:
        out.print(Text("\n" + shown(item.contexts[0])), soft_wrap=True)
    for index, continuation in enumerate(item.continuations):
        line = Text(f"\n[{index}] " + ("" if one_context else shown(item.contexts[index])))
        line.append("»").append(shown(continuation), style="bold reverse").append("«")
        line.append("   <- gold" if index == item.gold else "", style="green")
        out.print(line, soft_wrap=True)
    return 0


def _check(args: argparse.Namespace) -> int:
    from evalengine.benchmarks import check_folder, held, resolve
    from evalengine.benchmarks.load import check_files
    from evalengine.console import emit_json, say, table
    from evalengine.errors import UserError

    if args.data is None:
        raise UserError("say which folder to check: --data DIR")
    check_folder(args.data)
    benchmarks = resolve(args.names, args.benchmark_file or ())
    checks = check_files(benchmarks, args.data)
    bad = [check for check in checks if check.problem]
    present = {check.benchmark for check in checks}
    absent = [benchmark.name for benchmark in benchmarks if benchmark.name not in present]
    if args.json:
        emit_json({"files": [check._asdict() for check in checks], "absent": absent})
    elif checks:
        rows = [(c.benchmark, c.path.name, "bad" if c.problem else "ok", f"{c.items:,}") for c in checks]
        table(f"{args.data}", ["benchmark", "file", "state", "items"], rows, left=3)
        if absent:
            say(f"no file of {', '.join(absent)}")
    for check in bad:
        print(f"evalengine: {printable(check.problem or '')}", file=sys.stderr)
    if not checks:
        held(args.data, benchmarks)
    return 1 if bad else 0


def _formats(args: argparse.Namespace) -> int:
    import itertools

    from evalengine.benchmarks import formats
    from evalengine.console import emit_json, say, shown, table
    from evalengine.errors import UserError
    from evalengine.training.data.sources import documents
    from evalengine.training.study import load

    if args.documents < 1:
        raise UserError(f"--documents {args.documents} leaves nothing to count in: give at least 1")
    known = formats.read_formats(args.formats) if args.formats else formats.SHIPPED
    study = load(args.study)
    counts = {
        name: formats.count(itertools.islice(documents(source, args.data, name), args.documents), known)
        for name, source in study.sources.items()
    }
    kept = [one for f, one in enumerate(known) if any(of[f] is None or of[f] for of in counts.values())]
    if args.out:
        formats.write_formats(args.out, kept)
    if args.json:
        found = {one.name: {name: of[f] for name, of in counts.items()} for f, one in enumerate(known)}
        emit_json({"counts": found, "kept": [one.name for one in kept]})
        return 0
    rows = []
    for f, one in enumerate(known):
        cells = ("–" if of[f] is None else f"{of[f]:,}" for of in counts.values())
        rows.append((one.name, shown(repr(one.template.text)), *cells))
    title = f"Formats in up to {args.documents:,} documents of each source"
    table(title, ["format", "template", *counts], rows, left=2)
    say("–: without words of its own, found everywhere")
    absent = [one.name for one in known if one not in kept]
    say(f"found: {len(kept)}; in no source: {', '.join(absent) or 'none'}")
    if args.out:
        say(f"Formats: {args.out} (next: evalengine score CKPT... --formats {args.out})")
    return 0
