"""lm-evaluation-harness's samples_*.jsonl as files of a score store.

Every line holds one item's log-likelihoods, so accuracy, confidence and calibration come from the same code
as for scores of evalengine's own. Token counts are not in the file and stay null. The right choice is what the
target says by one rule for the whole file: an index, the text of a choice, or a letter; else what each line's `acc`
implies. A line whose `acc` contradicts that is refused. Of which model and with how many few-shot examples is said
by the results_*.json of the same run beside the file, else the folder's name is the model's.
"""

from __future__ import annotations

import math
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from evalengine.analysis.harness import (
    Model,
    identities,
    mapping,
    model_of,
    model_of_place,
    read_results,
    shots_of,
)
from evalengine.analysis.importing import DATE, UNKNOWN, Known, benchmark_name, refuse_two_files
from evalengine.analysis.panel import RESULTS_FILE
from evalengine.errors import UserError
from evalengine.untrusted import check_name, parse_json, printable

if TYPE_CHECKING:
    import pyarrow as pa


class SampleFile(NamedTuple):
    """A samples file: what it is about. shots: "" where it is not known."""

    path: Path
    model: Model
    benchmark: str
    shots: str
    limit: str


class Sample(NamedTuple):
    """One item: log-likelihoods, greedy flags and continuations of its choices, and the right one."""

    item: str
    gold: int
    loglik: tuple[float, ...]
    greedy: tuple[bool, ...]
    choices: tuple[str, ...]


class Line(NamedTuple):
    """One line of the file, before its target is understood. right: what its `acc` says of the picked choice."""

    number: int
    item: str
    target: str
    right: bool | None
    picked: int
    loglik: tuple[float, ...]
    greedy: tuple[bool, ...]
    choices: tuple[str, ...]


def import_samples(
    paths: Sequence[Path], out: Path, pattern: str, known: Mapping[str, Known], alias: Mapping[str, str]
) -> list[Path]:
    """Writes `out`/<checkpoint>/<benchmark>.arrow from samples files, all or none; returns the paths written."""
    from evalengine.store import write

    if (out / RESULTS_FILE).exists():
        raise UserError(
            f"{out} holds {RESULTS_FILE}, and correlate reads one or the other: give another --out"
        )
    files = [_about(path, known, alias) for path in paths]
    whose = identities((file.model for file in files), pattern)
    source: dict[Path, SampleFile] = {}
    for file in files:
        target = Path(whose[file.model].checkpoint, f"{file.benchmark}.arrow")
        other = source.setdefault(target, file)
        if other is not file:
            shots = [int(f.shots) if f.shots.isdecimal() else None for f in (other, file)]
            refuse_two_files(other.path, file.path, f"{file.benchmark} of {target.parent}", *shots)
    with _staging(out) as staging:
        for target, file in source.items():
            about = known.get(file.benchmark, UNKNOWN)
            who = {**whose[file.model]._asdict(), "benchmark": file.benchmark, "category": about.category}
            table = to_table(who, read_samples(file.path))
            _refuse_other_scores(out / target, table)
            write(staging / target, table, _metadata(file, about))
        for target in source:
            (out / target).parent.mkdir(exist_ok=True)
            os.replace(staging / target, out / target)
    return [out / target for target in source]


def _about(path: Path, known: Mapping[str, Known], alias: Mapping[str, str]) -> SampleFile:
    found = re.fullmatch(rf"samples_(.+)_({DATE})", path.stem)
    task = found[1] if found else path.stem.removeprefix("samples_")
    benchmark = benchmark_name(task, known, alias)
    check_name(benchmark, "benchmark")
    results = path.with_name(f"results_{found[2]}.json") if found else None
    if results is None or not results.is_file():
        return SampleFile(path, model_of_place(path)._replace(revision=""), benchmark, "", "")
    raw = read_results(results)
    shots, limit = shots_of(raw, task), mapping(raw, "config").get("limit")
    return SampleFile(
        path,
        model_of(results, raw),
        benchmark,
        "" if shots is None else str(shots),
        f"{limit:g}" if isinstance(limit, int | float) else "",
    )


