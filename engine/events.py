"""What happens during a run, as values, and what is made of them: a line of progress, and what has become of each checkpoint."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from evalengine.checkpoints import Checkpoint
    from evalengine.console import Progress
    from evalengine.resume import Named, ScoreOptions


class Doing(NamedTuple):
    """What a checkpoint is at now, in words."""

    checkpoint: str
    what: str


class Kept(NamedTuple):
    """Benchmarks that the store holds already."""

    checkpoint: str
    benchmarks: int
    items: int


class Advanced(NamedTuple):
    """Items of a benchmark that is not stored yet; fractions where an item has several sequences."""

    checkpoint: str
    items: float


class Stored(NamedTuple):
    """A benchmark is scored and its file is whole. `truncated` items had their context cut to the window."""

    checkpoint: str
    benchmark: str
    path: Path
    items: int
    truncated: int


class Relabelled(NamedTuple):
    """A stored file has new labels; its scores are as they were."""

    checkpoint: str
    path: Path


class Noted(NamedTuple):
    """What the user should know about a checkpoint."""

    checkpoint: str
    notes: tuple[str, ...]


class Failed(NamedTuple):
    """A checkpoint is given up."""

    checkpoint: str
    reason: str


class Finished(NamedTuple):
    """A checkpoint is done, failed or not, after so many seconds."""

    checkpoint: str
    seconds: float


Event = Doing | Kept | Advanced | Stored | Relabelled | Noted | Failed | Finished
Emit = Callable[[Event], None]


def to_all(*consumers: Emit) -> Emit:
    """One consumer that hands each event to all of these, in order."""

    def emit(event: Event) -> None:
        for consumer in consumers:
            consumer(event)

    return emit


class Outcome(NamedTuple):
    """One checkpoint after a run. `failure` is None when all of it is scored."""

    checkpoint: Checkpoint
    scored: int = 0  # benchmarks scored now
    kept: int = 0  # benchmarks that the store held already
    items: int = 0  # items scored now
    seconds: float = 0.0
    notes: tuple[str, ...] = ()
    failure: str | None = None

    def record(self) -> dict[str, Any]:
        """As JSON: in the store's record of runs, and in --json."""
        return self._asdict() | {"checkpoint": self.checkpoint.name, "seconds": round(self.seconds, 3)}


class Outcomes:
    """Consumes the events of a run: what has become of each checkpoint so far."""

    def __init__(self, found: Sequence[Checkpoint]) -> None:
        self._of = {c.name: Outcome(c) for c in found}
        self._truncated: dict[str, dict[str, int]] = {c.name: {} for c in found}  # items, by benchmark

    def __call__(self, event: Event) -> None:
        o, cut = self._of[event.checkpoint], self._truncated[event.checkpoint]
        match event:
            case Kept(benchmarks=benchmarks):
                o = o._replace(kept=o.kept + benchmarks)
            case Stored(benchmark=benchmark, items=items, truncated=truncated):
                o = o._replace(scored=o.scored + 1, items=o.items + items)
                cut |= {benchmark: truncated} if truncated else {}
            case Noted(notes=notes):
                o = o._replace(notes=tuple(dict.fromkeys([*o.notes, *notes])))
            case Failed(reason=reason):
                o = o._replace(failure=reason)
            case Finished(seconds=seconds):
                count, each = sum(cut.values()), ", ".join(f"{benchmark} {n}" for benchmark, n in cut.items())
                said = f"{count} items longer than the model's window were cut on the left ({each})"
                o = o._replace(seconds=seconds, notes=(*o.notes, *([said] if cut else [])))
        self._of[event.checkpoint] = o

    def all(self) -> list[Outcome]:
        """In the order of the checkpoints."""
        return list(self._of.values())

    def record(self, backend: Named, options: ScoreOptions) -> dict[str, Any]:
        """The run, as the store keeps it."""
        return {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "options": options.metadata(backend),
            "checkpoints": [outcome.record() for outcome in self.all()],
        }


class Display:
    """Consumes the events of a run: moves a line of progress, which counts every item of every checkpoint once.

    `items`: of one checkpoint.
    """

    def __init__(self, line: Progress, items: int) -> None:
        self._line, self._items = line, items
        self._shown: dict[str, float] = {}  # items counted, by checkpoint
        self._whole: dict[str, int] = {}  # of them, items of benchmarks that are stored

    def __call__(self, event: Event) -> None:
        name = event.checkpoint
        before = now = self._shown.get(name, 0.0)
        match event:
            case Doing(what=what):
                self._line.describe(f"{name}: {what}")
            case Advanced(items=items):
                now += items
            case Kept(items=items) | Stored(items=items):
                now = self._whole[name] = self._whole.get(name, 0) + items
            case Finished():
                now = self._items
        if now != before:
            self._shown[name] = now
            self._line.update(now - before)
