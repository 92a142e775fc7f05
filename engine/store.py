"""The score store: scores/<checkpoint>/<benchmark>.arrow, one Arrow IPC file per pair, written whole or not at all.

A file holds one row per item and, in its schema's metadata, everything needed to know whether it may stand for a new run:
fingerprint, tokenizer, data and benchmark versions, options. Nothing in it changes from run to run.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from evalengine.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

STORE_VERSION = "1"
KEYS = ("checkpoint", "scale", "mixture", "stage", "benchmark", "category")


def schema() -> pa.Schema:
    import pyarrow as pa

    names = pa.dictionary(pa.int32(), pa.string())
    return pa.schema(
        [
            *((key, names) for key in KEYS),
            ("item", pa.string()),
            ("gold", pa.int16()),
            ("loglik", pa.list_(pa.float32())),
            ("tokens", pa.list_(pa.int32())),
            ("chars", pa.list_(pa.int32())),
            ("bytes", pa.list_(pa.int32())),
            ("greedy", pa.list_(pa.bool_())),
            ("loglik_uncond", pa.list_(pa.float32())),
        ]
    )


class StoreFile(NamedTuple):
    """One (checkpoint, benchmark) of a store."""

    path: Path
    checkpoint: str
    benchmark: str
    metadata: dict[str, str]


def digest(table: pa.Table) -> str:
    """Hash of a table's rows: what a reader compares to notice a flipped bit."""
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema.remove_metadata()) as writer:
        writer.write_table(table.replace_schema_metadata(None))
    return hashlib.sha256(sink.getvalue()).hexdigest()[:32]


def write(path: Path, table: pa.Table, metadata: dict[str, str]) -> None:
    """Writes atomically: the file appears complete, under its name, or not at all."""
    import pyarrow as pa

    table = table.combine_chunks().replace_schema_metadata({**metadata, "rows_hash": digest(table)})
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    try:
        with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
        with temporary.open("rb+") as handle:
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def read_metadata(path: Path) -> dict[str, str] | None:
    """A stored file's metadata; None where the file is damaged."""
    import pyarrow as pa

    try:
        with pa.memory_map(str(path)) as source:
            raw = pa.ipc.open_file(source).schema.metadata or {}
    except (pa.ArrowInvalid, OSError):
        return None
    return {key.decode(): value.decode() for key, value in raw.items()}


def read(path: Path, *, verify: bool = True) -> pa.Table:
    """One stored file, memory-mapped. With `verify`, every byte is checked. Raises UserError where it is damaged."""
    import pyarrow as pa

    try:
        with pa.memory_map(str(path)) as source:
            table = pa.ipc.open_file(source).read_all()
        if not table.schema.remove_metadata().equals(schema()):
            raise UserError(
                f"{path} is not a score table of this version of evalengine: score again with --fresh"
            )
        if verify and (table.schema.metadata or {}).get(b"rows_hash", b"").decode() != digest(table):
            raise pa.ArrowInvalid("hash")
    except (pa.ArrowInvalid, pa.ArrowKeyError, OSError, UnicodeDecodeError):
        raise UserError(f"{path} is damaged: delete it and run the same `evalengine score` again") from None
    return table


def files(store: Path | str) -> Iterator[StoreFile]:
    """The files of a store, sorted. Raises UserError where there is no store, it is empty, or a file is damaged."""
    store = Path(store)
    if not store.is_dir():
        raise UserError(f"no score store at {store}: run `evalengine score CHECKPOINTS --out {store}` first")
    found = sorted(path for path in store.glob("*/*.arrow") if not path.parent.name.startswith("."))
    if not found:
        raise UserError(f"{store} holds no scores: run `evalengine score CHECKPOINTS --out {store}` first")
    for path in found:
        metadata = read_metadata(path)
        if metadata is None:
            raise UserError(f"{path} is damaged: delete it and run the same `evalengine score` again")
        yield StoreFile(path, path.parent.name, path.stem, metadata)


def load(store: Path | str = "scores", *, verify: bool = True) -> pa.Table:
    """All scores of a store as one table, one row per (checkpoint, benchmark, item)."""
    import pyarrow as pa

    return pa.concat_tables([read(file.path, verify=verify) for file in files(store)]).unify_dictionaries()


@contextlib.contextmanager
def lock(store: Path) -> Iterator[None]:
    """Holds a store for one process. The lock dies with its process, however that ends."""
    try:
        store.mkdir(parents=True, exist_ok=True)
        handle = (store / ".lock").open("a+")
    except FileExistsError:
        raise UserError(f"{store} is a file: give --out a folder") from None
    except PermissionError:
        raise UserError(f"cannot write to {store}: give --out a folder that you may write to") from None
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            handle.seek(0)
            owner = handle.read().strip()
            raise UserError(
                f"{store} is in use by process {owner or '?'}: wait for it, or give another --out"
            ) from None
        handle.truncate(0)
        handle.write(str(os.getpid()))
        handle.flush()
        for litter in store.glob("*/*.tmp"):
            litter.unlink()
        yield
        handle.truncate(0)


def log_run(store: Path, record: dict[str, Any]) -> None:
    """Appends what changes from run to run (times, versions, failures) to runs.jsonl."""
    with (store / "runs.jsonl").open("a", encoding="utf-8") as handle:
        handle.write(json.dumps(record, sort_keys=True) + "\n")
