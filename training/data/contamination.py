"""How much of the benchmarks the training text holds: measured and reported.

An item counts as seen in a source when any 13 consecutive words of it (its context and right choice,
lower-cased, letters and digits only) occur in one of the source's documents: the rule of GPT-3's appendix C
(Brown et al., 2020). Items of fewer than 13 words cannot be judged and are counted apart. Cost: about 2 us a
word of training text.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from evalengine import console
from evalengine.benchmarks import BENCHMARKS, benchmarks_in, load_items
from evalengine.benchmarks.load import data_file
from evalengine.training import checked
from evalengine.training.data.conversations import load
from evalengine.training.data.shards import TokenSource
from evalengine.training.data.tokenizer import Tokenizer

GRAM = 13
READ_TOKENS = 20_000_000  # of each source; a larger one is read so far, and the report says so
WORD = re.compile(r"[^\W_]+")


class Overlap(NamedTuple):
    """Of one benchmark: how many items each source holds a 13-gram of."""

    items: int
    short: int  # fewer than 13 words
    seen: dict[str, int]  # source -> items


def words(text: str) -> list[str]:
    """Runs of letters and digits, lower-cased."""
    return WORD.findall(text.lower())


def grams(text: str) -> np.ndarray:
    """A 64-bit hash of every 13 consecutive words, in order; equal windows have equal hashes on any machine."""
    word_N = np.array([zlib.crc32(word.encode()) for word in words(text)], dtype=np.uint64)
    if len(word_N) < GRAM:
        return np.zeros(0, np.uint64)
    windows = np.lib.stride_tricks.sliding_window_view(word_N, GRAM)
    factor = np.array([pow(0x9E3779B97F4A7C15, k, 2**64) for k in range(GRAM)], dtype=np.uint64)
    return (windows * factor).sum(axis=1, dtype=np.uint64)


def overlap(items: Mapping[str, Iterable[str]], texts: Mapping[str, Iterable[str]]) -> dict[str, Overlap]:
    """Counts, for each benchmark's item texts, those that share a 13-gram with each source's documents."""
    of_item = {benchmark: [grams(text) for text in some] for benchmark, some in items.items()}
    wanted = np.unique(
        np.concatenate([g for some in of_item.values() for g in some] or [np.zeros(0, np.uint64)])
    )
    found = {source: _shared(documents, wanted) for source, documents in texts.items()}
    return {
        benchmark: Overlap(
            len(some),
            sum(len(g) == 0 for g in some),
            {source: sum(bool(np.isin(g, have).any()) for g in some) for source, have in found.items()},
        )
        for benchmark, some in of_item.items()
    }


def _shared(documents: Iterable[str], wanted: np.ndarray) -> np.ndarray:
    """Those of the hashes `wanted`, sorted, that the documents hold."""
    held = np.zeros(len(wanted), bool)
    for text in documents if len(wanted) else ():
        found = grams(text)
        place = np.searchsorted(wanted[:-1], found)  # the last one where all before it are smaller
        held[place[wanted[place] == found]] = True
    return wanted[held]


def report(
    path: Path,
    data: Path | None,
    tokenizer: Tokenizer,
    sources: Mapping[str, TokenSource],
    conversations: Path,
) -> None:
    """Writes `path` (JSON) once, and shows it, where the data folder holds a benchmark file."""
    benchmarks = benchmarks_in(data, BENCHMARKS.values()) if data is not None else []
    if not benchmarks:
        return
    held = [checked.stamp(file) for b in benchmarks if (file := data_file(b, data)) is not None]
    made_of = [tokenizer.hash, {n: s.digest for n, s in sources.items()}, conversations.name, held]
    key = zlib.crc32(repr(made_of).encode())
    if (made := checked.read(path)) is not None and made["key"] == key:
        return
    items = {
        b.name: [i.contexts[i.gold] + i.continuations[i.gold] for i in load_items(b, data).items]
        for b in benchmarks
    }
    texts: dict[str, Iterable[str]] = {n: _documents(s, tokenizer) for n, s in sources.items()}
    texts["conversations"] = (tokenizer.decode(ids) for ids, _ in load(conversations))
    found = overlap(items, texts)
    read = {name: min(int(s.length_M.sum()), READ_TOKENS) for name, s in sources.items()}
    saved = {
        "key": key,
        "gram": GRAM,
        "tokens_read": read,
        "benchmarks": {n: o._asdict() for n, o in found.items()},
    }
    checked.write(path, saved, indent=1)
    show(found)


def _documents(source: TokenSource, tokenizer: Tokenizer) -> Iterable[str]:
    read = 0
    for index in range(len(source.length_M)):
        if read >= READ_TOKENS:
            return
        document = source.document(index)
        read += len(document)
        yield tokenizer.decode(document)


def show(found: Mapping[str, Overlap]) -> None:
    """One row for each benchmark that some source holds an item of, and one line for the rest."""
    sources = list(next(iter(found.values())).seen)
    rows = [
        [name, o.items, o.short, *(o.seen[s] or "" for s in sources)]
        for name, o in found.items()
        if any(o.seen.values())
    ]
    if rows:
        title = f"items that share {GRAM} words with the training text"
        console.table(title, ["benchmark", "items", f"under {GRAM} words", *sources], rows)
    clean = len(found) - len(rows)
    console.say(
        f"{clean} of {len(found)} benchmarks share no {GRAM} consecutive words with the training text"
    )