def _metadata(file: SampleFile, about: Known) -> dict[str, str]:
    from evalengine import __version__
    from evalengine.store import STORE_VERSION

    return {
        "store_version": STORE_VERSION,
        "evalengine_version": __version__,
        "benchmark_version": "lm-evaluation-harness",
        "variant": "lm_eval",
        "default_score": about.default_score,
        "limit": file.limit,
        "fewshot": file.shots,
        "backend": "imported",
        "dtype": "",
    }


@contextmanager
def _staging(out: Path) -> Iterator[Path]:
    """A folder in `out` for files that are not complete as a whole; afterwards it is gone, and `out` if it is empty."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {out} ({error.strerror}): give another --out") from None
    try:
        with tempfile.TemporaryDirectory(prefix=".importing-", dir=out) as folder:
            yield Path(folder)
    finally:
        if not any(out.iterdir()):
            out.rmdir()


def _refuse_other_scores(target: Path, table: pa.Table) -> None:
    """Refuses to replace a file that holds other scores; the same ones may get another identity."""
    from evalengine.store import read

    if not target.exists():
        return
    before = read(target)
    if any(not before[key].equals(table[key]) for key in ("item", "gold", "loglik")):
        raise UserError(f"{target} is there and holds other scores: delete it, or give another --out")


def read_samples(path: Path) -> list[Sample]:
    """The items of a samples file. Raises UserError naming the line at fault."""
    lines: list[Line] = []
    number = 0
    first: dict[tuple[str, str], int] = {}
    try:
        with path.open(encoding="utf-8") as handle:
            for text in handle:
                number += 1
                if not text.strip():
                    continue
                raw = parse_json(text, constants=True)
                lines.append(_line(number, raw))
                document = (str(raw.get("doc_id", number)), lines[-1].item)
                if first.setdefault(document, number) != number:
                    raise UserError(
                        f"the item of line {first[document]} again; give a file of one run and one filter"
                    )
    except UserError as error:
        raise UserError(f"{path}, line {number}: {error}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text: give a samples_*.jsonl file") from None
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError, RecursionError):
        raise UserError(
            f"{path}, line {number} is no multiple-choice sample of lm-evaluation-harness "
            "(run it with --log_samples on multiple-choice tasks)"
        ) from None
    except OSError as error:
        raise UserError(f"cannot read {path} ({error}): give a samples_*.jsonl file") from None
    if not lines:
        raise UserError(f"{path} is empty: nothing to import")
    return [
        Sample(line.item, gold, line.loglik, line.greedy, line.choices)
        for line, gold in zip(lines, _golds(path, lines), strict=True)
    ]


def _line(number: int, raw: Mapping[str, Any]) -> Line:
    scored = [
        response[0] if isinstance(response[0], list) else response for response in raw["filtered_resps"]
    ]
    loglik = tuple(float(value[0]) for value in scored)
    greedy = tuple(str(value[1]) == "True" for value in scored)
    arguments = raw["arguments"]
    pairs = arguments.values() if isinstance(arguments, dict) else arguments
    texts = [pair["arg_1"] if isinstance(pair, dict) else pair[1] for pair in pairs]
    # With mutual information the unconditional requests follow the conditional ones.
    choices = tuple(text[1:] if text.startswith(" ") else text for text in texts[: len(loglik)])
    if len(choices) < 2 or len(choices) != len(loglik):
        raise ValueError("not one log-likelihood for each of two choices or more")
    right = None if "acc" not in raw else float(raw["acc"])
    if right not in (None, 0.0, 1.0):
        raise UserError(f"its acc is {right:g}: a task with several right choices cannot be imported")
    item = str(raw.get("doc_hash") or raw["doc_id"])
    for text in (item, *choices):
        text.encode()  # a lone surrogate is no character
    picked = max(range(len(loglik)), key=lambda i: (loglik[i], -i))
    said = None if right is None or any(map(math.isnan, loglik)) else right == 1.0
    return Line(number, item, str(raw["target"]).strip(), said, picked, loglik, greedy, choices)


def _index(line: Line) -> int | None:
    is_index = line.target.isascii() and line.target.isdigit() and len(line.target) < 6
    return int(line.target) if is_index and int(line.target) < len(line.choices) else None


def _text(line: Line) -> int | None:
    """The choice with the target's text; of several, the first, if nothing but their place tells them apart."""
    at = [i for i, choice in enumerate(line.choices) if choice.strip() == line.target]
    return at[0] if at and len({line.loglik[i] for i in at}) == 1 else None


