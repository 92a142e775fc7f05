"""Who does what next: units of work, longest first, checkpoints kept together. Plain Python, no Ray.

A unit is a checkpoint on a benchmark. A worker goes on with the checkpoint that it has loaded; then takes one
that nobody has, the costliest first; then helps where most is left, if that pays for loading the weights once more.
"""

from __future__ import annotations

import bisect
from collections import defaultdict
from collections.abc import Collection
from typing import NamedTuple

STRIKES = 3  # failures after which a checkpoint is set aside


class Unit(NamedTuple):
    """A checkpoint on a benchmark. Cost: the plan's tokens x the weights' bytes."""

    checkpoint: str
    benchmark: str
    cost: float


class Schedule:
    """Checkpoints to be identified, and the units of those that are."""

    def __init__(self, weights: dict[str, float]) -> None:
        """weights: size of each checkpoint, which orders those that nobody has looked at yet."""
        self._unseen = dict(sorted(weights.items(), key=lambda kv: -kv[1]))
        self._units: dict[str, list[Unit]] = defaultdict(list)  # pending, the longest last
        self._strikes: dict[str, int] = defaultdict(int)
        self.seconds_per_cost: float | None = None  # measured, of units
        self.load_s: float | None = None  # measured, of loading a checkpoint

    def add(self, unit: Unit) -> None:
        bisect.insort(self._units[unit.checkpoint], unit, key=lambda u: (u.cost, u.benchmark))

    def unseen(self) -> int:
        return len(self._unseen)

    def pending(self) -> int:
        return sum(map(len, self._units.values()))

    def next_unit(self, loaded: str | None, held: Collection[str]) -> Unit | None:
        """Takes the unit for a worker that has `loaded`, where the other workers have the checkpoints `held`."""
        if loaded is not None and self._units.get(loaded):
            return self._units[loaded].pop()
        free = [name for name, units in self._units.items() if units and name not in held]
        if free:
            return self._units[max(free, key=self._left)].pop()
        return None

    def next_unseen(self, promised: str | None = None, others: Collection[str] = ()) -> str | None:
        """The checkpoint to identify next: the one promised to this worker, else the largest that no `others` are promised."""
        if promised in self._unseen:
            self._unseen.pop(promised)
            return promised
        for name in self._unseen:
            if name not in others:
                self._unseen.pop(name)
                return name
        return None

    def peek_unseen(self, others: Collection[str]) -> str | None:
        return next((name for name in self._unseen if name not in others), None)

    def steal(self) -> Unit | None:
        """A unit of a checkpoint that others have, if what is left there takes longer than loading it."""
        busy = [name for name, units in self._units.items() if units]
        if not busy:
            return None
        name = max(busy, key=self._left)
        measured = self.seconds_per_cost is not None and self.load_s is not None
        if measured and self._left(name) * self.seconds_per_cost <= self.load_s:  # type: ignore[operator]
            return None
        return self._units[name].pop()

    def _left(self, name: str) -> float:
        return sum(u.cost for u in self._units[name])

    def measured(self, cost: float, seconds: float, load_s: float) -> None:
        """Running mean of what units take, and the quickest load."""
        if cost > 0:
            rate = seconds / cost
            self.seconds_per_cost = (
                rate if self.seconds_per_cost is None else 0.8 * self.seconds_per_cost + 0.2 * rate
            )
        if load_s > 0:
            self.load_s = (
                load_s if self.load_s is None else min(self.load_s, load_s)
            )  # the first one imports, too

    def again(self, name: str) -> None:
        """A checkpoint must be identified once more."""
        self._unseen[name] = 0.0

    def strikes(self, name: str) -> int:
        return self._strikes[name]

    def strike(self, name: str) -> bool:
        """Counts a failure; True when the checkpoint is to be set aside."""
        self._strikes[name] += 1
        return self._strikes[name] >= STRIKES

    def drop(self, name: str) -> None:
        """Forgets what is pending of a checkpoint."""
        self._unseen.pop(name, None)
        self._units.pop(name, None)
