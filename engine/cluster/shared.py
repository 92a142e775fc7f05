"""Does a worker see the driver's folder? A token file answers."""

from __future__ import annotations

import secrets
from pathlib import Path


class Token:
    """A file with a secret in `folder`: a worker that reads it there may write there. `shared` False makes none."""

    def __init__(self, folder: Path, shared: bool = True) -> None:
        self.probe = folder.resolve() / f".probe-{secrets.token_hex(8)}"
        self.text = secrets.token_hex(16)
        self._shared = shared

    def __enter__(self) -> Token:
        for old in self.probe.parent.glob(
            ".probe-*"
        ):  # of a killed driver: the folder is locked, so it is no other's
            old.unlink(missing_ok=True)
        if self._shared:
            self.probe.write_text(self.text, encoding="utf-8")
        return self

    def __exit__(self, *_: object) -> None:
        self.probe.unlink(missing_ok=True)


def visible(probe: Path, text: str) -> bool:
    try:
        return probe.read_text(encoding="utf-8") == text
    except OSError:
        return False
