"""Checksums: of files, and small JSON files that hold the CRC-32 of their own content, under `check`."""

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
    value = read_unchecked(path)
    return value if value and value.pop("check", None) == _sum(value) else None


def read_unchecked(path: Path, *, constants: bool = False) -> dict[str, Any] | None:
    """Any JSON object; None where there is no such file, or none in it. constants: with NaN and Infinity."""
    try:
        return dict(parse_json(path.read_bytes(), constants=constants))
    except (OSError, ValueError, TypeError):
        return None


def stamp(path: Path) -> tuple[str, int, int]:
    """A file's name, size and CRC-32: changes with its content."""
    return path.name, path.stat().st_size, crc(path)


def crc(path: Path) -> int:
    """CRC-32 of a file's bytes."""
    total = 0
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 22):
            total = zlib.crc32(chunk, total)
    return total


def _sum(value: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(value, sort_keys=True).encode())
