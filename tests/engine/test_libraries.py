"""Large libraries are imported once, without searches for garbage, and the collector is left as it was."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from pathlib import Path

import pytest

from evalengine import libraries


@pytest.mark.parametrize("collecting", [True, False])
def test_the_collector_rests_during_an_import_alone(
    collecting: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"a_large_library_{collecting}".lower()
    (tmp_path / f"{name}.py").write_text("import gc\nwas = gc.isenabled()\n")
    monkeypatch.syspath_prepend(tmp_path)
    before = gc.get_freeze_count()
    (gc.enable if collecting else gc.disable)()
    try:
        libraries.load(name)
        assert gc.isenabled() is collecting
    finally:
        gc.enable()
    assert sys.modules[name].was is False
    assert gc.get_freeze_count() > before
    gc.unfreeze()


def test_what_is_done_at_the_end_is_done_once(tmp_path: Path) -> None:
    for name in ("one_large_library", "another_large_library"):
        (tmp_path / f"{name}.py").touch()
    code = (
        "import atexit, gc\n"
        "calls = []\n"
        "gc.freeze = lambda: calls.append(1)\n"
        "atexit.register(lambda: print(len(calls)))\n"  # the first that is registered is the last that is called
        "from evalengine import libraries\n"
        "for name in ('one_large_library', 'another_large_library'):\n"
        "    libraries.load(name)\n"
        "calls.clear()\n"
    )
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"}
    ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert (ran.stdout, ran.stderr) == ("1\n", "")


def test_a_failing_import_leaves_the_collector_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a_broken_library.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ZeroDivisionError):
        libraries.load("a_broken_library")
    assert gc.isenabled()
