"""How many orders of the mixtures the permutation tests of a study walk, in words.

It goes by the mixtures of each test and not by all: those that have a benchmark at both stages of a scale, or all benchmarks of
a mean.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from evalengine.analysis.data.panel import Array, Panel
from evalengine.analysis.statistics.correlation import (
    EXACT_MIXTURES,
    EXACT_PERMUTATIONS,
    all_orders,
    block_sizes,
    orders,
    sampled_orders,
)

TESTED = 4  # mixtures that a test takes


def permutation_words(panel: Panel, statistic: str) -> str:
    """Of tests without blocks "all", "100000 sampled", or both where tests differ in it; with blocks also how many."""
    tests = _tests(panel)
    exact = sorted({orders(sizes) for sizes in tests if all_orders(sizes)})
    drawn = sorted({sampled_orders(sizes, statistic) for sizes in tests if not all_orders(sizes)})
    if panel.blocks is None:
        sampled = _from_to(map(str, drawn))
        if exact and drawn:
            return f"all of up to {EXACT_MIXTURES} mixtures, {sampled} sampled of more"
        return f"{sampled} sampled" if drawn else "all"
    said, sampled = (_from_to(f"{count:,}" for count in counts) for counts in (exact, drawn))
    if exact and drawn:
        return f"{said} orders, {sampled} sampled ones where there are more than {EXACT_PERMUTATIONS:,}"
    if drawn:
        return f"{sampled} sampled orders"
    return f"{said} orders, no p below {1.0 / exact[-1]:.2g}" if exact else "no test"


def _from_to(counts: Iterable[str]) -> str:
    """The first and the last."""
    listed = list(counts)
    return " to ".join(dict.fromkeys([*listed[:1], *listed[-1:]]))


def _tests(panel: Panel) -> set[tuple[int, ...]]:
    """The sizes of the blocks of mixtures (of one, where there are no blocks) of each test that there can be."""
    block_M = panel.block_M
    found = set()
    for used_M in _mixtures(panel):
        if used_M.sum() >= TESTED:
            within = None if block_M is None else block_M[used_M]
            found.add(tuple(sorted(block_sizes(int(used_M.sum()), within))))
    return found


def _mixtures(panel: Panel) -> Iterator[NDArray[np.bool_]]:
    """(M,): those that have all benchmarks of a test at the two stages of a scale."""
    arrays: list[Array] = list(panel.transferred.values())
    if panel.steps is not None:
        kept = [
            m for m, name in enumerate(panel.steps.mixtures) if panel.blocks is None or name in panel.mixtures
        ]
        arrays += [x_STMB[:, :, kept] for x_STMB in panel.steps.values.values()]
    members = [*([b] for b in range(len(panel.benchmarks))), *panel.with_all().values()]
    for x_STMB in arrays:
        for x_TMB in np.isfinite(x_STMB):
            for one, other in itertools.combinations(x_TMB, 2):
                yield from ((one & other)[:, index].all(axis=1) for index in members)
