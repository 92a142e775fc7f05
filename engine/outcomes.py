"""What has become of each checkpoint: the running report, the closing lines, and the record kept beside the scores."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from evalengine import store
from evalengine.checkpoints import Checkpoint
from evalengine.metrics import table_answers

if TYPE_CHECKING:
    import pyarrow as pa

    from evalengine.runner import Described, Options


class Outcome(NamedTuple):
    """One checkpoint after a run. `failure` is None when all of it is scored."""

    checkpoint: Checkpoint
    scored: int  # benchmarks scored now
    kept: int  # benchmarks that the store held already
    items: int  # items scored now
    seconds: float
    notes: list[str]
    failure: str | None


@dataclass
class Report:
    """What has happened to a checkpoint so far."""

    scored: int = 0
    kept: int = 0
    items: int = 0
    seen: int = 0  # items scored or kept: what progress has counted
    notes: list[str] = field(default_factory=list)
    cut: dict[str, int] = field(default_factory=dict)  # items longer than the window, by benchmark
    failure: str | None = None

    def outcome(self, checkpoint: Checkpoint, seconds: float) -> Outcome:
        notes = list(dict.fromkeys(self.notes))
        if self.cut:
            each = ", ".join(f"{name} {n}" for name, n in self.cut.items())
            total = sum(self.cut.values())
            notes.append(f"{total} items longer than the model's window were cut on the left ({each})")
        return Outcome(checkpoint, self.scored, self.kept, self.items, seconds, notes, self.failure)


def run_record(outcomes: list[Outcome], backend: Described, options: Options) -> dict[str, Any]:
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "options": options.metadata(backend),
        "checkpoints": [
            {
                "checkpoint": o.checkpoint.name,
                "scored": o.scored,
                "kept": o.kept,
                "items": o.items,
                "seconds": round(o.seconds, 3),
                "notes": o.notes,
                "failure": o.failure,
            }
            for o in outcomes
        ],
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
        folder = out / o.checkpoint.name
        scored = (
            {p.stem: accuracy(store.read(p)) for p in sorted(folder.glob("*.arrow"))} if not o.failure else {}
        )
        yield {
            "checkpoint": o.checkpoint.name,
            "scored": o.scored,
            "kept": o.kept,
            "items": o.items,
            "seconds": round(o.seconds, 3),
            "items_per_second": round(o.items / o.seconds, 1) if o.items else None,
            "mean_acc": float(np.mean(list(scored.values()))) if scored else None,
            "notes": o.notes,
            "failure": o.failure,
        }
