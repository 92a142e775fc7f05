"""Emulated fine-tuning: what a base model would score with the fine-tuning of another scale, without training it.

    logits = z_base + beta (z_tuned - z_ref)

Here checkpoints become groups: those of a mixture, of two scales and two stages, and what is emulated with them. runner.py runs
them through lockstep.py: one visit gives their own scores, both directions, every beta.

Emulated scores are rows of the store like all others, under a name of their own: the base's scale, mixture and seed, and the
stage `eft` (or `eft@BETA` where several are asked for).

Reference: Mitchell et al. (2024), "An emulator for fine-tuning large language models using small language models".
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from evalengine.checkpoints import Checkpoint
from evalengine.errors import UserError
from evalengine.groups import CheckpointGroup, Emulated
from evalengine.labels import natural_key, scale_key
from evalengine.untrusted import check_name

STAGE = "eft"
DIRECTIONS = ("up", "down")  # the larger scale is the base; the smaller one is
Place = tuple[str, str]  # scale and stage


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


def of_three(base: Checkpoint, tuned: Checkpoint, ref: Checkpoint, betas: Sequence[float]) -> CheckpointGroup:
    """The group of three checkpoints that the user names."""
    if tuned.name == ref.name:
        raise UserError(f"--tuned and --ref are both {ref.name}: their difference is nothing to shift by")
    members = {one.name: one for one in (base, tuned, ref)}
    place = {name: i for i, name in enumerate(members)}
    whose = (place[base.name], place[tuned.name], place[ref.name])
    name = f"{base.name}+{tuned.name}-{ref.name}"
    return CheckpointGroup(tuple(members.values()), _dial(name, *whose, betas))


def groups_of(
    found: Sequence[Checkpoint],
    betas: Sequence[float],
    directions: Sequence[str] = DIRECTIONS,
    scales: Sequence[str] | None = None,
    stages: Sequence[str] = ("pt", "sft"),
) -> tuple[list[CheckpointGroup], list[str]]:
    """A group for each mixture (and seed), and notes on what is left out: a mixture that lacks what the directions need is a
    group whose checkpoints all fail.

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
        there, lacks = [place for place in places if place in run], ""
        if missing := [place for place in places if place in needed and place not in run]:
            lacking = ", ".join(f"{scale}-{mixture}-{stage}" for scale, stage in missing)
            enough = " (--direction up needs none)" if missing == [(large, after)] else ""
            lacks = f"mixture {mixture}{seeded and ' seed ' + seeded} is left out: it lacks {lacking}{enough}"
            notes.append(lacks)
        emulated: list[Emulated] = []
        for direction in directions:
            # where a member is missing, nothing is made of those that are there
            base, tuned, ref = (0 if lacks else there.index(place) for place in roles[direction])
            name = f"{roles[direction][0][0]}-{mixture}{seeded and '-seed' + seeded}"
            emulated += _dial(name, base, tuned, ref, betas)
        groups.append(CheckpointGroup(tuple(run[place] for place in there), tuple(emulated), lacks))
    if all(group.lacks for group in groups):
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


def _dial(name: str, base: int, tuned: int, ref: int, betas: Sequence[float]) -> tuple[Emulated, ...]:
    stages = [STAGE if len(betas) == 1 else f"{STAGE}@{beta:g}" for beta in betas]
    for stage in stages:  # labels may hold what the name of a folder may not
        check_name(f"{name}-{stage}", "checkpoint")
    return tuple(
        Emulated(f"{name}-{stage}", stage, base, tuned, ref, beta)
        for stage, beta in zip(stages, betas, strict=True)
    )
