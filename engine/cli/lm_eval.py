"""`evalengine lm-eval --register`: registers the model `evalengine` with lm-evaluation-harness's own command."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from evalengine import console
from evalengine.errors import UserError

FILE = "evalengine_lm_eval.pth"
# A .pth line runs at every start of Python; this one checks the command's name and acts in lm-eval's processes only.
LINE = (
    'import sys, importlib.util as u; any(a.endswith(("lm_eval", "lm-eval")) for a in sys.orig_argv[1:3])'
    ' and u.find_spec("evalengine") and __import__("evalengine.lm_eval.model").lm_eval.model.register()\n'
)


def register(subparsers: Any) -> None:
    p = subparsers.add_parser(
        "lm-eval",
        help="let lm-evaluation-harness run on this engine",
        description="After --register, `lm_eval --model evalengine --model_args pretrained=DIR[,backend=vllm]` runs any of"
        " its log-likelihood tasks on this engine. Without it, `python -m evalengine.lm_eval` is the same command.",
    )
    choice = p.add_mutually_exclusive_group(required=True)
    choice.add_argument(
        "--register", action="store_true", help=f"write {FILE} into the folder that holds lm-eval"
    )
    choice.add_argument("--unregister", action="store_true", help="remove it")
    p.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    import importlib.util

    spec = importlib.util.find_spec("lm_eval")
    if spec is None or spec.origin is None:
        raise UserError("lm-eval is not installed in this environment: pip install lm-eval==0.4.13")
    file = Path(spec.origin).parents[1] / FILE
    if args.unregister:
        file.unlink(missing_ok=True)
        console.say(f"Removed {file}")
        return 0
    file.write_text(LINE, encoding="utf-8")
    console.say(f"Wrote {file}: lm_eval --model evalengine --model_args pretrained=DIR works now")
    return 0
