"""Kernels that Numba compiled are kept between processes, and are made again where what was kept cannot be read."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

KERNEL = """
from evalengine.jit import jit

@jit()
def total(pair):
    return pair.a + pair.b
"""
CALL = (
    "import kernel, types_of; print(kernel.total(types_of.{name}(1, 2)), len(kernel.total.stats.cache_hits))"
)


def call(folder: Path, name: str) -> list[str]:
    """What the kernel gives a named tuple of that name, and how many versions of it were kept."""
    types = f"from typing import NamedTuple\nclass {name}(NamedTuple):\n    a: int\n    b: int\n"
    (folder / "types_of.py").write_text(types)
    command = [sys.executable, "-B", "-c", CALL.format(name=name)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout.split()


def test_an_argument_s_type_may_be_renamed(tmp_path: Path) -> None:
    (tmp_path / "kernel.py").write_text(KERNEL)
    assert call(tmp_path, "Pair") == ["3", "0"]
    assert call(tmp_path, "Pair") == ["3", "1"]
    assert call(tmp_path, "Couple") == ["3", "0"]
    assert call(tmp_path, "Couple") == ["3", "1"]
