"""Emulated fine-tuning: what a base model would score with the fine-tuning of another scale, without training it.

    logits = z_base + beta (z_tuned - z_ref)

    for group in groups(checkpoints):                       # a mixture's checkpoints: two scales, two stages
        lockstep.load(group.members)                        # weights swap in place, as in runner.score
        for items in item_sets:
            scores = lockstep.score(plan(items), wanted)    # one visit: their own scores, both directions, every beta
            store.write(...)                                # what the store does not hold yet

Emulated scores are rows of the store like all others, under a name of their own: the base's scale, mixture and seed, and the
stage `eft` (or `eft@BETA` where several are asked for).

Reference: Mitchell et al. (2024), "An emulator for fine-tuning large language models using small language models".
"""

from __future__ import annotations

import hashlib
import itertools
import math
import os
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from evalengine import console, events, store
from evalengine.checkpoints import Checkpoint
from evalengine.encoding import Encoded, Scores, same_tokens
from evalengine.errors import UserError
from evalengine.events import Display, Emit, Outcome, Outcomes, to_all
from evalengine.labels import natural_key, scale_key
from evalengine.lockstep import Lockstep, Shift, Wanted
from evalengine.plans import Planner
from evalengine.resolve import ReadAhead
from evalengine.resume import Named, Options, Task, decide, tasks_of
from evalengine.runner import begin, keep, scores_of, sentence
from evalengine.untrusted import check_name

if TYPE_CHECKING:
    from evalengine.benchmarks import ItemSet

STAGE = "eft"
DIRECTIONS = ("up", "down")  # the larger scale is the base; the smaller one is
Place = tuple[str, str]  # scale and stage


class Emulated(NamedTuple):
    """One emulated checkpoint: whose scores it gets in the store, and of which members it is made."""

    name: str
    stage: str
    base: int
    tuned: int
    ref: int
    beta: float


class Group(NamedTuple):
    """Checkpoints that stay loaded together, and what is emulated with them."""

    members: tuple[Checkpoint, ...]
    emulated: tuple[Emulated, ...]

    @property
    def every(self) -> list[Checkpoint]:
        """The members, and the emulated checkpoints as the store knows them."""
        return [*self.members, *map(self.checkpoint, self.emulated)]

    def checkpoint(self, one: Emulated) -> Checkpoint:
        """An emulated checkpoint as the store knows it; its fingerprint, once the members have theirs, is theirs together."""
        base = self.members[one.base]
        prints = [self.members[i].fingerprint for i in (one.base, one.tuned, one.ref)]
        text = "\n".join([*prints, f"{one.beta!r}"])
        fingerprint = hashlib.sha256(text.encode()).hexdigest() if all(prints) else ""
        return replace(base, name=one.name, stage=one.stage, fingerprint=fingerprint)

    def metadata(self, one: Emulated) -> dict[str, str]:
        """What the store says of it beside what it says of every checkpoint."""
        names = {f"eft_{role}": self.members[getattr(one, role)].name for role in ("base", "tuned", "ref")}
        return names | {"eft_beta": f"{one.beta:g}"}


def parse_betas(text: str) -> tuple[float, ...]:
    """From "0.25,0.5,1". Raises UserError."""
    try:
        betas = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UserError(f"--beta takes numbers such as 0.5,1,2, not '{text}'") from None
    if not all(map(math.isfinite, betas)):
        raise UserError(f"--beta takes finite numbers, not '{text}'")
    if any(float(f"{beta:g}") != beta for beta in betas):  # which is how files are named
        raise UserError(f"--beta takes numbers of at most six digits, not '{text}'")
    if len(set(betas)) < len(betas):
        raise UserError(f"--beta {text} names one strength twice")
    return betas


def of_three(base: Checkpoint, tuned: Checkpoint, ref: Checkpoint, betas: Sequence[float]) -> Group:
    """The group of three checkpoints that the user names."""
    if tuned.name == ref.name:
        raise UserError(f"--tuned and --ref are both {ref.name}: their difference is nothing to shift by")
    members = {one.name: one for one in (base, tuned, ref)}
    place = {name: i for i, name in enumerate(members)}
    whose = (place[base.name], place[tuned.name], place[ref.name])
    name = f"{base.name}+{tuned.name}-{ref.name}"
    return Group(tuple(members.values()), _dial(name, *whose, betas, separator="-"))


