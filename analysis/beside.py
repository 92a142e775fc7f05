"""A second process for large studies: half of the reading and half of the statistics happen there.

Opening 20,000 files and making 10,000 tables' rows is Python's work, which threads of one process do one at a time. The helper
costs a second to start, so small studies never start it; if it is killed, its share is done here.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

Result = TypeVar("Result")


@contextlib.contextmanager
def helper() -> Iterator[Executor | None]:
    """A process that starts with its first task; None where there is one core. For programs whose main module may be
    imported again, as evalengine's own."""
    if cores() < 2:
        yield None
        return
    pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=_start)
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    """Numba and BLAS with no more than `count` threads: two processes that wait for each other's cores, busily, are slower
    than one."""
    import numba
    from threadpoolctl import threadpool_limits

    before = numba.get_num_threads()
    numba.set_num_threads(min(before, count))
    try:
        with threadpool_limits(count, user_api="blas"):
            yield
    finally:
        numba.set_num_threads(before)


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _start() -> None:
    """Leaves Ctrl-C to the parent, and ends with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def beside(pool: Executor, task: Callable[..., Result], *args: Any) -> Callable[[], Result]:
    """Starts a task in the helper; what is returned waits for its result, or makes it here where the helper was killed."""
    try:
        future = pool.submit(task, *args)
    except BrokenProcessPool:
        return lambda: task(*args)

    def fetch() -> Result:
        try:
            return future.result()
        except BrokenProcessPool:
            return task(*args)

    return fetch
