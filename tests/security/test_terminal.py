"""What a stranger wrote cannot steer the terminal that it is shown on: no escape sequence, no markup of rich."""

from __future__ import annotations

import json
import os
import pty
import sys
import threading
from pathlib import Path

import pytest

from evalengine import cli, console

TITLE = "\x1b]0;owned\x07"
HOSTILE = f"a{TITLE}\x1b[2J[red]x[/red][link=https://evil.example]\u202e\x9b31m\rb"
PLAIN = "a\\x1b]0;owned\\x07\\x1b[2J[red]x[/red][link=https://evil.example]\\u202e\\x9b31m\\rb"


def test_lines_and_tables_show_control_characters_as_escapes(capsys: pytest.CaptureFixture[str]) -> None:
    console.say(HOSTILE)
    console.warn(HOSTILE)
    console.table(HOSTILE, [HOSTILE], [[HOSTILE]], caption=HOSTILE)
    out, err = capsys.readouterr()
    assert out.count(PLAIN) >= 3 and err.count(PLAIN) == 1  # a long caption may be wrapped
    assert not set(out + err) & set("\x1b\x07\r\x9b\u202e")


def test_progress_on_a_terminal_shows_neither_escapes_nor_markup(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = pty.openpty()
    shown = bytearray()

    def read() -> None:
        try:
            while chunk := os.read(ours, 65536):
                shown.extend(chunk)
        except OSError:  # the other end is closed
            pass

    reader = threading.Thread(target=read)
    reader.start()
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "300")
    with os.fdopen(theirs, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        with console.progress("scoring", 2, "items") as progress:
            progress.describe(HOSTILE)
            progress.update(1, note=HOSTILE)
            progress.rows([HOSTILE])
            progress.update(1)
    reader.join(60)
    assert not reader.is_alive()
    os.close(ours)
    text = shown.decode()
    assert "[red]x[/red][link=https://evil.example]" in text
    assert TITLE not in text and "\x1b[2J" not in text and "\u202e" not in text


def test_an_item_is_shown_without_its_escape_sequences(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {
        "premise": HOSTILE,
        "question": "cause",
        "choice1": HOSTILE,
        "choice2": "b",
        "label": 0,
        "id": HOSTILE,
    }
    (tmp_path / "copa.jsonl").write_text(json.dumps(row))
    assert cli.main(["benchmarks", "show", "copa", "--data", str(tmp_path)]) in (0, 1)
    out, err = capsys.readouterr()
    assert "owned" in out + err and not set(out + err) & set("\x1b\x07\r\x9b\u202e")


def test_errors_are_told_without_escape_sequences(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["score", str(tmp_path / HOSTILE.replace("/", "")), "--out", str(tmp_path / "s")]) == 1
    err = capsys.readouterr().err
    assert "owned" in err and not set(err) & set("\x1b\x07\r\x9b\u202e")
