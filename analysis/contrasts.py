"""Contrasts: statistics minus others, column by column, so on the same resamples.

Between the largest scale and the smallest, a later stage and an earlier one, two categories, two quantities. Means are compared
over the members that both sides have: means of different ones would differ for that reason alone. The interval of a contrast is
its group's `contrast_interval`: the jackknife's of transfers and of means over the mixtures (there that of the paired t test),
BCa with Student's t of coherence.

Dims: S statistics, C columns, P pairs of variables.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from evalengine.analysis.groups import (
    CATEGORY,
    PARTIAL,
    SCALE,
    STAGE,
    UNDEFINED,
    Array,
    Group,
    Label,
    Mask,
    Means,
    Note,
    mean_of_known,
)
from evalengine.analysis.ranges import of_difference


class Difference(NamedTuple):
    """(S, C) values of differences, (S,) mixtures behind the side that has fewer, (S, M) those behind either (None for all),
    and notes."""

    value_SC: Array
    n_S: NDArray[np.int64]
    used_SM: Mask | None
    notes: list[Note]


def contrast_group(
    of: Group, kind: str, labels: Sequence[Label], differences: Mapping[str, Difference]
) -> Group:
    """The contrast of a group's statistics, from the differences at each scale; `labels` name both sides."""
    return Group(
        of.protocol,
        of.quantity,
        list(labels),
        {scale: found.value_SC for scale, found in differences.items()},
        {scale: found.n_S for scale, found in differences.items()},
        {scale: found.notes for scale, found in differences.items()},
        interval=of.contrast_interval,
        contrast=kind,
        used={scale: found.used_SM for scale, found in differences.items() if found.used_SM is not None},
        range_of=of_difference(of.range_of),
    )


def scale_contrast(group: Group) -> Group:
    """The largest scale minus the smallest."""
    small, *_, large = group.values
    if group.means:
        found = difference_of_means(group.means[large], group.means[small], "at both scales")
    else:
        n_S = np.minimum(group.n[small], group.n[large])
        used_SM = group.used[small] | group.used[large] if group.used else None
        value_SC = group.values[large] - group.values[small]
        found = Difference(value_SC, n_S, used_SM, [Note()] * len(group.labels))
    labels = [label._replace(minus=small) for label in group.labels]
    return contrast_group(group, SCALE, labels, {large: found})


def category_contrasts(means: Group) -> tuple[Group, ...]:
    """The mean of each category minus that of every later one: of different benchmarks, so not over common ones."""
    pairs = list(itertools.combinations(range(len(means.labels) - 1), 2))  # the last is of all
    if not pairs:
        return ()
    first, second = np.array(pairs).T
    differences = {}
    for scale, value_SC in means.values.items():
        said = []
        for pair in pairs:
            texts = [(means.labels[s].category, means.notes[scale][s].text) for s in pair]
            text = "; ".join(f"{category} {text}" for category, text in texts if text)
            said.append(Note(PARTIAL, text) if text else Note())
        n_S = np.minimum(means.n[scale][first], means.n[scale][second])
        used_SM = means.used[scale][first] | means.used[scale][second]
        differences[scale] = Difference(value_SC[first] - value_SC[second], n_S, used_SM, said)
    labels = [means.labels[i]._replace(minus=means.labels[j].category) for i, j in pairs]
    return (contrast_group(means, CATEGORY, labels, differences),)


def stage_contrast(group: Group, earlier: Sequence[int], later: Sequence[int], stage: str) -> Group:
    """Statistics at the later stage minus the same at the earlier, `stage`; the k-th of one with the k-th of the other."""
    differences = {}
    for scale, value_SC in group.values.items():
        if group.means:
            means = group.means[scale]
            after, before = (
                means._replace(members=[means.members[s] for s in side]) for side in (later, earlier)
            )
            differences[scale] = difference_of_means(after, before, "at both stages")
        else:
            n_S = np.minimum(group.n[scale][later], group.n[scale][earlier])
            used_SM = group.used[scale][later] | group.used[scale][earlier]
            notes = [Note()] * len(n_S)
            differences[scale] = Difference(value_SC[later] - value_SC[earlier], n_S, used_SM, notes)
    labels = [group.labels[s]._replace(minus=stage) for s in later]
    return contrast_group(group, STAGE, labels, differences)


def difference_of_means(minuend: Means, subtrahend: Means, where: str) -> Difference:
    """Differences of means over the members that have a value on both sides: the k-th of one with the k-th of the other.

    Means of different members would differ for that reason alone. where: "at both scales", for the notes.
    """
    first, second = minuend.value_PC, subtrahend.value_PC
    values, counts, used, notes = [], [], [], []
    for ours, theirs in zip(minuend.members, subtrahend.members, strict=True):
        known = [
            (np.isfinite(first[p, 0]), np.isfinite(second[q, 0])) for p, q in zip(ours, theirs, strict=True)
        ]
        common = [(p, q) for p, q, both in zip(ours, theirs, map(all, known), strict=True) if both]
        i, j = ([pair[side] for pair in common] for side in (0, 1))
        values.append(mean_of_known(first[i]) - mean_of_known(second[j]))
        counts.append(int(min([*minuend.n_P[i], *subtrahend.n_P[j]], default=0)))
        used.append(minuend.used_PM[i].any(axis=0) | subtrahend.used_PM[j].any(axis=0))
        if not common:
            notes.append(Note(UNDEFINED, f"none of them has a value {where}"))
        elif len(common) < sum(map(any, known)):
            notes.append(Note(PARTIAL, f"over the {len(common)} that have a value {where}"))
        else:
            notes.append(Note())
    value_SC = np.array(values).reshape(len(values), first.shape[1])
    used_SM = np.array(used).reshape(len(used), minuend.used_PM.shape[1])
    return Difference(value_SC, np.array(counts, dtype=np.int64), used_SM, notes)
