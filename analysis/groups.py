"""Statistics as weighted columns: what every protocol computes from and what it returns.

A protocol turns `Data` into a `Group`: labelled statistics whose values are known in every column (the sample, the
jackknife, the resamples), scale by scale. A contrast is a group too: statistics minus others, column by column, so on the
same resamples. What to do with the columns (intervals, rows) is the same for all and lives in `tables`.

Dims: V = 2B variables (benchmarks before, then after), M mixtures, C columns, S statistics, P pairs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from evalengine.analysis import cells
from evalengine.analysis.bootstrap import DEGENERATE_MOST, Basis, Resamples, degenerate_share
from evalengine.analysis.correlation import Sample, correlate, degrees_of_freedom
from evalengine.analysis.panel import Panel
from evalengine.analysis.ranges import RangeOf, unknown

Array = NDArray[np.float64]
Pairs = NDArray[np.int64]
Mask = NDArray[np.bool_]
ALL = cells.ALL


# Kinds of contrasts.
SCALE, STAGE, QUANTITY, CATEGORY, BENCHMARK = "scale", "stage", "quantity", "category", "benchmark"


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


OFTEN_UNDEFINED = f"undefined in more than {DEGENERATE_MOST:.0%} of the resamples"


def without(lost: Sequence[str], why: str = "") -> Note:
    """The note of a mean that leaves out `lost`."""
    return Note(PARTIAL, f"without {', '.join(lost)}{why}") if lost else Note()


class Statistic(NamedTuple):
    """One statistic at one scale: what it is about, its value in every column (C,), and the mixtures behind it.

    n: of a mean, behind the member that has the fewest. used_M: behind any of its members.
    """

    label: Label
    value_C: Array
    n: int
    used_M: Mask
    note: Note = Note()


class Means(NamedTuple):
    """What statistics at one scale are the means of: (P, C) values, the (P, M) mixtures behind them, and whose mean each is."""

    value_PC: Array
    used_PM: Mask
    members: Sequence[Sequence[int]]

    @property
    def n_P(self) -> NDArray[np.int64]:
        return self.used_PM.sum(axis=1)


@dataclass(frozen=True)
class Group:
    """Statistics of one protocol and quantity: per scale (S, C) values, and (S,) how many mixtures they rest on.

    means: by scale, where the statistics are means, so that a contrast can be over the members that both sides have.
    contrast: "", or the kind of difference that all of them are. contrasts: of these statistics; that of kind SCALE is made
    for every group of two scales or more, unless it is among them. used: by scale, (S, M) which mixtures are behind any part of
    each statistic; without it all of them. range_of: what each can be, by its label.
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
    contrast_interval: str = "bca-t"  # the same for their contrasts
    contrast: str = ""
    contrasts: tuple[Group, ...] = ()
    used: dict[str, Mask] = field(default_factory=dict)
    range_of: RangeOf = unknown

    def basis(self, scale: str) -> Basis | None:
        """What the statistics rest on at a scale; None for all mixtures."""
        return Basis(self.used[scale], self.n[scale]) if scale in self.used else None


def group_of(protocol: str, quantity: str, found: Mapping[str, Sequence[Statistic]], **how: Any) -> Group:
    """A group from its statistics at each scale, which are the same at all of them; `how`: further fields."""
    return Group(
        protocol,
        quantity,
        [one.label for one in next(iter(found.values()))],
        {scale: np.array([one.value_C for one in listed]) for scale, listed in found.items()},
        {scale: np.array([one.n for one in listed]) for scale, listed in found.items()},
        {scale: [one.note for one in listed] for scale, listed in found.items()},
        used={scale: np.array([one.used_M for one in listed]) for scale, listed in found.items()},
        **how,
    )


def means_of(
    single: Group, protocol: str, labels: Sequence[Label], members: Sequence[Sequence[int]], least_n: int = 0
) -> Group:
    """Means over statistics of a group, the `members` of each; those without an r are left out and said so.

    In a resample a mean is over the members that have an r in it: each lacks one in few (`Data.reportable`), but one or other
    of twenty does in many. least_n: the n of a mean that leaves all of them out.
    """
    found: dict[str, list[Statistic]] = {}
    means = {}
    for scale, value_SC in single.values.items():
        used_SM = single.used[scale]
        found[scale] = []
        for label, index in zip(labels, members, strict=True):
            defined = [k for k in index if np.isfinite(value_SC[k, 0])]
            lost = [single.labels[k].name for k in index if k not in defined]
            n = min((int(single.n[scale][k]) for k in defined), default=least_n)
            mean_C = mean_of_known(value_SC[defined])
            used_M = np.asarray(used_SM[defined].any(axis=0))
            found[scale].append(Statistic(label, mean_C, n, used_M, without(lost, " (no r)")))
        means[scale] = Means(value_SC, used_SM, members)
    how = {"interval": "jackknife-z", "means": means, "range_of": single.range_of}
    return group_of(protocol, single.quantity, found, **how)


def with_all(panel: Panel) -> dict[str, list[int]]:
    """The benchmarks of each category, and of all."""
    return {**panel.category_members(), ALL: list(range(len(panel.benchmarks)))}


@dataclass(frozen=True)
class Data:
    """A panel with weights: one `Sample` per scale and quantity."""

    panel: Panel
    samples: dict[tuple[str, str], Sample]  # by (quantity, scale)
    statistic: str = "pearson"
    plan: Resamples | None = None  # None in a part of the columns

    def sample(self, quantity: str, scale: str) -> Sample:
        return self.samples[quantity, scale]

    def used(self, quantity: str, scale: str, pairs: Pairs) -> Mask:
        """The mixtures that have both values of a pair, (P, M)."""
        known_VM = np.isfinite(self.sample(quantity, scale).x_VMC[:, :, 0])
        return np.asarray(known_VM[pairs[:, 0]] & known_VM[pairs[:, 1]])

    def few(self, quantity: str, scale: str, pairs: Pairs) -> Mask:
        """Whether a pair has fewer than 4 mixtures, or 3 more than there are blocks with any of them, (P,)."""
        return degrees_of_freedom(self.used(quantity, scale, pairs), self.panel.block_M) < 3

    def correlate(self, quantity: str, scale: str, pairs: Pairs) -> Array:
        """(P, C); NaN for pairs with too few mixtures, and for those that too many resamples leave undefined."""
        value_PC = correlate(self.sample(quantity, scale), pairs, self.statistic)
        value_PC[self.few(quantity, scale, pairs)] = np.nan
        return self.reportable(value_PC)

    def reportable(self, value_SC: Array) -> Array:
        """The same, NaN throughout where more than DEGENERATE_MOST of the resamples are undefined.

        Where one mixture alone differs from the others, r is 1 or -1 in every resample that holds it and undefined in
        the rest: an interval from the former would look exact.
        """
        if self.plan is not None:
            value_SC[degenerate_share(value_SC, self.plan) > DEGENERATE_MOST] = np.nan
        return value_SC


def mean_of_known(value_SC: Array) -> Array:
    """(C,): each column's mean over the statistics that it defines; NaN where it defines none."""
    known_SC = np.isfinite(value_SC)
    with np.errstate(invalid="ignore"):
        mean_C: Array = np.where(known_SC, value_SC, 0.0).sum(axis=0) / known_SC.sum(axis=0)
    return mean_C
