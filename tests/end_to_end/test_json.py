"""`--json`: one JSON object on standard output, and nothing but warnings on standard error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_study import STUDY

from evalengine.cli import main


def test_every_command_prints_one_object_and_no_table(
    small_world: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    study, ckpts, scores = tmp_path / "study.yaml", tmp_path / "ckpts", tmp_path / "scores"
    select = {"score": "ifd", "keep": [0.25, 0.75]}
    study.write_text(yaml.safe_dump({**STUDY, "sft": {**STUDY["sft"], "select": select}}))
    data = ("--data", small_world)

    def run(*arguments: object) -> dict[str, Any]:
        capfd.readouterr()
        assert main([*map(str, arguments), "--json"]) == 0
        out, err = capfd.readouterr()
        assert err == "", arguments
        (line,) = out.splitlines()
        found = json.loads(line)
        assert isinstance(found, dict) and found, arguments
        return found

    trained = run("train", study, *data, "--out", ckpts)
    selection = trained["selection"]
    assert len(trained["finished"]) == 4 and trained["bench"] is None
    assert [(row["scale"], row["mixture"]) for row in selection["runs"]] == [("S", "m1"), ("S", "m2")]
    (row,) = selection["pairs"]
    assert 0 < row["overlap"] <= 1
    assert run("train", study, *data, "--out", ckpts)["selection"] == selection
    run("train", study, *data, "--out", ckpts, "--dry-run", "--flops", "1e9")
    given = (*sorted(ckpts.glob("S-*")), *data, "--benchmarks", "copa,cb", "--limit", "6", "--out", scores)
    run("score", *given)
    run("score", *given, "--formats")
    run("export", scores)
    run("expose", study, *data, "--out", tmp_path / "exposure.arrow")
    run("power")
    run("benchmarks")
    run("benchmarks", "show", "copa", *data)
    run("benchmarks", "check", *data)
    run("benchmarks", "formats", study, *data)
