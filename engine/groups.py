"""Checkpoints that are loaded together, and what a run makes of them, in one process (runner.py) or on a cluster.

`score` has groups of one. Those of `emulate` are the checkpoints of a mixture (emulation.py): one visit gives the members' own
scores and those of the emulated checkpoints that are made of them, which the store holds under names of their own.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from evalengine import events, store
from evalengine.checkpoints import Checkpoint, emulated_fingerprint
from evalengine.errors import UserError
from evalengine.events import Emit
from evalengine.plan.encoding import Encoded, Scores, overlapping, same_tokens
from evalengine.plan.plans import Planner
from evalengine.resume import Asked, Decision, Named, Task, decide, tasks_of
from evalengine.score_table import relabelled, score_table
from evalengine.store import sealed

if TYPE_CHECKING:
    from evalengine.benchmarks import ItemSet

Tasks = dict[int, Task]  # of one benchmark: the files to make, by place in `Group.every`


class Emulated(NamedTuple):
    """One emulated checkpoint: whose scores it gets in the store, and of which members it is made."""

    name: str
    stage: str
    base: int
    tuned: int
    ref: int
    beta: float


class Shift(NamedTuple):
    """logits = z_base + beta (z_tuned - z_ref) for each beta; the models by their place among those loaded."""

    base: int
    tuned: int
    ref: int
    betas: tuple[float, ...]


class Wanted(NamedTuple):
    """What one visit gives: the own scores of some models, then those of every shift, beta by beta."""

    own: tuple[int, ...]
    shifts: tuple[Shift, ...]


class CheckpointGroup(NamedTuple):
    """Checkpoints that stay loaded together, and what is emulated with them."""

    members: tuple[Checkpoint, ...]
    emulated: tuple[Emulated, ...] = ()
    lacks: str = ""  # why nothing of it can be scored: a sentence

    @property
    def name(self) -> str:
        """Of its first member, by which it goes."""
        return self.members[0].name

    @property
    def every(self) -> list[Checkpoint]:
        """The members, and the emulated checkpoints as the store knows them."""
        return [*self.members, *map(self.checkpoint, self.emulated)]

    def checkpoint(self, one: Emulated) -> Checkpoint:
        """An emulated checkpoint as the store knows it; its fingerprint, once the members have theirs, is theirs together."""
        base = self.members[one.base]
        prints = [self.members[i].fingerprint for i in (one.base, one.tuned, one.ref)]
        fingerprint = emulated_fingerprint(prints, one.beta) if all(prints) else ""
        return replace(base, name=one.name, stage=one.stage, fingerprint=fingerprint)

    def metadata(self, one: Emulated) -> dict[str, str]:
        """What the store says of it beside what it says of every checkpoint."""
        names = {f"eft_{role}": self.members[getattr(one, role)].name for role in ("base", "tuned", "ref")}
        codes = [self.members[i].code_hash for i in (one.base, one.tuned, one.ref)]
        return names | {"eft_beta": f"{one.beta:g}", "code": "+".join(codes) if any(codes) else ""}

    def wanted(self, order: Iterable[int]) -> tuple[Wanted, list[int]]:
        """What is to be scored for these places in `every`, and the place of each score that comes."""
        members, order = len(self.members), list(order)
        own = tuple(k for k in order if k < members)
        shifts: dict[tuple[int, int, int], list[int]] = {}
        for k in order:
            if k >= members:
                one = self.emulated[k - members]
                shifts.setdefault((one.base, one.tuned, one.ref), []).append(k)
        made = tuple(
            Shift(*whose, tuple(self.emulated[k - members].beta for k in places))
            for whose, places in shifts.items()
        )
        return Wanted(own, made), [*own, *itertools.chain.from_iterable(shifts.values())]

    def vocabulary(self, planner: Planner) -> int:
        """Ids of its tokenizer, which the heads of shifted models share; 0 where nothing is shifted."""
        return planner.vocabulary(self.members[0]) if self.emulated else 0


def pending_of(
    group: CheckpointGroup, asked: Asked, models: Named, planner: Planner, emit: Emit
) -> dict[str, Tasks]:
    """What the store lacks of an identified group, by benchmark. Raises UserError."""
    more: list[dict[str, str]] = [{}] * len(group.members) + [group.metadata(one) for one in group.emulated]
    pending: dict[str, Tasks] = {}
    for k, (checkpoint, about) in enumerate(zip(group.every, more, strict=True)):
        decision = decide(tasks_of(checkpoint, asked, models, about), asked.options.fresh)
        begin(checkpoint, decision, emit)
        for task in decision.pending:
            pending.setdefault(task.items.benchmark, {})[k] = task
    if pending:
        one_language(group, planner, [items for items, _ in asked.item_sets if items.benchmark in pending])
    return pending


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
        table = relabelled(store.read(task.path), checkpoint, task.items.category)
        stored = {key.decode(): value.decode() for key, value in table.schema.metadata.items()}
        rest = {key: value for key, value in stored.items() if key not in ("checksum", *task.without)}
        store.write(
            task.path, table, task.metadata | {k: v for k, v in rest.items() if k not in task.metadata}
        )
        emit(events.Relabelled(checkpoint.name, task.path))
    items = sum(len(task.items.items) for task in decision.kept)
    emit(events.Kept(checkpoint.name, len(decision.kept), items))


def keep(
    group: CheckpointGroup,
    tasks: Tasks,
    encoded: Encoded,
    found: Sequence[Scores],
    notes: Sequence[str],
    emit: Emit,
) -> None:
    """Writes the files of a benchmark: the scores that `group.wanted` asked for. Raises UserError where one is not finite."""
    every = group.every
    for k, scores in zip(group.wanted(tasks)[1], found, strict=True):
        checkpoint, task = every[k], tasks[k]
        more = {"overlapping": json.dumps(overlapping(encoded))} if task.items.formats else {}
        store.write(task.path, score_table(checkpoint, task.items, encoded, scores), task.metadata | more)
        items = len(task.items.items)
        emit(events.Stored(checkpoint.name, task.items.benchmark, task.path, items, encoded.truncated))
        emit(events.Noted(checkpoint.name, (*encoded.notes, *notes)))  # such as that memory ran out


def one_language(group: CheckpointGroup, planner: Planner, item_sets: Iterable[ItemSet]) -> None:
    """Raises UserError unless all members have one window and cut these benchmarks into the same tokens.

    Tokenizers may differ in their files, as those of a base and a chat model do, if neither their vocabularies nor what they make
    of these items differs.
    """
    first = group.members[0]
    for other in group.members[1:]:
        if planner.window(other) != planner.window(first):
            raise UserError(
                f"{first.name} and {other.name} have windows of different lengths, so they would see different tokens: emulation"
                " needs one"
            )
        if other.tokenizer_hash == first.tokenizer_hash:
            continue
        if planner.tokens(other) != planner.tokens(first):
            raise UserError(
                f"{first.name} and {other.name} have different tokenizers, so their logits cannot be added: emulation needs one"
            )
        for items in item_sets:
            if not same_tokens(planner.plan(first, items), planner.plan(other, items)):
                raise UserError(
                    f"the tokenizers of {first.name} and {other.name} have one vocabulary and cut {items.benchmark} into"
                    " different tokens, such as special ones: emulation needs the same"
                )