def _letter(line: Line) -> int | None:
    index = "ABCDEFGHIJ".find(line.target) if len(line.target) == 1 else -1
    return index if 0 <= index < len(line.choices) else None


def _implied(line: Line) -> int | None:
    """The right choice by `acc` alone: the picked one, or of two the other."""
    if line.right is False and len(line.choices) == 2:
        return 1 - line.picked
    return line.picked if line.right else None


# A digit is an index wherever it can be one: lm-evaluation-harness writes texts only for tasks that give texts.
RULES: dict[str, Callable[[Line], int | None]] = {"an index": _index, "a text": _text, "a letter": _letter}


def _golds(path: Path, lines: Sequence[Line]) -> list[int]:
    """The right choice of every line, by the first rule that fits them all. Raises UserError where none does."""
    contradiction = ""
    for meaning, rule in (*RULES.items(), ("", _implied)):
        golds = [gold for line in lines if (gold := rule(line)) is not None]
        if len(golds) < len(lines):
            continue
        wrong = [
            line
            for line, gold in zip(lines, golds, strict=True)
            if line.right is not None and (line.picked == gold) != line.right
        ]
        if not wrong and (meaning or not contradiction):
            return golds
        if not wrong:  # acc agrees with itself, whatever the targets say
            continue
        contradiction = contradiction or (
            f"{path}, line {wrong[0].number}: its acc says {'right' if wrong[0].right else 'wrong'}, but its "
            f"log-likelihoods and target do not (its target '{printable(wrong[0].target[:40])}' read as {meaning})"
        )
    if contradiction:
        raise UserError(contradiction)
    unclear = next((line for line in lines if all(rule(line) is None for rule in RULES.values())), None)
    if unclear is None:
        raise UserError(
            f"{path}: its targets are not all of one kind, an index, a choice's text or a letter: "
            "give a file of one task"
        )
    raise UserError(
        f"{path}, line {unclear.number}: cannot tell which choice its target '{printable(unclear.target[:40])}' means"
    )


def to_table(who: Mapping[str, str | None], samples: list[Sample]) -> pa.Table:
    """A table of the store's schema; an item that occurs twice gets a number behind its id."""
    import pyarrow as pa

    from evalengine.store import KEYS, schema

    count: dict[str, int] = {}
    ids = []
    for sample in samples:
        count[sample.item] = count.get(sample.item, 0) + 1
        ids.append(sample.item if count[sample.item] == 1 else f"{sample.item}#{count[sample.item]}")
    fields = schema()
    columns: dict[str, Any] = {
        **{key: pa.array([who[key]] * len(samples), pa.string()).dictionary_encode() for key in KEYS},
        "item": ids,
        "gold": [sample.gold for sample in samples],
        "loglik": [sample.loglik for sample in samples],
        "tokens": [None] * len(samples),
        "chars": [[len(choice) for choice in sample.choices] for sample in samples],
        "bytes": [[len(choice.encode()) for choice in sample.choices] for sample in samples],
        "greedy": [sample.greedy for sample in samples],
        "loglik_uncond": [None] * len(samples),
    }
    arrays = [
        values.cast(fields.field(name).type) if name in KEYS else pa.array(values, fields.field(name).type)
        for name, values in columns.items()
    ]
    return pa.Table.from_arrays(arrays, schema=fields)
