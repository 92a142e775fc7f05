"""The product: checkpoints in, score store out.

    for group in groups:                                    # of one checkpoint, but for emulated fine-tuning (groups.py)
        pending = pending_of(group)                         # what the store does not hold yet; none: the next group
        models.load(group.members)                          # weights swap in place within an architecture
        for items, tasks in pending:
            encoded = planner.plan(group, items)            # made once per tokenizer and context length
            scores = models.score(wanted, encoded.sequences)
            keep(tasks, encoded, scores)                    # a file each, whole or not at all

One bad checkpoint does not stop the others: its reason is kept, shown at the end, and the exit code says so.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from evalengine import console, events, store
from evalengine.backends import Models
from evalengine.checkpoints import check_unchanged, reading
from evalengine.checkpoints.resolve import ReadAhead
from evalengine.errors import UserError
from evalengine.events import Display, Emit, Outcome, Outcomes, to_all
from evalengine.groups import CheckpointGroup, keep, pending_of
from evalengine.plan.encoding import Encoded, OnProgress, Sequences, SequenceTooLarge
from evalengine.plan.plans import Planner
from evalengine.resume import Asked, ScoreOptions
from evalengine.untrusted import reason

if TYPE_CHECKING:
    from evalengine.benchmarks import Benchmark, ItemSet

T = TypeVar("T")


def run(
    groups: Sequence[CheckpointGroup], asked: Asked, models: Models, on_event: Emit = lambda event: None
) -> list[Outcome]:
    """Scores the members of every group and what is emulated with them: what the store does not hold yet.

    `on_event` is called with every event of the run.
    """
    options = asked.options
    with (
        store.lock(asked.out),
        followed(groups, asked, on_event) as (whole, outcomes, emit, _),
        ReadAhead(options.allow_pickle) as reading,
        Planner(options.trust_remote_code, options.pmi, options.chat) as planner,
    ):
        for group, ahead in itertools.zip_longest(whole, whole[1:]):
            with finished(group, emit):
                wanted = [*group.members, *(() if ahead is None else ahead.members)]
                members = tuple(reading.identified(one, wanted) for one in group.members)
                _score(group._replace(members=members), asked, models, planner, emit)
        store.log_run(asked.out, outcomes.record(models, options))
    return outcomes.all()


def _score(group: CheckpointGroup, asked: Asked, models: Models, planner: Planner, emit: Emit) -> None:
    """Scores and stores what an identified group lacks. Raises UserError; what is done by then is stored."""
    pending = pending_of(group, asked, models, planner, emit)
    if not pending:
        return
    first, every = group.members[0], group.every
    wanted_items = [items for items, _ in asked.item_sets if items.benchmark in pending]
    emit(events.Doing(first.name, "loading"))
    if models.name == "torch":  # vLLM forks, and no thread may be inside of a tokenizer then
        planner.begin(first, wanted_items)
    with reading(first):
        models.load(group.members, group.vocabulary(planner))
    for checkpoint in group.members:
        check_unchanged(checkpoint, asked.options.allow_pickle)
    for checkpoint in every:
        emit(events.Noted(checkpoint.name, tuple(models.notes)))
    for items in wanted_items:
        tasks = pending[items.benchmark]
        emit(events.Doing(first.name, items.benchmark))
        encoded = planner.plan(first, items)
        share = len(items.items) / max(len(encoded.sequences), 1)

        def advance(sequences: float, name: str = every[min(tasks)].name, share: float = share) -> None:
            emit(events.Advanced(name, sequences * share))

        wanted, _ = group.wanted(tasks)
        found = scores_of(partial(models.score, wanted), encoded, items.benchmark, advance)
        keep(group, tasks, encoded, found, models.notes, emit)


@contextlib.contextmanager
def followed(
    groups: Sequence[CheckpointGroup], asked: Asked, on_event: Emit
) -> Iterator[tuple[list[CheckpointGroup], Outcomes, Emit, console.Progress]]:
    """Groups that can be scored, what becomes of all checkpoints, who is told of it, and the line of progress.

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


def scores_of(
    score: Callable[[Sequences, OnProgress | None], T],
    encoded: Encoded,
    benchmark: str,
    progress: OnProgress | None = None,
) -> T:
    """What `score` makes of a benchmark's sequences. Raises UserError, with the item's name where one alone is too large."""
    try:
        return score(encoded.sequences, progress)
    except SequenceTooLarge as error:
        choices = np.flatnonzero(encoded.sequence_C == error.sequence)
        if not len(choices):
            raise
        item = encoded.item[int(np.searchsorted(encoded.choice_offset, choices[0], side="right")) - 1]
        raise UserError(f"item {item} of {benchmark}: {error}") from None


def load_item_sets(
    benchmarks: Sequence[Benchmark], options: ScoreOptions, more: Sequence[tuple[ItemSet, str]] = ()
) -> list[tuple[ItemSet, str]]:
    """The items of every benchmark with the name of its default score; `more` behind them."""
    from evalengine.benchmarks import load_items

    o = options
    loaded = [
        load_items(b, o.data, variant=o.variant, limit=o.limit, seed=o.seed, fewshot=o.fewshot or 0)
        for b in benchmarks
    ]
    names = [b.name for b in benchmarks]
    if twice := [items.benchmark for items, _ in more if items.benchmark in names]:
        raise UserError(
            f"{twice[0]} is a benchmark and a task of lm-eval, which would be stored under one name: ask for one of them, or"
            " for each with an --out of its own"
        )
    return [*zip(loaded, (b.default_score for b in benchmarks), strict=True), *more]


def sentence(name: str, error: Exception) -> str:
    """Why a checkpoint failed: a UserError's own words, or those of an error nobody foresaw."""
    if isinstance(error, UserError):
        return str(error)
    return f"{name} stopped with an error of its own: {reason(error)} (EVALENGINE_DEBUG=1 shows where)"
