"""A user's own multiple-choice benchmark from a short YAML file (docs/benchmarks.md has one, with every key).

A template replaces `{field}` by a field of the row and knows nothing else: no attribute, no index, no code.
A number is written by its type: an integer as 3, a float as 3.0, also where pandas made it of an integer.
Literal braces are doubled.
"""

from __future__ import annotations

import hashlib
import math
import re
import reprlib
import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast, get_args

from evalengine.benchmarks.definition import Benchmark, Hub, Record, Rendered, Score, shared
from evalengine.errors import UserError, nearest
from evalengine.untrusted import check_label, is_plain, printable, read_yaml

REQUIRED = ("name", "context", "choices", "gold")
OPTIONAL = ("category", "gold_is", "default_score", "file", "train_file", "hub", "id")
GOLD_IS = ("index", "number", "letter", "text")
_PIECE = re.compile(r"\{\{|\}\}|\{([A-Za-z_][A-Za-z0-9_]*)\}|[{}]")


class Template(NamedTuple):
    """Text with `{field}` places."""

    text: str

    @property
    def fields(self) -> frozenset[str]:
        return frozenset(match[1] for match in _PIECE.finditer(self.text) if match[1])

    def fill(self, row: Record) -> str:
        def text(field: str) -> str:
            value = row.fields.get(field)
            if isinstance(value, float) and not math.isfinite(value):
                row.fail(field, f"holds no number ({value})")
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            return str(value) if is_number else row.text(field)

        return self.replace(text)

    def replace(self, text: Callable[[str], str]) -> str:
        """The template with `text(field)` in the place of each field."""
        return _PIECE.sub(lambda match: text(match[1]) if match[1] else match[0][0], self.text)


@dataclass(frozen=True)
class Definition:
    """The part of a file that renders a row."""

    context: Template
    choices: str | tuple[Template, ...]
    gold: str
    gold_is: str

    def __call__(self, row: Record) -> Rendered:
        if isinstance(self.choices, str):
            choices = row.texts(self.choices)
        else:
            choices = tuple(template.fill(row) for template in self.choices)
        return shared(self.context.fill(row), choices, self._gold(row, choices))

    def _gold(self, row: Record, choices: tuple[str, ...]) -> int:
        if self.gold_is == "letter":
            return row.position(self.gold, string.ascii_uppercase[: len(choices)])
        if self.gold_is == "text":
            return row.position(self.gold, [choice.strip() for choice in choices])
        return row.index(self.gold, len(choices), first=1 if self.gold_is == "number" else 0)


def read_benchmark(path: Path) -> Benchmark:
    """The benchmark that a YAML file defines; UserError naming the key that is wrong."""
    spec = read_yaml(path)
    if not isinstance(spec, dict):
        raise UserError(f"{path}: expected keys and values such as 'name: capitals'")
    for key in spec:
        if key not in REQUIRED + OPTIONAL:
            raise UserError(f"{path}: no key {reprlib.repr(key)}{nearest(str(key), REQUIRED + OPTIONAL)}")
    for key in REQUIRED:
        if key not in spec:
            raise UserError(f"{path}: the key '{key}' is missing; add it")
    name = _text(path, spec, "name")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}", name):
        raise UserError(
            f"{path}: the name '{name}' names a file too: use up to 100 letters, digits, '_', '-' and '.'"
        )
    choices, count = _choices(path, spec)
    definition = Definition(
        template_of(path, "context", _text(path, spec, "context")),
        choices,
        _text(path, spec, "gold"),
        _one_of(path, spec, "gold_is", GOLD_IS),
    )
    id_field = _text(path, spec, "id") if "id" in spec else None
    return Benchmark(
        name=name,
        category=check_label(_text(path, spec, "category", "Custom"), f"{path}, category"),
        default_score=cast(Score, _one_of(path, spec, "default_score", get_args(Score))),
        version=_version(definition, id_field),
        choices=count,
        hub=_hub(path, spec),
        render=definition,
        file=_file(path, spec, "file"),
        train_file=_file(path, spec, "train_file"),
        id_field=id_field,
    )


def _version(definition: Definition, id_field: str | None) -> str:
    """Changes with what is rendered, and with what the store calls an item."""
    stated = repr(definition) + ("" if id_field is None else repr(id_field))
    return "yaml-" + hashlib.blake2b(stated.encode(), digest_size=4).hexdigest()


def _text(path: Path, spec: Mapping[Any, Any], key: str, default: str | None = None) -> str:
    value = spec.get(key, default)
    if not isinstance(value, str) or not value:
        raise UserError(f"{path}: '{key}' must be text, not {reprlib.repr(value)}")
    return value


def _one_of(path: Path, spec: Mapping[Any, Any], key: str, allowed: tuple[str, ...]) -> str:
    value = _text(path, spec, key, allowed[0])
    if value not in allowed:
        raise UserError(f"{path}: no {key} '{value}'{nearest(value, allowed)}")
    return value


def template_of(path: Path, key: str, text: str) -> Template:
    """A checked template. Raises UserError, which names the file and the key."""
    for match in _PIECE.finditer(text):
        if match.group() in "{}":
            at = repr(text[match.start() : match.start() + 20])
            hint = "write {{ or }} for a literal one"
            raise UserError(f"{path}: '{key}' has a brace that is not part of a {{field}} at {at}; {hint}")
    return Template(text)


def _choices(path: Path, spec: Mapping[Any, Any]) -> tuple[str | tuple[Template, ...], str]:
    """The choices and how many there are, for tables."""
    value = spec["choices"]
    if isinstance(value, str) and value and "{" not in value:
        return value, "any"
    if isinstance(value, list) and len(value) >= 2 and all(isinstance(text, str) for text in value):
        return tuple(template_of(path, "choices", text) for text in value), str(len(value))
    raise UserError(
        f"{path}: 'choices' must be a field that holds a list, or a list of two or more templates"
    )


def _hub(path: Path, spec: Mapping[Any, Any]) -> Hub | None:
    if "hub" not in spec:
        return None
    hub = spec["hub"]
    if not isinstance(hub, dict) or "path" not in hub or not set(hub) <= set(Hub._fields):
        raise UserError(f"{path}: 'hub' must be {{path: owner/name}}, with config and split if need be")
    if "file" in spec:
        raise UserError(f"{path}: 'file' and 'hub' both say where the items are; keep one")
    return Hub(**{"split": "test", **{key: _text(path, hub, key) for key in hub}})


def _file(path: Path, spec: Mapping[Any, Any], key: str) -> Path | None:
    if key not in spec:
        return None
    text = _text(path, spec, key)
    if not is_plain(text.rsplit("/", 1)[-1]) or "\0" in text:
        raise UserError(f"{path}: '{key}' is not a file name: {printable(text[:60])!r}")
    file = path.parent / text
    if file.suffix not in (".jsonl", ".parquet"):
        raise UserError(f"{path}: '{key}' must be a .jsonl or .parquet file, not {file.name}")
    if not file.is_file():
        raise UserError(f"{path}: no file {file}: '{key}' is relative to the YAML file")
    return file
