"""Rows to items: from the Hugging Face hub, or from a folder of JSON Lines or Parquet files.

A data folder holds the benchmarks' files itself, or in bench/ inside it: every command's --data takes either (`data_file`).
Every row of a file is rendered, also when `limit` keeps a few, so that a malformed row is always found and an
item's id never depends on the sample. Cost: about 20 us an item, reading included.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from evalengine import console, records
from evalengine.benchmarks.definition import DELIMITER, Benchmark, Hub, Item, Record, Render, whole
from evalengine.errors import UserError
from evalengine.untrusted import is_text, reason

T = TypeVar("T")
SUFFIXES = (".jsonl", ".parquet")
ID_CHARS = 1000
ID_FIELDS = ("id", "idx", "ind")  # where the hub's data sets keep an item's own id


class ItemSet(NamedTuple):
    """The items of one benchmark, ready to score."""

    benchmark: str
    category: str
    version: str
    variant: str | None
    items: list[Item]
    data_hash: str  # of all rows in order, and of the few-shot examples
    total: int  # items before the limit
    fewshot: int = 0  # solved examples before each item
    rows_hash: str = ""  # of the rows alone: what data_hash is without examples; "" where it is not known
    formats: str = ""  # JSON of formats.in_formats, where every choice is written in several answer formats


def load_items(
    benchmark: Benchmark,
    data: Path | None,
    *,
    variant: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    fewshot: int = 0,
) -> ItemSet:
    """Reads and renders a benchmark; with `data` None from its own file or the hub, else from that data folder.

    `limit` keeps a seeded sample in the data's order. `fewshot` puts the same K seeded train items, solved,
    before every context; none of them is an item, whichever items `limit` keeps. Raises UserError for missing,
    empty or malformed data, naming file, line and field.
    """
    if variant not in (None, "lm_eval"):
        raise UserError(f"no variant '{variant}': the one there is is called 'lm_eval'")
    check_options(limit, fewshot, seed)
    render = (variant and benchmark.render_lm_eval) or benchmark.render
    rows: list[Record] = []
    items: list[Item] = []
    for row in read_rows(benchmark, data):
        rows.append(row)
        items.append(make_item(row, render))
    prefix = ""
    if fewshot:
        prefix = "".join(text + "\n\n" for text in _examples(benchmark, data, render, items, fewshot, seed))
        items = [i._replace(contexts=tuple(prefix + context for context in i.contexts)) for i in items]
    canonical = [_canonical(row.fields) for row in rows]
    digest = hashlib.blake2b(b"\n".join([*canonical, b""]), digest_size=16)
    rows_hash = digest.hexdigest()
    digest.update(prefix.encode())
    ids = _unique_ids(benchmark, rows, canonical)
    items = [item._replace(id=id) for item, id in zip(items, ids, strict=True)]
    items = sample(items, limit, seed)
    return ItemSet(
        benchmark.name,
        benchmark.category,
        benchmark.version,
        variant,
        items,
        digest.hexdigest(),
        len(rows),
        fewshot,
        rows_hash,
    )


def check_options(limit: int | None, fewshot: int | None, seed: int) -> None:
    """Raises UserError for numbers of items and examples, and for seeds, that cannot be."""
    if limit is not None and limit < 1:
        raise UserError(f"a limit of {limit} leaves nothing to score: give at least 1")
    if fewshot is not None and fewshot < 0:
        raise UserError(f"cannot put {fewshot} examples before an item: give 0 or more")
    if seed < 0:  # Python's generator drops the sign
        raise UserError(f"--seed {seed} must be 0 or more")


def check_choices(choices: Sequence[str], where: str) -> None:
    """Raises UserError for fewer than two choices, and for an empty one, which would be scored by the white space before it."""
    if len(choices) < 2:
        raise UserError(f"{where}: an item needs two choices or more, not {len(choices)}; remove the row")
    empty = next((number for number, choice in enumerate(choices, 1) if not choice.strip()), None)
    if empty is not None:
        raise UserError(
            f"{where}: choice {empty} is empty, so there is nothing to score; fix or remove the row"
        )


def sample(some: list[T], limit: int | None, seed: int) -> list[T]:
    """At most `limit` of them (None or 0: all), drawn at random and in their order."""
    if not limit or len(some) <= limit:
        return some
    return [some[i] for i in sorted(random.Random(seed).sample(range(len(some)), limit))]


def make_item(row: Record, render: Render) -> Item:
    """One rendered item, still without an id; UserError unless it has two choices or more and one gold."""
    contexts, choices, gold = render(row)
    check_choices(choices, row.where)
    if not 0 <= gold < len(choices):
        raise UserError(f"{row.where}: gold {gold} is out of range for {len(choices)} choices; fix the row")
    continuations = tuple(DELIMITER + choice for choice in choices)
    return Item("", contexts, continuations, choices, gold)


def data_file(benchmark: Benchmark, data: Path | None, *, train: bool = False) -> Path | None:
    """The file in folder `data` or its bench/ (else the one a user's definition names) that holds the benchmark, if any.

    Raises UserError where two files claim to be it.
    """
    ending = "_train" if train else ""
    found: list[Path] = []
    if data is not None:
        names = (benchmark.name, *benchmark.aliases)
        files = [f"{name}{ending}{suffix}" for name in names for suffix in SUFFIXES]
        found = [path for folder in folders_of(data) for file in files if (path := folder / file).is_file()]
    if len(found) > 1:
        raise UserError(f"{found[0]} and {found[1]} both claim to be {benchmark.name}: keep one of them")
    return found[0] if found else benchmark.train_file if train else benchmark.file


def folders_of(data: Path) -> tuple[Path, Path]:
    """Where a data folder may hold the benchmarks' files: in itself, or in bench/ inside it."""
    return data, data / "bench"


def benchmarks_in(data: Path, benchmarks: Iterable[Benchmark], *, train: bool = False) -> list[Benchmark]:
    """Those of `benchmarks` that a data folder holds a file of."""
    return [benchmark for benchmark in benchmarks if data_file(benchmark, data, train=train) is not None]


def held(
    data: Path, benchmarks: Iterable[Benchmark], *, train: bool = False, why: str = ""
) -> list[Benchmark]:
    """The same. Raises UserError where `data` is no folder or holds none of their files; `why` ends the sentence."""
    check_folder(data)
    wanted = list(benchmarks)
    found = benchmarks_in(data, wanted, train=train)
    if not found:
        names = ", ".join([benchmark.name for benchmark in wanted[:3]] + ["..."] * (len(wanted) > 3))
        ending = "_train" if train else ""
        raise UserError(
            f"{data} holds no {ending and 'train '}file of {names}, nor does its bench/: check --data, or name the files "
            f"<benchmark>{ending}.jsonl or .parquet{why}"
        )
    return found


def check_folder(data: Path) -> None:
    """Raises UserError where `data` is no folder."""
    if not data.is_dir():
        raise UserError(
            f"{data} is not a folder: --data takes a folder of <benchmark>.jsonl or .parquet files, or one with them in bench/"
        )


class FileCheck(NamedTuple):
    """What `check_files` found in one file: how many items, or what is wrong with the first bad one."""

    benchmark: str
    path: Path
    items: int
    problem: str | None


def check_files(benchmarks: Iterable[Benchmark], data: Path) -> list[FileCheck]:
    """Reads and renders every evaluation and train file of `benchmarks` in folder `data`."""
    checks = []
    for benchmark, train in itertools.product(benchmarks, (False, True)):
        path: Path | None = data
        items, problem = 0, None
        try:
            path = data_file(benchmark, data, train=train)
            if path is None:
                continue
            for row in read_rows(benchmark, data, train=train):
                make_item(row, benchmark.render)
                items += 1
        except UserError as error:
            problem = str(error)
        checks.append(FileCheck(benchmark.name, path or data, items, problem))
    return checks


def read_rows(benchmark: Benchmark, data: Path | None, *, train: bool = False) -> Iterator[Record]:
    """The raw rows in the data's order, one by one; UserError if there are none to be had."""
    if data is not None:
        check_folder(data)
    path = data_file(benchmark, data, train=train)
    if path is not None:
        rows, source = _rows(path), str(path)
    elif data is not None or benchmark.hub is None:
        name = f"{benchmark.name}_train" if train else benchmark.name
        why = ", which few-shot examples come from" if train else ""
        if data is None:
            key, items = ("train_file", "train items") if train else ("file", "items")
            raise UserError(
                f"the definition of {benchmark.name} does not say where its {items} are{why}: add `{key}: FILE.jsonl` to"
                f" it, or give a folder with {name}.jsonl or {name}.parquet with --data"
            )
        raise UserError(
            f"{data} has no {name}.jsonl or {name}.parquet{why}, nor has its bench/: add it or leave {benchmark.name} out"
        )
    else:
        hub = benchmark.hub._replace(split="train") if train else benchmark.hub
        rows, source = _hub_rows(hub), hub.path
    empty = True
    for row in rows:
        empty = False
        yield row
    if empty:
        raise UserError(f"{source} has no rows: add items or leave {benchmark.name} out")


def _rows(path: Path) -> Iterator[Record]:
    found = records.parquet(path, most=records.Most()) if path.suffix == ".parquet" else records.jsonl(path)
    for where, fields in found:
        if not isinstance(fields, dict):
            raise UserError(f"{where}: expected a JSON object, got {type(fields).__name__}; fix the row")
        yield Record(fields, where)


def _hub_rows(hub: Hub) -> Iterator[Record]:
    try:
        import datasets
    except ImportError:
        raise UserError(
            "reading benchmarks from the Hugging Face hub needs the package datasets: "
            "pip install 'evalengine[hub]', or pass --data DIR"
        ) from None
    named = " ".join(part for part in hub if part)
    try:
        with console.quiet_hub():
            found = datasets.load_dataset(hub.path, hub.config, split=hub.split).to_list()
    except Exception as error:  # the hub's client raises dozens of types, for reasons outside this program
        raise UserError(
            f"cannot read {named} from the Hugging Face hub ({type(error).__name__}: {reason(error)}): "
            "check the network or pass --data DIR"
        ) from error
    yield from (Record(fields, f"{named} on the hub, row {number}") for number, fields in enumerate(found, 1))


def _examples(
    benchmark: Benchmark, data: Path | None, render: Render, items: Sequence[Item], count: int, seed: int
) -> list[str]:
    """`count` seeded train rows, solved. None is an item: its solved text is none of those that `items` score."""
    rows = list(read_rows(benchmark, data, train=True))
    if count > len(rows):
        have = f"{benchmark.name} has {len(rows)} train items"
        raise UserError(f"{have} but --fewshot asks for {count}: ask for fewer")
    asked = {
        text_key(context + continuation)
        for item in items
        for context, continuation in zip(item.contexts, item.continuations, strict=True)
    }
    examples = [_solved(row, render) for row in random.Random(seed).sample(rows, count)]
    if asked.isdisjoint(map(text_key, examples)):
        return examples
    others = [text for text in (_solved(row, render) for row in rows) if text_key(text) not in asked]
    if count > len(others):
        raise UserError(
            f"{benchmark.name} has {len(others)} train items that are not evaluation items too, but --fewshot asks for"
            f" {count}: ask for fewer, or give other train items"
        )
    return random.Random(seed).sample(others, count)


def _solved(row: Record, render: Render) -> str:
    item = make_item(row, render)
    return item.contexts[item.gold] + item.continuations[item.gold]


def text_key(text: str) -> str:
    """Equal for texts that differ in case and white space alone."""
    return " ".join(text.casefold().split())


def _unique_ids(benchmark: Benchmark, rows: Sequence[Record], canonical: Sequence[bytes]) -> list[str]:
    ids: list[str] = []
    seen: dict[str, int] = {}
    fields = (benchmark.id_field,) if benchmark.id_field else ID_FIELDS
    for row, text in zip(rows, canonical, strict=True):
        own = next((row.fields[field] for field in fields if row.fields.get(field) not in (None, "")), None)
        id = _id(row, own) if own is not None else hashlib.blake2b(text, digest_size=8).hexdigest()
        seen[id] = seen.get(id, 0) + 1
        while seen[id] > 1 and f"{id}#{seen[id]}" in seen:
            seen[id] += 1
        if seen[id] > 1:
            id = f"{id}#{seen[id]}"
            seen[id] = 1
        ids.append(id)
    return ids


def _id(row: Record, own: Any) -> str:
    if isinstance(own, Mapping):  # multirc: paragraph, question, answer
        own = "-".join(str(whole(part)) for part in own.values())
    if isinstance(own, list | tuple | bytes):
        raise UserError(f"{row.where}: the row's id is a {type(own).__name__}: make it text or a number")
    text = str(whole(own))
    if len(text) > ID_CHARS or not is_text(text):
        raise UserError(
            f"{row.where}: the row's id must be a text of at most {ID_CHARS} characters: shorten it"
        )
    return text


def _canonical(fields: Mapping[str, Any]) -> bytes:
    """One form for equal rows, whether they came as JSON or as Parquet, where an absent field is null."""
    text = json.dumps(_without_nulls(fields), sort_keys=True, ensure_ascii=False, default=str)
    return text.encode("utf-8", "surrogatepass")


def _without_nulls(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
    return value
