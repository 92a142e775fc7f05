"""`evalengine bench bootstrap`: the bootstrap of a correlation matrix, as ratios measured in one run.

Against scipy.stats.bootstrap, cell by cell (one cell is timed; the matrix is so many times that), and against NumPy vectorised
over resamples and cells, which gathers copies and takes percentiles of all. All compute the same BCa intervals: a test
holds them together.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from evalengine.analysis.statistics import bootstrap
from evalengine.analysis.statistics.bootstrap import Array, Resamples, draw_resamples, intervals
from evalengine.analysis.statistics.correlation import Sample, correlate
from evalengine.bench.harness import Measurement, against, medians, rounds, timed

SIDE = 20  # benchmarks: the matrix is square
MIXTURES = 9
OURS, NUMPY, SCIPY = "evalengine", "vectorised NumPy", f"scipy.stats.bootstrap, a cell x {SIDE * SIDE}"


def run(quick: bool = False) -> Measurement:
    count = 2_000 if quick else 10_000
    x_VM = np.random.default_rng(0).normal(size=(2 * SIDE, MIXTURES))
    plan = draw_resamples(MIXTURES, count, seed=0)
    cell = partial(scipy_cell, x_VM[0], x_VM[SIDE], count, seed=0)
    sides: dict[str, Callable[[], float]] = {
        OURS: partial(timed, partial(matrix, x_VM, plan)),
        NUMPY: partial(timed, partial(numpy_matrix, x_VM, count, seed=0)),
        SCIPY: lambda: SIDE * SIDE * timed(cell),
    }
    rounds(sides, 1)  # compiles and warms up
    took = medians(sides, 1 if quick else 5)
    ratios = {
        "bootstrap_vs_scipy_per_cell": took[SCIPY] / took[OURS],
        "bootstrap_vs_numpy": took[NUMPY] / took[OURS],
    }
    title = f"BCa intervals of a {SIDE} x {SIDE} matrix of correlations, {count:,} resamples"
    return Measurement(title, ("side", "seconds", "ratio to ours"), against(OURS, took), ratios)


def matrix(x_VM: Array, plan: Resamples) -> Array:
    """BCa intervals of the cross-stage matrix, (SIDE * SIDE, 2): the first half of the variables by the second."""
    half = len(x_VM) // 2
    pairs = np.array([(i, half + j) for i in range(half) for j in range(half)])
    value_SC = correlate(Sample(x_VM[:, :, None], plan.weight_MC), pairs)
    return intervals(value_SC, plan, kinds=["bca"]).ends["bca"]


def numpy_matrix(x_VM: Array, count: int, seed: int) -> Array:
    """The same intervals as `matrix` by gathered copies, one array operation at a time."""
    from scipy.special import ndtr, ndtri

    V, n = x_VM.shape
    half = V // 2
    index_RM = np.random.default_rng(seed).integers(0, n, (count, n))

    def correlations(x_RVM: Array) -> Array:
        centred = x_RVM - x_RVM.mean(axis=-1, keepdims=True)
        with np.errstate(invalid="ignore", divide="ignore"):
            centred /= np.sqrt((centred**2).sum(axis=-1, keepdims=True))
        return np.matmul(centred[:, :half], centred[:, half:].transpose(0, 2, 1)).reshape(len(x_RVM), -1)

    replicate_RS = correlations(x_VM[:, index_RM].transpose(1, 0, 2))
    estimate_S = correlations(x_VM[None])[0]
    left_out = np.stack([np.delete(x_VM, m, axis=1) for m in range(n)])
    a_S = bootstrap.acceleration(correlations(left_out).T)
    share_S = ((replicate_RS < estimate_S).mean(axis=0) + (replicate_RS <= estimate_S).mean(axis=0)) / 2
    z0_S = ndtri(share_S)
    ordered_RS = np.sort(replicate_RS, axis=0)
    ends = []
    for z in ndtri(np.array([0.025, 0.975])):
        prob_S = ndtr(z0_S + (z0_S + z) / (1 - a_S * (z0_S + z)))
        position = prob_S * (count - 1)
        low = np.floor(position).astype(int)
        part = position - low
        cell = np.arange(len(prob_S))
        above = np.minimum(low + 1, count - 1)
        ends.append(ordered_RS[low, cell] * (1 - part) + ordered_RS[above, cell] * part)
    return np.stack(ends, axis=1)


def scipy_cell(x_M: Array, y_M: Array, count: int, seed: int) -> tuple[float, float]:
    """One cell's BCa interval by scipy.stats.bootstrap, with the bare formula: its own pearsonr takes some 18 times as long."""
    from scipy import stats

    def pearson(x: Array, y: Array, axis: int = -1) -> Array:
        x = x - x.mean(axis=axis, keepdims=True)
        y = y - y.mean(axis=axis, keepdims=True)
        found: Array = (x * y).sum(axis=axis) / np.sqrt((x * x).sum(axis=axis) * (y * y).sum(axis=axis))
        return found

    rng = np.random.default_rng(seed)
    result = stats.bootstrap((x_M, y_M), pearson, paired=True, n_resamples=count, method="BCa", rng=rng)
    return float(result.confidence_interval.low), float(result.confidence_interval.high)
