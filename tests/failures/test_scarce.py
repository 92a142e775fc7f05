"""Too little of something: disk, memory, or a store to oneself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from nursery import Kill, Nursery
from planted import write_study
from tiny_study import STUDY

import tiny_models
from evalengine import console, files
from evalengine.benchmarks import BENCHMARKS, load_items
from evalengine.checkpoints import Checkpoint, resolve
from evalengine.checkpoints.pretrained import Loaded, Pretrained
from evalengine.cli import main
from evalengine.errors import UserError
from evalengine.model.torch_backend import TorchBackend
from evalengine.plan import plans
from evalengine.plan.encoding import scores_of


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    nursery = Nursery()
    yield nursery
    nursery.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 kB; `remount` makes it larger."""
    path = tmp_path / "small"
    path.mkdir()
    if os.geteuid() or mount(path, "64k").returncode:
        pytest.skip("mounting a small tmpfs needs root")
    yield path
    subprocess.run(["umount", "-l", str(path)], check=False)


def mount(path: Path, size: str, *options: str) -> subprocess.CompletedProcess[bytes]:
    how = f"size={size}" if not options else f"{','.join(options)},size={size}"
    return subprocess.run(["mount", "-t", "tmpfs", "-o", how, "tmpfs", str(path)], capture_output=True)


def whole(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ("runs.jsonl", ".lock", "lock")
    }


def csv(folder: Path) -> Path:
    path = folder / "table.csv"
    rows = [f"{m}{n},{s},0.5{n:03d},0.6" for m in "abcdefgh" for n in range(100) for s in ("pt", "sft")]
    path.write_text("\n".join(["m,s,piqa,rte", *rows]))
    return path


@pytest.mark.slow
@pytest.mark.parametrize("command", ["score", "train", "correlate", "import"])
def test_a_full_disk_is_one_sentence_and_the_next_run_finishes(
    command: str, nursery: Nursery, small_world: Path, small_disk: Path, tmp_path: Path
) -> None:
    (tmp_path / "study.yaml").write_text(
        yaml.safe_dump(STUDY | {"mixtures": {"m1": {"web": 0.75, "code": 0.25}}})
    )
    if command == "score":
        ckpts = [tiny_models.save(tmp_path / name, seed=i) for i, name in enumerate(("1M-a-pt", "1M-a-sft"))]
    if command == "correlate":
        write_study(tmp_path / "scores", items=40, scales=("1M",), mixtures=("a", "b", "c", "d", "e"))

    def run(out: Path):
        arguments: list[object] = {
            "score": lambda: [*ckpts, "--data", small_world / "bench"],
            "train": lambda: [tmp_path / "study.yaml", "--data", small_world, "--jobs", 1, "--device", "cpu"],
            "correlate": lambda: [tmp_path / "scores", "--bootstrap", "exact"],
            "import": lambda: [csv(tmp_path), "--mixture", "m", "--stage", "s"],
        }[command]()
        return nursery.run(
            command, *arguments, "--out", out, cache=tmp_path / "cache", log=tmp_path / "said.txt"
        )

    reference = run(tmp_path / "roomy")
    assert reference.code == 0, reference.said
    full = run(small_disk / "out")
    assert full.code == 1, full.said
    assert "No space left on device" in full.said and "Traceback" not in full.said
    assert "again" in full.said
    done = {
        name: content
        for name, content in whole(small_disk / "out").items()
        if "/.study/logs/" not in f"/{name}"
    }
    assert not [name for name in done if name.endswith((".tmp", ".partial"))]
    expected = whole(tmp_path / "roomy")
    finished = {name: content for name, content in done.items() if not name.startswith(".study/")}
    assert all(expected[name] == content for name, content in finished.items()), "what is there is whole"
    assert mount(small_disk, "200m", "remount").returncode == 0
    again = run(small_disk / "out")
    assert again.code == 0, again.said
    assert whole(small_disk / "out") == expected


