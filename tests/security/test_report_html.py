"""The report escapes every text it shows and loads nothing from anywhere."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from planted import write_study

from evalengine.analysis.results import OTHERS
from evalengine.analysis.together import checksums
from evalengine.cli import main

EVIL = (
    "</script><script>document.title='owned'</script><img src=//evil.example/x onerror=alert(1)>\"' onmouseover='x"
    " {0} {name} %s"  # and what would be a format string
)
LOADS = ("src", "href", "srcset", "data", "action", "formaction", "poster", "xlink:href", "background")


class Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    write_study(folder / "scores", items=40, mixtures=("a", "b", "c", "d", "e"))
    assert (
        main(["correlate", str(folder / "scores"), "--bootstrap", "exact", "--out", str(folder / "analysis")])
        == 0
    )
    return folder / "analysis"


def structure(html: str) -> list[tuple[str, tuple[str, ...]]]:
    page = Page()
    page.feed(html)
    return [(tag, tuple(sorted(attributes))) for tag, attributes in page.tags]


def loads_nothing(html: str) -> None:
    page = Page()
    page.feed(html)
    for tag, attributes in page.tags:
        assert tag not in ("iframe", "object", "embed", "link", "base", "img", "form") or (
            tag,
            attributes.get("href"),
        ) == ("link", "data:,")
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            if name in LOADS:
                assert value is not None and value.startswith(("#", "data:")), (tag, name, value)
    assert not re.search(r"@import|url\((?!['\"]?(#|data:))", html)
    assert "default-src 'none'" in html


def hostile(value: Any, key: str, names: dict[str, str]) -> Any:
    """Every text of the tables that is a name from outside, or a note, made hostile."""
    if isinstance(value, dict):
        return {names.get(k, k): hostile(v, k, names) for k, v in value.items()}
    if isinstance(value, list):
        return [hostile(v, key, names) for v in value]
    if isinstance(value, str):
        if value in names:
            return names[value]
        if key in ("note", "notes") and value:
            return value + EVIL
    return value


def test_every_text_of_a_hostile_study_is_escaped(tables: Path, tmp_path: Path) -> None:
    from evalengine.analysis.report.report import write_report

    plain = write_report(tables, tables).read_text()
    loads_nothing(plain)
    method = json.loads((tables / "analysis.json").read_text())
    outside = [
        *method["mixtures"],
        *method["benchmarks"],
        *method["categories"],
        *method["stages"],
        *method["scales"],
    ]
    names = {name: f"{name}{EVIL}" for name in dict.fromkeys(outside)}
    large, small = method["scales"][-1], method["scales"][0]
    names[f"{large}-{small}"] = f"{names[large]}-{names[small]}"
    for path in tables.glob("*.json"):
        (tmp_path / path.name).write_text(json.dumps(hostile(json.loads(path.read_text()), "", names)))
    changed = json.loads((tmp_path / "analysis.json").read_text())
    changed.pop("checksums")
    changed["checksums"] = checksums(tmp_path, [*changed["tables"], *OTHERS], changed)
    (tmp_path / "analysis.json").write_text(json.dumps(changed))
    html = write_report(tmp_path, tmp_path).read_text()
    loads_nothing(html)
    assert "script" not in {tag for tag, _ in structure(html)}
    assert {tag for tag, _ in structure(html)} == {tag for tag, _ in structure(plain)}
    assert EVIL not in html and "&lt;script&gt;" in html
