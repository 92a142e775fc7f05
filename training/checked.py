"""Small JSON files that hold the CRC-32 of their own content, under `check`."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

from evalengine import files
from evalengine.untrusted import parse_json


def write(path: Path, value: dict[str, Any], *, indent: int | None = None) -> None:
    files.write(path, json.dumps({**value, "check": _sum(value)}, indent=indent) + "\n")


def read(path: Path) -> dict[str, Any] | None:
    """What was written; None where there is no such file, or it is damaged."""
    try:
        value = dict(parse_json(path.read_bytes()))
    except (OSError, ValueError, TypeError):
        return None
    return value if value.pop("check", None) == _sum(value) else None


def _sum(value: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(value, sort_keys=True).encode())
