"""Tests of transfer: is a mean r other than 0, and is it another at the largest scale than at the smallest?

Permutation tests of the first, tests that swap the scales within mixtures of the second, and q over the benchmarks and over the
means of a scale.

If a benchmark's transfer is the same at two scales, a mixture's pair of values (before, after) at one may be exchanged with
its pair at the other once each of the four variables is standardised, and the difference of the two correlations keeps its
distribution. All 2^M ways to swap M mixtures, or seeded ones, are that distribution. Permuting the mixtures would test
another hypothesis: that both correlations are zero. Correlations are compared as Fisher's z = atanh(r), whose spread does not
depend on r: with differences of r itself the test rejects equal correlations of 0.9 at 5% in 2% of studies of 9 mixtures, and
misses 0 against 0.9 in 62%; with z it rejects 4% and misses 45%.

Where mixtures are in blocks, what is swapped is what is left once each variable's block means are taken out, and a correlation
of swapped values takes out theirs again: else equal correlations are rejected at 5% in 9% of studies of 3 x 3 mixtures. The two
mixtures of a block of two say the same, and are swapped together.

Reference: Romano (1990), JASA 85, 686-692, on randomisation tests without group invariance; Davison & Hinkley (1997), eq. 4.11.

Dims: B benchmarks, M mixtures, K ways to swap, S statistics, U units that are swapped.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from evalengine.analysis.data.panel import Panel
from evalengine.analysis.estimates.groups import SCALE, Array, Group
from evalengine.analysis.estimates.tables import CorrelateOptions, Tests
from evalengine.analysis.statistics.bootstrap import DEGENERATE_MOST, Resamples, degenerate_share
from evalengine.analysis.statistics.correlation import (
    BlockNumbers,
    benjamini_hochberg,
    parts_of,
    permuted_p,
    ranks,
    residuals,
    standardise,
)

PAndQ = tuple[Array, Array]
Parts = Sequence[NDArray[np.intp]]  # the mixtures of each block
EXACT_SWAPS = 17  # mixtures up to which all ways are walked (65,536, as swapping all of them changes nothing)
R_MOST = 1.0 - 1e-9  # an r of 1 has no finite z
AT_ONCE = 1024  # ways
KENDALL_BLOCK = 1 << 22  # ways at once, times the square of the mixtures
KENDALL_MOST = 1 << 28  # seeded ways with Kendall's tau, times the square of the mixtures


def tests(single: Group, panel: Panel, options: CorrelateOptions, plan: Resamples) -> tuple[Tests, Tests]:
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
        difference_BC = single.values[panel.scales[-1]] - single.values[panel.scales[0]]
        found[SCALE, panel.scales[-1]] = swapped(x_S2BM[0], x_S2BM[-1], difference_BC, panel, options, plan)
    of_benchmarks, of_means = ({key: both[k] for key, both in found.items()} for k in (0, 1))
    return of_benchmarks, of_means


def swapped(
    small_2BM: Array,
    large_2BM: Array,
    difference_BC: Array,
    panel: Panel,
    options: CorrelateOptions,
    plan: Resamples,
) -> tuple[PAndQ, PAndQ]:
    """p of the difference of transfers from one side to the other (`swap_p`), and q: of the benchmarks, and of the means. None of
    a benchmark whose difference too many resamples leave undefined, since it is not reported."""
    members, defined_B = _members(panel), np.isfinite(difference_BC[:, 0])
    p = np.full(len(members), np.nan)
    for mask_M, index, used in _by_mixtures(np.concatenate([small_2BM, large_2BM]), members, defined_B):
        sides = small_2BM[:, :, mask_M], large_2BM[:, :, mask_M]
        block_M = None if panel.block_M is None else panel.block_M[mask_M]
        p[index] = swap_p(*sides, used, options.statistic, options.seed, block_M=block_M)
    p[: len(defined_B)][degenerate_share(difference_BC, plan) > DEGENERATE_MOST] = np.nan
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


def swap_p(
    small_2BM: Array,
    large_2BM: Array,
    members: Sequence[Sequence[int]],
    statistic: str = "pearson",
    seed: int = 0,
    count: int = 100_000,
    block_M: BlockNumbers | None = None,
) -> Array:
    """Two-sided p of each difference of two mean correlations (on Fisher's scale), (S,).

    small_2BM, large_2BM: the benchmarks before and after at either scale, over the same mixtures, without missing values.
    members: the benchmarks whose mean each statistic is. block_M: the correlations are within these. NaN where one of them
    does not vary at a scale (within blocks). Ways to swap after which one does not, as may be of tied values, are left out.
    """
    sides = [_prepared(side, statistic, block_M) for side in (small_2BM, large_2BM)]
    M = sides[0].shape[2]
    parts = parts_of(M, block_M)
    hits, ways = np.zeros((2, len(members)))
    with np.errstate(invalid="ignore", divide="ignore"):
        observed = _differences(sides, np.zeros((1, M), dtype=bool), statistic, parts)[0]
        goal = np.array([abs(observed[list(index)].mean()) for index in members])
        at_once = AT_ONCE
        if statistic == "kendall":
            count = min(count, max(999, KENDALL_MOST // M**2))
            at_once = max(64, KENDALL_BLOCK // M**2)
        for swapped_KM in _ways(parts, seed, count, at_once):
            found_KB = _differences(sides, swapped_KM, statistic, parts)
            for s, index in enumerate(members):
                mean_K = np.abs(found_KB[:, list(index)].mean(axis=1))
                hits[s] += (mean_K >= goal[s] - 1e-12).sum()
                ways[s] += np.isfinite(mean_K).sum()
        return np.where(np.isfinite(goal), hits / ways, np.nan)


def _prepared(side_2BM: Array, statistic: str, block_M: BlockNumbers | None) -> Array:
    if statistic == "spearman":
        side_2BM = np.stack([ranks(x_BM) for x_BM in side_2BM])
    if block_M is not None:
        side_2BM = np.stack([residuals(x_BM, block_M) for x_BM in side_2BM])
    return standardise(side_2BM.reshape(-1, side_2BM.shape[2], 1)).reshape(side_2BM.shape)


def _ways(parts: Parts, seed: int, count: int, at_once: int) -> Iterator[NDArray[np.bool_]]:
    """Which mixtures are swapped, `at_once` ways (K, M) at a time: every way with the last mixture in place, or seeded ways of
    which the first swaps none."""
    M = sum(map(len, parts))
    unit_M = np.arange(M)
    for pair in (at_M for at_M in parts if len(parts) > 1 and len(at_M) == 2):
        unit_M[pair[1]] = pair[0]
    units, unit_M = np.unique(unit_M, return_inverse=True)
    U = len(units)
    if U <= EXACT_SWAPS:
        ways_KU = (np.arange(1 << (U - 1))[:, None] >> np.arange(U)) & 1 == 1
    else:
        ways_KU = np.random.default_rng(seed).integers(0, 2, (count + 1, U), dtype=np.int8) == 1
        ways_KU[0] = False
    for start in range(0, len(ways_KU), at_once):
        yield ways_KU[start : start + at_once, unit_M]


def _differences(
    sides: Sequence[Array], swapped_KM: NDArray[np.bool_], statistic: str, parts: Parts
) -> Array:
    """Fisher's z at the larger scale minus that at the smaller after swapping, (K, B)."""
    if statistic == "kendall":
        return _z(_taus(sides, ~swapped_KM, parts)) - _z(_taus(sides, swapped_KM, parts))
    small, large = (np.stack([x, y, x * x, y * y, x * y]) for x, y in sides)
    at_small, at_large = [], []
    for at_M in parts:
        s_5Bm, l_5Bm = small[:, :, at_M], large[:, :, at_M]
        moved_K5B = np.tensordot(swapped_KM[:, at_M].astype(np.float64), l_5Bm - s_5Bm, axes=(1, 2))
        at_small.append(s_5Bm.sum(axis=2) + moved_K5B)
        at_large.append(l_5Bm.sum(axis=2) - moved_K5B)
    return _z(_pearson(at_large, parts)) - _z(_pearson(at_small, parts))


def _z(r_KB: Array) -> Array:
    return np.arctanh(r_KB.clip(-R_MOST, R_MOST))


def _pearson(sums_K5B: Sequence[Array], parts: Parts) -> Array:
    """From the sums over each block of x, y, x^2, y^2 and x y."""
    M = sum(map(len, parts))
    covariance_3KB = np.zeros((3, *sums_K5B[0][:, 0].shape))
    for of_block, at_M in zip(sums_K5B, parts, strict=True):
        x, y, xx, yy, xy = np.moveaxis(of_block / M, 1, 0)
        size = M / len(at_M)
        covariance_3KB += np.stack([xx - size * x * x, yy - size * y * y, xy - size * x * y])
    xx, yy, xy = covariance_3KB
    spread = xx * yy
    return np.where(spread > 1e-12, xy / np.sqrt(np.maximum(spread, 1e-300)), np.nan)


def _taus(sides: Sequence[Array], from_large_KM: NDArray[np.bool_], parts: Parts) -> Array:
    """Kendall's tau-b, (K, B), of values that come from the larger scale where `from_large_KM` says so."""
    out = []
    alike_MM = np.zeros((from_large_KM.shape[1],) * 2)
    for at_M in parts:
        alike_MM[np.ix_(at_M, at_M)] = 1.0
    for b in range(sides[0].shape[1]):
        signs = []
        for v in range(2):
            x_KM = np.where(from_large_KM, sides[1][v, b], sides[0][v, b]).round(12)
            signs.append(alike_MM * np.sign(x_KM[:, :, None] - x_KM[:, None, :]))
        ties = [np.abs(sign).sum(axis=(1, 2)) for sign in signs]
        out.append((signs[0] * signs[1]).sum(axis=(1, 2)) / np.sqrt(ties[0] * ties[1]))
    return np.stack(out, axis=1)
