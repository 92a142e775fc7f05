"""Sources tokenised once, on disk, memory-mapped.

    tokens/<tokenizer>/<source>/00000.bin   token ids, uint16 or uint32, document after document
                               /00000.len   length of each document, uint32
                               /00000.json  counts and checksum; written last, so a shard is whole or absent
                               /done.json   the source is complete

Documents are encoded in batches, on all cores by the tokenizer's own threads, and written in their order. A
killed run continues at the first missing shard. A document longer than `PIECE` tokens is cut, so that shuffling
and validation work on a source of eight books too.
"""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from evalengine import console, files
from evalengine.errors import UserError
from evalengine.training import checked
from evalengine.training.checked import crc
from evalengine.training.data.sources import batches
from evalengine.training.data.tokenizer import Tokenizer

PIECE = 16_384  # tokens of the longest document
SHARD = 32 * 2**20  # tokens after which a shard is closed
BATCH_CHARS = 4 * 2**20  # text encoded in one call
VALIDATION_EVERY = 50  # one document in so many is held out


class TokenSource:
    """A tokenised source. `length_M` holds its documents' lengths; `document(i)` their token ids."""

    def __init__(self, folder: Path, name: str = "") -> None:
        done = _read(folder / "done.json")
        self.name, self.digest = name or folder.name, str(done["digest"])
        self._tokens: list[np.ndarray] = []
        lengths, shard_of, start_of = [], [], []
        for number in range(int(done["shards"])):
            info = _read(folder / f"{number:05d}.json")
            tokens = _mapped(folder / f"{number:05d}.bin", np.dtype(info["dtype"]), int(info["tokens"]))
            length = _mapped(folder / f"{number:05d}.len", np.dtype(np.uint32), int(info["documents"]))
            self._tokens.append(tokens)
            lengths.append(np.asarray(length, dtype=np.int64))
            shard_of.append(np.full(len(length), number, dtype=np.int32))
            start_of.append(np.concatenate(([0], np.cumsum(lengths[-1])[:-1])))
        self.length_M = np.concatenate(lengths)
        self._shard_M, self._start_M = np.concatenate(shard_of), np.concatenate(start_of)

    def document(self, index: int) -> np.ndarray:
        start = self._start_M[index]
        return self._tokens[self._shard_M[index]][start : start + self.length_M[index]]

    def split(self) -> tuple[np.ndarray, np.ndarray]:
        """(training, validation) document indices; each holds at least one document."""
        index = np.arange(len(self.length_M))
        held_out = index % VALIDATION_EVERY == VALIDATION_EVERY - 1
        if not held_out.any():
            held_out[-1] = len(index) > 1
        if len(index) == 1:
            return index, index
        return index[~held_out], index[held_out]


def build(
    folder: Path,
    texts: Callable[[], Iterator[str]],
    tokenizer: Tokenizer,
    *,
    name: str = "",
    limit: int = 0,
    on_tokens: Callable[[int], None] = lambda count: None,
) -> TokenSource:
    """Tokenises a source into `folder`, or opens and checks it when that is done.

    `name`: the source's, for errors ("": the folder's). `limit`: stop after so many tokens (0: all). `on_tokens` hears how
    many were added.
    """
    try:
        verify(folder)
    except UserError as error:
        console.warn(f"{error}; tokenised again")
        shutil.rmtree(folder)
    if is_complete(folder, limit):
        return TokenSource(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "done.json").unlink(missing_ok=True)
    finished = _finished_shards(folder)
    total, read = (sum(info[key] for info in finished) for key in ("tokens", "read"))
    on_tokens(total)
    dtype = np.dtype(np.uint16 if tokenizer.size <= 2**16 else np.uint32)
    number, pending, held, whole = len(finished), list[np.ndarray](), 0, True
    for encoded in map(tokenizer.encode_documents, batches(islice(texts(), read, None), BATCH_CHARS)):
        added = sum(map(len, encoded))
        pending, held, total = pending + encoded, held + added, total + added
        on_tokens(added)
        if held >= SHARD:
            _write_shard(folder / f"{number:05d}", pending, dtype)
            number, pending, held = number + 1, [], 0
        if limit and total >= limit:
            whole = False
            break
    if pending:
        _write_shard(folder / f"{number:05d}", pending, dtype)
    infos = _finished_shards(folder)
    if not total:
        raise UserError(f"source {name or folder.name} holds no text: check its path and field")
    digest = f"{zlib.crc32(json.dumps([i['crc32'] for i in infos]).encode()):08x}"
    done = {"shards": len(infos), "digest": digest, "whole": whole, "limit": limit}
    checked.write(folder / "done.json", done)
    return TokenSource(folder)


def extent(folder: Path) -> tuple[int, int]:
    """(tokens of one epoch, documents) of a source's shards. Training begins every document, or piece of one, with
    <|endoftext|>, which counts."""
    infos = _finished_shards(folder)
    return sum(info["tokens"] + info["documents"] for info in infos), sum(info["read"] for info in infos)


def is_complete(folder: Path, limit: int) -> bool:
    """Whether the source is tokenised, whole or as far as `limit`."""
    if not (folder / "done.json").is_file():
        return False
    done = _read(folder / "done.json")
    return bool(done["whole"]) or 0 < limit <= done["limit"]


def verify(folder: Path) -> None:
    """Recomputes the checksums of what is there. Raises UserError naming a file that is damaged."""
    for path in sorted(folder.glob("*.json")):
        info = checked.read(path)
        if info is None:
            raise UserError(f"{path} is damaged")
        for suffix in (".bin", ".len") if "crc32" in info else ():
            file = path.with_suffix(suffix)
            if not file.is_file() or crc(file) != info["crc32" if suffix == ".bin" else "crc32_len"]:
                raise UserError(f"the token shard {file} is damaged")


def _write_shard(base: Path, documents: list[np.ndarray], dtype: np.dtype) -> None:
    pieces = [ids[at : at + PIECE] for ids in documents for at in range(0, len(ids), PIECE)]
    tokens = np.concatenate([np.zeros(0, dtype), *(piece.astype(dtype) for piece in pieces)])
    files.write(base.with_suffix(".bin"), tokens.tobytes())
    files.write(base.with_suffix(".len"), np.array([len(p) for p in pieces], dtype=np.uint32).tobytes())
    info = {
        "tokens": len(tokens),
        "documents": len(pieces),
        "read": len(documents),
        "dtype": dtype.name,
        "crc32": crc(base.with_suffix(".bin")),
        "crc32_len": crc(base.with_suffix(".len")),
    }
    checked.write(base.with_suffix(".json"), info)


def _finished_shards(folder: Path) -> list[dict[str, Any]]:
    return [_read(path) for path in sorted(folder.glob("[0-9]*.json"))]


def _read(path: Path) -> dict[str, Any]:
    info = checked.read(path)
    if info is None:
        raise UserError(f"{path} is missing or damaged: delete {path.parent} and run again to rebuild it")
    return info


def _mapped(path: Path, dtype: np.dtype, count: int) -> np.ndarray:
    if not path.is_file() or path.stat().st_size != count * dtype.itemsize:
        raise UserError(f"the token shard {path} is missing or cut short: delete {path.parent} and run again")
    return np.memmap(path, dtype=dtype, mode="r", shape=(count,)) if count else np.zeros(0, dtype)
