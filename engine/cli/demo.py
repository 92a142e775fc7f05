"""`evalengine demo`: a whole study on an embedded world, without a network or data of your own."""

from __future__ import annotations

import argparse
import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evalengine import files
from evalengine.errors import UserError

if TYPE_CHECKING:
    from evalengine.analysis.embedded_study import StudyFindings

QUICK_ITEMS = "150"  # of each benchmark
BETAS = "0.25,0.5,1,2"  # of emulated fine-tuning


def register(subparsers: Any) -> None:
    p: argparse.ArgumentParser = subparsers.add_parser(
        "demo",
        help="train 36 tiny checkpoints, score 20 benchmarks, correlate, explain: a few minutes, no network",
        description="Runs the commands of a study, one after another, on an embedded synthetic world.",
    )
    add = p.add_argument
    add("--out", type=Path, default=Path("demo"), metavar="DIR", help="output folder (default: demo)")
    add("--quick", action="store_true", help="8 checkpoints, half of the training: about a minute")
    add("--bootstrap", default="exact", metavar="N", help="resamples of the intervals (default: exact)")
    add("--jobs", type=int, default=0, metavar="N", help="training processes (default: one a core)")
    seeds = "instead: the larger scale's 18 checkpoints for each seed, and a table of the findings"
    add("--seeds", metavar="N,N,...", help=seeds)
    p.set_defaults(run=run)


def commands(
    out: Path, quick: bool, bootstrap: str, jobs: int, study: str = "", only: str = ""
) -> list[list[str]]:
    """The command lines of the demonstration, in order."""
    study = study or _study(quick)
    ckpts, scores = out / "ckpts", out / "scores"
    names = [run.name for run in _runs(study) if run.name.startswith(only)]
    train = ["train", study, "--data", str(out / "world"), "--out", str(ckpts)]
    train += ["--jobs", str(jobs)] if jobs else []
    train += ["--only", f"{only}*"] if only else []
    bench, tables = str(out / "world" / "bench"), str(out / "analysis")
    several = len({name.split("-")[0] for name in names}) > 1  # scales
    score = [*(str(ckpts / name) for name in names), "--data", bench, "--out", str(scores)]
    score = ["emulate", *score, "--beta", BETAS] if several else ["score", *score]
    score += ["--limit", QUICK_ITEMS] if quick else []
    correlate = ["correlate", str(scores), "--bootstrap", bootstrap, "--study", study, "--out", tables]
    exposure = str(out / "exposure")
    expose = ["expose", study, "--data", str(out / "world"), "--ckpts", str(ckpts), "--out", exposure]
    expose += ["--similarity", "dsir"]
    explain = ["explain", str(scores), "--exposure", exposure, "--data", bench, "--study", study]
    explain += ["--out", tables]
    return [train, score, expose, correlate, explain, ["report", tables, "--figures", "png"]]


def run(args: argparse.Namespace) -> int:
    from evalengine import console
    from evalengine.analysis.embedded_study import findings
    from evalengine.benchmarks import world
    from evalengine.cli import main
    from evalengine.training.study import load

    started, name, seeds = time.monotonic(), _study(args.quick), _seeds(args.seeds)
    scale = max(load(name).scales.items(), key=lambda entry: entry[1].d_model)[0]
    if not seeds:
        how_long = "about a minute" if args.quick else "about four minutes"
        console.say(
            f"{len(_runs(name))} tiny checkpoints are trained, scored on 20 benchmarks and correlated: "
            f"{how_long} on two cores."
        )
    found = {}
    for seed in seeds or [0]:
        out: Path = args.out / f"seed-{seed}" if seeds else args.out
        if not (out / "world" / "sft.jsonl").is_file():
            console.say(f"\nwriting the embedded world (corpora, conversations, items) to {out / 'world'}")
            world.write(out / "world", seed=seed)
        if seeds:
            files.write(out / "study.yaml", reseeded(name, seed))
            study = str(out / "study.yaml")
            lines = commands(out, args.quick, args.bootstrap, args.jobs, study, f"{scale}-")[:2]
        else:
            lines = commands(out, args.quick, args.bootstrap, args.jobs)
        for command in lines:
            console.say(f"\n$ evalengine {shown(command)}")
            if code := main(command):
                return code
        found[seed] = findings(out / "scores", scale)
    console.say("")
    show(found, scale, demanded=not args.quick)
    if not seeds:
        minutes = (time.monotonic() - started) / 60
        console.say(f"\ndone in {minutes:.1f} minutes; everything is in {args.out}/")
    return 0


def _seeds(given: str | None) -> list[int]:
    parts = [part.strip() for part in given.split(",")] if given else []
    if not all(map(str.isdecimal, parts)):  # generators drop the sign of -1
        raise UserError(f"--seeds takes numbers such as 0,1,2, not '{given}'")
    return list(map(int, parts))


def reseeded(study: str, seed: int) -> str:
    """The text of a shipped study with another seed for the world and the training."""
    import yaml

    from evalengine.training.study import shipped

    raw = yaml.safe_load(shipped()[study].read_text(encoding="utf-8"))
    text: str = yaml.safe_dump({**raw, "seed": seed, "world": {"seed": seed}}, sort_keys=False)
    return text


def show(found: dict[int, StudyFindings], scale: str, demanded: bool) -> None:
    """One column a seed: numbers of benchmarks, and whether the study shows what it must (`demanded`)."""
    from evalengine import console

    every = list(found.values())
    rows = [[name, *(one.counts[name] for one in every)] for name in every[0].counts]
    if demanded:
        rows += [
            [f"-> {name}", *("yes" if one.holds[name] else "NO" for one in every)] for name in every[0].holds
        ]
    console.table(
        f"Number of benchmarks (of 20) at {scale}",
        ["", *(f"seed {n}" for n in found)],
        rows,
        caption="Differences count from three standard errors on. In brackets: the mixture with the most. Reliable: more than "
        "half of the differences between mixtures is not item noise. Moved: accuracy before fine-tuning. Reranked: fine-tuning "
        "reverses the order of two mixtures. At the ceiling: 97% right. ->: what the embedded study is built to show.",
    )


def shown(command: list[str]) -> str:
    """The command line for a reader; the checkpoints of a folder are shown as a glob."""
    parts: list[str] = []
    for part in command:
        folder = str(Path(part).parent) + "/*"
        text = folder if part.endswith(("-pt", "-sft")) else shlex.quote(part)
        if not parts or parts[-1] != text:
            parts.append(text)
    return " ".join(parts)


def _study(quick: bool) -> str:
    return "embedded_quick" if quick else "embedded"


def _runs(study: str) -> list[Any]:
    from evalengine.training.study import load, runs

    return sorted(runs(load(study)), key=lambda run: run.name)
