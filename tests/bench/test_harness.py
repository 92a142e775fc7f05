"""The harness of `evalengine bench`: turns, medians, fresh processes, results; and the command's options."""

from __future__ import annotations

import importlib
import inspect
import math
import os
from collections.abc import Callable

import pytest

from evalengine.bench import TARGETS, harness, synthetic
from evalengine.bench.inputs import workplace
from evalengine.cli import main
from evalengine.errors import UserError


def test_sides_run_in_turns_and_every_second_round_in_reverse() -> None:
    ran: list[str] = []

    def side(name: str, value: float | None) -> Callable[[], float | None]:
        return lambda: ran.append(name) or value

    found = harness.rounds({"a": side("a", 1.0), "b": side("b", None)}, 3)
    assert ran == ["a", "b", "b", "a", "a", "b"]
    assert found == {"a": [1.0] * 3}  # None: the other could not run


def test_the_median_of_a_side_counts() -> None:
    values = iter([5.0, 1.0, 2.0])
    assert harness.medians({"a": lambda: next(values), "b": lambda: 7.0}, 3) == {"a": 2.0, "b": 7.0}


def test_rows_compare_each_side_with_ours() -> None:
    rows = harness.against("ours", {"theirs": 3.0, "ours": 0.0125})
    assert rows == [("theirs", "3", "240.00x"), ("ours", "0.0125", "1.00x")]


def test_a_fresh_process_answers_fails_in_a_sentence_or_is_ended() -> None:
    assert harness.alone(math.sqrt, 9.0) == 3.0
    assert harness.alone(os.getpid) != os.getpid()
    with pytest.raises(UserError, match="sqrt failed: math domain"):
        harness.alone(math.sqrt, -1.0)
    with pytest.raises(UserError, match="ended early"):
        harness.alone(os._exit, 3)


def test_json_has_the_tables_keys_and_only_what_was_measured() -> None:
    table = {"title": "t", "columns": ["a"], "rows": [["1"]]}
    assert harness.Measurement(**table, ratios={"x": 2.0}).as_json() == table | {"ratios": {"x": 2.0}}
    whole = harness.Measurement(**table, ratios={}, figures={"s": 1.0}, failures=[]).as_json()
    assert whole["figures"] == {"s": 1.0} and whole["failures"] == []


def test_a_busy_machine_is_warned_of(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (9.0, 1.0, 1.0))
    monkeypatch.setattr(harness.files, "cores", lambda: 2)
    assert harness.load_average() == 9.0
    assert "busy (load average 9.0 on 2 cores)" in " ".join(capsys.readouterr().err.split())
    harness.load_average(quick=True)
    monkeypatch.setattr(os, "getloadavg", lambda: (0.4, 1.0, 1.0))
    harness.load_average()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("name", TARGETS)
def test_every_target_is_a_module_with_run(name: str) -> None:
    run = importlib.import_module(f"evalengine.bench.{name.replace('-', '_')}").run
    assert next(iter(inspect.signature(run).parameters)) == "quick"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["bootstrap", "--limit", "3"], "--limit means nothing to `bench bootstrap`"),
        (["vllm", "--sizes", "1M"], "--sizes means nothing to `bench vllm`"),
        (["engine", "--vllm-arg", "seed=1"], "--vllm-arg means nothing to `bench engine`"),
        (["training", "--backend", "vllm"], "--backend means nothing to `bench training`"),
        (["engine", "--quick", "--sizes", "3B"], "no model size '3B': choose from 1M"),
        (["kernels", "--quick", "--device", "tpu"], "--device must be cpu or cuda, not tpu"),
    ],
)
def test_what_a_target_cannot_use_is_refused(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", *arguments]) == 1
    assert said in capsys.readouterr().err


def test_a_synthetic_store_is_complete_until_a_file_goes() -> None:
    sizes = {"copa": (6, 2), "siqa": (4, 3)}
    with workplace() as work:
        checkpoints = synthetic.make_checkpoints(work / "checkpoints", ["1M-m0-pt", "1M-m0-sft"])
        assert synthetic.score(checkpoints, sizes, work / "scores") == 4
        assert synthetic.score(checkpoints, sizes, work / "scores") == 0
        files = sorted((work / "scores").glob("*/*.arrow"))
        assert len(files) == 4
        files[-1].unlink()
        assert synthetic.score(checkpoints, sizes, work / "scores") == 1
