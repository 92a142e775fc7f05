"""Statistics as weighted columns: what every protocol computes from and what it returns.

A protocol turns `Data` into a `Group`: labelled statistics whose values are known in every column (the sample, the
jackknife, the resamples), scale by scale. A contrast is a group too: statistics minus others, column by column, so on the
same resamples. What to do with the columns (intervals, rows) is the same for all and lives in `tables`.

Dims: V = 2B variables (benchmarks before, then after), M mixtures, C columns, S statistics, P pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from evalengine.analysis.data import cells
from evalengine.analysis.data.items import mean_of_known
from evalengine.analysis.data.panel import Panel
from evalengine.analysis.statistics.bootstrap import DEGENERATE_MOST, Basis, Resamples, degenerate_share
from evalengine.analysis.statistics.correlation import Sample, correlate, degrees_of_freedom
from evalengine.analysis.statistics.ranges import CORRELATION, RangeOf, always, unknown

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

    @classmethod
    def undefined(cls, why: str) -> Note:
        return cls(UNDEFINED, why)

    @classmethod
    def partial(cls, what: str) -> Note:
        return cls(PARTIAL, what)

    @classmethod
    def without(cls, lost: Sequence[str], why: str = "") -> Note:
        """Of a mean that leaves out `lost`, if it does."""
        return cls.partial(f"without {', '.join(lost)}{why}") if lost else cls()

    def also(self, other: Note) -> Note:
        """Both texts, and the kind of the other, if it has one."""
        return Note(other.kind or self.kind, "; ".join(filter(None, [self.text, other.text])))


NO_NOTE = Note()
UNDEFINED = "undefined"  # there is no estimate
PARTIAL = "partial"  # a mean that leaves out some of its members
ITEM_NOISE = "item noise"  # the mixtures differ no more than item noise makes them differ


OFTEN_UNDEFINED = f"undefined in more than {DEGENERATE_MOST:.0%} of the resamples"


class Statistic(NamedTuple):
    """One statistic at one scale: what it is about, its value in every column (C,), and the mixtures behind it.

    used_M: (M,) behind any part of it. fewest: how many are behind the part that has the fewest; None if it has no parts.
    lost: how many degrees of freedom fewer than these have its t has.
    """

    label: Label
    value_C: Array
    used_M: Mask
    note: Note = NO_NOTE
    fewest: int | None = None
    lost: int = 0

    @property
    def n(self) -> int:
        """How many mixtures it rests on."""
        return int(self.used_M.sum()) if self.fewest is None else self.fewest

    @classmethod
    def of_parts(cls, label: Label, value_C: Array, parts: Basis, note: Note = NO_NOTE) -> Statistic:
        """A mean or a difference, from what its parts rest on."""
        used_M, n = parts.together()
        return cls(label, value_C, used_M, note, n)


class Means(NamedTuple):
    """What statistics at one scale are the means of: (P, C) values, what they rest on, and whose mean each is."""

    value_PC: Array
    basis: Basis
    members: Sequence[Sequence[int]]


@dataclass(frozen=True)
class Group:
    """Statistics of one protocol and quantity: per scale (S, C) values, the mixtures that they rest on, and notes.

    means: by scale, where the statistics are means, so that a contrast can be over the members that both sides have.
    contrast: "", or the kind of difference that all of them are. contrasts: of these statistics; that of kind SCALE is made
    for every group of two scales or more, unless it is among them. range_of: what each can be, by its label.
    """

    protocol: str
    quantity: str
    labels: list[Label]
    values: dict[str, Array]
    basis: dict[str, Basis]
    notes: dict[str, list[Note]]
    is_correlation: bool = False  # of single pairs, so that Fisher's z applies
    interval: str = "bca"  # the kind that holds its coverage for such statistics
    means: dict[str, Means] = field(default_factory=dict)
    contrast_interval: str = "bca-t"  # the same for their contrasts
    contrast: str = ""
    contrasts: tuple[Group, ...] = ()
    range_of: RangeOf = unknown

    @classmethod
    def of(cls, protocol: str, quantity: str, found: Mapping[str, Sequence[Statistic]], **how: Any) -> Group:
        """From the statistics at each scale, which are the same at all of them; `how`: further fields."""
        return cls(
            protocol,
            quantity,
            [one.label for one in next(iter(found.values()))],
            {scale: np.array([one.value_C for one in listed]) for scale, listed in found.items()},
            {
                scale: Basis(
                    np.array([one.used_M for one in listed]),
                    np.array([one.n for one in listed]),
                    np.array([one.lost for one in listed]),
                )
                for scale, listed in found.items()
            },
            {scale: [one.note for one in listed] for scale, listed in found.items()},
            **how,
        )


def means_of(
    single: Group, protocol: str, labels: Sequence[Label], members: Sequence[Sequence[int]]
) -> Group:
    """Means over statistics of a group, the `members` of each; those without an r are left out and said so.

    In a resample a mean is over the members that have an r in it: each lacks one in few (`Data.reportable`), but one or other
    of twenty does in many.
    """

    def said(scale: str, label: Label, index: Sequence[int], lost: Sequence[int]) -> Note:
        return Note.without([single.labels[k].name for k in lost], " (no r)")

    means = {
        scale: Means(value_SC, single.basis[scale], members) for scale, value_SC in single.values.items()
    }
    how = {"interval": "jackknife-z", "range_of": single.range_of}
    return group_of_means(protocol, single.quantity, labels, means, said, **how)


def group_of_means(
    protocol: str,
    quantity: str,
    labels: Sequence[Label],
    means: dict[str, Means],
    said: Callable[[str, Label, Sequence[int], Sequence[int]], Note],
    **how: Any,
) -> Group:
    """A group of the means over the members that have an r; n is that of all members where none has.

    said: the note of a scale, a label, its members, and those without an r. how: further fields of the group.
    """
    found: dict[str, list[Statistic]] = {}
    for scale, of in means.items():
        found[scale] = []
        for label, index in zip(labels, of.members, strict=True):
            defined = [k for k in index if np.isfinite(of.value_PC[k, 0])]
            note = said(scale, label, index, [k for k in index if k not in defined])
            mean_C, basis = mean_of_known(of.value_PC[defined], 0), of.basis.chosen(defined or index)
            found[scale].append(Statistic.of_parts(label, mean_C, basis, note))
    return Group.of(protocol, quantity, found, means=means, **how)


def mean_name(values: Iterable[Array], index: Sequence[int]) -> str:
    """The name of a mean over benchmarks, some of which may have no value at a scale; values: (B, C) at each scale."""
    sizes, of = {int(np.isfinite(value_BC[index, 0]).sum()) for value_BC in values}, len(index)
    if sizes == {of}:
        return f"mean of {of}"
    return f"mean of {min(sizes)} of {of}" if len(sizes) == 1 else f"mean of up to {of}"


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

    def basis(self, quantity: str, scale: str, pairs: Pairs) -> Basis:
        """What pairs rest on."""
        return Basis.of(self.used(quantity, scale, pairs))

    def too_few(self, used_M: Mask) -> str:
        """Why these mixtures are too few for a correlation; "" where they are not."""
        n, blocks = int(used_M.sum()), self.panel.blocks
        if n < 4:
            return f"{n} mixture{'s have' if n != 1 else ' has'} both values, 4 are needed"
        if blocks and degrees_of_freedom(used_M[None], self.panel.block_M)[0] < 3:
            return f"{n} mixtures have both values, too few to compare within {blocks.factor}"
        return ""

    def too_little(self, used_M: Mask) -> str:
        """Why these mixtures, which are enough, have no r."""
        return f"{used_M.sum()} mixtures vary too little: r is {OFTEN_UNDEFINED}"

    def correlate(self, quantity: str, scale: str, pairs: Pairs) -> Array:
        """(P, C); NaN for pairs with fewer than 4 mixtures, or 3 more than there are blocks with any of them, and for those that
        too many resamples leave undefined."""
        value_PC = correlate(self.sample(quantity, scale), pairs, self.statistic)
        used_PM = self.used(quantity, scale, pairs)
        value_PC[degrees_of_freedom(used_PM, self.panel.block_M) < 3] = np.nan
        return self.reportable(value_PC)

    def correlations(
        self,
        protocol: str,
        quantity: str,
        labels: Sequence[Label],
        pairs: Pairs,
        why: Callable[[str, int], str] | None = None,
        **how: Any,
    ) -> Group:
        """The r of pairs at every scale (`correlate`), with the reason where there is none.

        why: the reason for a scale and a pair that enough mixtures have. how: further fields of the group.
        """
        found: dict[str, list[Statistic]] = {}
        for scale in self.panel.scales:
            found[scale] = []
            values = self.correlate(quantity, scale, pairs), self.used(quantity, scale, pairs)
            for p, (label, value_C, used_M) in enumerate(zip(labels, *values, strict=True)):
                note = NO_NOTE
                if np.isnan(value_C[0]):
                    reason = self.too_few(used_M) or (why(scale, p) if why else self.too_little(used_M))
                    note = Note.undefined(reason)
                found[scale].append(Statistic(label, value_C, used_M, note))
        how = {"is_correlation": self.statistic == "pearson", "range_of": always(CORRELATION), **how}
        return Group.of(protocol, quantity, found, **how)

    def reportable(self, value_SC: Array) -> Array:
        """The same, NaN throughout where more than DEGENERATE_MOST of the resamples are undefined.

        Where one mixture alone differs from the others, r is 1 or -1 in every resample that holds it and undefined in
        the rest: an interval from the former would look exact.
        """
        if self.plan is not None:
            value_SC[degenerate_share(value_SC, self.plan) > DEGENERATE_MOST] = np.nan
        return value_SC


def mean_over_mixtures(x_LM: Array, w_MC: Array) -> Array:
    """(L, C): weighted means over the mixtures that have a value; NaN in columns without one."""
    known_LM = np.isfinite(x_LM)
    masks, of_L = np.unique(known_LM, axis=0, return_inverse=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        total_LC = (masks.astype(np.float64) @ w_MC)[of_L.ravel()]
        return np.asarray(np.where(known_LM, x_LM, 0.0) @ w_MC / total_LC)


def means_over(panel: Panel, known: Container[int], why: str = "") -> Iterator[tuple[Label, list[int], Note]]:
    """The mean over the benchmarks of each category, and of all, that are known: its label, these, and which it is without."""
    for category, index in panel.with_all().items():
        used = [b for b in index if b in known]
        lost = [panel.benchmarks[b] for b in index if b not in known]
        yield Label(category, f"mean of {len(used)}"), used, Note.without(lost, why)
