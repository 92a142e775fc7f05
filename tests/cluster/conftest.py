"""What the tests of scale-out share: tiny checkpoints, a store written by one process, and a local Ray of two cores."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

import tiny_models
from evalengine.cli import main

NAMES = ("240M-v1p0-pt", "240M-v1p0-sft", "240M-v2p0-pt", "240M-v2p0-sft")
BENCHMARKS = "copa,cb,piqa,boolq,hellaswag,multirc"


@pytest.fixture(scope="session")
def ckpts(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("ckpts")
    return [tiny_models.save(folder / name, "llama", seed=i, window=1024) for i, name in enumerate(NAMES)]


@pytest.fixture(scope="session")
def chats(ckpts: list[Path], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two of the checkpoints, each with a chat template of its own."""
    folder = tmp_path_factory.mktemp("chats")
    found = [Path(shutil.copytree(path, folder / path.name)) for path in ckpts[:2]]
    for path, user in zip(found, ("<user>", "[INST] "), strict=True):
        (path / "chat_template.jinja").write_text(
            f"{{% for m in messages %}}{{{{ '{user}' if m.role == 'user' else ' ' }}}}{{{{ m.content }}}}{{% endfor %}}"
        )
    return found


@pytest.fixture(scope="session")
def bench(small_world: Path) -> Path:
    return small_world / "bench"


@pytest.fixture(scope="session")
def reference(ckpts: list[Path], bench: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store that a single process writes with one thread, as many as the workers have: threads can change bits."""
    out = tmp_path_factory.mktemp("reference") / "scores"
    with one_thread():
        assert score(ckpts, bench, out) == 0
    return out


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.fixture(scope="session")
def ray_local() -> Iterator[None]:
    """One local cluster for all tests that do not need their own; starting one takes longer than they do."""
    pytest.importorskip("ray")
    from cluster import forked
    from evalengine.cluster.connect import connected

    with forked.workers(), pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_worker_niceness", "0")  # beside another process of tests nice ones hardly run
        with connected("local", cpus=2):
            yield


def score(ckpts: Sequence[object], bench: Path, out: object, *more: object) -> int:
    given = ["--data", bench, "--out", out, "--benchmarks", BENCHMARKS, *more]
    return main(["score", *map(str, [*ckpts, *given])])


def files(store: Path) -> dict[str, bytes]:
    """Everything in a store but its log and its lock."""
    found = {str(p.relative_to(store)): p for p in sorted(store.rglob("*")) if p.is_file()}
    return {name: p.read_bytes() for name, p in found.items() if name not in ("runs.jsonl", ".lock")}


def processes(*words: str) -> dict[int, str]:
    """Running processes whose command line holds all `words`."""
    found = {}
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if line and all(word in line for word in words):
                    found[int(entry.name)] = line
    return found


def own(*words: str) -> list[int]:
    """Those of them that descend from this process: another suite may run on the same machine."""
    return [pid for pid in processes(*words) if os.getpid() in ancestors(pid)]


def ancestors(pid: int) -> list[int]:
    found = []
    with contextlib.suppress(OSError):  # it has just ended
        while pid > 1:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
            found.append(pid)
    return found
