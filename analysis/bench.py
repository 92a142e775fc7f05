"""`evalengine bench bootstrap`: the bootstrap and the reading of scores, as ratios measured in one run.

Against scipy.stats.bootstrap, cell by cell (a few cells are timed; the matrix is so many times one cell), and against
NumPy vectorised over resamples and cells, which gathers copies and takes percentiles of all. All compute the same BCa
intervals. The baselines are the oracles of tests/analysis/test_bench.py.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from evalengine.analysis.bootstrap import (
    Array,
    Resamples,
    acceleration,
    draw_resamples,
    enumerate_resamples,
    intervals,
)
from evalengine.analysis.correlation import Sample, correlate

FULL_ITEMS = 86_779
SIDE = 20


def run(quick: bool = False) -> dict[str, Any]:
    """{"title", "columns", "rows", "ratios"}: times in seconds, the best of several."""
    count = 2_000 if quick else 10_000
    mixtures = 9
    x_VM = np.random.default_rng(0).normal(size=(2 * SIDE, mixtures))
    plan = draw_resamples(mixtures, count, seed=0)
    ours = best(lambda: matrix(x_VM, plan), 5)
    vectorised = best(lambda: numpy_matrix(x_VM, count, seed=0), 1 if quick else 3)
    cells = 1 if quick else 3
    one_cell = best(lambda: scipy_cell(x_VM[0], x_VM[SIDE], count, seed=0), cells)
    bare_cell = best(lambda: scipy_cell(x_VM[0], x_VM[SIDE], count, seed=0, by_hand=True), cells)
    exact = best(lambda: everything_exact(x_VM), 2 if quick else 3)
    items = 2_000 if quick else FULL_ITEMS
    reading = time_reading(items)
    per_cell = SIDE * SIDE
    scipy, bare = one_cell * per_cell, bare_cell * per_cell
    rows = [
        [f"{SIDE} x {SIDE} matrix, {count:,} resamples, BCa", f"{ours:.4f}", ""],
        ["the same, vectorised NumPy", f"{vectorised:.3f}", f"{vectorised / ours:.0f}x"],
        [
            f"the same, scipy.stats.bootstrap, pearsonr, {per_cell} x {one_cell:.4f} s",
            f"{scipy:.1f}",
            f"{scipy / ours:.0f}x",
        ],
        [
            f"the same, scipy.stats.bootstrap, bare formula, {per_cell} x {bare_cell:.4f} s",
            f"{bare:.1f}",
            f"{bare / ours:.0f}x",
        ],
        ["all matrices, 2 scales, 2 quantities, exact n = 9, BCa", f"{exact:.2f}", ""],
        [f"36 checkpoints x {items:,} items read and reduced", f"{reading:.2f}", ""],
    ]
    return {
        "title": "Bootstrap",
        "columns": ["what", "seconds", "ours is"],
        "rows": rows,
        "ratios": {
            "bootstrap_vs_scipy_per_cell": scipy / ours,
            "bootstrap_vs_scipy_bare_formula": bare / ours,
            "bootstrap_vs_numpy": vectorised / ours,
            "exact_all_matrices_seconds": exact,
            "read_items_seconds": reading,
        },
    }


def best(work: Callable[[], Any], times: int) -> float:
    """Seconds of the fastest of `times` runs, after one that compiles and warms up."""
    work()
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def matrix(x_VM: Array, plan: Resamples) -> Array:
    """BCa intervals of the cross-stage matrix, (SIDE * SIDE, 2): the first half of the variables by the second."""
    half = len(x_VM) // 2
    pairs = np.array([(i, half + j) for i in range(half) for j in range(half)])
    return intervals(correlate(Sample(x_VM[:, :, None], plan.weight_MC), pairs), plan).bca


def everything_exact(x_VM: Array) -> list[Array]:
    """All three matrices of two scales and two quantities and their contrasts, from all 24,310 resamples."""
    plan = enumerate_resamples(x_VM.shape[1])
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
    a_S = acceleration(correlations(left_out).T)
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
    """Seconds to read and reduce a store of 36 checkpoints with so many items in all."""
    from evalengine.analysis.panel import load_panel

    with tempfile.TemporaryDirectory() as folder:
        write_store(Path(folder), items)
        return best(lambda: load_panel(folder), 1)


def write_store(folder: Path, items: int, benchmarks: int = 20) -> None:
    """A store of random scores at the study's size: 9 mixtures, 2 scales, 2 stages, 2 to 5 choices an item."""
    import pyarrow as pa

    from evalengine import store

    rng = np.random.default_rng(0)
    for b in range(benchmarks):
        count = items // benchmarks + (b < items % benchmarks)
        choices = 2 + b % 3
        gold = pa.array(rng.integers(0, choices, count), pa.int16())
        offsets = pa.array(np.arange(count + 1, dtype=np.int32) * choices)
        length = pa.ListArray.from_arrays(offsets, pa.array(rng.integers(1, 40, count * choices), pa.int32()))
        greedy = pa.ListArray.from_arrays(offsets, pa.array(np.zeros(count * choices, dtype=bool)))
        ids = pa.array([f"{b}-{i:016x}" for i in range(count)])
        metadata = {
            "benchmark_version": "1",
            "default_score": "acc",
            "variant": "",
            "fewshot": "0",
            "limit": "",
        }
        for scale in ("240M", "1B"):
            for mixture in range(9):
                for stage in ("pt", "sft"):
                    name = f"{scale}-m{mixture}-{stage}"
                    who = (name, scale, f"m{mixture}", stage, f"bench{b:02d}", f"category {b % 4}")
                    score = rng.normal(size=count * choices).astype(np.float32)
                    columns = {
                        **{
                            key: pa.DictionaryArray.from_arrays(
                                pa.array(np.zeros(count, dtype=np.int32)), pa.array([value])
                            )
                            for key, value in zip(store.KEYS, who, strict=True)
                        },
                        "item": ids,
                        "gold": gold,
                        "loglik": pa.ListArray.from_arrays(offsets, pa.array(score)),
                        "tokens": length,
                        "chars": length,
                        "bytes": length,
                        "greedy": greedy,
                        "loglik_uncond": pa.nulls(count, pa.list_(pa.float32())),
                    }
                    table = pa.Table.from_arrays(
                        [columns[f] for f in store.schema().names], schema=store.schema()
                    )
                    store.write(folder / name / f"bench{b:02d}.arrow", table, metadata)
