"""What a benchmark is: fields of a raw row -> context(s), choices, gold.

A benchmark is data plus one small pure function, so that the twenty definitions read as a table. `Record` gives
that function typed access to a row: a missing or ill-typed field raises a UserError that names file, line
and field. Cost: a few microseconds an item; nothing heavy is imported.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, NoReturn

from evalengine.errors import UserError

NUMBER = dict.fromkeys((int, float), "a number")
KINDS = {bool: "a boolean", **NUMBER, str: "text", list: "a list", dict: "an object"}
DELIMITER = " "  # between a context and the choice that is scored after it

Score = Literal["acc", "acc_norm", "acc_bytes", "acc_token", "acc_pmi"]


class Item(NamedTuple):
    """One question as it is scored: `continuations[i]` is scored after `contexts[i]`."""

    id: str  # the item's own id, else a hash of its content; unique within a benchmark
    contexts: tuple[str, ...]  # one per choice (equal strings when shared); includes the few-shot prefix
    continuations: tuple[str, ...]  # one per choice, exactly as scored, delimiter included
    choices: tuple[str, ...]  # the continuations without the delimiter: what lengths in chars and bytes count
    gold: int


class Rendered(NamedTuple):
    """What a definition makes of a row; the continuation of a choice is the delimiter and the choice."""

    contexts: tuple[str, ...]
    choices: tuple[str, ...]
    gold: int


def shared(context: str, choices: Sequence[str], gold: int) -> Rendered:
    """The usual shape: one context before every choice."""
    return Rendered((context,) * len(choices), tuple(choices), gold)


class Record:
    """One raw record with typed access. `where` (file and line) and the field's name open every error."""

    def __init__(self, fields: Mapping[str, Any], where: str) -> None:
        self.fields, self.where = fields, where

    def fail(self, field: str, problem: str) -> NoReturn:
        raise UserError(f"{self.where}, field '{field}': {problem}; fix or remove the row")

    def has(self, field: str) -> bool:
        """Whether the field is there (null counts as absent, so that Parquet and JSON Lines agree)."""
        return self.fields.get(field) is not None

    def get(self, field: str) -> Any:
        """The value of `field`, or of `outer.inner` inside a nested record."""
        value: Any = self.fields
        for part in field.split("."):
            if not isinstance(value, Mapping) or value.get(part) is None:
                present = ", ".join(key for key, v in self.fields.items() if v is not None)
                self.fail(field, f"is missing (the row has {present or 'no fields'})")
            value = value[part]
        return value

    def text(self, field: str) -> str:
        return self._text(field, self.get(field))

    def texts(self, field: str) -> tuple[str, ...]:
        """A list of texts."""
        values = self.get(field)
        if not isinstance(values, (list, tuple)):
            self.fail(field, f"expected a list of texts, got {_kind(values)}")
        return tuple(self._text(field, value) for value in values)

    def integer(self, field: str, first: int, last: int) -> int:
        """An integer from `first` to `last`, also as a whole float."""
        value = self.get(field)
        number = whole(value)
        if isinstance(number, bool) or not isinstance(number, int):
            self.fail(field, f"expected an integer, got {_kind(value)}")
        if not first <= number <= last:
            self.fail(field, f"expected {first} to {last}, got {number}")
        return number

    def index(self, field: str, count: int, *, first: int = 0, names: Sequence[str] = ()) -> int:
        """The gold choice among `count`: a number from `first` on, a boolean, digits, or one of `names`."""
        value = self.get(field)
        gold = value.strip().lower() if isinstance(value, str) else whole(value)
        if isinstance(gold, str) and re.fullmatch(r"-?[0-9]{1,9}(\.0*)?", gold):
            gold = int(float(gold))
        if gold in names:
            return names.index(gold)
        if gold in ("", -1) or (isinstance(gold, float) and math.isnan(gold)):
            self.unlabelled(field, value)
        countable = not (first and isinstance(gold, bool))  # a boolean is 0 or 1
        if not isinstance(gold, int) or not countable or not first <= gold < first + count:
            self.fail(field, f"expected {first} to {first + count - 1}, got {value!r}")
        return gold - first

    def position(self, field: str, labels: Sequence[str]) -> int:
        """The gold choice named by its label, such as answerKey among A, B, C, D."""
        key, known = self.text(field).strip(), list(labels)
        if not key:
            self.unlabelled(field, key)
        if key not in known:
            self.fail(field, f"{key!r} is none of the labels {', '.join(known)}")
        return known.index(key)

    def unlabelled(self, field: str, value: object) -> NoReturn:
        raise UserError(
            f"{self.where}, field '{field}' is {value!r}: the row has no gold label, as in a test split; "
            "use the labelled split"
        )

    def _text(self, field: str, value: Any) -> str:
        if not isinstance(value, str):
            self.fail(field, f"expected text, got {_kind(value)}")
        if not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError:
                self.fail(field, "holds a lone surrogate, which is not a character")
        return value


def whole(value: Any) -> Any:
    """A whole float as an integer: pandas makes floats of integers where some row has none."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _kind(value: object) -> str:
    shown = repr(value)
    shown = shown if len(shown) <= 40 else shown[:37] + "..."
    return f"{KINDS.get(type(value), type(value).__name__)} ({shown})"


Render = Callable[[Record], Rendered]


class Hub(NamedTuple):
    """A data set of the Hugging Face hub."""

    path: str
    config: str | None = None
    split: str = "validation"


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A multiple-choice benchmark. `render` maps a row to contexts, choices and gold."""

    category: str
    name: str
    choices: str  # how many, for tables: "2", "3 to 5"
    render: Render
    hub: Hub | None = None
    default_score: Score = "acc"
    version: str = "1"  # changes whenever `render` would give other text
    render_lm_eval: Render | None = None  # where lm-evaluation-harness 0.4.13 renders otherwise
    aliases: tuple[str, ...] = ()  # other names of its data file
    file: Path | None = None  # of a user's own benchmark
    train_file: Path | None = None
    id_field: str | None = None


def define(render: Render, hub: Hub, *, name: str = "", **stated: Any) -> Benchmark:
    """A benchmark of the hub that is called as its function is, if not otherwise."""
    return Benchmark(name=name or render.__name__, render=render, hub=hub, **stated)
