"""The actor of `evalengine score --ray`: a backend that stays warm, and swaps weights and plans as units come.

It never raises for a checkpoint's fault: it answers with a `Failure` that says what should happen. What it cannot answer (it
was killed) the pool notices.
"""

from __future__ import annotations

import errno
import os
import socket
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from evalengine import __version__
from evalengine.backends import BackendSpec
from evalengine.checkpoints import Checkpoint
from evalengine.cluster.progress import Progress
from evalengine.cluster.shared import visible
from evalengine.errors import ModelError, UserError
from evalengine.resolve import identify, release
from evalengine.types import Scores
from evalengine.untrusted import reason

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


class Work(NamedTuple):
    """One unit, with all that a worker needs for it. `plan` is a list around Ray's reference: fetched once, then kept."""

    checkpoint: Checkpoint  # identified by the driver
    benchmark: str
    category: str
    plan_key: str
    plan: list[Any]
    path: Path
    metadata: dict[str, str]
    ahead: Checkpoint | None  # the checkpoint that this worker will probably have next


class Scored(NamedTuple):
    """A finished unit. `scores` is None where the worker has written the file itself."""

    load_s: float  # 0 where the weights were there already
    seconds: float
    notes: list[str]
    scores: Scores | None


class Failure(NamedTuple):
    """`kind`: final (the checkpoint's own fault), again (worth another try), full (disk)."""

    kind: str
    reason: str


class Scorer:
    """Lives in a Ray actor. `threads` is how many cores it may use."""

    def __init__(self, spec: BackendSpec, threads: int, allow_pickle: bool, version: str) -> None:
        self._spec, self._threads, self._allow_pickle = spec, threads, allow_pickle
        self._version = version
        self._progress = Progress()
        self._backend: Any = None
        self._visible = False
        self._loaded: tuple[str, str] | None = None  # name and fingerprint
        self._plans: dict[str, Any] = {}
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="read-ahead")
        self._identified: dict[str, Future[Checkpoint]] = {}

    def hello(self, probe: Path, token: str) -> tuple[str, str]:
        """Gets ready; sees whether the driver's store is visible from here. Returns Ray's node id and the host's name."""
        import ray
        import torch

        if self._version != __version__:
            raise UserError(
                f"evalengine {__version__} is installed on {socket.gethostname()}, not {self._version}"
            )
        torch.set_num_threads(self._threads)
        self._backend = self._spec.make()
        self._visible = visible(probe, token)
        return ray.get_runtime_context().get_node_id(), socket.gethostname()

    def process(self) -> int:
        """The process id, for tests that kill it."""
        return os.getpid()

    def identify(self, checkpoint: Checkpoint) -> Checkpoint | Failure:
        """The checkpoint, identified as this node sees it."""
        try:
            return self._read(checkpoint).result()
        except Exception as error:
            self._identified.pop(checkpoint.name, None)
            return failure(checkpoint.name, error)

    def run(self, work: Work) -> Scored | Failure:
        try:
            return self._run(work)
        except Exception as error:
            self._loaded = None
            return failure(work.checkpoint.name, error)

    def _read(self, checkpoint: Checkpoint) -> Future[Checkpoint]:
        """Brings a checkpoint here where it is remote, and hashes its weights, in the background."""
        if checkpoint.name not in self._identified:
            self._identified[checkpoint.name] = self._reader.submit(
                read_checkpoint, checkpoint, self._allow_pickle, self._progress
            )
        return self._identified[checkpoint.name]

    def _run(self, work: Work) -> Scored | Failure:
        from evalengine import runner, store
        from evalengine.score_table import score_table

        load_s = self._load(work)
        if work.ahead is not None:
            self._read(work.ahead)
        self._progress()
        encoded = self._plan(work)
        self._progress()
        started = time.monotonic()
        scores = runner.scores_of(self._backend, encoded, work.benchmark, self._progress)
        seconds = time.monotonic() - started
        notes = list(self._backend.notes)
        if not self._visible:
            return Scored(load_s, seconds, notes, scores)
        table = score_table(work.checkpoint, work.benchmark, work.category, encoded, scores)
        try:
            store.write(work.path, table, work.metadata)
        except OSError as error:
            if error.errno in FULL:
                return Failure("full", f"{error.errno}\t{error.filename or work.path}")
            raise
        return Scored(load_s, seconds, notes, None)

    def _load(self, work: Work) -> float:
        """Makes the unit's checkpoint the loaded one. Raises UserError where its weights are not those that were identified."""
        wanted = (work.checkpoint.name, work.checkpoint.fingerprint)
        if self._loaded == wanted:
            return 0.0
        started = time.monotonic()
        self._loaded = None
        checkpoint = self._read(work.checkpoint).result()
        if checkpoint.fingerprint != work.checkpoint.fingerprint:
            self._identified.pop(work.checkpoint.name, None)
            raise UserError(
                f"{work.checkpoint.name} has other weights on {socket.gethostname()} than elsewhere, or they changed during the "
                "run: give every node the same files, then run the same command again"
            )
        for name in [n for n in self._identified if n != work.checkpoint.name]:
            if self._identified[name].done() and (work.ahead is None or name != work.ahead.name):
                release(self._identified.pop(name).result())
        self._backend.load(checkpoint)
        self._loaded = wanted
        return time.monotonic() - started

    def _plan(self, work: Work) -> Any:
        if work.plan_key not in self._plans:
            import ray

            (ref,) = work.plan
            self._plans[work.plan_key] = ray.get(ref)
        return self._plans[work.plan_key]


def read_checkpoint(checkpoint: Checkpoint, allow_pickle: bool, progress: Progress) -> Checkpoint:
    if checkpoint.source is None and not checkpoint.path.is_dir():
        raise UserError(
            f"{checkpoint.path} is not there on {socket.gethostname()}: checkpoints must lie in a folder that all nodes share, "
            "or be given as URIs (s3://, gs://, hf://)"
        )
    return identify(checkpoint, allow_pickle, progress)


def failure(name: str, error: Exception) -> Failure:
    """What an exception means for the checkpoint that raised it."""
    if isinstance(error, ModelError):
        return Failure("again", str(error))
    if isinstance(error, UserError):
        return Failure("final", str(error))
    return Failure("again", f"{type(error).__name__}: {reason(error)}")
