"""Statistics as weighted columns: what every protocol computes from and what it returns.

A protocol turns `Data` into a `Group`: labelled statistics whose values are known in every column (the sample, the
jackknife, the resamples), scale by scale. What to do with the columns (intervals, contrasts between scales) is the same
for all and lives in `tables`.

Dims: V = 2B variables (benchmarks before, then after), M mixtures, C columns, S statistics, P pairs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from evalengine.analysis.bootstrap import DEGENERATE_MOST, Resamples, degenerate_share
from evalengine.analysis.correlation import Sample, correlate, degrees_of_freedom
from evalengine.analysis.panel import Panel

Array = NDArray[np.float64]
Pairs = NDArray[np.int64]
ALL = "All"


class Label(NamedTuple):
    """What a statistic is about: `other` is the second benchmark, stage or measure, where there is one."""

    category: str
    name: str
    other: str = ""


class Note(NamedTuple):
    """What has to be known of a statistic: `kind` is one of the constants below, for programs; `text` is for people."""

    kind: str = ""
    text: str = ""


UNDEFINED = "undefined"  # there is no estimate
PARTIAL = "partial"  # a mean that leaves out some of its members
ITEM_NOISE = "item noise"  # the mixtures differ no more than item noise makes them differ


@dataclass(frozen=True)
class Group:
    """Statistics of one protocol and quantity: per scale (S, C) values, and (S,) how many mixtures they rest on."""

    protocol: str
    quantity: str
    labels: list[Label]
    values: dict[str, Array]
    n: dict[str, NDArray[np.int64]]
    notes: dict[str, list[Note]] = field(default_factory=dict)
    is_correlation: bool = False  # of single pairs, so that Fisher's z applies
    interval: str = "bca"  # the kind that holds its coverage for such statistics
    difference: Difference | None = (
        None  # the largest scale minus the smallest, where it is not that of the values
    )


class Difference(NamedTuple):
    """(S, C) values of differences between two scales, (S,) mixtures behind them, and notes."""

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

    def few(self, quantity: str, scale: str, pairs: Pairs) -> NDArray[np.bool_]:
        """Whether a pair has fewer than 4 mixtures, or 3 more than there are blocks with any of them, (P,)."""
        sample = self.sample(quantity, scale)
        known_VM = np.isfinite(sample.x_VMC[:, :, 0])
        return degrees_of_freedom(known_VM[pairs[:, 0]] & known_VM[pairs[:, 1]], sample.block_M) < 3

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


def difference_of_means(
    value_PC: Mapping[str, Array], members: Sequence[Sequence[int]], n: Mapping[str, NDArray[np.int64]]
) -> Difference | None:
    """The means at the largest scale minus those at the smallest, over the members that have a value at both.

    value_PC, n: of every member, by scale. Means of different members would differ for that reason alone.
    """
    if len(value_PC) < 2:
        return None
    small, *_, large = value_PC
    both_P = np.isfinite(value_PC[small][:, 0]) & np.isfinite(value_PC[large][:, 0])
    values, counts, notes = [], [], []
    for index in members:
        common = [p for p in index if both_P[p]]
        known = [p for p in index if any(np.isfinite(v[p, 0]) for v in value_PC.values())]
        values.append(mean_of_known(value_PC[large][common]) - mean_of_known(value_PC[small][common]))
        counts.append(min((int(n[scale][p]) for p in common for scale in (small, large)), default=0))
        if not common:
            notes.append(Note(UNDEFINED, "none of them has a value at both scales"))
        else:
            partial = len(common) < len(known)
            notes.append(
                Note(PARTIAL, f"over the {len(common)} that have a value at both scales")
                if partial
                else Note()
            )
    return Difference(np.array(values), np.array(counts), notes)


def mean_of_known(value_SC: Array) -> Array:
    """(C,): each column's mean over the statistics that it defines; NaN where it defines none."""
    known_SC = np.isfinite(value_SC)
    with np.errstate(invalid="ignore"):
        mean_C: Array = np.where(known_SC, value_SC, 0.0).sum(axis=0) / known_SC.sum(axis=0)
    return mean_C
