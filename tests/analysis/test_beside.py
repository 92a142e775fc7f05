"""The helper of large studies, a real process: the same bytes with it, without it, and where it is killed."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import planted
import pytest

from evalengine.analysis import items, study
from evalengine.analysis.beside import helper
from evalengine.analysis.panel import load_panel
from evalengine.analysis.study import Options, analyse
from evalengine.errors import UserError


@pytest.fixture
def divided(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(items, "MANY_FILES", 1)
    monkeypatch.setattr(study, "MANY_MIXTURES", 1)
    monkeypatch.setattr("evalengine.analysis.beside.cores", lambda: 2)


def tables(source: Path, out: Path, *, killed: bool = False) -> dict[str, bytes]:
    with helper() as pool:
        assert pool is not None
        panel = load_panel(source, pool=pool)
        (child,) = multiprocessing.active_children()  # that has read its half
        if killed:
            os.kill(child.pid or 0, signal.SIGKILL)
            child.join(60)
        analyse(panel, Options(bootstrap=300), pool=pool).write(out)
    assert not multiprocessing.active_children()
    return contents(out)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.usefixtures("divided")
@pytest.mark.parametrize("killed", [False, True])
def test_two_processes_write_what_one_does(tmp_path: Path, killed: bool) -> None:
    planted.write_study(tmp_path / "scores", items=60)
    analyse(load_panel(tmp_path / "scores"), Options(bootstrap=300)).write(tmp_path / "alone")
    assert tables(tmp_path / "scores", tmp_path / "both", killed=killed) == contents(tmp_path / "alone")


@pytest.mark.usefixtures("divided")
def test_the_helpers_complaint_is_the_users(tmp_path: Path) -> None:
    planted.write_study(tmp_path, items=60)
    here, there = items.halves({path.stem: [path] for path in next(tmp_path.glob("*")).glob("*.arrow")})
    assert here and there and not set(here) & set(there)
    damaged = next(iter(there.values()))[0]
    damaged.write_bytes(damaged.read_bytes()[:-100])
    with helper() as pool, pytest.raises(UserError, match=f"{damaged.name} is damaged"):
        load_panel(tmp_path, pool=pool)


def test_the_helper_ends_with_a_killed_parent(tmp_path: Path) -> None:
    program = (
        "import os, sys, time\n"
        "from evalengine.analysis.beside import helper\n"
        "if __name__ == '__main__':\n"
        "    with helper() as pool:\n"
        "        print(pool.submit(os.getpid).result(), flush=True)\n"
        "        time.sleep(60)\n"
    )
    (tmp_path / "program.py").write_text(program)
    parent = subprocess.Popen(
        [sys.executable, str(tmp_path / "program.py")], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    parent.kill()
    parent.wait(60)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and Path(f"/proc/{child}/cmdline").exists():
        if "\nState:\tZ" in Path(f"/proc/{child}/status").read_text():
            break
        time.sleep(0.05)
    else:
        assert not Path(f"/proc/{child}").exists()
