"""`evalengine demo`: the whole path on an embedded world, with no network and no data of your own."""

from __future__ import annotations

import argparse
import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evalengine.errors import UserError

if TYPE_CHECKING:
    from evalengine.analysis.embedded_study import Findings

QUICK_ITEMS = "150"  # of each benchmark


def register(subparsers: Any) -> None:
    p: argparse.ArgumentParser = subparsers.add_parser(
        "demo",
        help="train 36 tiny checkpoints, score 20 benchmarks, correlate: a few minutes, no network",
        description="Runs the commands of a study, one after another, on an embedded synthetic world.",
    )
    p.add_argument(
        "--out", type=Path, default=Path("demo"), metavar="DIR", help="where it all goes (default: demo)"
    )
    p.add_argument("--quick", action="store_true", help="8 checkpoints, half of the training: about a minute")
    p.add_argument(
        "--bootstrap", default="exact", metavar="N", help="resamples of the intervals (default: exact)"
    )
    p.add_argument(
        "--jobs", type=int, default=0, metavar="N", help="training processes (default: one a core)"
    )
    p.add_argument(
        "--seeds",
        metavar="N,N,...",
        help="instead: the larger scale's 18 checkpoints for each seed, and a table of what the study shows",
    )
    p.set_defaults(run=run)


def commands(
    out: Path, quick: bool, bootstrap: str, jobs: int, study: str = "", only: str = ""
) -> list[list[str]]:
    """The command lines of the demonstration, in order; each works on its own too."""
    study = study or _study(quick)
    ckpts, scores = out / "ckpts", out / "scores"
    names = [run.name for run in _runs(study) if run.name.startswith(only)]
    train = ["train", study, "--data", str(out / "world"), "--out", str(ckpts)]
    train += ["--jobs", str(jobs)] if jobs else []
    train += ["--only", f"{only}*"] if only else []
    score = ["score", *(str(ckpts / name) for name in names)]
    score += ["--data", str(out / "world" / "bench"), "--out", str(scores)]
    score += ["--limit", QUICK_ITEMS] if quick else []
    statistics = [str(scores), "--bootstrap", bootstrap, "--study", study, "--out", str(out / "analysis")]
    return [train, score, ["correlate", *statistics], ["report", *statistics]]


def run(args: argparse.Namespace) -> int:
    from evalengine import console
    from evalengine.benchmarks import world

    if args.seeds:
        return run_seeds(args)
    started = time.monotonic()
    how_long = "about a minute" if args.quick else "about five minutes"
    name = _study(args.quick)
    console.say(
        f"{len(_runs(name))} tiny checkpoints are trained, scored on 20 benchmarks and correlated: "
        f"{how_long} on two cores."
    )
    folder = args.out / "world"
    if not (folder / "sft.jsonl").is_file():
        console.say(f"\nwriting the embedded world (corpora, conversations, benchmark items) to {folder}")
        world.write(folder, seed=0)
    code = _run_all(commands(args.out, args.quick, args.bootstrap, args.jobs))
    if code == 0:
        from evalengine.analysis.embedded_study import findings

        scale = _largest(name)
        console.say("")
        show({0: findings(args.out / "scores", scale)}, scale, demanded=not args.quick)
        console.say(
            f"\ndone in {(time.monotonic() - started) / 60:.1f} minutes; everything is in {args.out}/"
        )
    return code


def run_seeds(args: argparse.Namespace) -> int:
    """Trains and scores the larger scale for each seed of the world and the training, and says what it shows."""
    from evalengine.analysis.embedded_study import findings
    from evalengine.benchmarks import world

    try:
        seeds = [int(part) for part in args.seeds.split(",")]
    except ValueError:
        raise UserError(f"--seeds takes numbers such as 0,1,2, not '{args.seeds}'") from None
    name = _study(args.quick)
    scale = _largest(name)
    found = {}
    for seed in seeds:
        out: Path = args.out / f"seed-{seed}"
        out.mkdir(parents=True, exist_ok=True)
        study = out / "study.yaml"
        study.write_text(reseeded(name, seed), encoding="utf-8")
        if not (out / "world" / "sft.jsonl").is_file():
            world.write(out / "world", seed=seed)
        code = _run_all(commands(out, args.quick, args.bootstrap, args.jobs, str(study), f"{scale}-")[:2])
        if code:
            return code
        found[seed] = findings(out / "scores", scale)
    show(found, scale, demanded=not args.quick)
    return 0


def reseeded(study: str, seed: int) -> str:
    """The text of a shipped study with another seed for the world and the training."""
    import yaml

    from evalengine.training.study import shipped

    raw = yaml.safe_load(shipped()[study].read_text(encoding="utf-8"))
    text: str = yaml.safe_dump({**raw, "seed": seed, "world": {"seed": seed}}, sort_keys=False)
    return text


def show(found: dict[int, Findings], scale: str, demanded: bool) -> None:
    """One column a seed: how many benchmarks, and whether that is what the study has to show (`demanded`)."""
    from evalengine import console

    def line(title: str, cell: Any) -> list[str]:
        return [title, *(cell(f) for f in found.values())]

    first = next(iter(found.values()))
    rows = [
        *(line(f"above chance, {t}", lambda f, t=t: f"{len(f.above[t])} ({f.best[t]})") for t in first.above),
        *(line(f"reliable, {t}", lambda f, t=t: str(len(f.reliable[t]))) for t in first.reliable),
        *(
            line(f"moved by {c}", lambda f, c=c: f"{len(f.moved[c].up)} up, {len(f.moved[c].down)} down")
            for c in first.moved
        ),
        line("reranked by sft", lambda f: str(len(f.reranked))),
        line("answered nearly always", lambda f: ", ".join(f.full) or "none"),
    ]
    if demanded:
        rows += [line(f"-> {name}", lambda f, n=name: "yes" if f.holds[n] else "NO") for name in first.holds]
    console.table(
        f"benchmarks of 20, {scale}, three standard errors", ["", *(f"seed {n}" for n in found)], rows
    )


def _run_all(lines: list[list[str]]) -> int:
    from evalengine import console
    from evalengine.cli import main

    for command in lines:
        console.say(f"\n$ evalengine {shown(command)}")
        code = main(command)
        if code:
            return code
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


def _study(quick: bool) -> str:
    return "embedded_quick" if quick else "embedded"


def _largest(study: str) -> str:
    from evalengine.training.study import load

    return max(load(study).scales.items(), key=lambda entry: entry[1].d_model)[0]


def _runs(study: str) -> list[Any]:
    from evalengine.training.study import load, runs

    return sorted(runs(load(study)), key=lambda run: run.name)