@pytest.mark.slow
@pytest.mark.parametrize("remote", ["checkpoint", "store"])
def test_where_there_is_no_room_is_named(
    remote: str,
    small_world: Path,
    small_disk: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The cache on a full disk, and not the place that is copied from or uploaded to."""
    pytest.importorskip("fsspec")
    ckpt, out = tiny_models.save(tmp_path / "1M-a-pt"), tmp_path / "scores"
    (small_disk / "taken").write_bytes(bytes(40_000))
    monkeypatch.setenv("EVALENGINE_CACHE", str(small_disk / "cache"))
    given = (f"file://{ckpt}", out) if remote == "checkpoint" else (ckpt, f"file://{out}")
    command = ["score", str(given[0]), "--data", str(small_world), "--benchmarks", "multirc,copa,rte,boolq"]
    assert main([*command, "--out", str(given[1])]) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert f"No space left on device ({small_disk}/cache/" in said
    assert not list(small_disk.rglob("*.tmp"))


@pytest.mark.slow
def test_a_plan_cache_without_room_costs_only_time(
    nursery: Nursery, small_world: Path, small_disk: Path, tmp_path: Path
) -> None:
    ckpt = tiny_models.save(tmp_path / "1M-a-pt")
    (small_disk / "filler").write_bytes(bytes(60_000))
    command = ["score", ckpt, "--data", small_world / "bench", "--benchmarks", "copa,boolq"]
    for out, cache in ((tmp_path / "a", small_disk / "cache"), (tmp_path / "b", tmp_path / "cache")):
        ended = nursery.run(*command, "--out", out, cache=cache, log=tmp_path / "said.txt")
        assert ended.code == 0, ended.said
    assert whole(tmp_path / "a") == whole(tmp_path / "b")
    assert not list(small_disk.rglob("*.tmp"))


def test_two_runs_that_make_one_plan_do_not_meet_in_its_file(
    small_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVALENGINE_CACHE", str(tmp_path / "cache"))
    checkpoint = resolve.discover([tiny_models.save(tmp_path / "1M-a-pt")])[0]
    items = load_items(BENCHMARKS["copa"], small_world / "bench")
    planner, folder = plans.Planner(), tmp_path / "cache" / "plans"
    key = planner.key(checkpoint, items)
    with files.atomic(folder / f"{key}.arrow") as half:  # the first run writes
        half.write_bytes(b"half a plan")
        planner.plan(checkpoint, items)  # the second one
        assert half.read_bytes() == b"half a plan"
        assert plans.read_plan(folder / f"{key}.arrow", items) is not None
        half.write_bytes((folder / f"{key}.arrow").read_bytes())
    assert [path.name for path in folder.iterdir()] == [f"{key}.arrow"]
    assert plans.read_plan(folder / f"{key}.arrow", items) is not None


def test_what_a_killed_process_was_writing_is_removed_and_a_living_ones_is_not(tmp_path: Path) -> None:
    file = tmp_path / "a[1].json"
    writes = "import sys, pathlib, evalengine.files as f\nwith f.atomic(pathlib.Path(sys.argv[1])) as path:\n"
    with subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"{writes} path.write_text('half'); print(path, flush=True); sys.stdin.read()",
            file,
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        half = Path(other.stdout.readline().strip())
        files.write(file, "whole")
        assert half.read_text() == "half" and file.read_text() == "whole"
        other.kill()
        other.wait(60)
        files.write(file, "again")
        assert not half.exists() and file.read_text() == "again"


class Narrow:
    """A machine whose memory holds `tokens` tokens in a forward pass and no more."""

    def __init__(self, model: torch.nn.Module, tokens: int) -> None:
        self.tokens, self.failures = tokens, 0
        model.register_forward_pre_hook(self.check, with_kwargs=True)

    def check(self, module: torch.nn.Module, args: object, kwargs: dict[str, torch.Tensor]) -> None:
        if kwargs["input_ids"].numel() > self.tokens:
            self.failures += 1
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")


def scored(path: Path, world: Path, tokens: int | None) -> tuple[np.ndarray, list[str], int]:
    """Log-likelihoods of wic on a machine that holds so many tokens at a time."""
    backend = TorchBackend(device="cpu", batch_tokens=2048)
    checkpoint = resolve.discover([path])[0]
    backend.load(checkpoint)
    narrow = Narrow(backend.model.base_model, tokens) if tokens else None
    items = load_items(BENCHMARKS["wic"], world / "bench")
    encoded = plans.Planner().plan(checkpoint, items)
    scores = scores_of(backend.score, encoded, "wic")
    return scores.loglik, backend.notes, narrow.failures if narrow else 0


def test_out_of_memory_halves_the_batch_and_says_so_once(small_world: Path, tmp_path: Path) -> None:
    path = tiny_models.save(tmp_path / "1M-a-pt")
    roomy, notes, _ = scored(path, small_world, None)
    assert notes == []
    tight, notes, failures = scored(path, small_world, 300)
    assert failures >= 2, "memory ran out more than once"
    assert [note for note in notes if "memory" in note] == [
        "ran out of memory: scored with --batch-tokens 256"
    ]
    np.testing.assert_allclose(tight, roomy, atol=1e-4)


def test_an_item_that_alone_is_too_large_is_named(small_world: Path, tmp_path: Path) -> None:
    path = tiny_models.save(tmp_path / "1M-a-pt")
    items = load_items(BENCHMARKS["wic"], small_world / "bench")
    longest = max(items.items, key=lambda item: max(map(len, item.contexts)))
    with pytest.raises(
        UserError, match=r"^item \S+ of wic: out of memory on a single item of \d+ tokens"
    ) as refused:
        scored(path, small_world, 10)
    named = str(refused.value).split()[1]
    chosen = next(item for item in items.items if item.id == named)
    assert len(chosen.contexts[0]) > 0.7 * len(longest.contexts[0])


def test_memory_that_runs_out_while_a_model_is_tried_out_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not taken for a model that does not tolerate what is tried, which would run slower ever after."""
    read, seen = Pretrained.read, []

    def hooked(self: Pretrained, *given: object) -> Loaded:
        loaded = read(self, *given)  # type: ignore[arg-type]
        layer = loaded.model.base_model.layers[-1]
        layer.self_attn.k_proj.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[-2]))
        layer.mlp.gate_proj.register_forward_pre_hook(fail_on_few_rows)
        return loaded

    def fail_on_few_rows(_: object, args: tuple[torch.Tensor]) -> None:
        if args[0].shape[-2] < seen[-1]:  # only scored rows: the last layer is being tried
            raise torch.OutOfMemoryError("out of memory: tried to allocate 1 byte")

    monkeypatch.setattr(Pretrained, "read", hooked)
    path = tiny_models.save(tmp_path / "1M-a-pt")
    with pytest.raises(UserError, match="1M-a-pt cannot run here: out of memory"):
        TorchBackend(device="cpu").load(resolve.discover([path])[0])


