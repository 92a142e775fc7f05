"""Counts n-grams in sources: each is read once, from its first document to its last, while threads count.

The kernels run without Python's lock, so threads count in parallel and share the items. What has been counted of a source is
saved after every `PART` bytes; a killed run reads on from there. Sums of whole numbers do not depend on who added what, so
the result is the same for any number of threads and after any kill.
"""

from __future__ import annotations

import hashlib
import zipfile
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from queue import SimpleQueue
from typing import NamedTuple

import numpy as np

from evalengine import files
from evalengine.training.data import sources
from evalengine.training.exposure.grams import Items
from evalengine.training.exposure.ngrams import Tally, add, tally, utf8_bytes
from evalengine.training.study import SourceSpec

FORMAT = 2  # of what is saved
PART = 256 << 20  # bytes of text between two saves
BATCH = 1 << 20  # characters of the documents that a thread counts at a time


class Source(NamedTuple):
    """Text to read, and how far: hub data sets may have no end worth reading to."""

    name: str
    spec: SourceSpec
    data: Path | None  # folder that the specification's path is relative to
    documents: int = 0  # at most so many; 0: all
    bytes: int = 0  # stop after so many; 0: never

    def read(self, after: int = 0, done: int = 0) -> Iterator[str]:
        """The documents as far as they are counted, after the first `after` ones, which hold `done` bytes."""
        for text in islice(sources.documents(self.spec, self.data, self.name), after, self.documents or None):
            if self.bytes and done >= self.bytes:
                break
            yield text
            done += utf8_bytes(text)


@dataclass
class SourceCounts:
    """Of one source, as far as it was read. Dims as in `ngrams`."""

    count_G: np.ndarray
    task_CK: np.ndarray
    longest_C2: np.ndarray
    read_3: np.ndarray  # documents, words, bytes
    whole: bool = False

    def take(self, part: Tally) -> None:
        """Adds what a thread has counted, and empties its tally."""
        self.count_G += part.count_G[:, 0]
        self.task_CK += part.task_CK
        self.read_3 += part.read_3
        longer = part.longest_C2[:, 0] > self.longest_C2[:, 0]
        self.longest_C2[longer] = (part.longest_C2[longer, 0][:, None]) * (1, 0)
        same = part.longest_C2[:, 0] == self.longest_C2[:, 0]
        self.longest_C2[same, 1] += part.longest_C2[same, 1]
        for array in part:
            array.fill(0)


def count(
    source: Source, items: Items, folder: Path, jobs: int, on_bytes: Callable[[int], None]
) -> SourceCounts:
    """Counts what is left of a source in `jobs` threads; `folder` keeps what is done. Raises UserError for bad text.

    on_bytes: called with the bytes of text counted since the last call, those of an earlier run first.
    """
    path = folder / f"{source.name}-{_key(source, items)}.npz"
    counts = _load(path, items)
    on_bytes(int(counts.read_3[2]))
    if counts.whole:
        return counts
    tallies = [tally(items.grams) for _ in range(jobs)]
    free: SimpleQueue[Tally] = SimpleQueue()
    for each in tallies:
        free.put(each)

    def work(texts: list[str]) -> int:
        mine = free.get()
        try:
            before = int(mine.read_3[2])
            add(texts, items, mine)
            return int(mine.read_3[2]) - before
        finally:
            free.put(mine)

    def save() -> None:
        while pending:
            on_bytes(pending.popleft().result())
        for each in tallies:
            counts.take(each)
        _save(path, counts)

    pending: deque[Future[int]] = deque()
    with ThreadPoolExecutor(jobs) as pool:
        unsaved = 0
        left = source.read(int(counts.read_3[0]), int(counts.read_3[2]))
        for texts in sources.batches(left, BATCH):
            pending.append(pool.submit(work, texts))
            if len(pending) > 2 * jobs:
                on_bytes(pending.popleft().result())
            unsaved += sum(map(len, texts))
            if unsaved >= PART:
                save()
                unsaved = 0
        counts.whole = True
        save()
    return counts


def _key(source: Source, items: Items) -> str:
    """Changes with the items' words, the source's files and how far it is read."""
    grams = items.grams
    parts = [items.words.char_C, items.words.start_W, *grams.context, *grams.choice, grams.context_of_C]
    found = hashlib.sha256(b"".join(part.tobytes() for part in parts))
    read = (FORMAT, sources.source_key(source.spec, source.data, source.name), *source[3:])
    found.update(repr(read).encode())
    return found.hexdigest()[:12]


def _save(path: Path, counts: SourceCounts) -> None:
    with files.atomic(path) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(stream, **vars(counts))  # most counts are zero


def _load(path: Path, items: Items) -> SourceCounts:
    """What was saved, else nothing counted yet."""
    try:
        with np.load(path) as saved:
            counted = saved["count_G"], saved["task_CK"], saved["longest_C2"]
            return SourceCounts(*counted, saved["read_3"], bool(saved["whole"]))
    except FileNotFoundError:
        pass
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        files.remove(path)  # damaged: counted again
    none = tally(items.grams)
    return SourceCounts(none.count_G[:, 0].astype(np.int64), none.task_CK, none.longest_C2, none.read_3)
