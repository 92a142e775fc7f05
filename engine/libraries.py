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
        atexit.unregister(gc.freeze)  # of the library before: once is enough
        atexit.register(gc.freeze)
        if collecting:
            gc.enable()
