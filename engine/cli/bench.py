"""`evalengine bench TARGET`: how fast, against what a user would take instead, as ratios measured in one run."""

from __future__ import annotations

import argparse
import importlib
import inspect
from pathlib import Path
from typing import Any

from evalengine import console
from evalengine.errors import UserError

TARGETS = {
    "kernels": "evalengine.kernels.bench",
    "engine": "evalengine.bench",
    "bootstrap": "evalengine.analysis.bench",
    "training": "evalengine.training.bench",
    "lm-eval": "evalengine.lm_eval_bench",
    "ray": "evalengine.cluster.bench",
    "scale": "evalengine.scale_bench",
    "vllm": "evalengine.vllm.bench",
}


def register(subparsers: Any) -> None:
    p = subparsers.add_parser("bench", help="measure speed against the alternatives, as ratios in one run")
    p.add_argument("target", choices=[name for name in TARGETS if name != "vllm"])
    p.add_argument(
        "--backend",
        choices=["torch", "vllm"],
        default="torch",
        help="engine, lm-eval: which (default: torch)",
    )
    p.add_argument("--quick", action="store_true", help="small shapes and few repeats: does it run?")
    p.add_argument(
        "--data", type=Path, help="engine, lm-eval: folder of benchmark files (default: the embedded world)"
    )
    p.add_argument("--sizes", help="engine: models, from 1M,7M,50M,240M")
    p.add_argument("--limit", type=int, help="engine: items of each benchmark (default: 20)")
    p.add_argument("--processes", action="store_true", help="engine: also six checkpoints as whole processes")
    p.add_argument("--device", help="kernels, engine, training: cpu (default) or cuda")
    p.add_argument(
        "--json", action="store_true", help='print one JSON object: {"ratios": {name: number}, ...}'
    )
    p.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    console.set_json(args.json)
    from evalengine.cli.score import quiet_transformers

    target = args.target
    if target in ("engine", "lm-eval", "ray"):
        quiet_transformers()
    if target not in ("engine", "lm-eval") and args.backend != "torch":
        raise UserError(f"--backend means nothing to `bench {target}`: leave it out")
    if target == "engine" and args.backend == "vllm":
        target = "vllm"
    module = importlib.import_module(TARGETS[target])
    given = {
        "backend": args.backend if target == "lm-eval" else None,
        "data": args.data,
        "sizes": tuple(args.sizes.split(",")) if args.sizes else None,
        "limit": args.limit,
        "processes": args.processes or None,
        "device": args.device,
    }
    known = inspect.signature(module.run).parameters
    for name, value in given.items():
        if value is not None and name not in known:
            raise UserError(f"--{name} means nothing to `bench {args.target}`: leave it out")
    given["say"] = console.say if "say" in known and not args.quick else None  # lines as they are measured
    result = module.run(args.quick, **{k: v for k, v in given.items() if v is not None})
    if args.json:
        console.emit_json(
            {"ratios": result["ratios"], **{k: v for k, v in result.items() if k != "ratios"}, **machine()}
        )
        return 0
    console.table(result["title"], result["columns"], result["rows"], left=1)
    for more in result.get("more", ()):
        console.table(more["title"], more["columns"], more["rows"], left=1)
    console.say(", ".join(f"{key}: {value}" for key, value in machine().items()))
    return 0


def machine() -> dict[str, str]:
    """What a figure needs beside it: date, processor, versions."""
    import os
    import platform
    import time

    import torch

    names = [line.split(":")[1].strip() for line in cpuinfo() if line.startswith("model name")]
    device = (
        torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else (names[0] if names else platform.machine())
    )
    return {
        "date": time.strftime("%Y-%m-%d"),
        "device": device,
        "cores": str(os.cpu_count()),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.is_file() else []
