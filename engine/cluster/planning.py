"""Plans of a scale-out run: made by the driver in a thread, each once, and put where workers find them."""

from __future__ import annotations

import queue
import threading
from typing import TYPE_CHECKING, Any, NamedTuple

from evalengine import plans
from evalengine.checkpoints import Checkpoint
from evalengine.cluster import connect

if TYPE_CHECKING:
    from evalengine.benchmarks import ItemSet
    from evalengine.encoding import Encoded

CLOSE_S = 10.0


class Plan(NamedTuple):
    encoded: Encoded
    ref: Any  # Ray's reference to `encoded`


class Planned(NamedTuple):
    """From the planning thread: a checkpoint's benchmark has its plan, or `error` says why not."""

    checkpoint: str
    benchmark: str
    plan: Plan | None
    error: Exception | None = None


class Plans:
    """Makes plans in a thread, in the order they are asked for, each once, and puts them where workers find them."""

    def __init__(self, planner: plans.Planner) -> None:
        self._planner = planner
        self._asked: queue.SimpleQueue[tuple[Checkpoint, ItemSet] | None] = queue.SimpleQueue()
        self._made: dict[str, Plan] = {}
        self.done: queue.SimpleQueue[Planned] = queue.SimpleQueue()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._work, name="planning", daemon=True)
        self._thread.start()

    def ask(self, checkpoint: Checkpoint, items: ItemSet) -> None:
        self._asked.put((checkpoint, items))

    def close(self) -> None:
        """Ends the thread, after the plan that it is making if that takes no longer than `CLOSE_S`."""
        self._closed.set()
        self._asked.put(None)
        self._thread.join(CLOSE_S)

    def _work(self) -> None:
        ray = connect.import_ray()
        while (asked := self._asked.get()) is not None and not self._closed.is_set():
            checkpoint, items = asked
            try:
                key = self._planner.key(checkpoint, items)
                if key not in self._made:
                    encoded = self._planner.plan(checkpoint, items)
                    self._made[key] = Plan(encoded, ray.put(encoded))
                self.done.put(Planned(checkpoint.name, items.benchmark, self._made[key]))
            except Exception as error:
                self.done.put(Planned(checkpoint.name, items.benchmark, None, error))


def text_size(items: ItemSet) -> int:
    """What orders benchmarks before they are planned."""
    return sum(len(text) for item in items.items for text in (*item.contexts, *item.continuations))
