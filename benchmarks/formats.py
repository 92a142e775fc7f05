"""Answer formats: every choice of an item written in several ways behind the same context, for `score --formats`.

    plain: " {choice}"
    answer: " Answer: {choice}"
    letter: " ({letter})"

A template states all that stands between the context and the end of the answer; {letter} is A for the first choice. A context
that ends in a cue, such as "Answer:", all but decides the format; without it the formats themselves say it, or not. An item's
choices are laid out format after format: with C choices, those of format f are f * C to f * C + C - 1, and `gold` is the right
one within a format.

The probabilities of two formats may be added only where no answer in one begins an answer in the other, since a text's
probability holds that of every text that begins with it. A template that begins another is refused; single items in which an
answer begins another are named in the store (encoding.overlapping), and left out of the shares.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import string
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from evalengine import files
from evalengine.benchmarks.custom import Template, template_of
from evalengine.benchmarks.load import ItemSet
from evalengine.errors import UserError
from evalengine.untrusted import check_label, printable, read_yaml

LETTERS = string.ascii_uppercase
FIELDS = {"choice", "letter"}


class Format(NamedTuple):
    name: str
    template: Template

    @property
    def names_choice(self) -> bool:
        """Whether the choice itself is written, not its letter alone."""
        return "choice" in self.template.fields

    def write(self, choice: str, letter: str) -> str:
        return self.template.replace({"choice": choice, "letter": letter}.__getitem__)


def _formats(**templates: str) -> tuple[Format, ...]:
    return tuple(Format(name, Template(text)) for name, text in templates.items())


# Ways of answering that web text, instruction data, code and mathematics use.
SHIPPED = _formats(
    plain=" {choice}",
    line="\n{choice}",
    answer=" Answer: {choice}",
    answer_line="\nAnswer: {choice}",
    answer_is=" The answer is {choice}.",
    it_is=" It is {choice}.",
    a="\nA: {choice}",
    quoted=' "{choice}"',
    letter=" ({letter})",
    hashes="\n#### {choice}",
    boxed=" \\boxed{{{choice}}}",
    json=' {{"answer": "{choice}"}}',
    code='\nanswer = "{choice}"',
)


def read_formats(path: Path) -> tuple[Format, ...]:
    """The formats of a YAML file, name -> template. Raises UserError for what cannot be used, naming the file and the format."""
    raw = read_yaml(path)
    if not isinstance(raw, dict) or len(raw) < 2:
        raise UserError(f'{path} must name two formats or more, such as answer: " Answer: {{choice}}"')
    formats = []
    for name, text in raw.items():
        name = check_label(str(name), f"{path}, the name of a format")
        if not isinstance(text, str):
            raise UserError(
                f"{path}: '{name}' must be text with {{choice}} or {{letter}} in it, between quotes"
            )
        template = template_of(path, name, text)
        if not template.fields or not template.fields <= FIELDS:
            wrong = ", ".join(sorted(template.fields - FIELDS)) or "none"
            raise UserError(f"{path}: the fields of '{name}' must be {{choice}} or {{letter}}, not {wrong}")
        formats.append(Format(name, template))
    for one, other in itertools.permutations(formats, 2):
        if other.template.text.startswith(one.template.text):
            raise UserError(
                f"{path}: every answer of '{other.name}' begins with the same answer of '{one.name}', whose probability holds"
                f" the other's: remove one, or end '{one.name}' in something of its own"
            )
    return tuple(formats)


def write_formats(path: Path, formats: Sequence[Format]) -> None:
    """A file that `read_formats` reads. Raises UserError where fewer than two formats are left to compare."""
    if len(formats) < 2:
        raise UserError(
            f"fewer than two formats were found: {path} is not written; name others with --formats"
        )
    lines = (f"{json.dumps(one.name)}: {json.dumps(one.template.text)}\n" for one in formats)
    files.write(path, "".join(lines))


def in_formats(items: ItemSet, formats: Sequence[Format], cue: str = "") -> ItemSet:
    """The items with every choice in every format. Raises UserError where an item has more choices than there are letters.

    cue: left out of the contexts that end in it, with the white space before it.
    What lengths and acc_norm count is the choice itself, or its letter where that is all that is written.
    """
    made = []
    for item in items.items:
        if len(item.choices) > len(LETTERS):
            raise UserError(
                f"item {printable(item.id)} of {items.benchmark} has {len(item.choices)} choices, and there are"
                f" {len(LETTERS)} letters: leave the benchmark out"
            )
        lettered = list(zip(item.choices, LETTERS, strict=False))
        made.append(
            item._replace(
                contexts=tuple(without(cue, context) for context in item.contexts) * len(formats),
                continuations=tuple(f.write(*one) for f in formats for one in lettered),
                choices=tuple(
                    choice if f.names_choice else letter for f in formats for choice, letter in lettered
                ),
            )
        )
    stated = json.dumps({"cue": cue, "formats": {one.name: one.template.text for one in formats}})
    digest = hashlib.blake2b(stated.encode(), digest_size=4).hexdigest()
    return items._replace(items=made, formats=stated, version=f"{items.version}+formats-{digest}")


def without(cue: str, context: str) -> str:
    shorter = context.rstrip().removesuffix(cue)
    return shorter.rstrip() if cue and shorter != context.rstrip() else context


# --- which of them stand in the sources


def pattern(form: Format) -> re.Pattern[str] | None:
    """What finds a format in text: any words of one line stand for the choice. None where it has no words of its own.

    The space that a template begins with may also be the beginning of a text, and its line the first.
    """
    if not form.template.replace(lambda field: "").strip():
        return None
    text = form.template.replace({"choice": "\0", "letter": "\1"}.__getitem__)
    body = re.escape(text.lstrip()).replace("\0", r"[^\n]{1,200}?").replace("\1", "[A-Z]")
    space = text[: -len(text.lstrip())] if text != text.lstrip() else ""
    before = r"^[ \t]*" if "\n" in space else r"(?:\A|(?<=[ \t]))" if space else ""
    return re.compile(before + body, re.MULTILINE)


def count(texts: Iterable[str], formats: Sequence[Format]) -> list[int | None]:
    """How often each format stands in the texts; None of those that have no words of their own."""
    patterns = [pattern(form) for form in formats]
    found = [0] * len(formats)
    for text in texts:
        for f, wanted in enumerate(patterns):
            found[f] += 0 if wanted is None else sum(1 for _ in wanted.finditer(text))
    return [None if wanted is None else n for wanted, n in zip(patterns, found, strict=True)]
