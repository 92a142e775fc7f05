"""The runs of a study in worker processes of this machine, with one line of progress.

A worker takes one chain (a checkpoint's pretraining, then its fine-tuning) at a time. Workers are plain spawned
processes, one device each; a run that fails ends its chain and no other.
"""

from __future__ import annotations

import multiprocessing as mp
import os
import queue
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from evalengine import console
from evalengine.errors import UserError
from evalengine.files import cores
from evalengine.training import processes
from evalengine.training.loop import Step
from evalengine.training.mfu import Utilisation, peak_of
from evalengine.training.stages import Job, Result, steps_of, train

POLL_S = 1.0
REPORT_EVERY_S = 0.5


class Message(NamedTuple):
    """What a worker says of the run `name`: a step, its result, or the reason why it failed."""

    name: str
    value: Step | Result | str


def chains(todo: list[Job]) -> list[list[Job]]:
    """The runs by checkpoint, in order."""
    found: dict[tuple[str, str], list[Job]] = {}
    for job in todo:
        found.setdefault((job.run.scale, job.run.mixture), []).append(job)
    return list(found.values())


def run_workers(todo: list[Job], jobs: int) -> tuple[list[Result], dict[str, str]]:
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
                    _check_alive(workers)
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


def _check_alive(workers: list[Any]) -> None:
    for worker in workers:
        if worker.exitcode:
            raise UserError(
                f"a training process ended with code {worker.exitcode}, most likely out of memory: "
                "lower --jobs or the scale's micro_rows and run the same command again"
            )


def _work(index: int, parent: int, threads: int, tasks: Any, messages: Any) -> None:
    """A worker process: one chain after another until there are none."""
    processes.begin(parent)
    processes.keep_freed_memory()
    torch.set_num_threads(threads)
    while (chain := tasks.get()) is not None:
        train_chain(index, chain, messages.put)
    messages.put(None)


def train_chain(index: int, chain: list[Job], put: Callable[[Message], None]) -> None:
    """Trains the runs of a chain one after another, up to the first that fails. `index` chooses the GPU."""
    for job in chain:
        last = 0.0

        def report(step: Step, name: str = job.run.name) -> None:
            nonlocal last
            if time.monotonic() - last >= REPORT_EVERY_S:
                last = time.monotonic()
                put(Message(name, step))

        try:
            place = job.place
            if place.device == "cuda":
                place = replace(place, device=f"cuda:{index % torch.cuda.device_count()}")
            put(Message(job.run.name, train(job._replace(place=place), report)))
        except Exception as error:
            if os.environ.get("EVALENGINE_DEBUG"):
                raise
            put(Message(job.run.name, _reason(error)))
            break


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
    """The results and failures of the runs so far, and the line of progress that shows them."""

    def __init__(self, todo: list[Job], peak: float | None = None) -> None:
        self.finished: list[Result] = []
        self.failed: dict[str, str] = {}
        self._tokens = {job.run.name: steps_of(job.study, job.prepared, job.run)[1] for job in todo}
        self._shown = dict.fromkeys(self._tokens, 0.0)  # tokens of each run so far
        self._used, self._seen = Utilisation(peak), dict[str, int]()
        self._started = time.monotonic()
        self._progress = console.progress("training", sum(self._tokens.values()), "tokens")

    def __enter__(self) -> Board:
        self.line = self._progress.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._progress.__exit__(*error)

    def take(self, message: Message) -> None:
        """A step, the result or the failure of a run."""
        name, value = message
        if isinstance(value, str):
            self.failed[name] = value
            console.warn(f"{name}: {value}")
            return
        if isinstance(value, Result):
            self.finished.append(value)
            part, loss, mfu = 1.0, value.train_loss, ""
        else:
            part, loss, mfu = value.step / value.steps, value.loss, self._utilisation(name, value)
        tokens = part * self._tokens[name]
        advance, self._shown[name] = tokens - self._shown[name], tokens
        rate = sum(self._shown.values()) / max(time.monotonic() - self._started, 1e-9)
        ready = f"{len(self.finished)}/{len(self._tokens)} runs"
        self.line.update(advance, f"{ready}, {name} loss {loss:.3f}, {rate:,.0f} tokens/s{mfu}")

    def _utilisation(self, name: str, step: Step) -> str:
        new = step.step - self._seen.get(name, step.step)  # a resumed run's first report adds none
        self._seen[name] = step.step
        return self._used.add(new * step.flops)
