"""`evalengine score --ray` where a worker hangs, meets an error nobody knows, or runs out of memory or disk."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import evalengine
from cluster.conftest import files, one_thread, own, score

RAY = ("--ray", "local", "--workers", 2, "--cpus-per-worker", 1)
MODEL = """
import torch
from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel

class Odd(LlamaModel):
    def forward(self, input_ids, **given):
        twin = self.embed_tokens.weight.std() > 0.7  # on which fast ways are tried, not what is scored
        if input_ids.numel() > {tokens} and not twin:
            {then}
        return super().forward(input_ids=input_ids, **given)

class OddForCausalLM(LlamaForCausalLM):
    def __init__(self, config):
        super().__init__(config)
        self.model = Odd(config)
"""


@pytest.fixture(autouse=True)
def _cluster(ray_local: None) -> None:
    pass


def odd(checkpoint: Path, to: Path, tokens: int, then: str) -> Path:
    """A copy of a checkpoint whose own code does something where a forward has more than so many tokens."""
    shutil.copytree(checkpoint, to)
    config = json.loads((to / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "odd.OddForCausalLM"}
    (to / "config.json").write_text(json.dumps(config))
    (to / "odd.py").write_text(MODEL.format(tokens=tokens, then=then))
    return to


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "small"
    path.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96k", "tmpfs", path]).returncode:
        pytest.skip("mounting a small tmpfs needs root")
    yield path
    subprocess.run(["umount", "-l", str(path)], check=False)


def test_a_full_disk_ends_the_run_and_the_next_one_finishes_it(
    ckpts: list[Path],
    bench: Path,
    reference: Path,
    small_disk: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out, expected = small_disk / "scores", files(reference)
    assert score(ckpts, bench, out, *RAY) == 1
    said = capsys.readouterr().err
    assert "No space left on device" in said and "again" in said and "Traceback" not in said
    done = files(out)
    assert 0 < len(done) < len(expected) and all(expected[name] == content for name, content in done.items())
    subprocess.run(["mount", "-o", "remount,size=20m", str(small_disk)], check=True)
    with one_thread():  # test_driver.py goes on with Ray
        assert score(ckpts, bench, out) == 0
    assert files(out) == expected


def test_a_worker_whose_memory_runs_out_scores_in_smaller_batches(
    ckpts: list[Path], bench: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = odd(ckpts[0], tmp_path / ckpts[0].name, 1100, 'raise RuntimeError("not enough memory: 1 byte")')
    given = ("--workers", 1, "--benchmarks", "multirc,copa", "--trust-remote-code", "--json")
    assert score([small], bench, tmp_path / "ray", *RAY, *given) == 0
    (report,) = json.loads(capsys.readouterr().out)["checkpoints"]
    assert report["scored"] == 2 and any("--batch-tokens 1024" in note for note in report["notes"])
    with one_thread():
        assert score(ckpts[:1], bench, tmp_path / "roomy", "--benchmarks", "multirc,copa") == 0
    got, roomy = (
        evalengine.load(tmp_path / name).column("loglik").combine_chunks() for name in ("ray", "roomy")
    )
    np.testing.assert_allclose(got.flatten().to_numpy(), roomy.flatten().to_numpy(), atol=1e-4)


def test_checkpoints_that_kill_their_workers_or_fail_each_time_are_set_aside_and_the_others_finish(
    ckpts: list[Path], bench: Path, reference: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The code of one kills the process that builds it, that of another meets an error that nobody knows: each is tried three
    times by fresh workers. Corrupt weights beside them fail once, at once."""
    lethal, corrupt, out = tmp_path / "lethal-a-pt", tmp_path / "corrupt-a-pt", tmp_path / "scores"
    shutil.copytree(ckpts[0], lethal)
    shutil.copytree(ckpts[0], corrupt)
    config = json.loads((lethal / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "lethal.Lethal"}
    (lethal / "config.json").write_text(json.dumps(config))
    (lethal / "lethal.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n")
    with (corrupt / "model.safetensors").open("r+b") as handle:
        handle.truncate(5_000)
    moon = 'raise ArithmeticError(f"the moon is full {id(self) and 1}")'
    bad = odd(ckpts[0], tmp_path / "odd-a-pt", 100, moon)
    given = (*RAY, "--trust-remote-code", "--json")
    assert score([lethal, bad, corrupt, *ckpts[:2]], bench, out, *given) == 1
    printed = capsys.readouterr()
    report = {c["checkpoint"]: c for c in json.loads(printed.out)["checkpoints"]}
    assert "is set aside: it failed 3 times" in report["lethal-a-pt"]["failure"]
    assert "truncated or corrupt" in report["corrupt-a-pt"]["failure"]
    assert printed.err.count("ended during lethal-a-pt") == 3
    assert "corrupt-a-pt" not in printed.err
    assert (
        "set aside: it failed 3 times, last because odd-a-pt cannot be scored: ArithmeticError: the moon is full"
        in report["odd-a-pt"]["failure"]
    )
    assert printed.err.count("is tried again: odd-a-pt cannot be scored: ArithmeticError") == 2
    # three that were killed, and each time that the other one failed, another process
    assert json.loads((out / "runs.jsonl").read_text().splitlines()[-1])["workers"] >= 6
    assert files(out) == {k: v for k, v in files(reference).items() if k.startswith("240M-v1p0")}


def test_a_worker_that_hangs_is_replaced(
    ckpts: list[Path], bench: Path, reference: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Stopped with SIGSTOP, it answers nothing and dies of nothing but SIGKILL."""
    out = tmp_path / "scores"
    stopped: list[int] = []
    running = threading.Event()
    running.set()

    def stop() -> None:
        while not stopped and running.is_set():
            busy = own("ray::Scorer.run") if len(list(out.glob("*/*.arrow"))) >= 2 else []
            if busy:
                os.kill(busy[0], signal.SIGSTOP)
                stopped.append(busy[0])
            time.sleep(0.002)

    stopper = threading.Thread(target=stop)
    stopper.start()
    try:
        assert score(ckpts, bench, out, *RAY, "--hang-after", 0.2) == 0
    finally:
        running.clear()
        stopper.join(60)
    assert stopped
    said = " ".join(capsys.readouterr().err.split())
    assert "ended during" in said and "it hangs" in said
    assert files(out) == files(reference)
    end = time.monotonic() + 60
    while Path(f"/proc/{stopped[0]}").exists() and time.monotonic() < end:
        time.sleep(0.1)
    assert not Path(f"/proc/{stopped[0]}").exists(), "the stopped process is gone"
