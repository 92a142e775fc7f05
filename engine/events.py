"""What happens during a run, as values. The display, the report and the upload of files consume them; nothing else is shared."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple


class Doing(NamedTuple):
    """What a checkpoint is at now, in words."""

    checkpoint: str
    what: str


class Kept(NamedTuple):
    """Benchmarks that the store holds already."""

    checkpoint: str
    benchmarks: int
    items: int


class Advanced(NamedTuple):
    """Items of a benchmark that is not stored yet; fractions where an item has several sequences."""

    checkpoint: str
    items: float


class Stored(NamedTuple):
    """A benchmark is scored and its file is whole. `truncated` items were longer than the window."""

    checkpoint: str
    benchmark: str
    path: Path
    items: int
    truncated: int


class Noted(NamedTuple):
    """What the user should know about a checkpoint."""

    checkpoint: str
    notes: tuple[str, ...]


class Failed(NamedTuple):
    """A checkpoint is given up."""

    checkpoint: str
    reason: str


class Finished(NamedTuple):
    """A checkpoint is done, failed or not, after so many seconds."""

    checkpoint: str
    seconds: float


Event = Doing | Kept | Advanced | Stored | Noted | Failed | Finished
Emit = Callable[[Event], None]


def to_all(*consumers: Emit) -> Emit:
    """One consumer that hands each event to all of these, in order."""

    def emit(event: Event) -> None:
        for consumer in consumers:
            consumer(event)

    return emit
