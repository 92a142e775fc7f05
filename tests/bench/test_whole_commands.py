"""`evalengine bench commands`: a stopwatch whose phases add up, and a whole run on two small checkpoints."""

from __future__ import annotations

import json
import threading
from types import SimpleNamespace

import pytest

from evalengine.bench import commands, stopwatch
from evalengine.cli import main


def test_a_phase_inside_another_is_taken_from_it(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = 0.0

    def passes(seconds: float) -> None:
        nonlocal clock
        clock += seconds

    def outer() -> None:
        passes(3.0)
        owner.inner()
        thread = threading.Thread(target=owner.inner)  # of another thread: outer's own time
        thread.start()
        thread.join()

    monkeypatch.setattr(stopwatch.time, "perf_counter", lambda: clock)
    owner = SimpleNamespace(outer=outer, inner=lambda: passes(5.0))
    watch = stopwatch.Stopwatch(started=-1.0)
    watch.next("rest")
    watch.watch(owner, "outer", lambda: "outer")
    watch.watch(owner, "inner", lambda: "inner")
    owner.outer()
    passes(0.5)
    owner.inner()
    watch.next("rest")
    assert watch.seconds == {stopwatch.START: 1.0, "rest": 0.5, "outer": 8.0, "inner": 10.0}


def test_a_raising_phase_ends() -> None:
    owner = SimpleNamespace(fails=lambda: 1 / 0)
    watch = stopwatch.Stopwatch(0.0)
    watch.watch(owner, "fails", lambda: "failing")
    with pytest.raises(ZeroDivisionError):
        owner.fails()
    assert watch._phases == [stopwatch.START]


@pytest.mark.slow
def test_whole_commands_agree_and_phases_are_all_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "commands", "--quick", "--limit", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    figures = found["figures"]
    for side in (commands.FIRST, commands.AGAIN):
        took = {phase: figures[f"{side}: {phase}"] for phase in stopwatch.PHASES}
        assert sum(took.values()) == pytest.approx(figures[f"{side}: seconds"])
        assert all(took[phase] > 0 for phase in stopwatch.PHASES)
    assert figures["largest difference of an accuracy"] == 0
    assert found["ratios"][f"lm-eval / {commands.FIRST}"] == pytest.approx(
        figures[f"{commands.THEIRS}: seconds"] / figures[f"{commands.FIRST}: seconds"]
    )
