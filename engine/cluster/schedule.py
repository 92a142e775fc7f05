"""Who does what next: units of work, longest first, checkpoints kept together. Plain Python, no Ray.

A unit is a checkpoint on a benchmark. A worker goes on with the checkpoint that it has loaded; then takes one that nobody has,
the costliest first; then identifies the next one; then helps where most is left, if that pays for loading the weights again.
"""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from evalengine.cluster.pool import Worker

STRIKES = 3  # failures after which a checkpoint is set aside


class Unit(NamedTuple):
    """A checkpoint on a benchmark. Cost: the plan's tokens x the weights' bytes."""

    checkpoint: str
    benchmark: str
    cost: float


class Schedule:
    """Checkpoints to be identified, and the units of those that are."""

    def __init__(self, sizes: dict[str, float]) -> None:
        """sizes: of each checkpoint's weights, which order those that nobody has looked at yet."""
        self.unseen = sorted(sizes, key=lambda name: -sizes[name])
        self._units: dict[str, list[Unit]] = {}  # pending, the longest last
        self._strikes: Counter[str] = Counter()
        self._seconds = self._cost = 0.0  # measured, of units
        self._load_s: float | None = None  # measured, of loading a checkpoint

    def add(self, unit: Unit) -> None:
        units = self._units.setdefault(unit.checkpoint, [])
        bisect.insort(units, unit, key=lambda u: (u.cost, u.benchmark))

    def pending(self) -> int:
        return sum(map(len, self._units.values()))

    def next(self, worker: Worker, others: Sequence[Worker], planning: bool = False) -> Unit | str | None:
        """Takes a unit for an idle worker, or the name of a checkpoint that it identifies; None where it has nothing to do.

        `planning`: units of its checkpoint are still to come.
        """
        held = {w.loaded for w in others}
        if worker.loaded in self._units:
            return self._take(worker.loaded)
        free = [name for name in self._units if name not in held]
        if free:
            return self._take(max(free, key=self._left))
        if planning:
            return None
        if self.unseen:
            name = self.ahead(worker, others) or self.unseen[0]
            self.unseen.remove(name)
            return name
        return self._help()

    def ahead(self, worker: Worker, others: Sequence[Worker]) -> str | None:
        """The checkpoint that a worker will probably identify next, which it reads meanwhile: the largest that no other reads."""
        if worker.ahead not in self.unseen:
            taken = {w.ahead for w in others}
            worker.ahead = next((name for name in self.unseen if name not in taken), None)
        return worker.ahead

    def _help(self) -> Unit | None:
        """A unit of a checkpoint that others have, if what is left there takes longer than loading it."""
        if not self._units:
            return None
        name = max(self._units, key=self._left)
        if self._load_s is not None and self._left(name) * self._seconds <= self._load_s * self._cost:
            return None
        return self._take(name)

    def _take(self, name: str) -> Unit:
        unit = self._units[name].pop()
        if not self._units[name]:
            del self._units[name]
        return unit

    def _left(self, name: str) -> float:
        return sum(unit.cost for unit in self._units[name])

    def measured(self, cost: float, seconds: float, load_s: float) -> None:
        """What a unit took, and loading its checkpoint (0 where it was loaded)."""
        self._cost += cost
        self._seconds += seconds
        if load_s > 0:  # the quickest: a worker's first load imports, too
            self._load_s = min(load_s, self._load_s or load_s)

    def strikes(self, name: str) -> int:
        return self._strikes[name]

    def strike(self, name: str) -> bool:
        """Counts a failure; True when the checkpoint is to be set aside."""
        self._strikes[name] += 1
        return self._strikes[name] >= STRIKES

    def drop(self, name: str) -> None:
        """Forgets what is pending of a checkpoint."""
        self._units.pop(name, None)
        if name in self.unseen:
            self.unseen.remove(name)
