"""The actor of `--ray`: models that stay warm, and swap weights and plans as units come.

It never raises for a checkpoint's fault: it answers with a `Failure` that says whether another try is worth it. What it cannot
answer (it was killed) the pool notices.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

from evalengine import __version__
from evalengine.backends import BackendSpec, Models, models_for
from evalengine.checkpoints import Checkpoint, check_unchanged
from evalengine.checkpoints.resolve import ReadAhead
from evalengine.cluster.pool import Heartbeat
from evalengine.errors import ModelError, UserError
from evalengine.groups import CheckpointGroup, Wanted
from evalengine.plan.encoding import Scores
from evalengine.untrusted import reason


class ScoredUnit(NamedTuple):
    """A finished unit: the scores that were wanted, in their order."""

    scores: list[Scores]
    seconds: float
    load_s: float  # seconds to load the weights before, 0 where they were there already
    notes: tuple[str, ...]


class Failure(NamedTuple):
    """Why there is no result. `again`: another try may give one; else it is the checkpoint's own fault."""

    reason: str
    again: bool


class Scorer:
    """Lives in a Ray actor. `threads` is how many cores it may use, `version` the driver's, `models` how many checkpoints the
    largest group has."""

    def __init__(
        self, spec: BackendSpec, threads: int, allow_pickle: bool, version: str, models: int = 1
    ) -> None:
        self._spec, self._threads, self._version, self._count = spec, threads, version, models
        self._progress = Heartbeat()
        self._models: Models
        self._loaded: tuple[tuple[str, str], ...] = ()  # names and fingerprints
        self._plans: dict[Any, Any] = {}  # by Ray's reference
        self._allow_pickle, self._reading = allow_pickle, ReadAhead(allow_pickle, self._progress)

    def hello(self) -> tuple[str, str]:
        """Gets ready. Returns Ray's node id and the host's name."""
        import ray
        import torch

        if self._version != __version__:
            raise UserError(
                f"evalengine {__version__} is installed on {socket.gethostname()}, not {self._version}"
            )
        torch.set_num_threads(self._threads)
        self._models = models_for(self._spec, self._count)
        return ray.get_runtime_context().get_node_id(), socket.gethostname()

    def identify(self, group: CheckpointGroup) -> list[str] | Failure:
        """The fingerprints of a group's members, as this node sees them."""
        try:
            return [self._identified(one, group.members).fingerprint for one in group.members]
        except Exception as error:
            return failure(error)

    def run(
        self,
        group: CheckpointGroup,
        vocabulary: int,
        benchmark: str,
        plan: list[Any],
        wanted: Wanted,
        ahead: CheckpointGroup | None,
    ) -> ScoredUnit | Failure:
        """Scores an identified group on a benchmark; loads it before where it is not there.

        plan: a list around Ray's reference, so that the plan is fetched once and then kept. ahead: the group that this worker
        will probably have next, which is read in the background.
        """
        import ray

        from evalengine.plan.encoding import scores_of

        try:
            following = () if ahead is None else ahead.members
            load_s = self._load(group, vocabulary, following)
            for one in following:
                self._reading.start(one)
            self._progress()
            (ref,) = plan
            if ref not in self._plans:
                self._plans[ref] = ray.get(ref)
            self._progress()
            started = time.monotonic()
            score = partial(self._models.score, wanted)
            scores = scores_of(score, self._plans[ref], benchmark, self._progress)
            return ScoredUnit(scores, time.monotonic() - started, load_s, tuple(self._models.notes))
        except Exception as error:
            self._loaded = ()
            return failure(error)

    def _identified(self, checkpoint: Checkpoint, others: Sequence[Checkpoint]) -> Checkpoint:
        if checkpoint.source is None and not checkpoint.path.is_dir():
            raise UserError(
                f"{checkpoint.path} is not there on {socket.gethostname()}: checkpoints must lie in a folder that all nodes"
                " share, or be given as URIs (s3://, gs://, hf://)"
            )
        return self._reading.identified(checkpoint, others)

    def _load(self, group: CheckpointGroup, vocabulary: int, following: Sequence[Checkpoint]) -> float:
        """Loads a group unless it is loaded. Raises UserError where its weights are not those that were identified."""
        wanted = tuple((one.name, one.fingerprint) for one in group.members)
        if self._loaded == wanted:
            return 0.0
        started, self._loaded = time.monotonic(), ()
        found = [self._identified(one, [*group.members, *following]) for one in group.members]
        for one, (name, fingerprint) in zip(found, wanted, strict=True):
            if one.fingerprint != fingerprint:
                self._reading.forget(name)
                raise UserError(
                    f"{name} has other weights on {socket.gethostname()} than elsewhere, or they changed during the "
                    "run: give every node the same files, then run the same command again"
                )
        self._models.load(found, vocabulary)
        for one in found:
            check_unchanged(one, self._allow_pickle)
        self._loaded = wanted
        return time.monotonic() - started


def failure(error: Exception) -> Failure:
    """What an exception means for the checkpoint that raised it."""
    if isinstance(error, UserError):
        return Failure(str(error), again=isinstance(error, ModelError))
    return Failure(f"{type(error).__name__}: {reason(error)}", again=True)
