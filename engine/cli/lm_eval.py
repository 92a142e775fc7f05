"""`evalengine lm-eval ...`: lm-evaluation-harness's own command, with the model `evalengine` registered."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from typing import Any

from evalengine.errors import UserError
from evalengine.untrusted import reason


def register(subparsers: Any) -> None:
    p = subparsers.add_parser(
        "lm-eval",
        help="run lm-evaluation-harness with this engine as --model evalengine",
        add_help=False,
        prefix_chars="\0",  # every argument is lm-eval's
    )
    p.add_argument("arguments", nargs="*")
    p.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    if importlib.util.find_spec("lm_eval") is None:
        raise UserError("lm-eval is not installed in this environment: pip install lm-eval==0.4.13")
    from lm_eval.__main__ import cli_evaluate

    from evalengine.lm_eval.model import register

    register()
    sys.argv = ["evalengine lm-eval", *args.arguments]
    try:
        cli_evaluate()
    except UserError:
        raise
    except OSError as error:  # those of the hub's client are, too
        raise UserError(
            f"lm-eval cannot read what it needs ({reason(error, 300)}): its tasks' data comes from the Hugging Face hub, so"
            " check the network; `evalengine score --data` scores files that are here"
        ) from error
    except Exception as error:
        kind = type(error).__name__
        raise UserError(
            f"lm-eval stopped: {kind}: {reason(error, 300)} (EVALENGINE_DEBUG=1 shows where)"
        ) from error
    return 0
