"""The transfer of every category and benchmark in numbers: printed by `correlate`, on the page, and as LaTeX."""

from __future__ import annotations

import math
from collections.abc import Sequence

from evalengine.analysis.estimates.groups import SCALE
from evalengine.analysis.estimates.tables import Row
from evalengine.analysis.figure import Mark, Table, by
from evalengine.analysis.protocols.noise import CEILING, WITHOUT_NOISE, no_ceiling
from evalengine.analysis.results import Results, p_value, with_interval


def words(results: Results, quantity: str) -> str:
    """What the table's columns are, and why ceilings are blank."""
    change = f" Change: {results.scales[-1]} − {results.scales[0]}." if len(results.scales) > 1 else ""
    ceilings = results.rows("reliability", other=CEILING, quantity=quantity)
    known = any(math.isfinite(row.estimate) for row in ceilings)
    said = [
        f"In brackets after a category: how many benchmarks its mean is over.{change} p: permutation test, of a mean over the "
        "mixtures that have all its benchmarks; q: Benjamini and Hochberg's, over the benchmarks or the means of a scale.",
        "Ceiling: the r that item noise would leave of a perfect correlation." * known,
        no_ceiling(ceilings),
    ]
    return " ".join(filter(None, said))


def transfer_table(results: Results, quantity: str, scales: Sequence[str]) -> Table:
    """Every mean and benchmark at the given scales, and with two or more the means' differences between the scales.

    A mean is marked; its benchmarks follow it.
    """
    several = len(scales) > 1
    at = {"quantity": quantity}
    ceiling = {(r.scale, r.name): r.estimate for r in results.rows("reliability", other=CEILING, **at)}
    clean = {
        (r.scale, r.category if r.protocol == "category_reliability" else r.name): r
        for r in results.rows("reliability", other=WITHOUT_NOISE, **at)
    }
    items = dict(zip(results.method["benchmarks"], results.method["items"], strict=True))
    shown = [row for row in results.rows("transfer", **at) if row.scale in scales]
    if several:
        shown += results.rows("transfer", protocol="category_transfer", contrast=SCALE, **at)

    def cells(row: Row) -> list[str | Mark]:
        single = row.protocol == "transfer"
        count = items[row.name] if single else 0
        most = ceiling.get((row.scale, row.name), math.nan) if single else math.nan
        without = None if row.contrast else clean.get((row.scale, row.name if single else row.category))
        return [
            *(["change" if row.contrast else row.scale] if several else []),
            with_interval(row),
            str(row.n),
            f"{count:,}" if count else "",
            p_value(row.p),
            p_value(row.q),
            f"{most:.2f}" if math.isfinite(most) else "",
            with_interval(without) if without and math.isfinite(without.estimate) else "",
        ]

    blocks: list[list[list[str | Mark]]] = []
    for category, mine in by(shown, lambda row: row.category).items():
        blocks.append([])
        lines = by(mine, lambda row: (row.protocol == "transfer", row.name))
        for (single, name), rows in sorted(lines.items(), key=lambda line: line[0][0]):
            title = name if single else Mark(f"{category} ({name.removeprefix('mean of ')})", "mean")
            blocks[-1] += [[title if k == 0 else "", *cells(row)] for k, row in enumerate(rows)]
    columns = ["", *(["scale"] if several else []), "r", "n", "items", "p", "q", CEILING, WITHOUT_NOISE]
    known = [k for k in range(len(columns)) if k == 0 or any(row[k] for block in blocks for row in block)]
    blocks = [[[row[k] for k in known] for row in block] for block in blocks]
    return Table(f"transfer of {quantity}", [columns[k] for k in known], blocks, texts=2 if several else 1)
