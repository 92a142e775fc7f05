"""The benchmark runs, and what it says of time, memory and error is measured."""

from __future__ import annotations

import torch

from evalengine.kernels import bench


def test_quick_run_compares_ours_with_every_alternative() -> None:
    result = bench.run(quick=True, device="cpu")
    names = {row[1] for row in result["rows"]}
    assert {"score: target_logprobs", "score: F.linear + log_softmax", "score: bare GEMM"} <= names
    assert {"train: linear_cross_entropy", "train: F.linear + cross_entropy"} <= names
    assert all(len(row) == len(result["columns"]) for row in result["rows"])
    assert all(ratio > 0 for ratio in result["ratios"].values())
    errors = {row[1]: float(row[9]) for row in result["rows"] if row[9] and row[0].endswith("fp32")}
    assert errors["score: target_logprobs"] < 1e-5


def test_extra_memory_is_the_peak_of_live_tensors() -> None:
    def one_then_two_mib() -> torch.Tensor:
        first = torch.zeros(2**18)  # 1 MiB, gone before the next
        del first
        return torch.zeros(2**18) + 1.0  # two at once

    assert 2.0 <= bench._extra_mib(one_then_two_mib, "cpu") < 2.1
