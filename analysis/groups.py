"""Statistics as weighted columns: what every protocol computes from and what it returns.

A protocol turns `Data` into a `Group`: labelled statistics whose values are known in every column (the sample, the
jackknife, the resamples), scale by scale. A contrast is a group too: statistics minus others, column by column, so on the
same resamples. What to do with the columns (intervals, rows) is the same for all and lives in `tables`.

Dims: V = 2B variables (benchmarks before, then after), M mixtures, C columns, S statistics, P pairs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from evalengine.analysis.bootstrap import DEGENERATE_MOST, Resamples, degenerate_share
from evalengine.analysis.correlation import Sample, correlate
from evalengine.analysis.panel import Panel

Array = NDArray[np.float64]
Pairs = NDArray[np.int64]
ALL = "All"


SCALE, STAGE, QUANTITY, CATEGORY = "scale", "stage", "quantity", "category"  # kinds of contrasts


class Label(NamedTuple):
    """What a statistic is about: `other` is the second benchmark, stage or measure, where there is one.

    minus: in a contrast, what is subtracted (the smaller scale, the earlier stage, the other quantity or category); the
    rest says what it is subtracted from.
    """

    category: str
    name: str
    other: str = ""
    minus: str = ""


class Note(NamedTuple):
    """What has to be known of a statistic: `kind` is one of the constants below, for programs; `text` is for people."""

    kind: str = ""
    text: str = ""


UNDEFINED = "undefined"  # there is no estimate
PARTIAL = "partial"  # a mean that leaves out some of its members
ITEM_NOISE = "item noise"  # the mixtures differ no more than item noise makes them differ


class Means(NamedTuple):
    """What statistics at one scale are the means of: (P, C) values, the (P,) mixtures behind them, and whose mean each is."""

    value_PC: Array
    n_P: NDArray[np.int64]
    members: Sequence[Sequence[int]]


@dataclass(frozen=True)
class Group:
    """Statistics of one protocol and quantity: per scale (S, C) values, and (S,) how many mixtures they rest on.

    means: by scale, where the statistics are means, so that a contrast can be over the members that both sides have.
    contrast: "", or the kind of difference that all of them are. contrasts: of kinds other than SCALE, which every group
    has where there are two scales or more.
    """

    protocol: str
    quantity: str
    labels: list[Label]
    values: dict[str, Array]
    n: dict[str, NDArray[np.int64]]
    notes: dict[str, list[Note]] = field(default_factory=dict)
    is_correlation: bool = False  # of single pairs, so that Fisher's z applies
    interval: str = "bca"  # the kind that holds its coverage for such statistics
    means: dict[str, Means] = field(default_factory=dict)
    contrast: str = ""
    contrasts: tuple[Group, ...] = ()


class Difference(NamedTuple):
    """(S, C) values of differences, (S,) mixtures behind them, and notes."""

    value_SC: Array
    n_S: NDArray[np.int64]
    notes: list[Note]


@dataclass(frozen=True)
class Data:
    """A panel with weights: one `Sample` per scale and quantity."""

    panel: Panel
    samples: dict[tuple[str, str], Sample]  # by (quantity, scale)
    statistic: str = "pearson"
    plan: Resamples | None = None  # None in a part of the columns

    def sample(self, quantity: str, scale: str) -> Sample:
        return self.samples[quantity, scale]

    def n(self, quantity: str, scale: str, pairs: Pairs) -> NDArray[np.int64]:
        known = np.isfinite(self.sample(quantity, scale).x_VMC[:, :, 0])
        return (known[pairs[:, 0]] & known[pairs[:, 1]]).sum(axis=1)

    def correlate(self, quantity: str, scale: str, pairs: Pairs) -> Array:
        """(P, C); NaN for pairs with fewer than 4 mixtures, and for those that too many resamples leave undefined."""
        value_PC = correlate(self.sample(quantity, scale), pairs, self.statistic)
        value_PC[self.n(quantity, scale, pairs) < 4] = np.nan
        return self.reportable(value_PC)

    def reportable(self, value_SC: Array) -> Array:
        """The same, NaN throughout where more than DEGENERATE_MOST of the resamples are undefined.

        Where one mixture alone differs from the others, r is 1 or -1 in every resample that holds it and undefined in
        the rest: an interval from the former would look exact.
        """
        if self.plan is not None:
            value_SC[degenerate_share(value_SC, self.plan) > DEGENERATE_MOST] = np.nan
        return value_SC


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
        interval="bca-t",
        contrast=kind,
    )


def scale_contrast(group: Group) -> Group:
    """The largest scale minus the smallest."""
    small, *_, large = group.values
    if group.means:
        found = difference_of_means(group.means[large], group.means[small], "at both scales")
    else:
        found = Difference(
            group.values[large] - group.values[small],
            np.minimum(group.n[small], group.n[large]),
            [Note()] * len(group.labels),
        )
    return contrast_group(
        group, SCALE, [label._replace(minus=small) for label in group.labels], {large: found}
    )


def difference_of_means(minuend: Means, subtrahend: Means, where: str) -> Difference:
    """Differences of means over the members that have a value on both sides: the k-th of one with the k-th of the other.

    Means of different members would differ for that reason alone. where: "at both scales", for the notes.
    """
    first, second = minuend.value_PC, subtrahend.value_PC
    values, counts, notes = [], [], []
    for ours, theirs in zip(minuend.members, subtrahend.members, strict=True):
        known = [
            (np.isfinite(first[p, 0]), np.isfinite(second[q, 0])) for p, q in zip(ours, theirs, strict=True)
        ]
        common = [(p, q) for p, q, both in zip(ours, theirs, map(all, known), strict=True) if both]
        i, j = ([pair[side] for pair in common] for side in (0, 1))
        values.append(mean_of_known(first[i]) - mean_of_known(second[j]))
        counts.append(int(min([*minuend.n_P[i], *subtrahend.n_P[j]], default=0)))
        if not common:
            notes.append(Note(UNDEFINED, f"none of them has a value {where}"))
        elif len(common) < sum(map(any, known)):
            notes.append(Note(PARTIAL, f"over the {len(common)} that have a value {where}"))
        else:
            notes.append(Note())
    return Difference(np.array(values), np.array(counts), notes)


def mean_of_known(value_SC: Array) -> Array:
    """(C,): each column's mean over the statistics that it defines; NaN where it defines none."""
    known_SC = np.isfinite(value_SC)
    with np.errstate(invalid="ignore"):
        mean_C: Array = np.where(known_SC, value_SC, 0.0).sum(axis=0) / known_SC.sum(axis=0)
    return mean_C
