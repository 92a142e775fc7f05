"""evalengine: score many language-model checkpoints on 20 benchmarks, and say what survives fine-tuning.

    >>> import evalengine
    >>> table = evalengine.load("scores/")        # a pyarrow.Table, one row per (checkpoint, benchmark, item)

Importing the package costs milliseconds: torch, numba, pyarrow and the rest load where they are used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from evalengine.errors import UserError

if TYPE_CHECKING:
    from evalengine.checkpoints.remote import load

__all__ = ["UserError", "__version__", "load"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name == "load":
        from evalengine.checkpoints.remote import load

        return load
    raise AttributeError(f"module 'evalengine' has no attribute {name!r}")
