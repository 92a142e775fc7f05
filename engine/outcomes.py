"""What has become of each checkpoint, from the events of a run: on the display, in the closing table, in the store's record."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from evalengine import store
from evalengine.checkpoints import Checkpoint
from evalengine.console import Progress
from evalengine.events import Advanced, Doing, Event, Failed, Finished, Kept, Noted, Stored
from evalengine.metrics import table_answers
from evalengine.resume import Options
from evalengine.types import Described

if TYPE_CHECKING:
    import pyarrow as pa


class Outcome(NamedTuple):
    """One checkpoint after a run. `failure` is None when all of it is scored."""

    checkpoint: Checkpoint
    scored: int  # benchmarks scored now
    kept: int  # benchmarks that the store held already
    items: int  # items scored now
    seconds: float
    notes: list[str]
    failure: str | None

    def record(self) -> dict[str, Any]:
        """As JSON: in the store's record of runs, and in --json."""
        return self._asdict() | {"checkpoint": self.checkpoint.name, "seconds": round(self.seconds, 3)}


class Outcomes:
    """Consumes the events of a run: what has become of each checkpoint so far."""

    def __init__(self, found: Sequence[Checkpoint]) -> None:
        self._of = {c.name: Outcome(c, 0, 0, 0, 0.0, [], None) for c in found}
        self._truncated: dict[str, dict[str, int]] = {}  # items longer than the window, by benchmark

    def __call__(self, event: Event) -> None:
        o = self._of[event.checkpoint]
        match event:
            case Kept(benchmarks=benchmarks):
                o = o._replace(kept=o.kept + benchmarks)
            case Stored(benchmark=benchmark, items=items, truncated=truncated):
                o = o._replace(scored=o.scored + 1, items=o.items + items)
                if truncated:
                    self._truncated.setdefault(o.checkpoint.name, {})[benchmark] = truncated
            case Noted(notes=notes):
                o = o._replace(notes=list(dict.fromkeys([*o.notes, *notes])))
            case Failed(reason=reason):
                o = o._replace(failure=reason)
            case Finished(seconds=seconds):
                o = o._replace(seconds=seconds)
        self._of[event.checkpoint] = o

    def all(self) -> list[Outcome]:
        """In the order of the checkpoints."""
        return [o._replace(notes=[*o.notes, *self._cut(o.checkpoint.name)]) for o in self._of.values()]

    def _cut(self, name: str) -> list[str]:
        cut = self._truncated.get(name, {})
        each = ", ".join(f"{benchmark} {n}" for benchmark, n in cut.items())
        total = sum(cut.values())
        return [f"{total} items longer than the model's window were cut on the left ({each})"] if cut else []


class Display:
    """Consumes the events of a run: moves a line of progress, which counts every item of every checkpoint once.

    `items`: of one checkpoint.
    """

    def __init__(self, line: Progress, items: int) -> None:
        self._line, self._items = line, items
        self._done: dict[str, float] = {}  # items counted, by checkpoint
        self._under_way: dict[str, float] = {}  # of them, items of a benchmark that is not stored yet

    def __call__(self, event: Event) -> None:
        name = event.checkpoint
        match event:
            case Doing(what=what):
                self._line.describe(f"{name}: {what}")
            case Advanced(items=items):
                self._under_way[name] = self._under_way.get(name, 0.0) + items
                self._move(name, items)
            case Stored(items=items):
                self._move(name, items - self._under_way.pop(name, 0.0))
            case Kept(items=items):
                self._move(name, items)
            case Finished():
                self._move(name, self._items - self._done.get(name, 0.0))

    def _move(self, name: str, items: float) -> None:
        self._done[name] = self._done.get(name, 0.0) + items
        self._line.update(items)


def run_record(outcomes: list[Outcome], backend: Described, options: Options) -> dict[str, Any]:
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "options": options.metadata(backend),
        "checkpoints": [outcome.record() for outcome in outcomes],
    }


def accuracy(table: pa.Table) -> float:
    """Share of items answered right by the benchmark's own score, which the table's metadata names (else acc)."""
    if not len(table):
        return float("nan")
    metric = (table.schema.metadata or {}).get(b"default_score", b"").decode() or "acc"
    found, gold_I = table_answers(table, metric)
    return float(np.mean(found.pick == gold_I))


def summaries(outcomes: list[Outcome], out: Path) -> Iterator[dict[str, Any]]:
    """What the closing table and --json say of each checkpoint."""
    for o in outcomes:
        files = [] if o.failure else sorted((out / o.checkpoint.name).glob("*.arrow"))
        accuracies = [accuracy(store.read(file)) for file in files]
        yield o.record() | {
            "items_per_second": round(o.items / o.seconds, 1) if o.items else None,
            "mean_acc": float(np.mean(accuracies)) if accuracies else None,
        }
