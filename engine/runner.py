"""The product: checkpoints in, score store out.

    for checkpoint in checkpoints:
        pending = decide(tasks_of(checkpoint)).pending      # what the store does not hold yet; none: the next checkpoint
        backend.load(checkpoint)                            # weights swap in place within an architecture
        for task in pending:
            encoded = planner.plan(checkpoint, task.items)  # made once per tokenizer and context length
            scores = backend.score(encoded.sequences)
            store.write(score_table(encoded, scores))       # whole or not at all

One bad checkpoint does not stop the others: its reason is kept, shown at the end, and the exit code says so.
"""

from __future__ import annotations

import itertools
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from evalengine import console, events, sealed, store
from evalengine.backends import Backend
from evalengine.checkpoints import Checkpoint
from evalengine.encoding import Encoded, Scores, Sequences, SequenceTooLarge, overlapping
from evalengine.errors import UserError
from evalengine.events import Display, Emit, Outcome, Outcomes, to_all
from evalengine.plans import Planner
from evalengine.resolve import ReadAhead
from evalengine.resume import Decision, Options, Task, decide, tasks_of
from evalengine.score_table import score_table
from evalengine.untrusted import reason

if TYPE_CHECKING:
    from evalengine.benchmarks import Benchmark, ItemSet

T = TypeVar("T")
OnProgress = Callable[[float], None]  # called with numbers of sequences


def score(
    checkpoints: Sequence[Checkpoint],
    item_sets: Sequence[tuple[ItemSet, str]],
    backend: Backend,
    out: Path,
    options: Options,
    on_event: Emit = lambda event: None,
) -> list[Outcome]:
    """Scores item sets (each with the name of its default score) of every checkpoint into the store `out`.

    What the store already holds is skipped. `on_event` is called with every event of the run.
    """
    outcomes = Outcomes(checkpoints)
    items = sum(len(one.items) for one, _ in item_sets)
    with (
        store.lock(out),
        console.progress("scoring", len(checkpoints) * items, "items") as line,
        ReadAhead(options.allow_pickle) as reading,
        Planner(options.trust_remote_code, options.pmi, options.chat) as planner,
    ):
        emit = to_all(outcomes, Display(line, items), on_event)
        for checkpoint, ahead in itertools.zip_longest(checkpoints, checkpoints[1:]):
            started = time.monotonic()
            try:
                checkpoint = reading.identified(checkpoint, [] if ahead is None else [ahead])
                decision = decide(tasks_of(checkpoint, item_sets, backend, options, out), options.fresh)
                begin(checkpoint, decision, emit)
                if decision.pending:
                    score_checkpoint(checkpoint, decision.pending, planner, backend, emit)
            except OSError:  # a full disk or a folder taken away concerns them all
                raise
            except Exception as error:
                if os.environ.get("EVALENGINE_DEBUG") and not isinstance(error, UserError):
                    raise
                emit(events.Failed(checkpoint.name, sentence(checkpoint.name, error)))
            emit(events.Finished(checkpoint.name, time.monotonic() - started))
        store.log_run(out, outcomes.record(backend, options))
    return outcomes.all()


def begin(checkpoint: Checkpoint, decision: Decision, emit: Emit) -> None:
    """Says what is kept and why the rest is scored again; sets damaged files aside, and writes new labels.

    Raises UserError for a conflict.
    """
    if decision.conflict is not None:
        raise UserError(decision.conflict)
    aside = [(path, sealed.set_aside(path)) for path in decision.damaged]
    notes = [f"{path.name} was damaged: set aside as {to.name} and scored again" for path, to in aside]
    emit(events.Noted(checkpoint.name, (*notes, *decision.notes)))
    for task in decision.relabelled:
        stored = store.read_metadata(task.path) or {}
        store.write(task.path, store.read(task.path), stored | task.metadata)
    items = sum(len(task.items.items) for task in decision.kept)
    emit(events.Kept(checkpoint.name, len(decision.kept), items))


def score_checkpoint(
    checkpoint: Checkpoint, pending: Sequence[Task], planner: Planner, backend: Backend, emit: Emit
) -> None:
    """Scores and stores tasks of an identified checkpoint. Raises UserError; what is done by then is stored."""
    name = checkpoint.name
    emit(events.Doing(name, "loading"))
    if backend.name == "torch":  # vLLM forks, and no thread may be inside of a tokenizer then
        planner.begin(checkpoint, [task.items for task in pending])
    backend.load(checkpoint)
    emit(events.Noted(name, tuple(backend.notes)))
    for task in pending:
        benchmark, items = task.items.benchmark, len(task.items.items)
        emit(events.Doing(name, benchmark))
        encoded = planner.plan(checkpoint, task.items)
        share = items / max(len(encoded.sequences), 1)

        def advance(sequences: float, share: float = share) -> None:
            emit(events.Advanced(name, sequences * share))

        scores = scores_of(backend.score, encoded, benchmark, advance)
        keep(checkpoint, task, encoded, scores, emit)
        emit(events.Noted(name, (*encoded.notes, *backend.notes)))  # such as that memory ran out


def keep(checkpoint: Checkpoint, task: Task, encoded: Encoded, scores: Scores, emit: Emit) -> None:
    """Writes the file of a task. Raises UserError where a score is not finite."""
    more = {"overlapping": json.dumps(overlapping(encoded))} if task.items.formats else {}
    store.write(task.path, score_table(checkpoint, task.items, encoded, scores), task.metadata | more)
    items = len(task.items.items)
    emit(events.Stored(checkpoint.name, task.items.benchmark, task.path, items, encoded.truncated))


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
    benchmarks: Sequence[Benchmark], options: Options, more: Sequence[tuple[ItemSet, str]] = ()
) -> list[tuple[ItemSet, str]]:
    """The items of every benchmark with the name of its default score; `more` behind them."""
    from evalengine.benchmarks import load_items

    o = options
    loaded = [
        load_items(b, o.data, variant=o.variant, limit=o.limit, seed=o.seed, fewshot=o.fewshot or 0)
        for b in benchmarks
    ]
    return [*zip(loaded, (b.default_score for b in benchmarks), strict=True), *more]


def sentence(name: str, error: Exception) -> str:
    """Why a checkpoint failed: a UserError's own words, or those of an error nobody foresaw."""
    if isinstance(error, UserError):
        return str(error)
    return f"{name} stopped with an error of its own: {reason(error)} (EVALENGINE_DEBUG=1 shows where)"
