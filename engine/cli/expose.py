"""`evalengine expose STUDY`: how often each item's n-grams stand in each source of a study, or in any text files."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from evalengine import console
from evalengine.cli.train import check_jobs
from evalengine.errors import UserError


def register(subparsers: Any) -> None:
    p: argparse.ArgumentParser = subparsers.add_parser(
        "expose",
        help="count the items' n-grams in a study's sources",
        description="Counts every benchmark item's n-grams, those that cross from the context into a choice above all, in every "
        "source of a study or in any text files. Each source is read once; a killed run continues.",
    )
    add = p.add_argument
    add("study", nargs="?", metavar="STUDY", help="a study file (YAML), or the name of a shipped one")
    files = (
        "in place of a study: a text, JSONL or Parquet file, or a folder of them; may be given several times"
    )
    add("--source", action="append", default=[], metavar="NAME=PATH", help=files)
    field = "of --source: the column that holds the text (default: text)"
    add("--field", metavar="NAME", help=field)
    data = "folder that the study's paths are relative to, with the benchmarks' files in itself or in bench/"
    add("--data", type=Path, metavar="DIR", help=data)
    out = "where exposure.arrow goes (default: exposure)"
    add("--out", type=Path, default=Path("exposure"), metavar="DIR", help=out)
    add("--benchmarks", default="all", help="names, a category, or all (default), separated by commas")
    add("--limit", type=int, metavar="N", help="a seeded sample of N items of each benchmark")
    add("--seed", type=int, default=0, help="seed of --limit (default: 0)")
    shards = "the trained study's folder: its token shards say how many tokens a source has (default: ckpts)"
    add("--ckpts", type=Path, metavar="DIR", help=shards)
    similar = "also how similar the sources are to the items: bm25, embedding, dsir, separated by commas; reads them twice more"
    add("--similarity", default="", metavar="KINDS", help=similar)
    add("--jobs", type=int, default=0, metavar="N", help="threads that count (default: one a core)")
    add("--json", action="store_true", help="print one JSON object")
    p.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from evalengine.training import study as studies
    from evalengine.training.exposure import expose, similarity, table

    if (args.study is None) == (not args.source):
        raise UserError("name a study, or text files with --source NAME=PATH, and not both")
    if args.study is not None and args.field is not None:
        raise UserError("--field is for --source: a study states the field of each of its sources")
    if args.source and args.ckpts is not None:
        raise UserError("--ckpts is for a study, whose folder it is: leave it out with --source")
    check_jobs(args.jobs)
    kinds = [kind.strip() for kind in args.similarity.split(",") if kind.strip()]
    similarity.check(kinds)
    if args.ckpts is not None and not args.ckpts.is_dir():
        raise UserError(f"there is no folder {args.ckpts}: --ckpts is the one that `evalengine train` wrote")
    if args.study is not None:
        corpus = expose.of_study(studies.load(args.study), args.data, args.out, args.ckpts or Path("ckpts"))
    else:
        corpus = expose.of_files(args.source, args.field or "text", args.data)
    sets = expose.load_sets(corpus.data, args.benchmarks, args.limit, args.seed)
    done = expose.run(corpus, sets, args.out, args.jobs)
    path = args.out / table.NAME
    similar = similarity.expose(corpus.sources, sets, kinds, args.out, done.exposure.about)
    if args.json:
        sources = {name: size._asdict() for name, size in done.exposure.about.sources.items()}
        held = {benchmark: dict(by_n) for benchmark, by_n in expose.items_held(done.exposure).items()}
        made = {"similarity": str(similar)} if similar else {}
        console.emit_json({"path": str(path), **made, "sources": sources, "items": held})
        return 0
    expose.show(done)
    console.say(f"Counts: {path}")
    if similar:
        console.say(f"Similarities: {similar}")
    return 0
