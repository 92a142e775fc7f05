"""Intra-category coherence: do the benchmarks of a category rank the mixtures alike?"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from html import escape

import numpy as np

from evalengine.analysis import page
from evalengine.analysis.figure import Figure, Intervals, Table
from evalengine.analysis.groups import (
    PARTIAL,
    UNDEFINED,
    Data,
    Group,
    Label,
    Means,
    Note,
    Pairs,
    mean_of_known,
)
from evalengine.analysis.protocol import SUPPORTED, UNSUPPORTED, Claim, Protocol, Study
from evalengine.analysis.results import Results, with_interval
from evalengine.analysis.tables import Row


def rows(study: Study) -> list[Row]:
    return [row for quantity in study.panel.quantities for row in study.rows(coherence(study.data, quantity))]


def coherence(data: Data, quantity: str) -> Group:
    """Intra-category coherence: mean r over pairs of a category's benchmarks; both before, both after, and across."""
    panel = data.panel
    B = len(panel.benchmarks)
    labels: list[Label] = []
    chosen: list[Pairs] = []
    for category, members in panel.category_members().items():
        pairs = np.array([(i, j) for i in members for j in members if i < j], dtype=np.int64).reshape(-1, 2)
        across = np.concatenate([pairs, pairs[:, ::-1]]) + np.array([0, B])
        for name, these in ((panel.stages[0], pairs), (panel.stages[1], pairs + B), ("cross", across)):
            labels.append(Label(category, name, f"{len(these)} pairs"))
            chosen.append(these)
    every = np.concatenate(chosen)
    split = np.split(np.arange(len(every)), np.cumsum([len(pairs) for pairs in chosen])[:-1])
    means, values, n, notes = {}, {}, {}, {}
    for scale in panel.scales:
        single_PC, single_n_P = data.correlate(quantity, scale, every), data.n(quantity, scale, every)
        means[scale] = Means(single_PC, single_n_P, [index.tolist() for index in split])
        rows, counts, said = [], [], []
        for label, pairs, index in zip(labels, chosen, split, strict=True):
            value_PC = single_PC[index]
            defined = np.isfinite(value_PC[:, 0]) if len(pairs) else np.zeros(0, dtype=bool)
            rows.append(mean_of_known(value_PC[defined]))
            counts.append(int(single_n_P[index][defined].min()) if defined.any() else 0)
            lost = len(pairs) - int(defined.sum())
            if not len(pairs):
                said.append(Note(UNDEFINED, f"{label.category} has one benchmark, so no pairs"))
            else:
                said.append(Note(PARTIAL, f"without {lost} of the pairs (no r)") if lost else Note())
        values[scale], n[scale], notes[scale] = np.array(rows), np.array(counts), said
    return Group("coherence", quantity, labels, values, n, notes, interval="bca-t", means=means)


def section(results: Results) -> str:
    found = results.rows("coherence")
    if not any(math.isfinite(row.estimate) for row in found):
        return ""
    before, after = results.method["stages"]
    return (
        "<h2>Coherence within categories</h2>"
        f'<p class="hint">Mean correlation over pairs of a category\'s benchmarks: both at {escape(before)}, both at '
        f"{escape(after)}, or one at each (cross).</p>"
        f"{page.grid(results, Intervals(found, _label))}"
    )


def _label(row: Row) -> str:
    return f"{row.category}, {row.name}"


def figures(results: Results) -> Mapping[str, Figure]:
    return {"coherence": Intervals(results.rows("coherence"), _label)}


def latex(results: Results) -> dict[str, Table]:
    return {
        "coherence": page.numbers(
            "coherence", results.rows("coherence"), results.scales, ("category", "name")
        )
    }


def claims(results: Results) -> Iterator[Claim]:
    found = results.rows("coherence")
    found = [row for row in found if math.isfinite(row.estimate) and math.isfinite(row.low)]
    clear = sorted((row for row in found if row.low > 0), key=lambda row: -row.low)
    for row in clear[:3]:
        at = f", {row.scale}" if len(results.scales) > 1 else ""
        yield Claim(
            SUPPORTED,
            f"{row.category} benchmarks move together ({row.quantity}, {row.name}{at}): "
            f"mean r = {with_interval(row)}, n = {row.n}.",
        )
    if len(clear) < len(found):
        yield Claim(
            UNSUPPORTED,
            f"Coherence within a category in {len(found) - len(clear)} of {len(found)} cases (category, stage, scale, "
            "quantity): their intervals do not lie above 0.",
        )


PROTOCOL = Protocol("coherence", rows, section, figures, claims, latex)
