"""From groups of columns to tables with intervals, and to files.

One schema for all protocols, so that a notebook reads every result alike: what it is about, the estimate, the interval
of the chosen kind, the other kinds beside it, n, p and q, and a note where a number is missing or rests on less.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from evalengine.analysis.bootstrap import DEGENERATE_MOST, Array, Resamples, fisher, intervals
from evalengine.analysis.contrasts import scale_contrast
from evalengine.analysis.groups import SCALE, Group, Label, Note

if TYPE_CHECKING:
    import pyarrow as pa

DEGENERATE_SAID = 1e-3  # share of undefined resamples above which a row says so


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
    degenerate: float  # share of the resamples in which it is undefined
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


# p-values and their adjusted values (q), by contrast ("" of plain statistics) and scale.
Tests = Mapping[tuple[str, str], tuple[Array, Array]]


class Options(NamedTuple):
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
    group: Group,
    plan: Resamples,
    options: Options,
    tests: Tests | None = None,
) -> list[Row]:
    """Rows of a group at every scale, of the difference between the largest and the smallest, and of its other contrasts."""
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
    group: Group, scale: str, plan: Resamples, options: Options, p_and_q: tuple[Array, Array] | None = None
) -> list[Row]:
    n: Any = group.n[scale]
    notes = group.notes.get(scale, [Note()] * len(group.labels))
    kind = group.interval if options.interval == "auto" else options.interval
    second = "percentile"
    if plan.parts:  # BCa is too narrow, or undefined, where three or four mixtures are drawn from each block
        kind = "jackknife-z" if (options.interval, kind) == ("auto", "bca") else kind
        second = "jackknife"
    kinds = dict.fromkeys([*SHOWN, second, kind])
    others = [k for k in kinds if k != "fisher"]
    found = intervals(group.values[scale], plan, options.level, others, group.basis(scale))
    unsure = np.isfinite(found.estimate) & (found.degenerate > DEGENERATE_MOST)
    for values in (found.estimate, *found.ends.values()):
        values[unsure] = np.nan
    undefined_S2 = np.full((len(unsure), 2), np.nan)
    # A mean taken out for each block takes one mixture's worth of information, as a covariate of a partial r does.
    z = fisher(found.estimate, n - (plan.blocks - 1), options.level) if group.is_correlation else undefined_S2
    least_S, most_S = np.array([group.range_of(label) for label in group.labels]).reshape(-1, 2).T
    estimate_S = np.clip(found.estimate, least_S, most_S)
    ends = {
        name: np.clip(end_S2, least_S[:, None], most_S[:, None])
        for name, end_S2 in {**found.ends, "fisher": z}.items()
    }
    fallback = ~np.isfinite(ends[kind][:, 0]) & np.isfinite(ends[second][:, 0])
    chosen = np.where(fallback[:, None], ends[second], ends[kind])
    p, q = p_and_q or (undefined_S2[:, 0], undefined_S2[:, 0])
    rows = []
    for s, label in enumerate(group.labels):
        said = [notes[s].text] if notes[s].text else []
        if unsure[s]:
            said.append(f"not reported: undefined in {found.degenerate[s]:.0%} of the resamples")
        if fallback[s]:
            said.append(f"{second} interval: {kind} is undefined here")
        if np.isfinite(found.estimate[s]) and found.degenerate[s] > DEGENERATE_SAID + plan.constant:
            said.append(f"undefined in {found.degenerate[s]:.1%} of the resamples, which are left out")
        by_kind: dict[str, Any] = {
            f"{name}_{end}": float(ends[name][s, e])
            for name in SHOWN
            for e, end in enumerate(("low", "high"))
        }
        rows.append(
            Row(
                protocol=group.protocol,
                quantity=group.quantity,
                scale=scale,
                **label._asdict(),
                estimate=float(estimate_S[s]),
                low=float(chosen[s, 0]),
                high=float(chosen[s, 1]),
                n=int(n[s]),
                p=float(p[s]),
                q=float(q[s]),
                degenerate=float(found.degenerate[s]),
                **by_kind,
                note="; ".join(said),
                note_kind=notes[s].kind,
                contrast=group.contrast,
                interval="" if np.isnan(chosen[s, 0]) else second if fallback[s] else kind,
            )
        )
    return rows


def plain_row(protocol: str, quantity: str, scale: str, label: Label, estimate: float, **known: Any) -> Row:
    """A row whose interval does not come from resamples (a t interval, none); unnamed fields are NaN or empty."""
    empty = dict.fromkeys(Row._fields, math.nan)
    return Row(
        **{
            **empty,
            "n": 0,
            "note": "",
            "note_kind": "",
            "contrast": "",
            "interval": "",
            **label._asdict(),
            **known,
        }
        | {"protocol": protocol, "quantity": quantity, "scale": scale, "estimate": estimate}
    )


def write_table(folder: Path, name: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Writes NAME.csv, NAME.arrow and NAME.json into an existing folder. NaN is an empty field, a null and a null."""
    import pyarrow as pa

    listed = [[_none_if_undefined(value) for value in row] for row in rows]
    with (folder / f"{name}.csv").open("w", encoding="utf-8", newline="") as handle:
        lines = csv.writer(handle, lineterminator="\n")
        lines.writerow(columns)
        lines.writerows([f"{v:.10g}" if isinstance(v, float) else v for v in row] for row in listed)
    by_column = list(zip(*listed, strict=True)) or [()] * len(columns)
    table = pa.Table.from_arrays(list(map(_arrow, by_column)), names=list(columns))
    with (folder / f"{name}.arrow").open("wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    objects = (json.dumps(dict(zip(columns, row, strict=True))) for row in listed)
    (folder / f"{name}.json").write_text("[\n " + ",\n ".join(objects) + "\n]\n", encoding="utf-8")


def _none_if_undefined(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _arrow(values: Sequence[Any]) -> pa.Array:
    """An Arrow array of strings, integers or numbers, from buffers: Arrow's own conversion would import pandas."""
    import pyarrow as pa

    known = np.array([value is not None for value in values], dtype=bool)
    mask = None if known.all() else pa.py_buffer(np.packbits(known, bitorder="little"))
    kinds = {type(v) for v in values if v is not None}
    if kinds == {str}:
        texts = [(value or "").encode() for value in values]
        offsets = np.concatenate([[0], np.cumsum([len(text) for text in texts])]).astype(np.int32)
        buffers = [mask, pa.py_buffer(offsets), pa.py_buffer(b"".join(texts))]
        return pa.Array.from_buffers(pa.string(), len(values), buffers)
    dtype, kind = (np.int64, pa.int64()) if kinds == {int} else (np.float64, pa.float64())
    data = np.array([0 if value is None else value for value in values], dtype=dtype)
    return pa.Array.from_buffers(kind, len(values), [mask, pa.py_buffer(data)])
