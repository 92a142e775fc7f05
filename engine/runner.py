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

import itertools
from collections.abc import Sequence
from functools import partial

from evalengine import events, store
from evalengine.backends import Models
from evalengine.checkpoints import check_unchanged, reading
from evalengine.checkpoints.resolve import ReadAhead
from evalengine.events import Emit, Outcome
from evalengine.groups import CheckpointGroup, keep, pending_of
from evalengine.plan.encoding import scores_of
from evalengine.plan.plans import Planner
from evalengine.resume import Asked
from evalengine.turns import finished, followed


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
