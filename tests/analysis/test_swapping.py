"""The test of a difference between two scales: by brute force, and its size where the correlations are equal."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import scipy.stats as st

from evalengine.analysis.protocols.transfer_tests import swap_p
from evalengine.analysis.statistics.correlation import permuted_p

OF = {
    "pearson": lambda x, y: st.pearsonr(x, y).statistic,
    "spearman": lambda x, y: st.pearsonr(x, y).statistic,  # of ranks, which are swapped as they are
    "kendall": lambda x, y: st.kendalltau(x, y).statistic,
}


@pytest.mark.parametrize("statistic", OF)
def test_p_is_the_share_of_all_ways_to_swap(statistic: str) -> None:
    x_S2BM = np.random.default_rng(3).normal(size=(2, 2, 3, 6))
    prepared = st.rankdata(x_S2BM, axis=-1) if statistic == "spearman" else x_S2BM
    prepared = st.zscore(prepared, axis=-1)

    def difference(swapped: tuple[bool, ...], index: list[int]) -> float:
        x = np.where(swapped, prepared[::-1], prepared)
        r = np.array([[OF[statistic](x[s, 0, b], x[s, 1, b]) for b in index] for s in range(2)])
        z = np.arctanh(r.clip(-1 + 1e-9, 1 - 1e-9))
        return abs(float(np.mean(z[1]) - np.mean(z[0])))

    members = [[0], [1], [0, 1, 2]]
    ways = list(itertools.product([False, True], repeat=6))
    expected = [
        np.mean([difference(way, index) >= difference(ways[0], index) - 1e-9 for way in ways])
        for index in members
    ]
    assert swap_p(x_S2BM[0], x_S2BM[1], members, statistic) == pytest.approx(expected)


def tau_b(x: np.ndarray, y: np.ndarray, block: np.ndarray) -> float:
    """Over pairs of one block, pair by pair."""
    terms = [
        (np.sign(round(x[i] - x[j], 9)), np.sign(round(y[i] - y[j], 9)))
        for i, j in itertools.combinations(range(len(x)), 2)
        if block[i] == block[j]
    ]
    untied = math.prod(sum(abs(term[v]) for term in terms) for v in (0, 1))
    return sum(a * b for a, b in terms) / math.sqrt(untied) if untied else math.nan


def partial_r(x: np.ndarray, y: np.ndarray, block: np.ndarray) -> float:
    x, y = without_means(x, block), without_means(y, block)
    varies = min((x**2).sum(), (y**2).sum()) > 1e-9
    return float((x * y).sum() / math.sqrt((x**2).sum() * (y**2).sum())) if varies else math.nan


def without_means(x: np.ndarray, block: np.ndarray) -> np.ndarray:
    return x - np.array([x[block == g].mean() for g in block])


def by_definition(
    x_S2BM: np.ndarray, members: list[list[int]], statistic: str, block: np.ndarray
) -> list[float]:
    """Each way to swap on its own; the two mixtures of a block of two, of several blocks, are swapped together."""
    several = len(set(block)) > 1
    z = np.empty_like(x_S2BM)
    for at in np.ndindex(x_S2BM.shape[:3]):
        x = st.rankdata(x_S2BM[at]) if statistic == "spearman" else x_S2BM[at]
        for step in (st.zscore, without_means, st.zscore) if several else (st.zscore,):
            varies = np.ptp(x) > 1e-9
            x = (step(x, block) if step is without_means else step(x)) if varies else np.zeros(len(x))
        z[at] = x
    found_of = tau_b if statistic == "kendall" else partial_r
    units = [
        unit
        for g in sorted(set(block))
        for at_M in [np.flatnonzero(block == g)]
        for unit in ([at_M] if several and len(at_M) == 2 else at_M[:, None])
    ]
    every = []
    for way in itertools.product([False, True], repeat=len(units)):
        swapped = np.zeros(len(block), dtype=bool)
        for unit, moved in zip(units, way, strict=True):
            swapped[unit] = moved
        x = np.where(swapped, z[::-1], z)
        r = np.array([[found_of(x[s, 0, b], x[s, 1, b], block) for b in range(x.shape[2])] for s in (0, 1)])
        every.append(np.subtract(*np.arctanh(r.clip(-1 + 1e-9, 1 - 1e-9))))
    out = []
    for index in members:
        value = np.abs(np.array(every)[:, index].mean(axis=1))
        known = value[np.isfinite(value)]  # of tied values a way may leave one without spread
        out.append(float((known >= value[0] - 1e-9).mean()) if np.isfinite(value[0]) else math.nan)
    return out


@pytest.mark.parametrize("blocks", [(4,), (5,), (3, 3), (2, 2, 3), (2, 3)])
@pytest.mark.parametrize("statistic", OF)
def test_p_of_ties_of_few_mixtures_and_of_blocks(statistic: str, blocks: tuple[int, ...]) -> None:
    rng, M = np.random.default_rng(5), sum(blocks)
    block = np.repeat(np.arange(len(blocks)), blocks)
    members = [[0], [1], [0, 1, 2]]
    for trial in range(12):
        x = (
            rng.normal(size=(2, 2, 3, M))
            if trial % 3 == 0
            else rng.integers(0, 1 + trial % 3, (2, 2, 3, M)) / 3
        )
        found = swap_p(x[0], x[1], members, statistic, block_M=block if len(blocks) > 1 else None)
        expected = by_definition(x, members, statistic, block)
        assert found == pytest.approx(expected, nan_ok=True)


def test_ways_that_leave_no_spread_are_left_out() -> None:
    """Values of two kinds, the other way round at the other scale: exchanging the first three makes all of one side alike."""
    x = np.random.default_rng(3).normal(size=(2, 2, 1, 6))
    x[:, 0] = [[[1, 1, 1, 0, 0, 0]], [[0, 0, 0, 1, 1, 1]]]
    for statistic in OF:
        (p,) = swap_p(x[0], x[1], [[0]], statistic)
        assert [p] == pytest.approx(by_definition(x, [[0]], statistic, np.zeros(6, dtype=int)))
        assert 31 * p == pytest.approx(round(31 * p))  # of 32 ways


def test_seeded_ways_agree_with_all_of_them() -> None:
    rng = np.random.default_rng(5)
    small, large = rng.normal(size=(2, 2, 1, 18))
    large[1] += 0.7 * large[0]
    few = swap_p(small[..., :17], large[..., :17], [[0]])  # 65,536 ways
    rest = swap_p(small, large, [[0]], count=20_000)
    again = swap_p(small, large, [[0]], count=20_000)
    assert rest == again
    assert 1 / 20_001 <= rest[0] <= 1.0
    assert few[0] > 1e-4


@pytest.mark.parametrize("r", [0.0, 0.6, 0.9])
def test_equal_correlations_are_rejected_no_more_often_than_the_level_says(r: float) -> None:
    z = np.random.default_rng(7).normal(size=(2, 2, 2000, 9))
    z[:, 1] = r * z[:, 0] + math.sqrt(1 - r * r) * z[:, 1]
    p = swap_p(z[0], z[1], [[b] for b in range(2000)])
    assert 0.02 < (p < 0.05).mean() < 0.05 + 3.5 * math.sqrt(0.05 * 0.95 / 2000)


def test_unlike_correlations_are_told_apart() -> None:
    z = np.random.default_rng(8).normal(size=(2, 2, 500, 9))
    for side, r in enumerate((-0.9, 0.9)):
        z[side, 1] = r * z[side, 0] + math.sqrt(1 - r * r) * z[side, 1]
    assert (swap_p(z[0], z[1], [[b] for b in range(500)]) < 0.05).mean() > 0.95


def test_a_constant_variable_has_no_p() -> None:
    side = np.random.default_rng(1).normal(size=(2, 2, 9))
    side[0, 1] = 0.25
    p = swap_p(side, side + 1.0, [[0], [1]])
    assert p[0] == 1.0  # the same values at both scales
    assert np.isnan(p[1])


def test_kendalls_permutation_p_is_the_share_of_all_orders() -> None:
    rng = np.random.default_rng(2)
    x, y = rng.integers(0, 5, (2, 1, 6)).astype(float)
    found = permuted_p(x, y, [[0]], "kendall")[0]
    every = [abs(st.kendalltau(x[0][list(o)], y[0]).statistic) for o in itertools.permutations(range(6))]
    assert found == pytest.approx(np.mean(np.array(every) >= every[0] - 1e-12))
