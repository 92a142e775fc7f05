"""A study's chains on a Ray cluster: one worker per GPU or group of cores, each with a chain at a time.

The rules of resuming are those of one machine: a finished run is skipped, an unfinished one continues from its last training
state. Both are in the study's output folder, which all nodes must share. A worker that is killed costs the steps since that
state; its chain is given to another, and after three such ends the run is set aside.
"""

from __future__ import annotations

import contextlib
import queue
import secrets
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from evalengine import __version__, console
from evalengine.cluster import connect
from evalengine.cluster.pool import Cluster, Ended, Pool, need_of
from evalengine.cluster.schedule import STRIKES
from evalengine.errors import UserError
from evalengine.training import export
from evalengine.training.loop import Step
from evalengine.training.prepare import work_folder
from evalengine.training.processes import keep_freed_memory
from evalengine.training.stages import Job, Result
from evalengine.training.workers import Board, Message, chains, train_chain

POLL_S = 0.2


class Trainer:
    """Lives in a Ray actor. Steps go to the driver through `messages`, ends are what `run` returns."""

    def __init__(self, threads: int, messages: Any, version: str, probe: Path) -> None:
        self._threads, self._messages, self._version = threads, messages, version
        self._probe = probe

    def hello(self) -> tuple[str, str]:
        import ray
        import torch

        host = socket.gethostname()
        if self._version != __version__:
            raise UserError(f"evalengine {__version__} is installed on {host}, not {self._version}")
        if not self._probe.exists():
            raise UserError(
                f"{self._probe.parent} is not there on {host}: give --out a folder that all nodes share"
            )
        keep_freed_memory()
        torch.set_num_threads(self._threads)
        return ray.get_runtime_context().get_node_id(), host

    def run(self, number: int, chain: list[Job]) -> list[Message]:
        ends: list[Message] = []

        def put(message: Message) -> None:
            if not isinstance(message.value, Step):
                ends.append(message)
            else:
                with contextlib.suppress(Exception):  # progress only
                    self._messages.put_nowait(message)

        train_chain(number, chain, put)
        return ends


def run_on(cluster: Cluster, todo: list[Job]) -> tuple[list[Result], dict[str, str]]:
    """Trains `todo` on a cluster. Raises UserError where it cannot be reached or does not share the output folder."""
    study = todo[0].study
    with (
        connect.connected(cluster.address, cpus=cluster.local_cores),
        probe_in(work_folder(todo[0].out)) as probe,
    ):
        from ray.util.queue import Queue

        wanted = cluster._replace(cpus=cluster.cpus or study.threads or None)
        need = need_of(wanted, todo[0].place.device)
        device = "cuda" if need.gpus else "cpu"
        todo = [job._replace(place=replace(job.place, device=device)) for job in todo]
        messages = Queue(actor_options={"num_cpus": 0})
        trainer = (study.threads or need.cpus, messages, __version__, probe)
        with (
            Board(todo) as board,
            Pool(Trainer, trainer, need, cluster.workers) as pool,
        ):
            Grid(chains(todo), board).go(pool, messages)
        messages.shutdown(force=True)
    return board.finished, board.failed


@contextlib.contextmanager
def probe_in(folder: Path) -> Iterator[Path]:
    """A file in `folder` that nobody else can have named so: a worker that finds it shares the folder."""
    for old in folder.glob(".probe-*"):  # of a killed driver: the folder is locked, so it is no other's
        old.unlink(missing_ok=True)
    probe = folder.resolve() / f".probe-{secrets.token_hex(8)}"
    probe.touch()
    try:
        yield probe
    finally:
        probe.unlink(missing_ok=True)


class Grid:
    """The chains that wait, and their results."""

    def __init__(self, chains: list[list[Job]], board: Board) -> None:
        self.waiting, self.board = list(reversed(chains)), board
        self.strikes: dict[str, int] = {}

    def go(self, pool: Pool, messages: Any) -> None:
        busy = 0
        while self.waiting or busy:
            pool.grow(len(self.waiting) + busy)
            for worker in pool.idle():
                if self.waiting:
                    chain = self.waiting.pop()
                    worker.doing = chain[0].run.name
                    # A worker sees its own GPUs alone, so that each has the first.
                    pool.give(worker, chain, worker.actor.run.remote(0, chain))
            for ended in pool.wait(POLL_S):
                self._ended(pool, ended)
            with contextlib.suppress(queue.Empty):
                while True:
                    self.board.take(messages.get_nowait())
            busy = sum(w.ref is not None and w.ready for w in pool.workers)

    def _ended(self, pool: Pool, ended: Ended) -> None:
        chain: list[Job] = ended.task
        if ended.died is None:
            for message in ended.value:
                self.board.take(message)
            return
        left = []
        for job in chain:
            about = export.metadata(job.path)
            if about is None:
                left.append(job)
            else:  # finished before its worker ended
                result = Result(job.run.name, about["train_loss"], about["validation_loss"])
                self.board.take(Message(job.run.name, result))
        if not left:
            return
        name = left[0].run.name
        console.warn(f"the worker of {name} on {ended.worker.host} ended: {ended.died}")
        self.strikes[name] = self.strikes.get(name, 0) + (not ended.node_lost)
        if self.strikes[name] >= STRIKES:
            reason = f"set aside: it failed {STRIKES} times, last because {ended.died}"
            self.board.take(Message(name, reason))
        else:
            self.waiting.append(left)
