"""`evalengine bench commands`: a whole run on two small checkpoints."""

from __future__ import annotations

import json

import pytest

from evalengine.bench import commands
from evalengine.cli import main


@pytest.mark.slow
def test_whole_commands_agree(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "commands", "--quick", "--limit", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    figures = found["figures"]
    assert figures["largest difference of an accuracy"] == 0
    assert found["ratios"][f"lm-eval / {commands.FIRST}"] == pytest.approx(
        figures[f"{commands.THEIRS}: seconds"] / figures[f"{commands.FIRST}: seconds"]
    )
