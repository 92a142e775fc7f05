"""`evalengine score --ray` on a real local Ray of two workers: the single process's bytes, whatever happens on the way."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import threading
import time
from pathlib import Path

import pytest

from cluster.conftest import files, one_thread, own, score

RAY = ("--ray", "local", "--workers", 2, "--cpus-per-worker", 1)


@pytest.fixture(autouse=True)
def _cluster(ray_local: None) -> None:
    pass


def test_two_workers_write_the_bytes_of_one_process_and_nothing_twice(
    ckpts: list[Path],
    bench: Path,
    reference: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "scores"
    assert score(ckpts, bench, out, *RAY) == 0
    assert files(out) == files(reference)
    run = json.loads((out / "runs.jsonl").read_text().splitlines()[-1])
    assert run["workers"] == 2
    capsys.readouterr()
    assert score(ckpts, bench, out, *RAY, "--json") == 0
    again = json.loads(capsys.readouterr().out)["checkpoints"]
    assert [(c["scored"], c["kept"]) for c in again] == [(0, 6)] * 4


@pytest.mark.parametrize("asked", [("--formats",), ("--chat", "--fewshot", 2, "--pmi", "--seed", 5)], ids=str)
def test_answer_formats_and_conversations_are_those_of_one_process(
    asked: tuple[object, ...], chats: list[Path], bench: Path, tmp_path: Path
) -> None:
    given = ("--benchmarks", "copa,cb,piqa", "--limit", 12, *asked)
    with one_thread():
        assert score(chats, bench, tmp_path / "alone", *given) == 0
    assert score(chats, bench, tmp_path / "ray", *given, *RAY, "--workers", 1) == 0
    inside = "formats" if "--formats" in asked else "."
    found = files(tmp_path / "ray" / inside)
    assert found == files(tmp_path / "alone" / inside) and len(found) == 6
    assert len(list((tmp_path / "ray").rglob("*.arrow"))) == 6
    assert all(("+chat/" in name) is ("--chat" in asked) for name in found)


def test_a_worker_killed_with_sigkill_costs_only_its_unit(
    ckpts: list[Path], bench: Path, reference: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "scores"
    killed: list[int] = []

    def kill() -> None:
        while not killed and running.is_set():
            done = len(list(out.glob("*/*.arrow")))
            busy = own("ray::Scorer.run") if done >= 2 else []
            if busy:
                os.kill(busy[0], signal.SIGKILL)
                killed.append(done)
            time.sleep(0.002)

    running = threading.Event()
    running.set()
    killer = threading.Thread(target=kill)
    killer.start()
    try:
        assert score(ckpts, bench, out, *RAY) == 0
    finally:
        running.clear()
        killer.join(60)
    assert killed and killed[0] < 24
    said = " ".join(capsys.readouterr().err.split())
    assert "ended during" in said and "was killed" in said
    assert files(out) == files(reference)


def test_a_store_of_other_options_is_refused_for_each_checkpoint(
    ckpts: list[Path], bench: Path, reference: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "scores"
    shutil.copytree(reference, out)
    assert score(ckpts, bench, out, *RAY, "--limit", 3) == 1
    assert "was scored with --limit none, not 3" in capsys.readouterr().out
    assert files(out) == files(reference)


def test_wrong_use_is_told_in_one_sentence(
    ckpts: list[Path], bench: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for given, said in [
        (("--workers", 2), "--workers is for --ray"),
        ((*RAY, "--workers", 0), "--workers must be at least 1"),
        ((*RAY, "--gpus-per-worker", 1.5), "--gpus-per-worker must be"),
        ((*RAY, "--device", "cuda:1"), "names one device"),
    ]:
        assert score(ckpts, bench, tmp_path / "s", *given) == 1
        assert said in capsys.readouterr().err


def test_a_local_cluster_listens_on_the_loopback_interface_alone() -> None:
    import ray

    assert ray.get(ray.remote(lambda: 1).remote()) == 1
    assert [node["NodeManagerAddress"] for node in ray.nodes()] == ["127.0.0.1"]
    listening = {}
    for name in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A":  # LISTEN
                listening[fields[9]] = fields[1].split(":")[0]
    found = []
    for pid in [os.getpid(), *own()]:
        with contextlib.suppress(OSError):
            for handle in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(OSError):
                    inode = os.readlink(handle).removeprefix("socket:[").removesuffix("]")
                    found += [listening[inode]] if inode in listening else []
    loopback = {"0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F"}
    assert found and set(found) <= loopback
