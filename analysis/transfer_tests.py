"""Tests of transfer: is a mean r other than 0, and is it another at the largest scale than at the smallest?

Permutation tests of the first, tests that swap the scales within mixtures of the second (swapping.py), and q over the
benchmarks and over the means of a scale.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from evalengine.analysis.correlation import benjamini_hochberg, permuted_p
from evalengine.analysis.groups import SCALE, Array, Group
from evalengine.analysis.panel import Panel
from evalengine.analysis.swapping import swap_p
from evalengine.analysis.tables import Options, Tests

PAndQ = tuple[Array, Array]


def tests(single: Group, panel: Panel, options: Options) -> tuple[Tests, Tests]:
    """p and q of the benchmarks, and of the means over categories and over all: of their transfers at every scale
    (permutation; q within the scale), and of the differences between the largest scale and the smallest (swapping; q among
    them)."""
    B, members = len(panel.benchmarks), _members(panel)
    x_S2BM = [panel.variables(single.quantity, s).reshape(2, B, -1) for s in range(len(panel.scales))]
    defined_SB = [np.isfinite(single.values[scale][:, 0]) for scale in panel.scales]
    found: dict[tuple[str, str], tuple[PAndQ, PAndQ]] = {}
    for scale, x_2BM, defined_B in zip(panel.scales, x_S2BM, defined_SB, strict=True):
        p = np.full(len(members), np.nan)
        for mask_M, index, used in _by_mixtures(x_2BM, members, defined_B):
            block_M = None if panel.block_M is None else panel.block_M[mask_M]
            before_BM, after_BM = x_2BM[:, :, mask_M]
            p[index] = permuted_p(before_BM, after_BM, used, options.statistic, options.seed, block_M)
        found["", scale] = _families(p, B)
    if len(panel.scales) > 1:
        both_B = defined_SB[0] & defined_SB[-1]
        found[SCALE, panel.scales[-1]] = swapped(x_S2BM[0], x_S2BM[-1], both_B, panel, options)
    of_benchmarks, of_means = ({key: both[k] for key, both in found.items()} for k in (0, 1))
    return of_benchmarks, of_means


def swapped(
    small_2BM: Array, large_2BM: Array, defined_B: NDArray[np.bool_], panel: Panel, options: Options
) -> tuple[PAndQ, PAndQ]:
    """p of the difference of transfers from one side to the other (`swap_p`), and q: of the benchmarks, and of the means."""
    members = _members(panel)
    p = np.full(len(members), np.nan)
    for mask_M, index, used in _by_mixtures(np.concatenate([small_2BM, large_2BM]), members, defined_B):
        sides = small_2BM[:, :, mask_M], large_2BM[:, :, mask_M]
        block_M = None if panel.block_M is None else panel.block_M[mask_M]
        p[index] = swap_p(*sides, used, options.statistic, options.seed, block_M=block_M)
    return _families(p, len(defined_B))


def _members(panel: Panel) -> list[list[int]]:
    """The benchmarks behind each statistic: each benchmark alone, each category, all."""
    return [*([b] for b in range(len(panel.benchmarks))), *panel.with_all().values()]


def _families(p: Array, benchmarks: int) -> tuple[PAndQ, PAndQ]:
    """p and q of the benchmarks, and of the means: a false-discovery rate for each."""
    single, means = np.split(p, [benchmarks])
    return (single, benjamini_hochberg(single)), (means, benjamini_hochberg(means))


def _by_mixtures(
    x_TBM: Array, members: Sequence[Sequence[int]], defined_B: NDArray[np.bool_]
) -> Iterator[tuple[NDArray[np.bool_], list[int], list[list[int]]]]:
    """Means that rest on the same mixtures: those mixtures, which of the means, and the defined benchmarks of each."""
    known_BM = np.asarray(np.isfinite(x_TBM).all(axis=0))
    grouped: dict[bytes, list[int]] = {}
    used = [[b for b in index if defined_B[b]] for index in members]
    for i, index in enumerate(used):
        if index:
            grouped.setdefault(known_BM[index].all(axis=0).tobytes(), []).append(i)
    for key, index in grouped.items():
        mask_M = np.frombuffer(key, dtype=bool)
        if mask_M.sum() >= 4:
            yield mask_M, index, [used[i] for i in index]
