"""Importing large libraries, and leaving a process that has them, without Python's search for garbage.

PyTorch and transformers are a million objects that live as long as the process. The collector walks all of them while they are
imported, in each of its full searches later on, and when the interpreter ends: a quarter, and a second, of a short command.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import sys


def load(name: str) -> None:
    """Imports a module by its full name. What there is by then, and at the process's end, is not searched for garbage."""
    if name in sys.modules:
        return
    collecting = gc.isenabled()
    gc.disable()
    try:
        importlib.import_module(name)
    finally:
        gc.freeze()
        atexit.unregister(_leave)  # of the library before: once is enough
        atexit.register(_leave)
        if collecting:
            gc.enable()


def _leave() -> None:
    """Triton from 3.9 on would name every object that is left, on the terminal."""
    if "triton._C.libtriton" in sys.modules:
        gc.unfreeze()
    else:
        gc.freeze()
