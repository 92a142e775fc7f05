"""Large libraries are imported once, without searches for garbage, and the collector is left as it was."""

from __future__ import annotations

import gc
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
    monkeypatch.setattr(libraries.atexit, "register", lambda function: None)
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


def test_a_failing_import_leaves_the_collector_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a_broken_library.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ZeroDivisionError):
        libraries.load("a_broken_library")
    assert gc.isenabled()
