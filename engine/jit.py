"""Numba's compiler, with a cache on disk where there is a place for one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba


def jit(fastmath: bool | set[str] = False) -> Callable[[Callable[..., Any]], Any]:
    """`numba.njit` with its cache on disk, if there is a place for one.

    Numba raises where it finds no folder to cache in (a package installed read-only, a home that cannot be written). The
    kernels then compile in memory, which costs some seconds a process instead of a failure.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        try:
            return numba.njit(cache=True, fastmath=fastmath, nogil=True)(function)
        except (RuntimeError, OSError):
            return numba.njit(cache=False, fastmath=fastmath, nogil=True)(function)

    return decorate
