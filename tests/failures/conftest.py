"""How hard the fuzzers try, and how often the processes are killed.

pytest tests/failures                                                        # what CI runs
pytest tests/failures -k readers --hypothesis-profile=long                   # minutes; prints how many inputs were tried
python tests/failures/fuzz.py READER SECONDS                                 # guided by coverage, where atheris is installed
EVALENGINE_KILLS=50 pytest tests/failures/test_killed.py -s                  # fifty killed processes of each command
"""

from __future__ import annotations

import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
from hostile import tried


@pytest.fixture(scope="module")
def bounded_memory() -> Iterator[None]:
    """No input may make a reader ask for more than 8 GB of address space beyond what is there."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + (8 << 30), hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hostile")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if tried:
        each = ", ".join(f"{name} {count:,}" for name, count in tried.items())
        terminalreporter.write_line(f"inputs tried by the fuzzers: {sum(tried.values()):,} ({each})")
