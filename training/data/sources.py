"""Documents: of local text, JSONL or Parquet files under the data folder, or streamed from the Hugging Face hub.

A text file holds documents separated by lines with only `<|endoftext|>`; without such a line it is one
document. Every reader is a generator in the file's order, so a source larger than memory costs one document
at a time.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from evalengine import console, records
from evalengine.errors import UserError
from evalengine.training.chat import END
from evalengine.training.checked import crc
from evalengine.training.study import SourceSpec
from evalengine.untrusted import is_text, printable

SHUFFLE_SEED = 0
READ = (".txt", ".jsonl", ".json", ".parquet")  # suffixes of files that are read in a folder
UNREAD = (".gz", ".zst", ".bz2", ".xz", ".zip", ".csv", ".tsv", ".arrow")  # of files that may hold text, too
END_BYTES = 1 << 20  # of a file's beginning and end


def documents(source: SourceSpec, data: Path | None, name: str) -> Iterator[str]:
    """The non-empty documents of a source. Raises UserError naming the file (and line) at fault."""
    if source.hub:
        found = (_field(row, source.field, source.hub) for row in hub_rows(source))
        yield from (text for text in found if text.strip())
        return
    for file in files(source, data, name):
        yield from (text for text in _texts(file, source.field) if text.strip())


def _texts(file: Path, field: str) -> Iterator[str]:
    suffix = file.suffix.lower()
    if suffix not in (".jsonl", ".json", ".parquet"):
        return text_documents(file)
    rows = records.parquet(file, field) if suffix == ".parquet" else records.jsonl(file)
    return (_field(row, field, where) for where, row in rows)


def files(source: SourceSpec, data: Path | None, name: str) -> list[Path]:
    """The files of a local source: one file, or every text, JSONL and Parquet file of a folder that is not hidden, sorted."""
    if data is None:
        raise UserError(f"source {name} reads {source.path}: give the folder that holds it with --data DIR")
    path = data / source.path
    if path.is_dir():
        found = [p for p in sorted(path.rglob("*")) if p.suffix.lower() in READ and p.is_file()]
        found = [p for p in found if not any(part.startswith(".") for part in p.relative_to(path).parts)]
        if found:
            return found
    elif path.is_file():
        return [path]
    raise UserError(
        f"source {name}: there is no text at {path} ({', '.join(READ)}); check its path and --data"
    )


def check(source: SourceSpec, data: Path | None, name: str) -> None:
    """Raises UserError where a local source has no files, and warns of files in its folder that hold text and are not read."""
    read = files(source, data, name)
    assert data is not None
    folder = data / source.path
    if folder.is_dir():
        more = [
            path for path in sorted(folder.rglob("*")) if path.suffix.lower() in UNREAD and path.is_file()
        ]
        if more:
            others = f" and {len(more) - 1} more" if len(more) > 1 else ""
            console.warn(
                f"source {name}: {more[0].relative_to(folder)}{others} in {folder} not read, beside {len(read)} that"
                f" are: only {', '.join(READ)} are; unpack or convert them if they belong to it"
            )


def batches(texts: Iterable[str], chars: int) -> Iterator[list[str]]:
    """The texts in order, `chars` characters or a little more at a time."""
    batch: list[str] = []
    held = 0
    for text in texts:
        batch.append(text)
        held += len(text)
        if held >= chars:
            yield batch
            batch, held = [], 0
    if batch:
        yield batch


def source_key(spec: SourceSpec, data: Path | None, name: str, whole: bool = True) -> str:
    """Changes when a source's specification or its files change. Reads the files whole, about 1 GB/s.

    `whole` False: the key that earlier versions made, of each file's size and ends.
    """
    values = dataclasses.astuple(spec)
    parts: list[Any] = [values if spec.files else values[:-1]]  # without `files`: as if it were not there
    for file in [] if spec.hub else files(spec, data, name):
        size = file.stat().st_size
        with file.open("rb") as stream:
            head = zlib.crc32(stream.read(END_BYTES))
            stream.seek(max(0, size - END_BYTES))
            ends = head, zlib.crc32(stream.read())
        between = [_crc(file, size, file.stat().st_mtime_ns)] if whole and size > 2 * END_BYTES else []
        parts.append((file.name, size, *ends, *between))
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]


@functools.cache
def _crc(file: Path, size: int, mtime_ns: int) -> int:
    """Read once by a process that asks several times, unless the file changes."""
    return crc(file)


def text_documents(file: Path) -> Iterator[str]:
    lines: list[str] = []
    try:
        with file.open(encoding="utf-8-sig") as stream:  # a byte order mark is no text
            for line in stream:
                if line.strip() == END:
                    yield "".join(lines).strip("\n")
                    lines = []
                else:
                    lines.append(line)
    except UnicodeDecodeError:
        raise UserError(f"{file} is not UTF-8 text: convert it, or remove it from the study") from None
    yield "".join(lines).strip("\n")


def hub_rows(source: SourceSpec) -> Iterator[dict[str, Any]]:
    """Rows of a hub data set (or of a local folder laid out as one), streamed. Needs the `hub` extra and a network.

    `shuffle` spreads what is read over the data set's files, which on the hub are often sorted (by programming
    language, by crawl); the order is fixed, as it decides the token shards and not a run.
    """
    try:
        from datasets import load_dataset
    except ImportError:
        raise UserError(f"{source.hub} is on the Hugging Face hub: pip install 'evalengine[hub]'") from None
    wanted = list((source.where or {}).items())
    try:
        chosen = {"data_files": {source.split: list(source.files)}} if source.files else {}
        with console.quiet_hub():
            stream = load_dataset(source.hub, source.config, split=source.split, streaming=True, **chosen)
        if source.shuffle:
            stream = stream.shuffle(seed=SHUFFLE_SEED, buffer_size=source.shuffle)
        for row in stream:
            if all(_value(row, path, source.hub) == value for path, value in wanted):
                yield row
    except (OSError, ValueError, RuntimeError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"cannot stream {source.hub} from the hub ({first}): {_advice(first)}") from None


def _advice(error: str) -> str:
    """What to do about an error of `datasets`, by its first line."""
    if "gated" in error:
        return "accept its terms on its page on the hub, then run `hf auth login`"
    if "scripts are no longer supported" in error:
        return "its rows come from a program; name another copy of it that holds files (docs/training.md)"
    if "zstd" in error.lower() or "zstandard" in error:
        return "its files need a package: pip install zstandard"
    return "check its name, access and the network"


def _value(row: Any, path: str, where: str) -> str:
    """What `path` (keys joined by dots) leads to in a row."""
    for key in path.split("."):
        if not isinstance(row, dict) or key not in row:
            keys = ", ".join(row) if isinstance(row, dict) else type(row).__name__
            raise UserError(f"{where} has no {path!r} (there is {keys}): set the source's `where`")
        row = row[key]
    return str(row)


def _field(row: Any, field: str, where: str) -> str:
    value = row.get(field) if isinstance(row, dict) else None
    if not isinstance(value, str):
        keys = ", ".join(row) if isinstance(row, dict) else type(row).__name__
        if isinstance(row, dict) and "blob_id" in row:
            raise UserError(
                f"{where} lists files by `blob_id` without their text, which Software Heritage holds: name a copy "
                "of it with the text, such as common-pile/stackv2_edu_filtered"
            )
        if isinstance(row, dict) and field in row:
            raise UserError(
                f"{where}: {field!r} is {value!r:.60}, not text: fix or remove the line, or set the source's `field`"
            )
        raise UserError(
            f"{where} has no text field {field!r} (it has {printable(keys[:200])}): set the source's `field`"
        )
    if not is_text(value):
        raise UserError(f"{where} holds a lone surrogate, which is not a character: fix or remove the line")
    return value
