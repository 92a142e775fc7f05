"""The benchmark runs, and what it says of time and error is measured."""

from __future__ import annotations

import pytest
import torch

from evalengine.bench import kernels as bench
from evalengine.cli import main


def test_quick_run_compares_ours_with_every_alternative(capsys: pytest.CaptureFixture[str]) -> None:
    result = bench.run(quick=True, device="cpu")
    assert len(capsys.readouterr().out.splitlines()) == len(result.rows)  # every line as it is measured
    names = [row[1] for row in result.rows]
    assert {"score: target_logprobs", "score: F.linear + log_softmax", "score: bare GEMM"} <= set(names)
    assert {"train: linear_cross_entropy", "train: F.linear + cross_entropy"} <= set(names)
    assert {"emulate: emulated_logprobs", "emulate: target_logprobs side by side"} <= set(names)
    assert "emulate: materialised logits" in names
    ours = len(bench.KINDS) * len(bench.shapes("cpu", quick=True))
    assert len(result.rows) == len(result.ratios) + ours and not result.failures
    first = str(bench.shapes("cpu", quick=True)[0])
    slow = {key for key, ratio in result.ratios.items() if key.startswith(first) and ratio > bench.HOPELESS}
    assert all(names.count(key.split(", ")[1].removesuffix(" / ours")) == 1 for key in slow)
    assert all(len(row) == len(result.columns) for row in result.rows)
    assert all(ratio > 0 for ratio in result.ratios.values())
    errors = {row[1]: float(row[6]) for row in result.rows if row[6] and row[0].endswith("fp32")}
    assert errors["score: target_logprobs"] < 1e-5
    assert errors["emulate: emulated_logprobs"] < 1e-5


def test_no_time_means_no_measurement(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(bench.SECONDS, "cpu", 0.0)
    assert bench.run(device="cpu").rows == []
    said = capsys.readouterr().out.splitlines()
    assert len(said) == len(bench.shapes("cpu", quick=False))
    assert all(line.startswith("no time left") for line in said)


def test_a_baseline_that_fails_late_loses_its_own_figures_alone() -> None:
    calls = 0

    def runs_out_of_memory() -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls > 2:  # warm, then out of memory when it is timed and when its error is measured
            raise torch.OutOfMemoryError("no memory")
        return torch.zeros(1)

    case = bench.make_case(bench.HeadShape("small", 16, 8, 40, dtype=torch.float32), "cpu")
    contenders = {
        "score: target_logprobs": bench.scoring(case)["target_logprobs"],
        "score: late": runs_out_of_memory,
    }
    took = bench.measure(contenders, 0.1, gpu=False)
    rows = bench.table_rows("score", case, contenders, took)
    assert list(took) == [row[1] for row in rows] == ["score: target_logprobs", "score: late"]
    assert rows[1][6] == "" and calls > 3


def test_ours_may_not_fail(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("no such instruction\nmore")

    monkeypatch.setattr("evalengine.bench.kernel_contenders.target_logprobs", broken)
    result = bench.run(quick=True, device="cpu")
    assert result.failures == [
        f"score {shape}: no such instruction" for shape in bench.shapes("cpu", quick=True)
    ]
    assert {row[1].split(":")[0] for row in result.rows} == {"train", "emulate"}
    assert main(["bench", "kernels", "--quick"]) == 1
