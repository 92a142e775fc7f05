"""A small file cannot make a reader take much memory or time."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from evalengine import store
from evalengine.errors import UserError
from evalengine.store import sealed
from evalengine.untrusted import FRAMES, RepeatedKeyError, parse_json


def forged(path: Path, table: pa.Table, compression: str | None, batches: int = 1) -> Path:
    """What someone who knows the format, and means harm, would hand in: the seal is right."""
    table = table.replace_schema_metadata({"checksum": sealed.UNSEALED.decode()})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(
        sink, table.schema, options=pa.ipc.IpcWriteOptions(compression=compression)
    ) as writer:
        for _ in range(batches):
            writer.write_table(table)
    content = sink.getvalue().to_pybytes()

    seal = sealed.MARK + hashlib.sha256(content).hexdigest().encode()
    path.write_bytes(content.replace(sealed.UNSEALED, seal))
    return path


@pytest.mark.parametrize("compression", ["zstd", "lz4"])
@pytest.mark.parametrize("column", ["rows", "dictionary"])
def test_compressed_tables_are_refused_before_they_unpack(
    compression: str, column: str, tmp_path: Path
) -> None:
    zeros = pa.array(np.zeros(50_000_000, np.int8))
    if column == "rows":
        table = pa.table({"x": zeros})
    else:
        long = pa.array(["y" * 50_000_000])
        table = pa.table({"x": pa.DictionaryArray.from_arrays(pa.array([0], pa.int32()), long)})
    path = forged(tmp_path / "x.arrow", table, compression)
    assert path.stat().st_size < 500_000
    before = pa.total_allocated_bytes()
    peak = pa.default_memory_pool().max_memory() or 0
    with pytest.raises(sealed.Damaged):
        sealed.read(path)
    with pytest.raises(UserError, match="damaged"):
        store.read(path)
    del table, zeros
    assert pa.default_memory_pool().max_memory() <= max(peak, before + 1_000_000)


def test_a_batch_that_is_named_often_is_refused(tmp_path: Path) -> None:
    path = forged(tmp_path / "x.arrow", pa.table({"x": [1, 2, 3]}), None, batches=2)
    with pytest.raises(sealed.Damaged):
        sealed.read(path)


@pytest.mark.parametrize("frame", FRAMES)
def test_numbers_that_look_like_a_compressed_frame_are_read(frame: bytes, tmp_path: Path) -> None:
    numbers = np.frombuffer(frame * 2, np.float32).copy()
    table = pa.table({"x": numbers, "name": pa.array(["a", "b"]).dictionary_encode()})
    sealed.write(tmp_path / "x.arrow", table, {})
    assert frame in (tmp_path / "x.arrow").read_bytes()
    assert sealed.read(tmp_path / "x.arrow").equals(table)


def test_the_repeated_one_of_many_keys_is_found_at_once() -> None:
    text = "{" + ",".join(f'"{key}":0' for key in [*range(500_000), 499_999]) + "}"
    with pytest.raises(RepeatedKeyError, match="the key '499999' appears twice"):
        parse_json(text)
