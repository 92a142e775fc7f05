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
    """Items, chance, and the means over mixtures at both stages of each scale."""
    method, quantity = results.method, _quantity(results)
    stages = [(scale, stage) for scale in results.scales for stage in method["stages"]]
    mean = {
        (row.name, row.scale, row.other): row.estimate
        for row in results.rows("calibration", protocol="mean", quantity=quantity)
    }
    scores = dict(zip(method["benchmarks"], method["metrics"], strict=False))
    known = [name for name, there in (("score", bool(scores)), *_known(results)) if there]
    lines: list[list[str | Mark]] = []
    for benchmark, category in zip(method["benchmarks"], method["categories"], strict=True):
        about = {"score": scores.get(benchmark, "–"), **_about(results, benchmark)}
        means = [_value(results, benchmark, mean.get((benchmark, *at), math.nan)) for at in stages]
        lines.append([benchmark, category, *(about[name] for name in known), *means])
    several = len(results.scales) > 1
    heads = [f"{scale} {stage}" if several else stage for scale, stage in stages]
    columns = ["benchmark", "category", *known, *heads]
    return Table(f"{quantity}, means over mixtures", columns, blocks(lines, 1), texts=3 if scores else 2)


def cells_table(results: Results, scale: str) -> Table:
    """The value of every checkpoint at a scale: two lines for each benchmark, one for each stage."""
    method, quantity = results.method, _quantity(results)
    mixtures = method["mixtures"][:MIXTURES]
    value = results.values(quantity, scale)
    known = [name for name, there in _known(results) if there]
    by_category: dict[str, list[list[str | Mark]]] = {}
    for benchmark, category in zip(method["benchmarks"], method["categories"], strict=True):
        about = [_about(results, benchmark)[name] for name in known]
        for k, stage in enumerate(method["stages"]):
            found = [value.get((benchmark, stage, mixture)) for mixture in mixtures]
            cells = [_value(results, benchmark, math.nan if x is None else x) for x in found]
            first = [benchmark, stage, *about] if k == 0 else ["", stage, *[""] * len(about)]
            by_category.setdefault(category, []).append([*first, *cells])
    columns = ["benchmark", "stage", *known, *mixtures]
    return Table(f"{quantity} at {scale}", columns, list(by_category.values()), texts=2)


def _quantity(results: Results) -> str:
    quantities: Sequence[str] = results.method["quantities"]
    return "accuracy" if "accuracy" in quantities else quantities[0]


def _known(results: Results) -> list[tuple[str, bool]]:
    """Columns about the benchmarks, and whether anything is known for them."""
    chance = bool(results.chance) and _quantity(results) == "accuracy"
    return [("items", any(results.method["items"])), ("chance", chance)]


def _about(results: Results, benchmark: str) -> dict[str, str]:
    items = results.method["items"][results.method["benchmarks"].index(benchmark)]
    chance = results.chance.get(benchmark, math.nan)
    return {
        "items": f"{items:,}" if items else "–",
        "chance": f"{100 * chance:.1f}" if chance == chance else "–",
    }


def _value(results: Results, benchmark: str, value: float) -> str | Mark:
    if not math.isfinite(value):
        return "–"
    if _quantity(results) != "accuracy":
        return f"{value:.3f}"
    below = value < results.chance.get(benchmark, math.nan)
    return Mark(f"{100 * value:.1f}*", "below") if below else f"{100 * value:.1f}"
