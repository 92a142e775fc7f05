"""Commands of evalengine in processes that may be killed at any moment, without paying for the imports each time.

`python nursery.py` imports once and forks a child for every command it reads from standard input; it never computes anything
itself, so no thread is lost in a fork. Training workers are forked rather than spawned for the same reason, and save their state
every 50 ms instead of every two minutes: what is killed is otherwise the product as it is.

A child dies after a number of seconds, or right before its n-th change to a file of its output (opened for writing, renamed,
removed; a folder made), which Python's audit hooks tell; its own children count, too.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import multiprocessing
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

SAVE_EVERY_S = 0.05
CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate")


class Ended(NamedTuple):
    code: int  # of the exit; -9 where it was killed
    seconds: float
    changes: int  # to files of its output
    said: str


class Kill(NamedTuple):
    """When: after so many seconds; or `seconds` after the process began its n-th `change` to its output, 0 right before it."""

    seconds: float
    change: int | None = None
    whole_group: bool = False  # else its children are left to notice


class Nursery:
    """The other end: `run` a command here, and kill it on the way."""

    def __init__(self) -> None:
        environment = os.environ | {
            "OMP_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "HF_HUB_OFFLINE": "1",
        }
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self._answer()

    def run(self, *arguments: object, cache: Path, log: Path, kill: Kill | None = None) -> Ended:
        assert self._process.stdin is not None
        order = {"arguments": list(map(str, arguments)), "cache": str(cache), "log": str(log), "kill": kill}
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return Ended(*self._answer(), log.read_text())

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the nursery died"
        return json.loads(line)

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait(timeout=30)
        self._process.stdout.close()


def serve() -> None:
    import_everything()
    answers = os.fdopen(os.dup(1), "w")
    print(json.dumps("ready"), file=answers, flush=True)
    changes = mmap.mmap(-1, 8)  # counted by the child and by its own children
    for line in sys.stdin:
        order = json.loads(line)
        kill = None if order["kill"] is None else Kill(*order["kill"])
        changes[:] = bytes(8)
        started = time.monotonic()
        child = os.fork()
        if child == 0:
            live(order, changes, kill)
        ended = [watch(child, kill, started), time.monotonic() - started, *struct.unpack("q", changes)]
        print(json.dumps(ended), file=answers, flush=True)


def import_everything() -> None:
    import numba  # noqa: F401
    import pyarrow.parquet  # noqa: F401
    import scipy.stats  # noqa: F401
    import torch  # noqa: F401
    from safetensors.torch import load_file  # noqa: F401
    from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast  # noqa: F401
    from transformers.models.llama import modeling_llama  # noqa: F401

    import evalengine.analysis.study
    import evalengine.cli.score
    import evalengine.model.torch_backend
    import evalengine.runner
    import evalengine.training.runner  # noqa: F401
    from evalengine.training.fitting.state import Place

    forked = multiprocessing.get_context("fork")
    multiprocessing.get_context = lambda method=None: forked  # type: ignore[assignment]
    Place.__init__.__defaults__ = tuple(  # type: ignore[attr-defined]
        SAVE_EVERY_S if value == 120.0 else value for value in Place.__init__.__defaults__
    )


def live(order: dict[str, Any], changes: mmap.mmap, kill: Kill | None) -> None:
    """The child: the command, its words into a file, and its exit code."""
    os.setsid()
    count_changes(changes, kill, str(Path(order["cache"]).parent))
    os.environ["EVALENGINE_CACHE"] = order["cache"]
    said = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(said, stream)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    code = 70
    try:
        from evalengine.cli import main

        code = main(order["arguments"])
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def count_changes(changes: mmap.mmap, kill: Kill | None, folder: str) -> None:
    """Counts this process's and its children's changes in a folder; ends them all, or this one alone, at the one asked for."""
    own = os.getpid()

    def end(delay: float) -> None:
        time.sleep(delay)
        (os.killpg if kill.whole_group else os.kill)(own, signal.SIGKILL)

    def hook(event: str, given: tuple[Any, ...]) -> None:
        if event not in CHANGES and not (event == "open" and writes(given[2])):
            return
        if not str(given[0]).startswith(folder):
            return
        (number,) = struct.unpack("q", changes)
        changes[:] = struct.pack("q", number + 1)
        if kill is None or number != kill.change:
            return
        if kill.seconds:
            threading.Thread(target=end, args=(kill.seconds,), daemon=True).start()
        else:
            end(0.0)

    sys.addaudithook(hook)


def writes(flags: int) -> bool:
    return bool(flags & (os.O_WRONLY | os.O_RDWR))


def watch(child: int, kill: Kill | None, started: float) -> int:
    """Waits for the child, or kills it (and its own children, or leaves them to notice); returns its exit code."""
    deadline = None if kill is None or kill.change is not None else started + kill.seconds
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            break
        if deadline is not None and time.monotonic() >= deadline:
            os.kill(child, signal.SIGKILL)
            if kill.whole_group:
                with contextlib.suppress(ProcessLookupError):  # killed before it had a group
                    os.killpg(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            break
        time.sleep(0.001)
    orphans_until = time.monotonic() + 60
    while time.monotonic() < orphans_until:
        try:
            os.killpg(child, 0)
        except ProcessLookupError:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.killpg(child, signal.SIGKILL)
    return 99  # a worker outlived its parent by a minute


if __name__ == "__main__":
    serve()
