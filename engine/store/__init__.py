"""The score store: scores/<checkpoint>/<benchmark>.arrow, one Arrow IPC file per pair, written whole or not at all.

A file holds one row per item and, in its schema's metadata, everything needed to know whether it may stand for a new run:
fingerprint, tokenizer, data and benchmark versions, options. Nothing in it changes from run to run, and every byte of it is
under a checksum (sealed.py). metrics.py says what its rows mean.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evalengine.errors import UserError
from evalengine.files import locked
from evalengine.store import sealed
from evalengine.untrusted import NAME_BYTES, printable

if TYPE_CHECKING:
    import pyarrow as pa

STORE_VERSION = "2"
KEYS = ("checkpoint", "scale", "mixture", "stage", "benchmark", "category")
ONE_MODEL = {  # metadata that all files of a checkpoint share, but for imported ones, which do not state it
    "checkpoint_fingerprint": "weights",
    "tokenizer_hash": "a tokenizer",
    "identity": "a scale, mixture and stage",
}
UNSTATED = ("",) * len(ONE_MODEL)


@functools.cache
def schema() -> pa.Schema:
    import pyarrow as pa

    names = pa.dictionary(pa.int32(), pa.string())
    return pa.schema(
        [
            *((key, names) for key in KEYS),
            ("item", pa.string()),
            ("gold", pa.int16()),
            ("loglik", pa.list_(pa.float32())),
            *((lengths, pa.list_(pa.int32())) for lengths in ("tokens", "chars", "bytes")),
            ("greedy", pa.list_(pa.bool_())),
            ("loglik_uncond", pa.list_(pa.float32())),
        ]
    )


def write(path: Path, table: pa.Table, metadata: dict[str, str]) -> None:
    """Writes atomically: the file appears complete, under its name, or not at all."""
    sealed.write(path, table, metadata)


def read_metadata(path: Path) -> dict[str, str] | None:
    """A stored file's metadata, every byte of the file checked; None where it is damaged."""
    try:
        metadata = sealed.read(path).schema.metadata
        return {key.decode(): value.decode() for key, value in metadata.items()}
    except (sealed.Damaged, OSError, UnicodeDecodeError):
        return None


def read(path: Path) -> pa.Table:
    """One stored file, every byte checked. Raises UserError where it is damaged, or not under its benchmark's name, as a copy is
    that would count twice."""
    try:
        table = sealed.read(path)
    except (sealed.Damaged, OSError):
        raise UserError(f"{path} is damaged: run the same `evalengine score` again to replace it") from None
    if not table.schema.equals(schema()):
        raise UserError(
            f"{path} is not a score table of this version of evalengine: score again with --fresh"
        )
    if table.num_rows and (held := table["benchmark"][0].as_py()) != path.stem:
        raise UserError(
            f"{path} holds scores of {printable(str(held)[:NAME_BYTES])}: give it that name, or remove it if it is a copy"
        )
    return table


def paths(store: Path | str) -> list[Path]:
    """The files of a store, sorted, not opened yet. Raises UserError where there is none."""
    store = Path(store)
    if not store.is_dir():
        raise UserError(
            f"no score store at {store}: make one with `evalengine score CHECKPOINTS --out {store}` or `evalengine import FILES "
            f"--out {store}`"
        )
    folders = [entry.path for entry in os.scandir(store) if entry.is_dir() and not entry.name.startswith(".")]
    found = [
        Path(entry.path)
        for folder in sorted(folders)
        for entry in sorted(os.scandir(folder), key=lambda entry: entry.name)
        if entry.name.endswith(".arrow")
    ]
    if not found:
        formats = (store / "formats").is_dir()
        held = "only scores in answer formats (--formats)" if formats else "no scores"
        raise UserError(
            f"{store} holds {held}: run `evalengine score CHECKPOINTS --out {store}`{' without --formats' * formats} first"
        )
    return found


def check_outside(out: Path | str, store: Path | str) -> None:
    """Refuses a folder of other tables inside a store, whose folders are read as checkpoints. Raises UserError."""
    store, folder = Path(store), Path(out).resolve()
    imported = (store / "results.arrow").is_file()  # a folder of another kind
    if store.resolve() in folder.parents and not imported and any(store.glob("*/*.arrow")):
        raise UserError(
            f"{out} lies in the score store {store}, whose folders are checkpoints: give --out a folder beside it"
        )


def load(store: Path | str = "scores") -> pa.Table:
    """All scores of a store as one table, one row per (checkpoint, benchmark, item).

    Raises UserError where a file is damaged, where those of one checkpoint are of several models, and where two folders hold
    one checkpoint.
    """
    import pyarrow as pa

    tables, known, holder = [], dict[Path, tuple[str, ...]](), dict[str, Path]()
    for path in paths(store):
        tables.append(read(path))
        for name in tables[-1]["checkpoint"].unique().to_pylist():
            if holder.setdefault(name, path.parent) != path.parent:
                raise UserError(
                    f"{holder[name]} and {path.parent} both hold scores of {name}, which would count twice: remove one of them"
                )
        about = {k.decode(): v.decode() for k, v in (tables[-1].schema.metadata or {}).items()}
        known[path.parent] = of_one_model(path, about, known.get(path.parent, UNSTATED))
    return pa.concat_tables(tables).unify_dictionaries()


def of_one_model(path: Path, metadata: Mapping[str, str], known: tuple[str, ...]) -> tuple[str, ...]:
    """What a checkpoint's files state of ONE_MODEL: what is `known` from others, and what this one adds.

    Raises UserError for a file that was scored when another model had the checkpoint's name.
    """
    stated = [metadata.get(key, "") for key in ONE_MODEL]
    for what, now, other in zip(ONE_MODEL.values(), stated, known, strict=True):
        if now and other not in ("", now):
            raise UserError(
                f"{path} was scored with {what} that other benchmarks of {path.parent.name} were not: score all of them again"
                " with one command, or delete the files that are out of date"
            )
    return tuple(now or other for now, other in zip(stated, known, strict=True))


@contextlib.contextmanager
def lock(store: Path) -> Iterator[None]:
    """Holds a store for one process. The lock dies with its process, however that ends. Raises UserError."""
    with contextlib.ExitStack() as held:
        try:
            handle = held.enter_context(locked(store / ".lock"))
        except BlockingIOError:
            owner = (store / ".lock").read_text(encoding="utf-8").strip()
            raise UserError(
                f"{store} is in use by process {owner or '?'}: wait for it, or give another --out"
            ) from None
        except (FileExistsError, NotADirectoryError):
            what = "a link to nothing" if store.is_symlink() and not store.exists() else "a file"
            raise UserError(f"{store} is {what}: give --out a folder") from None
        except PermissionError:
            raise UserError(f"cannot write to {store}: give --out a folder that you may write to") from None
        handle.truncate(0)
        handle.write(str(os.getpid()))
        handle.flush()
        for litter in store.glob("*/*.arrow*.tmp"):
            if not litter.parent.is_symlink():  # a store from elsewhere may hold a link to any folder
                litter.unlink()
        yield
        handle.truncate(0)


def log_run(store: Path, record: dict[str, Any]) -> None:
    """Appends what changes from run to run (times, versions, failures) to runs.jsonl."""
    with (store / "runs.jsonl").open("a", encoding="utf-8") as handle:
        handle.write(json.dumps(record, sort_keys=True) + "\n")
