"""Numba's compiler, with a cache on disk where there is a place for one."""

from __future__ import annotations

import contextlib
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
            compiled: Any = numba.njit(cache=True, fastmath=fastmath, nogil=True)(function)
        except (RuntimeError, OSError):
            return numba.njit(cache=False, fastmath=fastmath, nogil=True)(function)
        compiled._cache.load_overload = _forgiving(compiled._cache)
        return compiled

    return decorate


def _forgiving(cache: Any) -> Callable[..., Any]:
    """How a cache is read: as if it were empty where that fails.

    An index names the types of arguments, and cannot be read any more once an upgrade has moved or renamed one of them.
    """
    load = cache.load_overload

    def load_overload(*about: Any) -> Any:
        try:
            return load(*about)
        except Exception:
            with contextlib.suppress(OSError):
                cache.flush()
            return None

    return load_overload
