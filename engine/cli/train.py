"""`evalengine train STUDY`: train the checkpoints of a study, stage by stage."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evalengine.cli.score import add_ray, cluster, refuse_ray_options
from evalengine.errors import UserError

if TYPE_CHECKING:
    from evalengine.training.fitting.state import Place

SHARDS = "under torchrun: ddp copies the model, fsdp shards it (default: fsdp from 500M parameters)"
CHOICES: dict[str, tuple[tuple[str, str], str]] = {
    "--device": (("cpu", "cuda"), "default: cuda where there is one"),
    "--dtype": (("float32", "bfloat16"), "of matrix products (default: bfloat16 on a GPU)"),
    "--parallel": (("ddp", "fsdp"), SHARDS),
    "--compile": (("yes", "no"), "torch.compile the blocks (default: on a GPU)"),
}


def register(subparsers: Any) -> None:
    p: argparse.ArgumentParser = subparsers.add_parser(
        "train",
        help="pretrain and fine-tune the checkpoints of a study",
        description="Trains the checkpoints of a study; finished ones are skipped, a killed study continues.",
    )
    add = p.add_argument
    study = (
        "a study file (YAML), or the name of a shipped one: embedded, embedded_quick, local_text, h200, paper"
    )
    add("study", metavar="STUDY", help=study)
    data = "folder that the study's paths are relative to, with the benchmarks' files in itself or in bench/"
    add("--data", type=Path, metavar="DIR", help=data)
    out = "where checkpoints go (default: ckpts)"
    add("--out", type=Path, default=Path("ckpts"), metavar="DIR", help=out)
    add("--only", metavar="GLOB", help="only the runs whose name matches, such as '240M-*-pt'")
    stages = "these stages and those they start from, in place of the study's: pt, sft, sft_ARM, dpo"
    add("--stages", metavar="A,B", help=stages)
    jobs = "worker processes (default: by machine and model size)"
    add("--jobs", type=int, default=0, metavar="N", help=jobs)
    plan = "print the plan (parameters, tokens, FLOPs, hours) and train nothing"
    add("--dry-run", action="store_true", help=plan)
    add("--flops", type=float, metavar="RATE", help="sustained FLOP/s for the estimate (default: measured)")
    for name, (choices, text) in CHOICES.items():
        add(name, choices=("auto", *choices), default="auto", help=text)
    add("--tensorboard", action="store_true", help="also log scalars to OUT/.study/tensorboard")
    add_ray(p, "train the runs")
    add("--fresh", action="store_true", help="train the chosen runs again, whatever is there")
    add("--json", action="store_true", help="print one JSON object")
    p.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from evalengine import console
    from evalengine.training import plan
    from evalengine.training import study as studies
    from evalengine.training.runner import run_study
    from evalengine.training.selection import selection_report

    check_jobs(args.jobs)
    if args.flops is not None and not 0 < args.flops < math.inf:
        raise UserError(f"--flops is a rate above 0, such as 1e12, not {args.flops:g}")
    study = studies.load(args.study)
    if args.stages is not None:
        study = studies.with_stages(study, [name.strip() for name in args.stages.split(",")])
    place = _place(args)
    what: dict[str, Any] = {"data": args.data, "out": args.out, "only": args.only, "jobs": args.jobs}
    if args.dry_run:
        planned = plan.make(study, **what, rate=args.flops, device=place.device)
        if args.json:
            console.emit_json(plan.as_json(planned))
        else:
            plan.show(study, planned)
        return 0
    if args.ray and (args.jobs or place.group.size > 1):
        raise UserError("--ray cannot be combined with --jobs (use --workers) or torchrun")
    if not args.ray:
        refuse_ray_options(args)
    given = cluster(args) if args.ray else None
    outcome = run_study(study, **what, fresh=args.fresh, place=place, cluster=given)
    if place.group.rank:
        return 0
    world = study.world if not args.data else None
    bench = f"{args.out}/.study/world-{world.seed}/bench" if world else None
    if args.json:
        fields = ("train_loss", "validation_loss")
        losses = {r.name: {field: getattr(r, field) for field in fields} for r in outcome.finished}
        found = {**outcome._asdict(), "out": str(args.out), "finished": losses, "bench": bench}
        if study.sft.select:
            found["selection"] = selection_report.report(study, args.out)
        console.emit_json(found)
    else:
        console.say(
            f"{len(outcome.finished)} checkpoints trained, {len(outcome.skipped)} already finished; "
            f"score them with: evalengine score {args.out}/*{_items(args, bench)}"
        )
    if outcome.not_run:
        names = ", ".join(f"{name} (because of {failed})" for name, failed in outcome.not_run.items())
        console.warn(f"not run, since one before failed: {names}")
    if study.sft.select and not args.json:
        selection_report.report(study, args.out)
    if outcome.failed:
        name, reason = next(iter(outcome.failed.items()))
        raise UserError(f"{len(outcome.failed)} runs failed, the first is {name}: {reason}")
    return 0


def check_jobs(jobs: int) -> None:
    """Raises UserError for a number of processes or threads that cannot be."""
    if jobs < 0:
        raise UserError(f"--jobs must be 1 or more, or 0 for the default, not {jobs}")


def _items(args: argparse.Namespace, bench: str | None) -> str:
    """The option with which `score` finds the benchmarks that training read or wrote (`bench`); of the hub's, none."""
    from evalengine.benchmarks import BENCHMARKS, benchmarks_in

    read = args.data and benchmarks_in(args.data, BENCHMARKS.values())
    return f" --data {args.data if read else bench}" if read or bench else ""


def _place(args: argparse.Namespace) -> Place:
    """Device and precision; under torchrun one device a process."""
    import importlib.util

    import torch

    from evalengine.training.fitting import parallel
    from evalengine.training.fitting.state import Place
    from evalengine.training.prepare import work_folder

    gpu = torch.cuda.is_available() and args.device != "cpu"
    if args.device == "cuda" and not gpu:
        raise UserError("there is no CUDA device: leave --device out")
    if args.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise UserError("--tensorboard needs a package: pip install 'evalengine[tensorboard]'")
    device, group = "cuda" if gpu else "cpu", parallel.SINGLE
    if parallel.launched():
        device = parallel.local_device() if gpu else "cpu"
        group = parallel.DataParallel(device, args.parallel)
    return Place(
        device=device,
        autocast=args.dtype == "bfloat16" or (args.dtype == "auto" and gpu),
        compile=gpu if args.compile == "auto" else args.compile == "yes",
        tensorboard=work_folder(args.out) / "tensorboard" if args.tensorboard else None,
        group=group,
    )
