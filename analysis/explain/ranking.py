"""How well one value ranks the mixtures as another one does, and how sure that is.

Agreement is the share of pairs of mixtures that are ordered alike: a tie of one side counts one half, pairs tied on both are left
out. r is Pearson's over mixtures. Intervals leave out one mixture at a time. With blocks (analysis/data/blocks.py) pairs are of
mixtures of one block, and the blocks' means are taken out of what r is of.

Dims: J sets of mixtures (all, then without each), M mixtures, B benchmarks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from evalengine.analysis.explain.choices import Array
from evalengine.analysis.explain.means import C, grouped
from evalengine.analysis.explain.student import jackknife, of_correlation
from evalengine.analysis.statistics import ranges
from evalengine.analysis.statistics.correlation import BlockNumbers, members_of
from evalengine.analysis.statistics.ranges import CORRELATION, SHARE

LEAST = 4  # mixtures
AGREEMENT, R = MEASURES = ("pair agreement", "r")


def with_and_without(measure: str, x_MB: Array, y_MB: Array, block_M: BlockNumbers | None = None) -> Array:
    """How well x ranks the mixtures (of each block) as y does, (1 + M, B): over all of them, then without each."""
    statistic = agreement if measure == AGREEMENT else correlation
    every = np.arange(len(x_MB))
    keep = [every, *(np.delete(every, m) for m in every)]
    return np.stack([statistic(x_MB[k], y_MB[k], None if block_M is None else block_M[k]) for k in keep])


def interval(
    value_JB: Array, measure: str, difference: bool, level: float = 0.95, block_M: BlockNumbers | None = None
) -> tuple[tuple[float, float, float, float], str]:
    """Mean over benchmarks of a statistic over all mixtures and without each, its ends and p (of a difference); why not."""
    if not value_JB.shape[1]:
        return (np.nan, np.nan, np.nan, np.nan), ""
    value_J = value_JB.mean(axis=1)
    given = value_J[:1], value_J[1:, None], level, block_M
    if measure == R and not difference:
        found = of_correlation(*given)
    else:
        possible = SHARE if measure == AGREEMENT else CORRELATION
        found = jackknife(*given, ranges.difference(possible) if difference else possible)
    estimate, low, high, se, p = found.at(0)
    if not se > 1e-12:
        return (estimate, np.nan, np.nan, np.nan), "the same without each mixture, so no interval"
    return (estimate, low, high, p if difference else np.nan), ""


def over_benchmarks(
    known_B: NDArray[np.bool_], every: Sequence[C]
) -> Iterator[tuple[str, str, list[int], str]]:
    """Category and benchmark of each mean (means.grouped), the places of its benchmarks that are known, a note on the others."""
    place = {cell.benchmark: b for b, cell in enumerate(every)}
    for category, benchmark, chosen in grouped(every):
        index = [place[cell.benchmark] for cell in chosen]
        tied = [every[b].benchmark for b in index if not known_B[b]]
        note = f"without {', '.join(tied)} (mixtures tied)" if tied else ""
        yield category, benchmark, [b for b in index if known_B[b]], note


def agreement(x_MB: Array, y_MB: Array, block_M: BlockNumbers | None = None) -> Array:
    """Share of pairs of mixtures (of one block) that x orders as y does, of each benchmark; NaN where none counts."""
    a, b = np.triu_indices(len(x_MB), 1)
    if block_M is not None:
        alike = block_M[a] == block_M[b]
        a, b = a[alike], b[alike]
    dx, dy = (np.sign(np.round(v[a] - v[b], 12)) for v in (x_MB, y_MB))
    counted = (dx != 0) | (dy != 0)
    with np.errstate(invalid="ignore"):
        found: Array = np.where(counted, 0.5 + 0.5 * dx * dy, 0.0).sum(axis=0) / counted.sum(axis=0)
    return found


def correlation(x_MB: Array, y_MB: Array, block_M: BlockNumbers | None = None) -> Array:
    """Pearson's r of each benchmark (within blocks), NaN where all mixtures (of each) are tied."""
    dx, dy = within(x_MB, block_M), within(y_MB, block_M)
    varies = (np.ptp(dx, axis=0) > 1e-12) & (np.ptp(dy, axis=0) > 1e-12)
    with np.errstate(invalid="ignore", divide="ignore"):
        r: Array = (dx * dy).sum(axis=0) / np.sqrt((dx**2).sum(axis=0) * (dy**2).sum(axis=0))
    return np.where(varies, r, np.nan)


def within(x_MB: Array, block_M: BlockNumbers | None) -> Array:
    """Values minus the means of their blocks, or of all."""
    if block_M is None:
        return x_MB - x_MB.mean(axis=0)
    out = x_MB.copy()
    for at in members_of(block_M):
        out[at] -= x_MB[at].mean(axis=0)
    return out
