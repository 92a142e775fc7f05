"""`evalengine benchmarks` as a user runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from evalengine.benchmarks import BENCHMARKS, load_items
from evalengine.cli import main


def test_the_list_names_all_twenty(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["benchmarks"]) == 0
    shown = capsys.readouterr().out
    for name, benchmark in BENCHMARKS.items():
        assert name in shown and benchmark.hub and benchmark.hub.path in shown
    assert main(["benchmarks", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert list(listed) == list(BENCHMARKS)
    assert listed["siqa"]["hub"] == ["lighteval/siqa", None, "validation"]


def test_show_marks_every_continuation(small_world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = str(small_world / "bench")
    for name in ("winogrande", "copa"):
        items = load_items(BENCHMARKS[name], small_world / "bench", fewshot=2, variant="lm_eval").items
        command = ["benchmarks", "show", name, "--data", data, "--item", "3", "--fewshot", "2"]
        assert main([*command, "--variant", "lm_eval"]) == 0
        shown = capsys.readouterr().out
        for context, continuation in zip(items[3].contexts, items[3].continuations, strict=True):
            assert context in shown and f"»{continuation}«" in shown
        assert shown.count("<- gold") == 1
        assert f"»{items[3].continuations[items[3].gold]}«   <- gold" in shown
        assert main([*command, "--variant", "lm_eval", "--json"]) == 0
        printed = json.loads(capsys.readouterr().out)
        assert printed["continuations"] == list(items[3].continuations) and printed["gold"] == items[3].gold


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["show", "copa", "--item", "24"], "has items 0 to 23"),
        (["show", "science"], "names 4 benchmarks"),
        (["show", "cpa"], "did you mean 'copa'"),
    ],
)
def test_show_refuses_in_one_sentence(
    small_world: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], complaint: str
) -> None:
    assert main(["benchmarks", *arguments, "--data", str(small_world / "bench")]) == 1
    error = capsys.readouterr().err
    assert complaint in error and error.count("\n") == 1


def test_check_passes_good_files_and_names_what_is_absent(
    small_world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["benchmarks", "check", "--data", str(small_world / "bench"), "--json"]) == 0
    printed = capsys.readouterr().out
    assert main(["benchmarks", "check", "--data", str(small_world), "--json"]) == 0
    assert capsys.readouterr().out == printed  # bench/ is found inside
    result = json.loads(printed)
    assert len(result["files"]) == 40 and result["absent"] == []
    assert {check["items"] for check in result["files"]} == {24, 12}


def test_check_names_the_first_bad_line_of_every_bad_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = {"goal": "g", "sol1": "a", "sol2": "b", "label": 0}
    lines = [json.dumps(good), json.dumps({**good, "label": 5}), "nonsense"]
    (tmp_path / "piqa.jsonl").write_text("\n".join(lines))
    (tmp_path / "piqa_train.jsonl").write_text(lines[0])
    (tmp_path / "copa_train.jsonl").write_text(lines[2])
    assert main(["benchmarks", "check", "--data", str(tmp_path)]) == 1
    shown = capsys.readouterr()
    assert "piqa.jsonl, line 2, field 'label': expected 0 to 1, got 5" in shown.err
    assert "copa_train.jsonl, line 1: not valid JSON" in shown.err
    assert shown.err.count("evalengine: ") == 2
    states = {row.split()[1]: row.split()[2] for row in shown.out.splitlines() if ".jsonl" in row}
    assert states == {"piqa.jsonl": "bad", "piqa_train.jsonl": "ok", "copa_train.jsonl": "bad"}
    assert "winogrande" in shown.out


def test_check_refuses_a_folder_that_is_none_or_holds_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in (tmp_path, tmp_path / "none"):
        assert main(["benchmarks", "check", "--data", str(folder)]) == 1
        assert str(folder) in capsys.readouterr().err
    assert main(["benchmarks", "check"]) == 1
    assert "--data DIR" in capsys.readouterr().err


def test_a_benchmark_of_one_s_own_is_listed_and_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sums.jsonl").write_text(json.dumps({"q": "1+1", "right": "two"}))
    (tmp_path / "sums.yaml").write_text(
        'name: sums\ncontext: "{q} is"\nchoices: [one, two]\ngold: right\ngold_is: text\nfile: sums.jsonl\n'
    )
    own = ["--benchmark-file", str(tmp_path / "sums.yaml")]
    assert main(["benchmarks", *own]) == 0
    assert "21 benchmarks" in capsys.readouterr().out
    assert main(["benchmarks", "show", "sums", *own]) == 0
    assert "» two«   <- gold" in capsys.readouterr().out


@pytest.mark.slow
def test_without_a_network_one_sentence_is_all_that_is_said(tmp_path: Path) -> None:
    """The hub's client tries six times, in 23 seconds, and would report each."""
    pytest.importorskip("datasets")
    nowhere = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path)}
    command = [sys.executable, "-m", "evalengine", "benchmarks", "show", "copa"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **nowhere})
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert "cannot read aps/super_glue copa validation from the Hugging Face hub" in line
    assert line.endswith("check the network or pass --data DIR")
