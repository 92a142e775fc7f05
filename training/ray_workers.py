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
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from evalengine import __version__, console
from evalengine.cluster import connect
from evalengine.cluster.pool import Cluster, Pool, need_of
from evalengine.cluster.schedule import STRIKES
from evalengine.errors import UserError
from evalengine.training.decoder import export
from evalengine.training.fitting.loop import Step
from evalengine.training.job import Job
from evalengine.training.prepare import work_folder
from evalengine.training.stages import Trained
from evalengine.training.workers import Board, RunMessage, chains, keep_freed_memory, train_chain, without

POLL_S = 0.2


class Trainer:
    """Lives in a Ray actor. Steps go to the driver through `messages`; `run` returns results and failures."""

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

    def run(self, chain: list[Job]) -> list[RunMessage]:
        ends: list[RunMessage] = []

        def put(message: RunMessage) -> None:
            if not isinstance(message.value, Step):
                ends.append(message)
            else:
                with contextlib.suppress(Exception):  # progress only
                    self._messages.put_nowait(message)

        train_chain(0, chain, put)  # a worker sees its own GPUs alone
        return ends


def run_on(cluster: Cluster, todo: list[Job]) -> tuple[list[Trained], dict[str, str]]:
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
        with Board(todo) as board, Pool(Trainer, trainer, need, cluster.workers) as pool:
            _train_on(pool, chains(todo), board, messages)
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


def _train_on(pool: Pool, waiting: list[list[Job]], board: Board, messages: Any) -> None:
    """Gives each chain to a worker, and what is left of one to another where its worker ended."""
    waiting.reverse()
    strikes: Counter[str] = Counter()
    busy = 0
    while waiting or busy:
        pool.grow(len(waiting) + busy)
        for worker in pool.idle():
            if waiting:
                chain = waiting.pop()
                worker.doing = chain[0].run.name
                pool.give(worker, chain, worker.actor.run.remote(chain))
        for ended in pool.wait(POLL_S):
            for message in ended.value or []:
                board.take(message)
            left = _left(ended.task, board) if ended.died else []
            if not left:
                continue
            name = left[0].run.name
            console.warn(f"the worker of {name} on {ended.worker.host} ended: {ended.died}")
            strikes[name] += not ended.node_lost
            if strikes[name] >= STRIKES:
                reason = f"set aside: it failed {STRIKES} times, last because {ended.died}"
                board.take(RunMessage(name, reason))
                left = without(left, left[0])
            if left:
                waiting.append(left)
        with contextlib.suppress(queue.Empty):
            while True:
                board.take(messages.get_nowait())
        busy = sum(w.ref is not None and w.ready for w in pool.workers)


def _left(chain: list[Job], board: Board) -> list[Job]:
    """Those of a chain that its worker had not finished when it ended; the board takes the results of the others."""
    left = []
    for job in chain:
        about = export.metadata(job.path)
        if about is None:
            left.append(job)
        else:
            result = Trained(job.run.name, about["train_loss"], about["validation_loss"])
            board.take(RunMessage(job.run.name, result))
    return left