def groups_of(
    found: Sequence[Checkpoint],
    betas: Sequence[float],
    directions: Sequence[str] = DIRECTIONS,
    scales: Sequence[str] | None = None,
    stages: Sequence[str] = ("pt", "sft"),
) -> tuple[list[Group], list[str]]:
    """A group for each mixture (and seed) that has what the directions need, and notes on what is left out.

    Up: the larger scale before fine-tuning is the base, and what fine-tuning changed in the smaller one is added. Down: the
    other way round. `scales`: the smaller one first. Raises UserError where no mixture is whole, or where it is not plain which
    scales are meant.
    """
    known = [
        one for one in found if one.mixture is not None and one.stage in stages and one.scale is not None
    ]
    small, large = two_scales({str(one.scale) for one in known}, scales, stages)
    by_run: dict[tuple[str, str], dict[Place, Checkpoint]] = {}
    for one in known:
        if one.scale in (small, large):
            run = by_run.setdefault((str(one.mixture), one.seed or ""), {})
            place = (str(one.scale), str(one.stage))
            if place in run:
                raise UserError(
                    f"{run[place].name} and {one.name} both claim scale {one.scale}, mixture {one.mixture}, stage {one.stage}:"
                    " give one of them another name, or each a seed"
                )
            run[place] = one
    before, after = stages
    places = [(scale, stage) for scale in (small, large) for stage in stages]
    roles = {
        "up": ((large, before), (small, after), (small, before)),
        "down": ((small, before), (large, after), (large, before)),
    }
    needed = {place for direction in directions for place in roles[direction]}
    runs = Counter(mixture for mixture, _ in by_run)
    groups, notes = [], []
    for (mixture, seed), run in sorted(by_run.items(), key=lambda entry: tuple(map(natural_key, entry[0]))):
        seeded = seed if runs[mixture] > 1 else ""
        missing = [place for place in places if place in needed and place not in run]
        if missing:
            lacking = ", ".join(f"{scale}-{mixture}-{stage}" for scale, stage in missing)
            enough = " (--direction up needs none)" if missing == [(large, after)] else ""
            notes.append(
                f"mixture {mixture}{seeded and ' seed ' + seeded} is left out: it lacks {lacking}{enough}"
            )
            continue
        members = [place for place in places if place in run]
        emulated: list[Emulated] = []
        for direction in directions:
            base, tuned, ref = (members.index(place) for place in roles[direction])
            name = f"{members[base][0]}-{mixture}{seeded and '-seed' + seeded}"
            emulated += _dial(name, base, tuned, ref, betas)
        groups.append(Group(tuple(run[place] for place in members), tuple(emulated)))
    if not groups:
        raise UserError(
            f"no mixture is whole, so nothing can be emulated: {notes[0] if notes else 'no checkpoints'}"
        )
    names = Counter(one.name for group in groups for one in group.emulated)
    if twice := [name for name, times in names.items() if times > 1]:
        raise UserError(
            f"two mixtures would be stored as {twice[0]}: name one of them otherwise in --manifest"
        )
    placed = {one.name for run in by_run.values() for one in run.values()}
    if others := [one.name for one in found if one.name not in placed]:
        more = f" and {len(others) - 6} more" if len(others) > 6 else ""
        notes.append(
            f"not scored, as they are in no mixture of the scales {small}, {large} and stages {before}, {after}:"
            f" {', '.join(others[:6])}{more}"
        )
    return groups, notes


def two_scales(there: set[str], asked: Sequence[str] | None, stages: Sequence[str]) -> tuple[str, str]:
    """The smaller and the larger scale, as asked for or by the sizes that their names state. Raises UserError."""
    listed = sorted(there, key=scale_key)
    for scale in asked or ():
        if scale not in there:
            raise UserError(f"no checkpoint has the scale '{scale}': the scales here are {', '.join(listed)}")
    if asked is None and len(listed) > 2:
        raise UserError(
            f"there are {len(listed)} scales ({', '.join(listed)}): name two with --scales SMALL,LARGE"
        )
    if asked is None and len(listed) < 2:
        raise UserError(
            f"emulation shifts one scale by the fine-tuning of another, and these checkpoints have"
            f" {'one scale (' + listed[0] + ')' if listed else 'no scale, mixture and stage'}: give {stages[0]} and"
            f" {stages[1]} checkpoints of two, named {{scale}}-{{mixture}}-{{stage}} or described by --manifest"
        )
    small, large = asked or listed
    small_size, large_size = scale_key(small)[0], scale_key(large)[0]
    if asked is None and (math.isinf(large_size) or small_size == large_size):
        raise UserError(
            f"the names {small} and {large} do not say which scale is larger: name them with --scales SMALL,LARGE"
        )
    if large_size < small_size < math.inf:
        raise UserError(f"--scales takes the smaller scale first: --scales {large},{small}")
    return small, large


def _dial(
    name: str, base: int, tuned: int, ref: int, betas: Sequence[float], separator: str = "-"
) -> tuple[Emulated, ...]:
    stages = [STAGE if len(betas) == 1 else f"{STAGE}@{beta:g}" for beta in betas]
    for stage in stages:  # labels may hold what the name of a folder may not
        check_name(f"{name}{separator}{stage}", "checkpoint")
    return tuple(
        Emulated(f"{name}{separator}{stage}", stage, base, tuned, ref, beta)
        for stage, beta in zip(stages, betas, strict=True)
    )


