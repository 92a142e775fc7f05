"""Numba as this package uses it: compiled once, cached where a folder can be written, and never a reason to fail.

Numba raises at import time when it finds no folder to cache in (a package installed read-only, a home that cannot be
written). The kernels then compile in memory, which costs some seconds a process instead of a failure.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba


def jit(parallel: bool = False, fastmath: bool | set[str] = False) -> Callable[[Callable[..., Any]], Any]:
    """`numba.njit` with the disk cache if there is a place for it."""

    def decorate(function: Callable[..., Any]) -> Any:
        options: dict[str, Any] = {"parallel": parallel, "fastmath": fastmath, "nogil": True}
        try:
            return numba.njit(cache=True, **options)(function)
        except (RuntimeError, OSError):  # no cache locator: nowhere to write
            return numba.njit(cache=False, **options)(function)

    return decorate
