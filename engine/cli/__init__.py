"""The command line. One module per command, each with `register(subparsers)` and `run(args)`.

Only argparse is imported at the top, so that `evalengine --help` answers at once: a command's `run` imports what it needs.
Exit codes: 0 done, 1 failed for a reason printed as one sentence, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import io
import os
import sys
from collections.abc import Sequence

from evalengine import __version__, console
from evalengine.errors import UserError
from evalengine.files import NO_ROOM
from evalengine.untrusted import printable, reason

COMMANDS = (  # in the order of a study, which `--help` keeps
    "demo", "train", "score", "emulate", "correlate", "expose", "explain", "report", "power", "importer", "export",
    "benchmarks", "lm_eval", "bench",
)  # fmt: skip


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="evalengine",
        description="Score language-model checkpoints on 20 benchmarks and measure which rankings survive fine-tuning.",
        epilog="Start with `evalengine demo`, or `evalengine score ckpts/*` and `evalengine correlate`.",
    )
    top.add_argument("--version", action="version", version=f"evalengine {__version__}")
    sub = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in COMMANDS:
        importlib.import_module(f"evalengine.cli.{name}").register(sub)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    given = sys.argv[1:] if argv is None else argv
    if not given:
        parser().print_help(sys.stderr)
        return 2
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal may not know all characters of a path
        sys.stdout.reconfigure(errors="backslashreplace")
    code = run(parser().parse_args(given))
    parallel = sys.modules.get("evalengine.training.fitting.parallel")
    if parallel is not None and parallel.launched():
        parallel.leave(code)
    return code


def run(args: argparse.Namespace) -> int:
    """The command's exit code; its errors as sentences on standard error."""
    if "json" in args:
        console.set_json(args.json)
    try:
        return int(args.run(args) or 0)
    except (Exception, KeyboardInterrupt) as error:
        if os.environ.get("EVALENGINE_DEBUG"):
            raise
        if isinstance(error, BrokenPipeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        interrupted = isinstance(error, KeyboardInterrupt)
        if interrupted:
            print(file=sys.stderr)  # behind the terminal's ^C
        print(f"evalengine: {printable(sentence(error, getattr(args, 'out', None)))}", file=sys.stderr)
        return 130 if interrupted else 1


NOT_WRITTEN = (*NO_ROOM, errno.EPERM, errno.EACCES)


def sentence(error: BaseException, out: object = None) -> str:
    """What a user can do about an error. `out`: where the command writes, for errors that name no file, or a temporary one."""
    match error:
        case UserError():
            return str(error)
        case KeyboardInterrupt():
            return f"interrupted; {str(error) or 'run the same command again to continue'}"
        case MemoryError():
            return "out of memory: lower --batch-tokens, or use a machine with more memory"
        case OSError():
            named = error.filename
            if str(named).endswith(".tmp") and error.filename2:  # what it was to be renamed to
                named = error.filename2
            unnamed = not named or str(named).endswith(".tmp")
            where = out if out and unnamed and error.errno in NOT_WRITTEN else named
            if where and isinstance(error, (FileExistsError, NotADirectoryError)):
                return f"{where} is a file, or lies in one, where a folder is needed: give another path"
            if where and isinstance(error, IsADirectoryError):
                return f"{where} is a folder, where a file is needed: give another path"
            if where and isinstance(error, PermissionError):
                return f"no permission for {where}: give a path that you may write to, or have its permissions changed"
            what = os.strerror(error.errno) if error.errno else error
            at = f" ({where})" if where else ""
            return f"{what}{at}; finished work is kept: fix that and run the same command again"
    kind = type(error).__name__
    return f"internal error, please report it: {kind}: {reason(error, 300)} (EVALENGINE_DEBUG=1 shows where)"
