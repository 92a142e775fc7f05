"""`evalengine train --ray` on a real local Ray: the checkpoints of one machine, and a killed worker's chain goes on elsewhere."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml

from cluster.conftest import own
from evalengine.cli import main

sys.path.insert(0, str(Path(__file__).parent.parent / "training"))
from tiny_study import STUDY

RAY = ("--ray", "local", "--workers", "2", "--cpus-per-worker", "1")


def weights(out: Path) -> dict[str, bytes]:
    return {p.parent.name: p.read_bytes() for p in sorted(out.glob("*/model.safetensors"))}


@pytest.mark.slow
def test_a_study_on_ray_has_the_weights_of_one_machine_though_a_worker_is_killed(
    ray_local: None, small_world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = yaml.safe_load(yaml.safe_dump(STUDY))
    raw |= {"stages": ["pt", "sft", "dpo"], "dpo": {"data": [{"benchmarks_train": "copa,boolq"}]}}
    raw["scales"]["S"]["pretrain"]["tokens"] = 60_000
    study, out = tmp_path / "study.yaml", tmp_path / "ckpts"
    study.write_text(yaml.safe_dump(raw))
    given = ["train", str(study), "--data", str(small_world), "--device", "cpu"]
    assert main([*given, "--out", str(tmp_path / "plain"), "--jobs", "1"]) == 0
    running, killed = threading.Event(), []

    def kill() -> None:
        while not killed and running.is_set():
            busy = own("ray::Trainer.run")
            if busy:
                time.sleep(0.3)
                os.kill(busy[0], signal.SIGKILL)
                killed.append(busy[0])
            time.sleep(0.01)

    running.set()
    killer = threading.Thread(target=kill)
    killer.start()
    try:
        assert main([*given, "--out", str(out), *RAY]) == 0
    finally:
        running.clear()
        killer.join(60)
    printed = capsys.readouterr()
    assert killed and "the worker of S-m" in printed.err
    assert set(weights(out)) == {
        f"S-{mixture}-{stage}" for mixture in ("m1", "m2") for stage in raw["stages"]
    }
    assert weights(out) == weights(tmp_path / "plain")
    assert main([*given, "--out", str(out), *RAY]) == 0
    assert "0 checkpoints trained, 6 already finished" in capsys.readouterr().out
