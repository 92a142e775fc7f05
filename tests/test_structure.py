"""Dependencies point one way: no circle among the modules that import each other, nor among the folders that hold them, and no
product code that knows the tests."""

from __future__ import annotations

import ast
import graphlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {
    "evalengine": "engine",
    **{f"evalengine.{name}": name for name in ("kernels", "benchmarks", "training", "analysis")},
}


def modules() -> dict[str, Path]:
    found = {}
    for package, folder in PACKAGES.items():
        for file in (ROOT / folder).rglob("*.py"):
            parts = file.relative_to(ROOT / folder).with_suffix("").parts
            found[".".join([package, *(part for part in parts if part != "__init__")])] = file
    return found


def imports(file: Path, known: dict[str, Path]) -> set[str]:
    """The modules that a file imports anywhere, inside functions and for type checkers as well."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            inside = {f"{node.module}.{name.name}" for name in node.names} & known.keys()
            found |= inside or {node.module}
        elif isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
    return found


def test_no_modules_import_each_other() -> None:
    known = modules()
    graph = {name: (imports(file, known) & known.keys()) - {name} for name, file in known.items()}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_no_folders_import_each_other() -> None:
    """A module that stands beside folders counts for itself. The command line and what measures it use everything."""
    known = {name: file for name, file in modules().items() if file.name != "__main__.py"}
    tops = {*PACKAGES, "evalengine.cli", "evalengine.bench"}
    folders = {name for name, file in known.items() if file.name == "__init__.py"} - tops

    def folder(name: str) -> str:
        inside = name if name in folders else name.rpartition(".")[0]
        return inside if inside in folders else name

    graph: dict[str, set[str]] = {}
    for name, file in known.items():
        used = {folder(other) for other in imports(file, known) & known.keys()}
        graph.setdefault(folder(name), set()).update(used - {folder(name)})
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_product_code_does_not_know_the_tests() -> None:
    tests = {file.stem for file in (ROOT / "tests").rglob("*.py")} | {"tests"}
    known = modules()
    for file in known.values():
        named = {name.split(".")[0] for name in imports(file, known)}
        assert not named & tests, file
        assert "sys.path" not in file.read_text(encoding="utf-8") or "tests" not in file.read_text(), file


def test_no_two_classes_share_a_name() -> None:
    found: dict[str, list[str]] = {}
    for module, file in modules().items():
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef):
                found.setdefault(node.name, []).append(module)
    assert not {name: where for name, where in found.items() if len(where) > 1}
