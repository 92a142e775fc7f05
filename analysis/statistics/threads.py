"""Work on all cores, one level deep: the protocols of a study, or else a kernel's tiles.

Numba could do the latter itself. Its first parallel call sets OpenMP's number of threads, which PyTorch shares, and
without OpenMP it aborts a process in which two threads call kernels at once.
"""

from __future__ import annotations

import functools
import itertools
import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from evalengine import files

T = TypeVar("T")
MOST = 8  # threads of one kernel: calls are short, and each thread takes some 20 us to begin

# .here: this thread belongs to the pool, whose other threads have work of their own
_running = threading.local()


def count() -> int:
    """Threads to use: OMP_NUM_THREADS, which PyTorch and BLAS obey too, else one a core."""
    asked = os.environ.get("OMP_NUM_THREADS", "").strip()
    return int(asked) if asked.isdigit() and int(asked) else files.cores()


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count(), "analysis", lambda: setattr(_running, "here", True))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # a forked process has none of its parent's threads


def each(calls: Iterable[Callable[[], T]]) -> list[T]:
    """Results of the calls, in their order; they begin in that order. Where one raises, those that wait are not begun."""
    if count() == 1 or getattr(_running, "here", False):
        return [call() for call in calls]
    begun: list[Future[T]] = [_pool().submit(call) for call in calls]
    try:
        return [future.result() for future in begun]
    finally:
        for future in begun:
            future.cancel()


def spread(kernel: Callable[..., None], n: int, *arrays: Any) -> None:
    """Calls kernel(first, last, *arrays) with ranges that make up range(n). Ranges write to different elements of the arrays."""
    parts = 1 if getattr(_running, "here", False) else min(count(), n, MOST)
    ends = [n * k // parts for k in range(parts + 1)] if n else []
    each(functools.partial(kernel, first, last, *arrays) for first, last in itertools.pairwise(ends))
