"""The actor of `evalengine score --ray`: a backend that stays warm, and swaps weights and plans as units come.

It never raises for a checkpoint's fault: it answers with a `Failure` that says whether another try is worth it. What it cannot
answer (it was killed) the pool notices.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from evalengine import __version__
from evalengine.backends import BackendSpec
from evalengine.checkpoints import Checkpoint
from evalengine.cluster.pool import Heartbeat
from evalengine.encoding import Scores
from evalengine.errors import ModelError, UserError
from evalengine.resolve import ReadAhead
from evalengine.untrusted import reason


class Scored(NamedTuple):
    """A finished unit."""

    scores: Scores
    seconds: float
    load_s: float  # seconds to load the weights before, 0 where they were there already
    notes: tuple[str, ...]


class Failure(NamedTuple):
    """Why there is no result. `again`: another try may give one; else it is the checkpoint's own fault."""

    reason: str
    again: bool


class Scorer:
    """Lives in a Ray actor. `threads` is how many cores it may use, `version` the driver's."""

    def __init__(self, spec: BackendSpec, threads: int, allow_pickle: bool, version: str) -> None:
        self._spec, self._threads, self._version = spec, threads, version
        self._progress = Heartbeat()
        self._backend: Any = None
        self._loaded: tuple[str, str] | None = None  # name and fingerprint
        self._plans: dict[Any, Any] = {}  # by Ray's reference
        self._reading = ReadAhead(allow_pickle, self._progress)

    def hello(self) -> tuple[str, str]:
        """Gets ready. Returns Ray's node id and the host's name."""
        import ray
        import torch

        if self._version != __version__:
            raise UserError(
                f"evalengine {__version__} is installed on {socket.gethostname()}, not {self._version}"
            )
        torch.set_num_threads(self._threads)
        self._backend = self._spec.make()
        return ray.get_runtime_context().get_node_id(), socket.gethostname()

    def identify(self, checkpoint: Checkpoint) -> Checkpoint | Failure:
        """The checkpoint, identified as this node sees it."""
        try:
            return self._identified(checkpoint)
        except Exception as error:
            return failure(error)

    def run(
        self, checkpoint: Checkpoint, benchmark: str, plan: list[Any], ahead: Checkpoint | None
    ) -> Scored | Failure:
        """Scores an identified checkpoint on a benchmark.

        plan: a list around Ray's reference, so that the plan is fetched once and then kept. ahead: the checkpoint that this
        worker will probably have next, which is read in the background.
        """
        import ray

        from evalengine import runner

        try:
            load_s = self._load(checkpoint, ahead)
            if ahead is not None:
                self._reading.start(ahead)
            self._progress()
            (ref,) = plan
            if ref not in self._plans:
                self._plans[ref] = ray.get(ref)
            self._progress()
            started = time.monotonic()
            scores = runner.scores_of(self._backend.score, self._plans[ref], benchmark, self._progress)
            return Scored(scores, time.monotonic() - started, load_s, tuple(self._backend.notes))
        except Exception as error:
            self._loaded = None
            return failure(error)

    def _identified(self, checkpoint: Checkpoint, ahead: Sequence[Checkpoint] = ()) -> Checkpoint:
        if checkpoint.source is None and not checkpoint.path.is_dir():
            raise UserError(
                f"{checkpoint.path} is not there on {socket.gethostname()}: checkpoints must lie in a folder that all nodes"
                " share, or be given as URIs (s3://, gs://, hf://)"
            )
        return self._reading.identified(checkpoint, ahead)

    def _load(self, wanted: Checkpoint, ahead: Checkpoint | None) -> float:
        """Loads a checkpoint unless it is loaded. Raises UserError where its weights are not those that were identified."""
        if self._loaded == (wanted.name, wanted.fingerprint):
            return 0.0
        started = time.monotonic()
        self._loaded = None
        checkpoint = self._identified(wanted, [] if ahead is None else [ahead])
        if checkpoint.fingerprint != wanted.fingerprint:
            self._reading.forget(wanted.name)
            raise UserError(
                f"{wanted.name} has other weights on {socket.gethostname()} than elsewhere, or they changed during the "
                "run: give every node the same files, then run the same command again"
            )
        self._backend.load(checkpoint)
        self._loaded = (wanted.name, wanted.fingerprint)
        return time.monotonic() - started


def failure(error: Exception) -> Failure:
    """What an exception means for the checkpoint that raised it."""
    if isinstance(error, UserError):
        return Failure(str(error), again=isinstance(error, ModelError))
    return Failure(f"{type(error).__name__}: {reason(error)}", again=True)
