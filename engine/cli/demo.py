"""`evalengine demo`: the whole path on an embedded world, with no network and no data of your own."""

from __future__ import annotations

import argparse
import shlex
import time
from pathlib import Path
from typing import Any

QUICK_ITEMS = "50"  # of each benchmark


def register(subparsers: Any) -> None:
    p: argparse.ArgumentParser = subparsers.add_parser(
        "demo",
        help="train 36 tiny checkpoints, score 20 benchmarks, correlate: a few minutes, no network",
        description="Runs the commands of a study, one after another, on an embedded synthetic world.",
    )
    p.add_argument(
        "--out", type=Path, default=Path("demo"), metavar="DIR", help="where it all goes (default: demo)"
    )
    p.add_argument("--quick", action="store_true", help="shorter training: about a minute, to see the path")
    p.add_argument(
        "--bootstrap", default="exact", metavar="N", help="resamples of the intervals (default: exact)"
    )
    p.add_argument(
        "--jobs", type=int, default=0, metavar="N", help="training processes (default: one a core)"
    )
    p.set_defaults(run=run)


def commands(out: Path, quick: bool, bootstrap: str, jobs: int) -> list[list[str]]:
    """The command lines of the demonstration, in order; each works on its own too."""
    study, ckpts, scores = "embedded_quick" if quick else "embedded", out / "ckpts", out / "scores"
    names = [run.name for run in _runs(study)]
    train = [
        "train",
        study,
        "--data",
        str(out / "world"),
        "--out",
        str(ckpts),
        *(["--jobs", str(jobs)] if jobs else []),
    ]
    score = [
        "score",
        *(str(ckpts / name) for name in names),
        "--data",
        str(out / "world" / "bench"),
        "--out",
        str(scores),
    ]
    if quick:
        score += ["--limit", QUICK_ITEMS]
    statistics = [str(scores), "--bootstrap", bootstrap, "--study", study, "--out", str(out / "analysis")]
    return [train, score, ["correlate", *statistics], ["report", *statistics]]


def run(args: argparse.Namespace) -> int:
    from evalengine import console
    from evalengine.benchmarks import world
    from evalengine.cli import main

    started = time.monotonic()
    how_long = "about a minute" if args.quick else "about five minutes"
    console.say(
        f"36 tiny checkpoints are trained, scored on 20 benchmarks and correlated: {how_long} on two cores."
    )
    folder = args.out / "world"
    if not (folder / "sft.jsonl").is_file():
        console.say(f"\nwriting the embedded world (corpora, conversations, benchmark items) to {folder}")
        world.write(folder, seed=0)
    for command in commands(args.out, args.quick, args.bootstrap, args.jobs):
        console.say(f"\n$ evalengine {shown(command)}")
        code = main(command)
        if code:
            return code
    console.say(f"\ndone in {(time.monotonic() - started) / 60:.1f} minutes; everything is in {args.out}/")
    return 0


def shown(command: list[str]) -> str:
    """The command line for a reader: checkpoints that lie in one folder shown as a glob."""
    parts: list[str] = []
    for part in command:
        folder = str(Path(part).parent) + "/*"
        text = folder if part.endswith(("-pt", "-sft")) else shlex.quote(part)
        if not parts or parts[-1] != text:
            parts.append(text)
    return " ".join(parts)


def _runs(study: str) -> list[Any]:
    from evalengine.training.study import load, runs

    return sorted(runs(load(study)), key=lambda run: run.name)
