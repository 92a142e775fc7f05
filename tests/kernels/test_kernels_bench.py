"""The benchmark runs, and what it says of time, memory and error is measured."""

from __future__ import annotations

import os
import signal

import pytest
import torch

from evalengine.bench import kernels as bench
from evalengine.bench.kernel_contenders import Contender
from evalengine.bench.roofline import estimate


def test_quick_run_compares_ours_with_every_alternative() -> None:
    said: list[str] = []
    result = bench.run(quick=True, device="cpu", say=said.append)
    dropped = [line for line in said if "left out" in line]
    assert len(said) - len(dropped) == len(result.table.rows)  # every line as it is measured
    slow = {
        key.split(": ")[1].removesuffix(" / ours") for key, r in result.ratios.items() if r > bench.HOPELESS
    }
    assert {line.split(": ")[1].split(" takes")[0] for line in dropped} == slow
    names = {row[1] for row in result.table.rows}
    assert {"score: target_logprobs", "score: F.linear + log_softmax", "score: bare GEMM"} <= names
    assert {"train: linear_cross_entropy", "train: F.linear + cross_entropy"} <= names
    assert all(len(row) == len(result.table.columns) for row in result.table.rows)
    assert all(ratio > 0 for ratio in result.ratios.values())
    errors = {row[1]: float(row[9]) for row in result.table.rows if row[9] and row[0].endswith("fp32")}
    assert errors["score: target_logprobs"] < 1e-5


def test_extra_memory_is_the_peak_of_live_tensors() -> None:
    def one_then_two_mib() -> torch.Tensor:
        first = torch.zeros(2**18)  # 1 MiB, gone before the next
        del first
        return torch.zeros(2**18) + 1.0  # two at once

    extra, error = bench.memory_and_error(Contender("two", one_then_two_mib), "cpu", None)
    assert 2.0 <= extra < 2.1 and error is None


def test_no_time_means_no_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(bench.SECONDS, "cpu", 0.0)
    said: list[str] = []
    result = bench.run(device="cpu", say=said.append)
    assert result.table.rows == [] and len(said) == len(bench.shapes("cpu", quick=False))
    assert all(line.startswith("no time left") for line in said)


def test_a_baseline_that_fails_late_loses_its_own_figures_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0

    def runs_out_of_memory() -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls > 2:  # warm, then out of memory when it is timed and when its memory is measured
            raise torch.OutOfMemoryError("no memory")
        return torch.zeros(1)

    shape = bench.Shape("small", 16, 8, 40)
    case = bench.make_case(shape, torch.float32, "cpu")
    contenders = [bench.scoring(case)[0], Contender("late", runs_out_of_memory)]
    rows, ratios, _ = bench.measure("score", case, torch.float32, contenders, 0.1)
    assert [row[1] for row in rows] == ["score: target_logprobs", "score: late"]
    assert rows[1][8] == "" and calls > 3 and len(ratios) == 1


def test_what_was_measured_is_reported_when_time_runs_out_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    def terminated(*_: object) -> bench.Measured:
        if not said:
            return bench.Measured([["small", "score: ours"]], {"score small: x / ours": 2.0}, [])
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("the signal stops the benchmark")

    said: list[str] = []
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(bench, "measure_shape", terminated)
    result = bench.run(quick=True, device="cpu", say=said.append)
    assert result.table.rows == [["small", "score: ours"]] and result.ratios == {"score small: x / ours": 2.0}
    assert "stopped from outside" in result.failures[0]
    assert signal.getsignal(signal.SIGTERM) == before


def test_the_roofline_of_the_target_shape() -> None:
    large, small = estimate(4_096, 2_048, 100_864), estimate(64, 2_048, 100_864)
    assert large.compute == pytest.approx(2 * 4_096 * 2_048 * 100_864 / 790e9)  # 2.14 ms
    assert large.bound == "tensor cores" and small.bound == "memory"
    assert small.memory == pytest.approx(2 * 2_048 * 100_864 / 4.8e9, rel=0.01)  # 413 MB
    assert 0.8 < large.compute / large.floor < 1.0
