"""The rows of JSON Lines and Parquet files, one by one, in the file's order: benchmark items, documents, conversations."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from evalengine.errors import UserError
from evalengine.untrusted import parse_json, reason

BOM = b"\xef\xbb\xbf"
BATCH_ROWS = 256


SHORT = {"float": "float32", "halffloat": "float16"}  # Arrow's names for numpy's types


class Most(NamedTuple):
    """What a file may hold: a kilobyte of Parquet can announce a billion rows, or one long text a million times."""

    rows: int = 5_000_000
    bytes: int = 4 << 30


def jsonl(path: Path) -> Iterator[tuple[str, Any]]:
    """(`PATH, line N`, value) of every line that is not empty. Raises UserError naming the line that is not JSON."""
    with path.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            where = f"{path}, line {number}"
            if number == 1:
                line = line.removeprefix(BOM)
            if not line.strip():
                continue
            try:
                value = parse_json(line.rstrip(b"\n").decode())
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{where}: not valid UTF-8 (byte {error.start + 1}); save the file as UTF-8"
                ) from None
            except ValueError as error:
                raise UserError(f"{where}: not valid JSON ({reason(error)}); fix or remove the row") from None
            yield where, value


def parquet(
    path: Path, *columns: str, optional: Collection[str] = (), most: Most | None = None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """(`PATH, row N`, row) of every row; of `columns`, and the `optional` ones that are there, alone where some are named.

    Raises UserError for a file that is not Parquet, lacks a column, or holds more than `most`.
    """
    import pyarrow.parquet as pq

    total, number = 0, 0
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            missing = [column for column in columns if column not in names]
            if missing:
                raise UserError(f"{path} has no column {missing[0]!r}, only {', '.join(names)}")
            if most and file.metadata.num_rows > most.rows:
                raise UserError(
                    f"{path} has {file.metadata.num_rows:,} rows, more than {most.rows:,}: split it"
                )
            read = [*columns, *(column for column in optional if column in names)]
            for batch in file.iter_batches(batch_size=BATCH_ROWS, columns=read or None):
                total += batch.nbytes
                if most and total > most.bytes:
                    raise UserError(f"{path} unpacks to more than {most.bytes >> 30} GB: split it")
                batch.validate(full=True)
                types = {field.name: str(field.type) for field in batch.schema}
                short = {name: SHORT[kind] for name, kind in types.items() if kind in SHORT}
                for row in batch.to_pylist():
                    number += 1
                    row |= {name: decimal(row[name], kind) for name, kind in short.items()}
                    yield f"{path}, row {number}", row
    except UserError:
        raise
    except Exception as error:  # Arrow's own types, and whatever Python raises on an invalid date or text
        raise UserError(f"{path}: not a readable Parquet file ({reason(error)}); write it again") from None


def decimal(value: float | None, kind: str) -> float | None:
    """A number of fewer bits as the shortest decimal that means it, as JSON would have it: 0.1, and not 0.10000000149011612."""
    import numpy as np

    return None if value is None else float(str(np.dtype(kind).type(value)))
