"""`evalengine emulate --ray`: the same files as without, whatever is lost on the way."""

from __future__ import annotations

from pathlib import Path

import pytest

import tiny_models
from cluster.conftest import files, one_thread
from evalengine.cli import main

NAMES = [
    f"{scale}-{mixture}-{stage}" for mixture in "ab" for scale in ("1M", "2M") for stage in ("pt", "sft")
]


def test_a_cluster_writes_the_same_files(
    ray_local: None, small_world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [str(tiny_models.save(tmp_path / name, seed=i)) for i, name in enumerate(NAMES)]
    other = tiny_models.save(tmp_path / "1M-c-pt", kind="sentencepiece_like")
    rest = [tiny_models.save(tmp_path / f"{name}", seed=9) for name in ("1M-c-sft", "2M-c-pt", "2M-c-sft")]
    given = [
        "--data",
        str(small_world / "bench"),
        "--benchmarks",
        "copa,wic,rte",
        "--limit",
        "20",
        "--beta",
        "0.5,1",
    ]
    with one_thread():
        assert main(["emulate", *paths, *given, "--out", str(tmp_path / "alone")]) == 0
    on = ["--ray", "local", "--workers", "2", "--cpus-per-worker", "1"]
    every = [*paths, str(other), *map(str, rest), str(tiny_models.save(tmp_path / "1M-d-pt"))]
    assert main(["emulate", *every, *given, "--out", str(tmp_path / "spread"), *on]) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "1M-c-pt and 1M-c-sft have different tokenizers" in said
    assert "mixture d is left out: it lacks 1M-d-sft, 2M-d-pt, 2M-d-sft" in said
    assert files(tmp_path / "spread") == files(tmp_path / "alone")
    for path in list((tmp_path / "spread").glob("2M-a-eft@1/*.arrow"))[:2]:
        path.unlink()
    on[on.index("--workers") + 1] = "1"
    assert main(["emulate", *paths, *given, "--out", str(tmp_path / "spread"), *on]) == 0
    assert files(tmp_path / "spread") == files(tmp_path / "alone")
