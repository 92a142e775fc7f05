"""Numba's compiler, with its cache and its threads set so that they harm nothing else."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

# Numba's first parallel call sets OpenMP's number of threads, which PyTorch shares: it must not undo what the user has set.
if "NUMBA_NUM_THREADS" not in os.environ and os.environ.get("OMP_NUM_THREADS", "0").strip("0").isdigit():
    os.environ["NUMBA_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"]
import numba


def jit(parallel: bool = False, fastmath: bool | set[str] = False) -> Callable[[Callable[..., Any]], Any]:
    """`numba.njit` with its cache on disk, if there is a place for one.

    Numba raises where it finds no folder to cache in (a package installed read-only, a home that cannot be written). The
    kernels then compile in memory, which costs some seconds a process instead of a failure.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        options: dict[str, Any] = {"parallel": parallel, "fastmath": fastmath, "nogil": True}
        try:
            return numba.njit(cache=True, **options)(function)
        except (RuntimeError, OSError):
            return numba.njit(cache=False, **options)(function)

    return decorate
