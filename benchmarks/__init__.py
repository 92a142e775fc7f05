"""The benchmarks: what an item is, the twenty definitions, loaders, users' own, and the embedded world.

    from evalengine.benchmarks import load_items, resolve
    for benchmark in resolve("science"):
        items = load_items(benchmark, data=Path("bench/")).items

`definition` says what a benchmark is; `commonsense`, `science`, `nli` and `semantic` hold the twenty; `load`
reads rows; `custom` reads users' YAML files; `world` writes the synthetic world of the demonstration.
"""

from evalengine.benchmarks.catalogue import BENCHMARKS, CATEGORIES, resolve
from evalengine.benchmarks.definition import Benchmark, Item
from evalengine.benchmarks.load import ItemSet, benchmarks_in, check_folder, held, load_items

__all__ = [
    "BENCHMARKS",
    "CATEGORIES",
    "Benchmark",
    "Item",
    "ItemSet",
    "benchmarks_in",
    "check_folder",
    "held",
    "load_items",
    "resolve",
]
