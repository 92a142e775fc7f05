"""The runs of a study in worker processes of this machine or under torchrun, with one line of progress.

A worker takes one chain (the stages of one mixture and scale, or of all scales where one of them chooses the conversations
for the others) at a time. Workers are plain spawned processes, one device each; a run that fails takes along those that start
from it and no others.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing as mp
import os
import queue
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from evalengine import console
from evalengine.errors import UserError
from evalengine.files import cores
from evalengine.training.fitting.loop import Step
from evalengine.training.fitting.mfu import Utilisation, peak_of
from evalengine.training.job import Job, tokens_of
from evalengine.training.stages import Trained, train
from evalengine.training.study import needed

POLL_S = 1.0
WATCH_S = 0.5
REPORT_EVERY_S = 0.5


class RunMessage(NamedTuple):
    """What a worker says of the run `name`: a step, its result, or the reason why it failed."""

    name: str
    value: Step | Trained | str


def chains(todo: list[Job]) -> list[list[Job]]:
    """The runs by mixture and scale, in order; by mixture where one scale chooses conversations for the others."""
    found: dict[tuple[str, str], list[Job]] = {}
    for job in todo:
        select = job.study.sft.select
        apart = "" if select and select.by else job.run.scale
        found.setdefault((apart, job.run.mixture), []).append(job)
    return list(found.values())


def run_workers(todo: list[Job], jobs: int) -> tuple[list[Trained], dict[str, str]]:
    """Trains `todo` in up to `jobs` processes: (results, reason of each failed run). Raises UserError if one is killed."""
    waiting = chains(todo)
    jobs = min(jobs, len(waiting))
    context = mp.get_context("spawn")
    tasks, messages = context.Queue(), context.Queue()
    for chain in [*waiting, *[None] * jobs]:
        tasks.put(chain)
    common = (os.getpid(), todo[0].study.threads or max(1, cores() // jobs), tasks, messages)
    workers = [context.Process(target=_work, args=(i, *common), daemon=True) for i in range(jobs)]
    peak = peak_of(todo[0].place.device, min(jobs, torch.cuda.device_count()))
    try:
        for worker in workers:
            worker.start()
        with Board(todo, peak) as board:
            while jobs:
                try:
                    message = messages.get(timeout=POLL_S)
                except queue.Empty:
                    killed = [worker.exitcode for worker in workers if worker.exitcode]
                    if killed:
                        raise UserError(f"a training process {death(killed[0])}") from None
                    continue
                if message is None:
                    jobs -= 1
                else:
                    board.take(message)
        return board.finished, board.failed
    finally:
        for worker in workers:
            worker.kill()  # one that is stopped or stuck would not end on SIGTERM
            worker.join()


def death(code: int) -> str:
    """How a process ended by itself, and what to do. `code`: of its exit; negative: the signal that killed it."""
    if code == -signal.SIGKILL:
        return (
            "was killed, most likely as memory ran out: lower --jobs or the scale's micro_rows and run the same command"
            " again"
        )
    how = f"was ended by signal {-code}" if code < 0 else f"ended with code {code}"
    return f"{how}; what it said is above: run the same command again, and report it if it ends so again"


def run_together(todo: list[Job]) -> tuple[list[Trained], dict[str, str]]:
    """Trains `todo` one after another with the other processes of torchrun. The first failure ends the command."""
    place = todo[0].place
    if place.group.rank:
        return [train(job) for job in todo], {}
    with Board(todo, peak_of(place.device, place.group.size)) as board:
        for job in todo:
            train_chain(0, [job], board.take)
            if board.failed:
                break
    return board.finished, board.failed


def _work(index: int, parent: int, threads: int, tasks: Any, messages: Any) -> None:
    """A worker process: one chain after another until there are none."""
    _follow(parent)
    keep_freed_memory()
    torch.set_num_threads(threads)
    while (chain := tasks.get()) is not None:
        train_chain(index, chain, messages.put)
    messages.put(None)


def _follow(parent: int) -> None:
    """Leaves Ctrl-C to the process `parent` that started this one, and ends with it, however it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(WATCH_S)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def keep_freed_memory() -> None:
    """Tells glibc to reuse large blocks instead of returning them: a step frees what the next one allocates.

    Without it a fifth of a tiny model's processor time goes to page faults (17 of 74 s, measured on 640k tokens).
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
        libc.mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD


def train_chain(index: int, chain: list[Job], put: Callable[[RunMessage], None]) -> None:
    """Trains the runs of a chain one after another, but for those that need one that failed. `index` chooses the GPU."""
    while chain:
        job, *chain = chain
        last = 0.0

        def report(step: Step, name: str = job.run.name) -> None:
            nonlocal last
            if time.monotonic() - last >= REPORT_EVERY_S:
                last = time.monotonic()
                put(RunMessage(name, step))

        try:
            place = job.place
            if place.device == "cuda":
                place = replace(place, device=f"cuda:{index % torch.cuda.device_count()}")
            put(RunMessage(job.run.name, train(job._replace(place=place), report)))
        except Exception as error:
            if os.environ.get("EVALENGINE_DEBUG"):
                raise
            put(RunMessage(job.run.name, _reason(error)))
            chain = without(chain, job)


def without(chain: list[Job], failed: Job) -> list[Job]:
    """The runs of a chain that do not need `failed`."""
    return [job for job in chain if job.run != failed.run and failed.run not in needed(job.study, job.run)]


def _reason(error: Exception) -> str:
    """One sentence for the user; `EVALENGINE_DEBUG=1` shows the traceback instead."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        where = f" ({error.filename})" if error.filename else ""
        return f"{error.strerror}{where}; fix that and run the same command again"
    if isinstance(error, MemoryError):
        return "out of memory: lower --jobs or the scale's micro_rows"
    return f"{type(error).__name__}: {error}; EVALENGINE_DEBUG=1 shows where"


class Board:
    """The results and failures of the runs so far, and the line of progress that shows them.

    peak: FLOP/s of all devices, for the MFU; None does not show it.
    """

    def __init__(self, todo: list[Job], peak: float | None = None) -> None:
        self.finished: list[Trained] = []
        self.failed: dict[str, str] = {}
        self._tokens = {job.run.name: tokens_of(job) for job in todo}
        self._done: dict[str, float] = {}  # share of each run
        self._used, self._started = Utilisation(peak), time.monotonic()
        self._progress = console.progress("training", sum(self._tokens.values()), "tokens")

    def __enter__(self) -> Board:
        self.line = self._progress.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._progress.__exit__(*error)

    def take(self, message: RunMessage) -> None:
        """A step, the result or the failure of a run."""
        name, value = message
        if isinstance(value, str):
            self.failed[name] = value
            console.warn(f"{name}: {value}")
            return
        before = self._done.get(name)
        if isinstance(value, Trained):
            self.finished.append(value)
            done, loss, mfu = 1.0, value.train_loss, ""
        else:
            done, loss = value.step / value.steps, value.loss
            new = 0.0 if before is None else done - before  # a resumed run's first report adds none
            mfu = self._used.add(new * value.steps * value.flops)
        self._done[name] = done
        tokens = sum(share * self._tokens[run] for run, share in self._done.items())
        rate = tokens / max(time.monotonic() - self._started, 1e-9)
        ready = f"{len(self.finished)}/{len(self._tokens)} runs"
        advance = (done - (before or 0.0)) * self._tokens[name]
        self.line.update(advance, f"{ready}, {name} loss {loss:.3f}, {rate:,.0f} tokens/s{mfu}")
