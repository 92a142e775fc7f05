"""What every test folder shares: the real data, where there is any."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder EVALENGINE_DATA (bench/, corpora/, results/): third-party, in no repository."""
    folder = os.environ.get("EVALENGINE_DATA")
    if not folder or not (Path(folder) / "bench").is_dir():
        pytest.skip(
            "needs real benchmark data: set EVALENGINE_DATA to a folder with bench/, corpora/, results/"
        )
    return Path(folder)
