"""The turns of a run's groups, in one process (runner.py) or on a cluster: what follows them, and what becomes of an error."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Sequence

from evalengine import console, events
from evalengine.errors import UserError
from evalengine.events import Display, Emit, Outcomes, to_all
from evalengine.groups import CheckpointGroup
from evalengine.resume import Asked
from evalengine.untrusted import reason


@contextlib.contextmanager
def followed(
    groups: Sequence[CheckpointGroup], asked: Asked, on_event: Emit
) -> Iterator[tuple[list[CheckpointGroup], Outcomes, Emit, console.Progress]]:
    """Groups that can be scored, what becomes of all checkpoints, where events go, and the line of progress.

    Those of a group that lacks something have failed.
    """
    every = [one for group in groups for one in group.every]
    items, outcomes = sum(len(one.items) for one, _ in asked.item_sets), Outcomes(every)
    with console.progress("scoring", len(every) * items, "items") as line:
        emit = to_all(outcomes, Display(line, items), on_event)
        for group in groups:
            if group.lacks:
                fail(group, group.lacks, emit)
                finish(group, 0.0, emit)
        yield [group for group in groups if not group.lacks], outcomes, emit, line


@contextlib.contextmanager
def finished(group: CheckpointGroup, emit: Emit) -> Iterator[None]:
    """A group's turn: what is raised in it is the group's failure."""
    started = time.monotonic()
    try:
        yield
    except OSError:  # a full disk or a folder taken away concerns them all
        raise
    except Exception as error:
        if os.environ.get("EVALENGINE_DEBUG") and not isinstance(error, UserError):
            raise
        fail(group, sentence(group.name, error), emit)
    finish(group, time.monotonic() - started, emit)


def fail(group: CheckpointGroup, why: str, emit: Emit) -> None:
    for one in group.every:
        emit(events.Failed(one.name, why))


def finish(group: CheckpointGroup, seconds: float, emit: Emit) -> None:
    """A group is done, after seconds that its checkpoints share."""
    every = group.every
    for one in every:
        emit(events.Finished(one.name, seconds / len(every)))


def sentence(name: str, error: Exception) -> str:
    """Why a checkpoint failed: a UserError's own words, or those of an error nobody foresaw."""
    if isinstance(error, UserError):
        return str(error)
    return f"{name} stopped with an error of its own: {reason(error)} (EVALENGINE_DEBUG=1 shows where)"
