"""`evalengine bench TARGET`: how fast, against what a user would take instead, as ratios measured in one run."""

from __future__ import annotations

import argparse
import importlib
import inspect
from pathlib import Path
from typing import Any

from evalengine import console
from evalengine.bench import TARGETS
from evalengine.errors import UserError

OPTIONS = ("backend", "data", "sizes", "limit", "device", "vllm_arg")


def register(subparsers: Any) -> None:
    p = subparsers.add_parser(
        "bench",
        help="measure speed against the alternatives, as ratios in one run",
        description="Measures speed against what one would use instead, both sides in one run. Use an otherwise idle machine; "
        "docs/measured.md has results.",
    )
    add = p.add_argument
    add("target", choices=TARGETS, metavar="TARGET", help=", ".join(TARGETS))
    add(
        "--backend",
        choices=["torch", "vllm"],
        help="lm-eval: the backend of evalengine's side (default: torch)",
    )
    add(
        "--quick",
        action="store_true",
        help="small shapes and few repeats, to check that it runs; not for figures",
    )
    data = "engine, commands, lm-eval, ray, scale: folder of benchmark files (default: the embedded world)"
    add("--data", type=Path, help=data)
    add("--sizes", help="engine, commands, lm-eval: model sizes, of 1M,7M,50M,240M")
    limit = "engine, commands, lm-eval, ray: items of each benchmark (default: 20, 20, 100 and 60)"
    add("--limit", type=int, help=limit)
    add("--device", help="kernels, engine, commands, training, vllm: cpu (default) or cuda")
    setting = "vllm: a setting of its engine (may be repeated)"
    add("--vllm-arg", action="append", metavar="NAME=VALUE", help=setting)
    add("--json", action="store_true", help='print one JSON object: {"ratios": {name: number}, ...}')
    p.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    module, options = target(args)
    from evalengine.backends import quiet_transformers
    from evalengine.bench import harness

    quiet_transformers()
    load = harness.load_average(args.quick)
    result: harness.Measurement = module.run(args.quick, **options)
    record = harness.machine(load)
    if args.json:
        console.emit_json(result.as_json() | record)
    else:
        result.show()
        console.say(", ".join(f"{key}: {value}" for key, value in record.items()))
    return 1 if result.failures else 0


def target(args: argparse.Namespace) -> tuple[Any, dict[str, Any]]:
    """The target's module, and the options for its `run`. Raises UserError for an option that it does not take."""
    name = args.target
    options = {key: value for key in OPTIONS if (value := getattr(args, key)) is not None}
    module = importlib.import_module(f"evalengine.bench.{name.replace('-', '_')}")
    for key in options:
        if key not in inspect.signature(module.run).parameters:
            raise UserError(f"--{key.replace('_', '-')} means nothing to `bench {args.target}`: leave it out")
    check_device(args.device or "cpu")
    return module, options


def check_device(device: str) -> None:
    """Raises UserError for a device that is not measured on, or that this machine lacks."""
    import torch

    if device.split(":")[0] not in ("cpu", "cuda"):
        raise UserError(f"--device must be cpu or cuda, not {device}")
    if device != "cpu" and not torch.cuda.is_available():
        raise UserError("this machine has no CUDA device: leave --device out")
