"""The benchmarks by name, in the study's order, and the names a user may ask for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from evalengine.benchmarks import commonsense, nli, science, semantic
from evalengine.benchmarks.custom import read_benchmark
from evalengine.benchmarks.definition import Benchmark
from evalengine.errors import UserError, nearest

BENCHMARKS: dict[str, Benchmark] = {
    benchmark.name: benchmark
    for module in (commonsense, science, nli, semantic)
    for benchmark in module.BENCHMARKS
}
CATEGORIES: tuple[str, ...] = tuple(dict.fromkeys(benchmark.category for benchmark in BENCHMARKS.values()))


def resolve(names: str, custom: Sequence[Path] = ()) -> list[Benchmark]:
    """The benchmarks of "all", of a category, or of a comma-separated list of both, in the catalogue's order.

    `custom` names YAML files of users' own benchmarks; they follow the built-in ones and belong to "all".
    Raises UserError for an unknown name (with the nearest known one) and for a name defined twice.
    """
    known = dict(BENCHMARKS)
    for path in custom:
        benchmark = read_benchmark(path)
        if benchmark.name in known:
            raise UserError(f"{path}: the name '{benchmark.name}' is taken; choose another")
        known[benchmark.name] = benchmark
    wanted: set[str] = set()
    for name in (part.strip() for part in names.split(",")):
        if not name:
            continue
        members = [b.name for b in known.values() if name == "all" or b.category.lower() == name.lower()]
        if name in known:
            members = [name]
        if not members:
            categories = dict.fromkeys(b.category for b in known.values())
            raise UserError(f"no benchmark or category '{name}'{nearest(name, [*known, *categories, 'all'])}")
        wanted.update(members)
    if not wanted:
        raise UserError("no benchmark was named: give names, a category or 'all'")
    return [benchmark for benchmark in known.values() if benchmark.name in wanted]
