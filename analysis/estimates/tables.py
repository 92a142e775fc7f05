"""From groups of columns to tables with intervals.

One schema for all protocols, so that a notebook reads every result alike: what it is about, the estimate, the interval
of the chosen kind, the other kinds beside it, n, p and q, and a note where a number is missing or rests on less.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from evalengine.analysis.estimates.contrasts import scale_contrast
from evalengine.analysis.estimates.groups import NO_NOTE, SCALE, Group, Label, Note
from evalengine.analysis.statistics.bootstrap import (
    DEGENERATE_MOST,
    ROUNDING,
    Array,
    Resamples,
    fisher,
    intervals,
)


class Row(NamedTuple):
    """One statistic. Ends of intervals are NaN where undefined.

    contrast: "", or the kind of a difference: "scale", "stage", "quantity", "category", "benchmark". minus: what is
    subtracted (the smaller scale, the earlier stage, the other quantity, category or benchmarks); the row's own fields say
    from what. note_kind: of the protocol's own note (`groups.Note`), "" where it has none.
    """

    protocol: str
    quantity: str
    scale: str
    category: str
    name: str
    other: str
    estimate: float
    low: float
    high: float
    n: int
    p: float
    q: float
    degenerate: float  # share of the resamples in which it is undefined, which are left out
    bca_low: float
    bca_high: float
    percentile_low: float
    percentile_high: float
    basic_low: float
    basic_high: float
    fisher_low: float
    fisher_high: float
    note: str
    note_kind: str
    contrast: str
    minus: str
    interval: str  # the kind that low and high are of, "" where there are none

    @property
    def at(self) -> str:
        """The scale as it is shown: both of a difference between two."""
        return f"{self.scale} − {self.minus}" if self.contrast == SCALE else self.scale


SHOWN = ("bca", "percentile", "basic", "fisher")  # kinds with columns of their own
TEXTS = ("contrast", "interval")  # fields that may be empty


# p-values and their adjusted values (q), by contrast ("" of plain statistics) and scale.
Tests = Mapping[tuple[str, str], tuple[Array, Array]]


class CorrelateOptions(NamedTuple):
    """What the user may choose.

    bootstrap: "exact", a number of resamples, or None for exact up to 10 mixtures. interval: "auto" is the kind of each
    statistic's group. resample: what is drawn: mixtures, items, or both. block: the factor within which mixtures are
    compared: a name, "none", or "auto" for the study file's web source.
    """

    bootstrap: str | int | None = None
    interval: str = "auto"
    level: float = 0.95
    statistic: str = "pearson"
    seed: int = 0
    resample: str = "mixtures"
    block: str = "auto"


def rows_of(
    group: Group, plan: Resamples, options: CorrelateOptions, tests: Tests | None = None
) -> list[Row]:
    """Rows of a group at every scale, of the difference between the largest and the smallest, and of its other contrasts."""
    if not group.labels:
        return []
    tests = tests or {}
    made = bool(group.contrast) or any(part.contrast == SCALE for part in group.contrasts)
    between = [scale_contrast(group)] if len(group.values) > 1 and not made else []
    return [
        row
        for part in (group, *between, *group.contrasts)
        for scale in part.values
        for row in _rows(part, scale, plan, options, tests.get((part.contrast, scale)))
    ]


def _rows(
    group: Group,
    scale: str,
    plan: Resamples,
    options: CorrelateOptions,
    p_and_q: tuple[Array, Array] | None = None,
) -> list[Row]:
    notes = group.notes[scale]
    kind = group.interval if options.interval == "auto" else options.interval
    second = "percentile"
    # BCa is too narrow, or undefined, where three or four mixtures are drawn from each block
    if plan.within_blocks:
        kind = "jackknife-z" if (options.interval, kind) == ("auto", "bca") else kind
        second = "jackknife"
    kinds = dict.fromkeys([kind, second, *SHOWN])
    others, basis = [k for k in kinds if k != "fisher"], group.basis[scale]
    found = intervals(group.values[scale], plan, options.level, others, basis)
    unsure = np.isfinite(found.estimate) & (found.degenerate > DEGENERATE_MOST)
    for values in (found.estimate, *found.ends.values()):
        values[unsure] = np.nan
    undefined_S2 = np.full((len(unsure), 2), np.nan)
    # A mean taken out for each block takes one mixture's worth of information, as a covariate of a partial r does.
    n_S = plan.freedom(*basis) + 1
    z = fisher(found.estimate, n_S, options.level) if group.is_correlation else undefined_S2
    every = {**found.ends, "fisher": z}
    least_S, most_S = np.array([group.range_of(label) for label in group.labels]).reshape(-1, 2).T
    estimate_S = np.clip(found.estimate, least_S, most_S)
    ends = {name: np.clip(end_S2, least_S[:, None], most_S[:, None]) for name, end_S2 in every.items()}
    p, q = p_and_q or (undefined_S2[:, 0], undefined_S2[:, 0])
    rows = []
    for s, label in enumerate(group.labels):
        shown, why = _shown({name: end_S2[s] for name, end_S2 in every.items()}, kind, second)
        said = [notes[s].text] if notes[s].text else []
        if unsure[s]:
            said.append(f"not reported: undefined in {found.degenerate[s]:.0%} of the resamples")
        if why:
            said.append(why)
        columns: dict[str, Any] = {
            f"{name}_{end}": float(ends[name][s, e])
            for name in SHOWN
            for e, end in enumerate(("low", "high"))
        }
        columns |= {"p": float(p[s]), "q": float(q[s]), "degenerate": float(found.degenerate[s])}
        low, high = ends[shown or kind][s]
        three, note = (estimate_S[s], low, high), Note(notes[s].kind, "; ".join(said))
        about = group.protocol, group.quantity, scale, label, three, int(basis.n_S[s]), note
        rows.append(plain_row(*about, contrast=group.contrast, interval=shown, **columns))
    return rows


def _shown(end_of: Mapping[str, Array], kind: str, second: str) -> tuple[str, str]:
    """The interval that is shown of one statistic: the kind asked for, or where it is undefined the second; "" where that is too.
    And what to say of it.

    An interval without width says nothing while the resamples differ: the percentile interval stands in. Kendall's tau may be
    the same whichever mixture is left out, and the jackknife's has none then.
    """
    shown = second if np.isnan(end_of[kind][0]) else kind
    if np.isnan(end_of[shown][0]):
        return "", ""
    if np.ptp(end_of[shown]) > ROUNDING * max(1.0, abs(end_of[shown][0])):
        return shown, "" if shown == kind else f"{second} interval: {kind} is undefined here"
    if np.ptp(end_of["percentile"]) > ROUNDING * max(1.0, abs(end_of["percentile"][0])):
        return "percentile", f"percentile interval: {shown} has no width here"
    return shown, "no width: no resample within the interval's level has another value"


def plain_row(
    protocol: str,
    quantity: str,
    scale: str,
    label: Label,
    found: Iterable[float],
    n: int,
    note: Note = NO_NOTE,
    **known: Any,
) -> Row:
    """A row; found is an estimate and both ends, or an estimate alone. Unnamed fields are NaN or empty."""
    empty: dict[str, Any] = dict.fromkeys(Row._fields, math.nan) | dict.fromkeys(TEXTS, "")
    about = {"protocol": protocol, "quantity": quantity, "scale": scale, **label._asdict(), "n": n}
    ends = dict(zip(("estimate", "low", "high"), map(float, found), strict=False))
    return Row(**{**empty, **known, **about, **ends, "note": note.text, "note_kind": note.kind})
