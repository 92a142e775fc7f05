"""Engines in a process of their own: what remains when one dies, and after Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import evalengine
from evalengine.cli import main
from evalengine.vllm import engine


@pytest.fixture
def command(references: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`evalengine score` of one checkpoint on two benchmarks, the engine core in its own process: (arguments, store)."""
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    data = tmp_path / "data"
    data.mkdir()
    copa = [
        {
            "premise": f"It broke {i}.",
            "choice1": "It fell.",
            "choice2": f"It {i} rose.",
            "question": "cause",
            "label": i % 2,
        }
        for i in range(8)
    ]
    boolq = [{"passage": f"Tea {i}.", "question": "is it tea", "label": i % 2} for i in range(8)]
    for name, rows in (("copa", copa), ("boolq", boolq)):
        (data / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "scores"
    checkpoint = str(references["llama", 0].checkpoint.path)
    return ["score", checkpoint, "--data", str(data), "--out", str(out), "--backend", "vllm"], out


def engine_processes() -> list[int]:
    """Living processes that this one started and that run vLLM's engine."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                status = (folder / "status").read_text()
                line = (folder / "cmdline").read_bytes()
            except OSError:
                continue
            if f"PPid:\t{os.getpid()}\n" in status and "State:\tZ" not in status and b"EngineCore" in line:
                found.append(int(folder.name))
    return found


def wait_until_gone() -> list[int]:
    deadline = time.monotonic() + 60
    while (left := engine_processes()) and time.monotonic() < deadline:
        time.sleep(0.1)
    return left


def when_asked(number: int, checkpoint: str, monkeypatch: pytest.MonkeyPatch, act: Any) -> None:
    """Calls `act` while the checkpoint's engine, not its twin's, is asked for the `number`-th time.

    The first time is for the canary, the others are for benchmarks.
    """
    calls: list[int] = []
    plain = engine.ask

    def ask(llm: Any, *args: Any) -> Any:
        if llm.llm_engine.vllm_config.model_config.model == checkpoint:
            calls.append(len(calls))
            if len(calls) == number:
                act()
        return plain(llm, *args)

    monkeypatch.setattr(engine, "ask", ask)


def test_a_dead_engine_and_ctrl_c_keep_what_is_finished_and_the_next_run_completes_it(
    command: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments, out = command

    def kill() -> None:
        processes = engine_processes()
        assert len(processes) == 1
        os.kill(processes[0], signal.SIGKILL)
        time.sleep(0.5)

    with monkeypatch.context() as patch:
        when_asked(3, arguments[1], patch, kill)
        assert main(arguments) == 1
    shown = capfd.readouterr()
    sentence = "failed: vLLM's engine died"
    assert sentence in shown.out and "run the same command again" in shown.out
    assert "Traceback" not in shown.out + shown.err
    assert "Triton" not in shown.out + shown.err  # nor any other message of vLLM's own
    assert len(list(out.glob("*/*.arrow"))) == 1
    assert wait_until_gone() == []

    with monkeypatch.context() as patch:
        when_asked(2, arguments[1], patch, lambda: signal.raise_signal(signal.SIGINT))
        assert main(arguments) == 130
    assert wait_until_gone() == []
    assert len(list(out.glob("*/*.arrow"))) == 1

    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    assert main(arguments) == 0
    whole = evalengine.load(out).to_pylist()
    assert main([*arguments, "--fresh"]) == 0
    assert {row["benchmark"] for row in whole} == {"copa", "boolq"}
    for a, b in zip(whole, evalengine.load(out).to_pylist(), strict=True):
        np.testing.assert_allclose(a.pop("loglik"), b.pop("loglik"), rtol=0, atol=1e-5)
        assert a == b


def test_the_command_ends_without_a_word_of_what_libraries_leave(
    command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Triton from 3.9 on reports objects that are not collected at the process's end."""
    arguments, out = command
    monkeypatch.delenv("VLLM_ENABLE_V1_MULTIPROCESSING")
    done = subprocess.run(
        [sys.executable, "-m", "evalengine", *arguments], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0 and len(list(out.glob("*/*.arrow"))) == 2
    assert "leaked" not in done.stdout + done.stderr
