"""Where the seconds of `evalengine score` go, from the start of its process to its last file."""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from evalengine.errors import UserError

START, IMPORTS, ITEMS, TOKENS = "start of the process", "imports", "reading items", "tokenising"
WEIGHTS, PROOF = "loading weights", "proof of the architecture"
CHECK = "check of each checkpoint, with compiling"
FIRST, LATER, FILES = "scoring, first checkpoint", "scoring, the others", "writing the store"
OTHER, END = "else", "end of the process"
PHASES = (START, IMPORTS, ITEMS, TOKENS, WEIGHTS, PROOF, CHECK, FIRST, LATER, FILES, OTHER, END)


class Stopwatch:
    """Seconds by phase of the thread that made it, since `started` on `time.perf_counter`'s clock.

    A phase that begins inside another one is taken from it, so that the phases add up to the time that passed.
    """

    def __init__(self, started: float) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._phases, self._last, self._thread = [START], started, threading.get_ident()

    def next(self, phase: str) -> None:
        """The outermost phase is another one from now on."""
        self._tick()
        self._phases[0] = phase

    def watch(self, owner: Any, name: str, phase: Callable[[], str]) -> None:
        """Replaces a function of a module or class by one that counts towards `phase()`, asked at each call."""
        inner = getattr(owner, name)

        @functools.wraps(inner)
        def watched(*args: Any, **kwargs: Any) -> Any:
            if threading.get_ident() != self._thread:
                return inner(*args, **kwargs)
            self._tick()
            self._phases.append(phase())
            try:
                return inner(*args, **kwargs)
            finally:
                self._tick()
                self._phases.pop()

        setattr(owner, name, watched)

    def _tick(self) -> None:
        now = time.perf_counter()
        self.seconds[self._phases[-1]] += now - self._last
        self._last = now


def score(started: float, arguments: list[str]) -> dict[str, float]:
    """Runs `evalengine score` in this process, which it changes for good. Seconds by phase, the process's end excepted.

    Parameters: when the process was asked for, on `time.perf_counter`'s clock, which Linux's processes share. Raises UserError
    where the command fails.
    """
    watch = Stopwatch(started)
    watch.next(OTHER)
    watch.watch(importlib._bootstrap, "_find_and_load", lambda: IMPORTS)  # type: ignore[attr-defined]
    from evalengine import runner
    from evalengine.checkpoints import resolve
    from evalengine.cli import main
    from evalengine.cli import score as cli_score
    from evalengine.model import proof, torch_backend
    from evalengine.plan import plans

    loads = 0

    def loading() -> str:
        nonlocal loads
        loads += 1
        return WEIGHTS

    watch.watch(cli_score, "load_item_sets", lambda: ITEMS)
    for name in ("begin", "plan"):
        watch.watch(plans.Planner, name, lambda: TOKENS)
    watch.watch(resolve.ReadAhead, "identified", lambda: WEIGHTS)
    watch.watch(torch_backend.TorchBackend, "load", loading)
    watch.watch(proof, "prove", lambda: PROOF)
    watch.watch(torch_backend.TorchBackend, "_check", lambda: CHECK)
    watch.watch(torch_backend.TorchBackend, "score", lambda: FIRST if loads == 1 else LATER)
    watch.watch(runner, "keep", lambda: FILES)
    with open(os.devnull, "w") as sink, contextlib.redirect_stdout(sink):
        failed = main(["score", *arguments, "--json"])
    if failed:
        raise UserError("evalengine score failed: see above")
    watch.next(OTHER)
    return {phase: watch.seconds[phase] for phase in PHASES}
