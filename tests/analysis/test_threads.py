"""Work on several threads: order, errors, one level deep, and nothing that other libraries notice."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from evalengine.analysis.statistics import threads


@pytest.fixture(autouse=True)
def three_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    threads._pool.cache_clear()
    yield
    threads._pool.cache_clear()


def test_results_are_in_the_order_of_the_calls() -> None:
    def slow_first(k: int) -> int:
        time.sleep(0.02 * (3 - k))
        return k

    assert threads.each([lambda k=k: slow_first(k) for k in range(4)]) == [0, 1, 2, 3]  # type: ignore[misc]


def test_calls_run_at_the_same_time() -> None:
    meet = threading.Barrier(3, timeout=10)
    assert sorted(threads.each([meet.wait] * 3)) == [0, 1, 2]


def test_an_error_is_raised_and_what_waits_is_not_begun() -> None:
    begun = []

    def fail() -> None:
        raise ValueError("the first")

    def wait(k: int) -> None:
        begun.append(k)
        time.sleep(0.3)

    with pytest.raises(ValueError, match="the first"):
        threads.each([fail, *(lambda k=k: wait(k) for k in range(20))])  # type: ignore[misc]
    assert len(begun) <= 6


@pytest.mark.parametrize("n", [0, 1, 2, 3, 7, 100])
@pytest.mark.parametrize("asked", ["1", "3", "", "4,2"])
def test_ranges_cover_everything_once(n: int, asked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", asked)
    count_N = np.zeros(n)

    def kernel(first: int, last: int, out_N: np.ndarray) -> None:
        out_N[first:last] += 1

    threads.spread(kernel, n, count_N)
    assert (count_N == 1).all()


def test_a_call_of_the_pool_spreads_nothing_further() -> None:
    seen: list[tuple[str, int, int]] = []

    def kernel(first: int, last: int) -> None:
        seen.append((threading.current_thread().name, first, last))

    def call() -> str:
        threads.spread(kernel, 10)
        return threading.current_thread().name

    names = threads.each([call] * 6)
    assert sorted(seen) == sorted((name, 0, 10) for name in names)


def test_threads_of_others_may_spread_at_the_same_time() -> None:
    def kernel(first: int, last: int, out_N: np.ndarray) -> None:
        time.sleep(0.001)
        out_N[first:last] += 1

    def one(_: int) -> bool:
        out_N = np.zeros(9)
        threads.spread(kernel, 9, out_N)
        return bool((out_N == 1).all())

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(one, range(50)))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_has_threads_of_its_own() -> None:
    assert threads.each([lambda: 1, lambda: 2]) == [1, 2]
    child = os.fork()
    if child == 0:
        os._exit(0 if threads.each([lambda: 3, lambda: 4]) == [3, 4] else 1)
    deadline = time.monotonic() + 20
    while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() < deadline:
        time.sleep(0.01)
    if ended == (0, 0):
        os.kill(child, 9)
    assert ended == (child, 0)


def test_an_analysis_leaves_pytorch_its_threads() -> None:
    code = """
import numpy as np, torch
from evalengine.analysis.statistics.bootstrap import draw_resamples, intervals
from evalengine.analysis.statistics.correlation import Sample, correlate
torch.set_num_threads(1)
plan = draw_resamples(9, 2000, 3)
x = np.random.default_rng(0).normal(size=(4, 9, 1))
intervals(correlate(Sample(x, plan.weight_MC), np.array([[0, 1], [2, 3]]), "spearman"), plan)
assert torch.get_num_threads() == 1, torch.get_num_threads()
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "OMP_NUM_THREADS": "3"}, check=False
    )
    assert done.returncode == 0
