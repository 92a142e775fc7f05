"""What was measured: each benchmark's items, chance and mean accuracy, and the accuracy of every checkpoint."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from evalengine.analysis.figure import File, Folded, Heading, Mark, Part, Table, blocks, file_part
from evalengine.analysis.results import Results

MIXTURES = 40  # columns of the widest table; all values are in the table `cells`


def shown(results: Results) -> Iterator[Part]:
    quantity = _quantity(results)
    percent = " in percent" if quantity == "accuracy" else ""
    note = (
        " A star marks a mean or a value below chance." if results.chance and quantity == "accuracy" else ""
    )
    more = len(results.method["mixtures"]) - MIXTURES
    left_out = f"{more} more mixtures are in the table cells." if more > 0 else ""
    yield Heading("Benchmarks")
    yield f"{quantity.capitalize()}{percent}, means over mixtures.{note}"
    yield File("benchmarks", benchmarks_table(results))
    for scale in results.scales:
        at = f" at {scale}" if len(results.scales) > 1 else ""
        cells = File(f"{quantity}_{file_part(scale)}", cells_table(results, scale))
        yield Folded(f"{quantity.capitalize()} of every checkpoint{at}", [cells, left_out])


def benchmarks_table(results: Results) -> Table:
    """Score, items, chance, and the means over mixtures at both stages of each scale."""
    method, quantity, about = results.method, _quantity(results), _about(results)
    stages = [(scale, stage) for scale in results.scales for stage in method["stages"]]
    mean = {
        (row.name, row.scale, row.other): row.estimate
        for row in results.rows("calibration", protocol="mean", quantity=quantity)
    }
    lines: list[list[str | Mark]] = []
    for benchmark, category in zip(method["benchmarks"], method["categories"], strict=True):
        known = [of.get(benchmark, "–") for of in about.values()]
        means = [_value(results, benchmark, mean.get((benchmark, *at), math.nan)) for at in stages]
        lines.append([benchmark, category, *known, *means])
    heads = [f"{scale} {stage}" if len(results.scales) > 1 else stage for scale, stage in stages]
    columns = ["benchmark", "category", *about, *heads]
    return Table(
        f"{quantity}, means over mixtures", columns, blocks(lines, 1), texts=3 if "score" in about else 2
    )


def cells_table(results: Results, scale: str) -> Table:
    """The value of every checkpoint at a scale: two lines for each benchmark, one for each stage."""
    method, quantity = results.method, _quantity(results)
    about = {name: of for name, of in _about(results).items() if name != "score"}
    mixtures = method["mixtures"][:MIXTURES]
    value = results.values(quantity, scale)
    by_category: dict[str, list[list[str | Mark]]] = {}
    for benchmark, category in zip(method["benchmarks"], method["categories"], strict=True):
        known = [of.get(benchmark, "–") for of in about.values()]
        for stage, first in zip(
            method["stages"], ([benchmark, *known], [""] * (1 + len(known))), strict=True
        ):
            found = [value.get((benchmark, stage, mixture)) for mixture in mixtures]
            cells = [_value(results, benchmark, math.nan if x is None else x) for x in found]
            by_category.setdefault(category, []).append([first[0], stage, *first[1:], *cells])
    columns = ["benchmark", "stage", *about, *mixtures]
    return Table(f"{quantity} at {scale}", columns, list(by_category.values()), texts=2)


def _quantity(results: Results) -> str:
    quantities: Sequence[str] = results.method["quantities"]
    return "accuracy" if "accuracy" in quantities else quantities[0]


def _about(results: Results) -> dict[str, dict[str, str]]:
    """What is known of the benchmarks, by column and benchmark; no column of which nothing is known."""
    method = results.method
    scores = dict(zip(method["benchmarks"], method["metrics"], strict=False))
    items = {name: f"{n:,}" for name, n in zip(method["benchmarks"], method["items"], strict=True) if n}
    chance = results.chance if _quantity(results) == "accuracy" else {}
    about = {"score": scores, "items": items, "chance": {k: f"{100 * v:.1f}" for k, v in chance.items()}}
    return {name: column for name, column in about.items() if column}


def _value(results: Results, benchmark: str, value: float) -> str | Mark:
    if not math.isfinite(value):
        return "–"
    if _quantity(results) != "accuracy":
        return f"{value:.3f}"
    below = value < results.chance.get(benchmark, math.nan)
    return Mark(f"{100 * value:.1f}*", "below") if below else f"{100 * value:.1f}"
