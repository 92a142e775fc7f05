"""Tables of one run in one folder: they appear together, and are read back only as they were written.

All is written aside and moved into place at the end, within milliseconds: the manifest, which says how they were made and
holds their checksums, goes first and comes last. Where it stands, the tables that it names are all of its run.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from evalengine.errors import UserError
from evalengine.untrusted import check_name, parse_json

if TYPE_CHECKING:
    import pyarrow as pa

ASIDE = ".writing"  # where the tables of a run wait for the last of them
Content = tuple[Sequence[str], Iterable[Sequence[Any]]]  # columns, rows


def write_together(
    folder: Path, manifest: str, method: dict[str, Any], tables: Mapping[str, Content]
) -> None:
    """Writes every table as csv, arrow and json, and `method` with checksums as `manifest`."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise UserError(f"{folder} is a file: give --out a folder") from None
    aside = folder / ASIDE
    shutil.rmtree(aside, ignore_errors=True)  # of a run that was killed
    aside.mkdir()
    try:
        for name, content in tables.items():
            _write_table(aside, name, *content)
        written = sorted(aside.iterdir())
        method = json.loads(json.dumps(method))
        text = json.dumps({**method, "checksums": checksums(aside, list(tables), method)}, indent=1)
        (aside / manifest).write_text(text + "\n", encoding="utf-8")
        (folder / manifest).unlink(missing_ok=True)
        for path in [*written, aside / manifest]:
            os.replace(path, folder / path.name)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _write_table(folder: Path, name: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Writes NAME.csv, NAME.arrow and NAME.json into an existing folder. NaN is an empty field, a null and a null."""
    import pyarrow as pa

    listed = [[_none_if_undefined(value) for value in row] for row in rows]
    with (folder / f"{name}.csv").open("w", encoding="utf-8", newline="") as handle:
        lines = csv.writer(handle, lineterminator="\n")
        lines.writerow(columns)
        lines.writerows([f"{v:.10g}" if isinstance(v, float) else v for v in row] for row in listed)
    by_column = list(zip(*listed, strict=True)) or [()] * len(columns)
    table = pa.Table.from_arrays(list(map(_arrow, by_column)), names=list(columns))
    with (folder / f"{name}.arrow").open("wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    objects = (json.dumps(dict(zip(columns, row, strict=True))) for row in listed)
    (folder / f"{name}.json").write_text("[\n " + ",\n ".join(objects) + "\n]\n", encoding="utf-8")


def _none_if_undefined(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _arrow(values: Sequence[Any]) -> pa.Array:
    """An Arrow array of strings, integers or numbers, from buffers: Arrow's own conversion would import pandas."""
    import pyarrow as pa

    known = np.array([value is not None for value in values], dtype=bool)
    mask = None if known.all() else pa.py_buffer(np.packbits(known, bitorder="little"))
    kinds = {type(v) for v in values if v is not None}
    if kinds == {str}:
        texts = [(value or "").encode() for value in values]
        offsets = np.concatenate([[0], np.cumsum([len(text) for text in texts])]).astype(np.int32)
        buffers = [mask, pa.py_buffer(offsets), pa.py_buffer(b"".join(texts))]
        return pa.Array.from_buffers(pa.string(), len(values), buffers)
    dtype, kind = (np.int64, pa.int64()) if kinds == {int} else (np.float64, pa.float64())
    data = np.array([0 if value is None else value for value in values], dtype=dtype)
    return pa.Array.from_buffers(kind, len(values), [mask, pa.py_buffer(data)])


def read_together(
    folder: Path,
    manifest: str,
    version: str,
    command: str,
    kind_of: Callable[[str], Callable[..., Any]],
    others: Sequence[str] = (),
) -> tuple[dict[str, Any], dict[str, list[Any]], list[list[dict[str, Any]]]]:
    """A manifest's content; by name, the tables that it names, whose rows are the NamedTuples that `kind_of` gives, null as NaN;
    and the rows of `others`. Raises UserError where they are not whole, or of another `version`; `command` makes them again."""
    try:
        method = parse_json((folder / manifest).read_bytes(), constants=True)
        if method.get("tables_version") != version:
            raise UserError(f"{folder} is of another version of evalengine: run `{command}` again")
        names = (*method["tables"], *others)
        for name in names:
            check_name(name, "table")
        if method.pop("checksums") != checksums(folder, names, method):
            raise ValueError("a flipped bit, or tables of two runs")
        read = {name: parse_json((folder / f"{name}.json").read_bytes()) for name in names}
        tables = {name: [_row(kind_of(name), raw) for raw in read[name]] for name in method["tables"]}
        return method, tables, [read[name] for name in others]
    except FileNotFoundError as error:
        raise UserError(f"{error.filename} is missing: run `{command}` first") from None
    except (KeyError, TypeError, ValueError, AttributeError):
        raise UserError(f"{folder} holds damaged tables: run `{command}` again") from None


def _row(kind: Callable[..., Any], raw: dict[str, Any]) -> Any:
    return kind(**{key: math.nan if value is None else value for key, value in raw.items()})


def checksums(folder: Path, names: Iterable[str], method: dict[str, Any]) -> dict[str, str]:
    """Of the tables in `folder` and of the manifest's own content: what notices a flipped bit, or tables of two runs."""
    contents = {name: (folder / f"{name}.json").read_bytes() for name in names}
    contents["analysis"] = json.dumps(method, sort_keys=True).encode()
    return {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
