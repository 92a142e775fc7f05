"""The pool's workers on a real Ray: slow ones, and one that hangs."""

from __future__ import annotations

import sys
import time

import pytest

from evalengine.cluster.pool import Ended, Heartbeat, Need, Pool
from evalengine.errors import UserError

LIMIT_S = 5.0


class Sleeper:
    """An actor that makes progress every half second, or none at all."""

    def __init__(self) -> None:
        self._progress = Heartbeat()

    def hello(self) -> tuple[str, str]:
        return "node", "host"

    def run(self, seconds: float, with_progress: bool) -> str:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(0.5)
            if with_progress:
                self._progress()
        return "done"


@pytest.mark.slow
def test_a_worker_hangs_when_it_makes_no_progress_and_not_when_it_is_slow(ray_local: None) -> None:
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers do not see the tests
    ended: dict[bool, Ended] = {}
    given = [False, True]
    with Pool(Sleeper, (), Need(1, 0.0), 2) as pool:
        end = time.monotonic() + 120
        while len(ended) < 2 and time.monotonic() < end:
            pool.grow(2)
            for worker in pool.idle():
                if given:
                    progress = given.pop()
                    seconds = 2 * LIMIT_S if progress else 600.0
                    pool.give(worker, progress, worker.actor.run.remote(seconds, progress), LIMIT_S)
            ended |= {e.task: e for e in pool.wait(0.1)}
    assert ended[True].value == "done" and ended[True].died is None
    assert ended[False].value is None and str(ended[False].died).startswith("it hangs: no progress for 5 s")


class Elsewhere:
    """An actor whose code is not on the node."""

    def __init__(self) -> None:
        import not_installed_here  # noqa: F401

    def hello(self) -> tuple[str, str]:
        return "node", "host"


def test_a_worker_that_cannot_start_says_why(ray_local: None) -> None:
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    with (
        Pool(Elsewhere, (), Need(1, 0.0), 1) as pool,
        pytest.raises(UserError, match=r"before they are ready: ModuleNotFoundError: .*not_installed_here"),
    ):
        end = time.monotonic() + 120
        while time.monotonic() < end:
            pool.grow(1)
            pool.wait(0.1)
