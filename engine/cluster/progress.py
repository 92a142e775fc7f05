"""A worker's progress, by which the driver tells a slow worker from one that hangs.

An actor in the middle of a call answers no other one. So it notes the time in the key-value store of Ray's head node, at most
once a second, and the driver reads it only where a call takes long.
"""

from __future__ import annotations

import contextlib
import time
from typing import Any

REPORT_S = 1.0
SPACE = "evalengine-progress"


class Progress:
    """In an actor: call it whenever a piece of work is done, from any thread."""

    def __init__(self) -> None:
        import ray

        self._key = str(ray.get_runtime_context().get_actor_id())
        self._reported = float("-inf")

    def __call__(self, _: float = 0.0) -> None:
        now = time.monotonic()
        if now - self._reported < REPORT_S:
            return
        from ray.experimental.internal_kv import _internal_kv_put

        self._reported = now
        with contextlib.suppress(Exception):  # a lost report is no reason to lose the work
            _internal_kv_put(self._key, str(now), namespace=SPACE)


def reported(actor: Any) -> bytes | None:
    """In the driver: what an actor reported last; it changes with every report."""
    from ray.experimental.internal_kv import _internal_kv_get

    value: bytes | None = _internal_kv_get(actor._actor_id.hex(), namespace=SPACE)
    return value