def emulate(
    groups: Sequence[Group],
    item_sets: Sequence[tuple[ItemSet, str]],
    lockstep: Lockstep,
    out: Path,
    options: Options,
    on_event: Emit = lambda event: None,
) -> list[Outcome]:
    """Scores the members of every group and what is emulated with them into the store `out`, as `runner.score` does."""
    every = [one for group in groups for one in group.every]
    outcomes = Outcomes(every)
    items = sum(len(one.items) for one, _ in item_sets)
    with (
        store.lock(out),
        console.progress("scoring", len(every) * items, "items") as line,
        ReadAhead(options.allow_pickle) as reading,
        Planner(options.trust_remote_code, options.pmi) as planner,
    ):
        emit = to_all(outcomes, Display(line, items), on_event)
        for group, ahead in itertools.zip_longest(groups, groups[1:]):
            started = time.monotonic()
            names = [one.name for one in group.every]
            try:
                wanted = [*group.members, *(() if ahead is None else ahead.members)]
                group = group._replace(
                    members=tuple(reading.identified(one, wanted) for one in group.members)
                )
                _emulate_group(group, item_sets, lockstep, planner, out, options, emit)
            except OSError:
                raise
            except Exception as error:
                if os.environ.get("EVALENGINE_DEBUG") and not isinstance(error, UserError):
                    raise
                said = sentence(group.members[0].name, error)
                for name in names:
                    emit(events.Failed(name, said))
            for name in names:
                emit(events.Finished(name, (time.monotonic() - started) / len(names)))
        store.log_run(out, outcomes.record(lockstep, options))
    return outcomes.all()


def _emulate_group(
    group: Group,
    item_sets: Sequence[tuple[ItemSet, str]],
    lockstep: Lockstep,
    planner: Planner,
    out: Path,
    options: Options,
    emit: Emit,
) -> None:
    """Scores and stores what a group lacks. Raises UserError; what is done by then is stored."""
    every, pending = group.every, pending_of(group, item_sets, lockstep, planner, out, options, emit)
    if not pending:
        return
    first = group.members[0]
    emit(events.Doing(first.name, "loading"))
    planner.begin(first, [items for items, _ in item_sets if items.benchmark in pending])
    lockstep.load(group.members, planner.vocabulary(first))
    for checkpoint in every:
        emit(events.Noted(checkpoint.name, tuple(lockstep.notes)))
    for items in [items for items, _ in item_sets if items.benchmark in pending]:
        tasks, encoded = pending[items.benchmark], planner.plan(first, items)
        emit(events.Doing(first.name, items.benchmark))
        share = len(items.items) / max(len(encoded.sequences), 1)

        def advance(sequences: float, name: str = every[min(tasks)].name, share: float = share) -> None:
            emit(events.Advanced(name, sequences * share))

        wanted, _ = wanted_of(group, tasks)
        found = scores_of(partial(lockstep.score, wanted), encoded, items.benchmark, advance)
        keep_all(group, tasks, encoded, found, lockstep.notes, emit)


def pending_of(
    group: Group,
    item_sets: Sequence[tuple[ItemSet, str]],
    backend: Named,
    planner: Planner,
    out: Path,
    options: Options,
    emit: Emit,
) -> dict[str, dict[int, Task]]:
    """What the store lacks of an identified group: by benchmark, then by place in `group.every`. Raises UserError."""
    more: list[dict[str, str]] = [{}] * len(group.members) + [group.metadata(one) for one in group.emulated]
    pending: dict[str, dict[int, Task]] = {}
    for k, (checkpoint, about) in enumerate(zip(group.every, more, strict=True)):
        decision = decide(tasks_of(checkpoint, item_sets, backend, options, out, about), options.fresh)
        begin(checkpoint, decision, emit)
        for task in decision.pending:
            pending.setdefault(task.items.benchmark, {})[k] = task
    if pending:
        one_language(group, planner, [items for items, _ in item_sets if items.benchmark in pending])
    return pending


def keep_all(
    group: Group,
    tasks: dict[int, Task],
    encoded: Encoded,
    found: Sequence[Scores],
    notes: Sequence[str],
    emit: Emit,
) -> None:
    """Writes the files of a benchmark: the scores that `wanted_of` these tasks asked for. Raises UserError."""
    every = group.every
    for k, scores in zip(wanted_of(group, tasks)[1], found, strict=True):
        keep(every[k], tasks[k], encoded, scores, emit)
        emit(events.Noted(every[k].name, (*encoded.notes, *notes)))


def wanted_of(group: Group, order: Iterable[int]) -> tuple[Wanted, list[int]]:
    """What is to be scored of members and emulated checkpoints with these numbers, and the number of each score that comes."""
    members, order = len(group.members), list(order)
    own = tuple(k for k in order if k < members)
    shifts: dict[tuple[int, int, int], list[int]] = {}
    for k in order:
        if k >= members:
            one = group.emulated[k - members]
            shifts.setdefault((one.base, one.tuned, one.ref), []).append(k)
    made = tuple(
        Shift(*whose, tuple(group.emulated[k - members].beta for k in numbers))
        for whose, numbers in shifts.items()
    )
    return Wanted(own, made), [*own, *itertools.chain.from_iterable(shifts.values())]


def one_language(group: Group, planner: Planner, item_sets: Iterable[ItemSet]) -> None:
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
