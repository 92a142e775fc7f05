"""How hard the fuzzers try, and how often the processes are killed.

pytest tests/failures                                            # what CI runs
pytest tests/failures/test_readers.py --hypothesis-profile=long  # a few minutes; prints how many inputs were tried
EVALENGINE_KILLS=50 pytest tests/failures/test_killed.py -s      # fifty killed processes of each command
"""

from __future__ import annotations

import pytest
from hostile import tried
from hypothesis import HealthCheck, settings

COMMON = {"deadline": None, "suppress_health_check": list(HealthCheck), "database": None}
settings.register_profile("short", max_examples=40, derandomize=True, **COMMON)
settings.register_profile("long", max_examples=250, **COMMON)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if tried:
        each = ", ".join(f"{name} {count:,}" for name, count in tried.items())
        terminalreporter.write_line(f"inputs tried by the fuzzers: {sum(tried.values()):,} ({each})")
