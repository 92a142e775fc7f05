"""SECURITY.md is held to its word: every line of its tables names a test, and every named test exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
NAMED = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


def test_every_line_names_a_test_and_every_named_test_exists() -> None:
    text = (ROOT / "SECURITY.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("| ") and not set(line) <= set("| -:")]
    claims = [row for row in rows if not row.startswith(("| claim", "| what"))]
    assert len(claims) > 12
    for claim in claims:
        assert NAMED.search(claim), f"names no test: {claim}"
    for file, name in NAMED.findall(text):
        tree = ast.parse((ROOT / file).read_text())
        assert name in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}, (
            f"{file}::{name}"
        )
