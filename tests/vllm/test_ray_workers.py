"""An engine in a Ray worker: the store of this process, byte for byte."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from evalengine.cli import main


def test_a_ray_worker_scores_inside_vllm_as_this_process_does(
    references: Any, small_world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("ray")
    checkpoint = references["llama", 0].checkpoint
    command = ["score", str(checkpoint.path), "--data", str(small_world / "bench"), "--benchmarks", "copa"]
    command += ["--backend", "vllm", "--out"]
    ray = ["--ray", "local", "--workers", "1", "--cpus-per-worker", "1"]
    assert main([*command, str(tmp_path / "here")]) == 0
    assert "fused scorer" in capsys.readouterr().out
    assert main([*command, str(tmp_path / "ray"), *ray]) == 0
    assert "fused scorer" in capsys.readouterr().out
    name = f"{checkpoint.name}/copa.arrow"
    assert (tmp_path / "ray" / name).read_bytes() == (tmp_path / "here" / name).read_bytes()
