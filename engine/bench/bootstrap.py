"""`evalengine bench bootstrap`: the bootstrap and the reading of scores, as ratios measured in one run.

Against scipy.stats.bootstrap, cell by cell (a few cells are timed; the matrix is so many times one cell), and against
NumPy vectorised over resamples and cells, which gathers copies and takes percentiles of all. All compute the same BCa
intervals: a test holds them together.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from evalengine.analysis import bootstrap
from evalengine.analysis.bootstrap import Array, Resamples, draw_resamples, intervals
from evalengine.analysis.correlation import Sample, correlate
from evalengine.bench.harness import Result, Table, medians, rounds, timed
from evalengine.bench.inputs import workplace

FULL_ITEMS = 86_779
SIDE = 20  # benchmarks: the matrix is square
MIXTURES = 9


def run(quick: bool = False) -> Result:
    count = 2_000 if quick else 10_000
    x_VM = np.random.default_rng(0).normal(size=(2 * SIDE, MIXTURES))
    plan = draw_resamples(MIXTURES, count, seed=0)
    cell = partial(scipy_cell, x_VM[0], x_VM[SIDE], count, seed=0)
    work: dict[str, Callable[[], object]] = {
        "ours": lambda: matrix(x_VM, plan),
        "numpy": lambda: numpy_matrix(x_VM, count, seed=0),
        "scipy": cell,
        "bare": partial(cell, by_hand=True),
        "exact": lambda: everything_exact(x_VM),
    }
    sides = {name: partial(timed, call) for name, call in work.items()}
    rounds(sides, 1)  # compiles and warms up
    took = medians(sides, dict.fromkeys(sides, 1 if quick else 3) | {"ours": 5})
    items = 2_000 if quick else FULL_ITEMS
    reading = time_reading(items)
    ours, cells = took["ours"], SIDE * SIDE
    scipy, bare, numpy = took["scipy"] * cells, took["bare"] * cells, took["numpy"]
    the_same = "the same, scipy.stats.bootstrap"
    rows = [
        [f"{SIDE} x {SIDE} matrix, {count:,} resamples, BCa", f"{ours:.4f}", ""],
        ["the same, vectorised NumPy", f"{numpy:.3f}", f"{numpy / ours:.0f}x"],
        [f"{the_same}, pearsonr, {cells} x {took['scipy']:.4f} s", f"{scipy:.1f}", f"{scipy / ours:.0f}x"],
        [f"{the_same}, bare formula, {cells} x {took['bare']:.4f} s", f"{bare:.1f}", f"{bare / ours:.0f}x"],
        ["all matrices, 2 scales, 2 quantities, exact n = 9, BCa", f"{took['exact']:.2f}", ""],
        [f"36 checkpoints x {items:,} items read and reduced", f"{reading:.2f}", ""],
    ]
    ratios = {
        "bootstrap_vs_scipy_per_cell": scipy / ours,
        "bootstrap_vs_scipy_bare_formula": bare / ours,
        "bootstrap_vs_numpy": numpy / ours,
        "exact_all_matrices_seconds": took["exact"],
        "read_items_seconds": reading,
    }
    return Result(Table("Bootstrap", ["what", "seconds", "ours is"], rows), ratios)


def matrix(x_VM: Array, plan: Resamples) -> Array:
    """BCa intervals of the cross-stage matrix, (SIDE * SIDE, 2): the first half of the variables by the second."""
    half = len(x_VM) // 2
    pairs = np.array([(i, half + j) for i in range(half) for j in range(half)])
    return intervals(correlate(Sample(x_VM[:, :, None], plan.weight_MC), pairs), plan).bca


def everything_exact(x_VM: Array) -> list[Array]:
    """All three matrices of two scales and two quantities and their contrasts, from all 24,310 resamples."""
    plan = bootstrap.enumerate_resamples(x_VM.shape[1])
    half = len(x_VM) // 2
    square = np.array([(i, half + j) for i in range(half) for j in range(half)])
    upper = np.stack(np.triu_indices(half, 1), axis=-1)
    every = np.concatenate([square, upper, upper + half])
    found = []
    for quantity in range(2):
        scales = [
            Sample(np.roll(x_VM, quantity + 2 * s, axis=0)[:, :, None], plan.weight_MC) for s in range(2)
        ]
        for start in range(0, len(every), 100):
            pairs = every[start : start + 100]
            small, large = (correlate(sample, pairs) for sample in scales)
            found += [intervals(value, plan).bca for value in (small, large, large - small)]
    return found


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


def scipy_cell(
    x_M: Array, y_M: Array, count: int, seed: int, *, by_hand: bool = False
) -> tuple[float, float]:
    """One cell's BCa interval by scipy.stats.bootstrap with its own pearsonr, or with a bare formula `by_hand`."""
    from scipy import stats

    def pearson(x: Array, y: Array, axis: int = -1) -> Array:
        found: Array = stats.pearsonr(x, y, axis=axis).statistic
        return found

    def formula(x: Array, y: Array, axis: int = -1) -> Array:
        x = x - x.mean(axis=axis, keepdims=True)
        y = y - y.mean(axis=axis, keepdims=True)
        found: Array = (x * y).sum(axis=axis) / np.sqrt((x * x).sum(axis=axis) * (y * y).sum(axis=axis))
        return found

    result = stats.bootstrap(
        (x_M, y_M),
        formula if by_hand else pearson,
        paired=True,
        n_resamples=count,
        method="BCa",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(result.low), float(result.high)


def time_reading(items: int) -> float:
    """Seconds to read and reduce a store of 36 checkpoints with so many items in all, once it is in memory."""
    from evalengine.analysis.panel import load_panel

    with workplace() as work:
        write_store(work, items)
        load_panel(work / "scores")
        return timed(lambda: load_panel(work / "scores"))


def write_store(folder: Path, items: int, benchmarks: int = 20) -> None:
    """A store of random scores at the study's size in `folder`/scores: 9 mixtures, 2 scales, 2 stages, 2 to 4 choices an item."""
    from evalengine.bench import synthetic

    names = [
        f"{scale}-m{m}-{stage}"
        for scale in ("240M", "1B")
        for m in range(MIXTURES)
        for stage in ("pt", "sft")
    ]
    counts = (items // benchmarks + (b < items % benchmarks) for b in range(benchmarks))
    sizes = {f"bench{b:02d}": (count, 2 + b % 3) for b, count in enumerate(counts)}
    checkpoints = synthetic.make_checkpoints(folder / "checkpoints", names)
    synthetic.write_store(checkpoints, sizes, folder / "scores")