def test_a_configuration_larger_than_its_weights_is_refused_before_it_is_built(tmp_path: Path) -> None:
    path = tiny_models.save(tmp_path / "1M-a-pt")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 10**9}))
    backend = TorchBackend(device="cpu")
    with pytest.raises(UserError, match="1000000000 layers, 21 tensors"):
        backend.load(resolve.discover([path])[0])


def test_the_closing_table_says_that_memory_ran_out(
    small_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tiny_models.save(tmp_path / "1M-a-pt")
    load = TorchBackend.load

    def load_on_a_small_machine(self: TorchBackend, checkpoint: Checkpoint) -> None:
        load(self, checkpoint)
        Narrow(self.model.base_model, 1100)

    command = [
        "score",
        str(path),
        "--data",
        str(small_world / "bench"),
        "--benchmarks",
        "wic,boolq,copa",
        "--out",
    ]
    assert main([*command, str(tmp_path / "roomy")]) == 0
    monkeypatch.setattr(TorchBackend, "load", load_on_a_small_machine)
    console.set_json(False)
    capsys.readouterr()
    assert main([*command, str(tmp_path / "tight")]) == 0
    assert (
        " ".join(capsys.readouterr().out.split()).count("ran out of memory: scored with --batch-tokens 1024")
        == 1
    )


def test_the_second_process_on_a_store_is_refused_until_the_first_is_killed(
    nursery: Nursery, small_world: Path, tmp_path: Path
) -> None:
    """The lock dies with its owner, also by SIGKILL; a killed owner leaves nothing to clean by hand."""
    from evalengine import store

    path = tiny_models.save(tmp_path / "1M-a-pt")
    command = [
        "score",
        path,
        "--data",
        small_world / "bench",
        "--benchmarks",
        "copa",
        "--out",
        tmp_path / "scores",
    ]
    said = tmp_path / "said.txt"
    with store.lock(tmp_path / "scores"):
        refused = nursery.run(*command, cache=tmp_path / "cache", log=said)
        assert refused.code == 1 and f"in use by process {os.getpid()}" in refused.said
    killed = nursery.run(*command, cache=tmp_path / "cache", log=said, kill=Kill(0.25))
    assert killed.code in (-9, 0)
    assert nursery.run(*command, cache=tmp_path / "cache", log=said).code == 0
