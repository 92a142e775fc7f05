"""Text to word numbers: the words of a document, as numbers of the items' own vocabulary.

A word is a run of letters and digits of the lower-cased text (`contamination.WORD`); one that no item holds is `UNKNOWN`. The
result is exact: a table is probed by hash, and what it finds is compared character by character.

Cost: about 40 ns a word, vocabulary in the cache. Dims: N words of a document, W words of the vocabulary, C characters.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import NamedTuple

import numpy as np

from evalengine.jit import jit
from evalengine.training.data.contamination import WORD

UNKNOWN = -1
GOLDEN = 0x9E3779B97F4A7C15  # 2^64 / golden ratio: Knuth's multiplicative hashing
UNICODE = 0x110000


class Ragged(NamedTuple):
    """Lists of numbers, one after another: row r is `value[start_R[r] : start_R[r + 1]]`."""

    start_R: np.ndarray  # int32
    value: np.ndarray  # int32

    def sums(self, count_G: np.ndarray) -> np.ndarray:
        """Each row's sum of the counts that its values point to, int64."""
        total = np.concatenate(([0], np.cumsum(count_G[self.value])))
        return total[self.start_R[1:]] - total[self.start_R[:-1]]


class Vocabulary(NamedTuple):
    """The words that are looked for. All arrays, so that a kernel takes it as it is."""

    slot_H: np.ndarray  # int32: a word's number at its hash, or the next free place; -1 where empty
    hash_W: np.ndarray  # uint64
    start_W: np.ndarray  # int64, one more than words: where each word's characters begin
    char_C: np.ndarray  # uint32: the words' characters, one after another
    is_word: np.ndarray  # bool, for every character of Unicode


def vocabulary(words: Iterable[str]) -> Vocabulary:
    """Numbers different lower-cased words in their order."""
    words = list(words)
    char_C = np.frombuffer("".join(words).encode("utf-32-le"), dtype=np.uint32)
    start_W = np.cumsum([0, *map(len, words)], dtype=np.int64)
    hash_W, slot_H = _table(char_C, start_W, 1 << max(4, (4 * len(words)).bit_length()))
    return Vocabulary(slot_H, hash_W, start_W, char_C, _word_characters())


def numbers(texts: Iterable[str], vocabulary: Vocabulary) -> Ragged:
    """Every word of each text, in order: its number, or UNKNOWN."""
    lower = [text.lower() for text in texts]
    end_D = np.cumsum([*map(len, lower)], dtype=np.int64)
    joined = "".join(lower)
    if joined.isascii():
        return Ragged(*_numbers(np.frombuffer(joined.encode(), dtype=np.uint8), end_D, vocabulary))
    return Ragged(*_numbers(np.frombuffer(joined.encode("utf-32-le"), dtype=np.uint32), end_D, vocabulary))


@cache
def _word_characters() -> np.ndarray:
    is_word = np.zeros(UNICODE, bool)
    for found in WORD.finditer("".join(map(chr, range(UNICODE)))):
        is_word[found.start() : found.end()] = True
    return is_word


@jit()
def _mixed(value, char):  # type: ignore[no-untyped-def]
    return (value ^ np.uint64(char)) * np.uint64(GOLDEN)


@jit()
def _table(char_C, start_W, size):  # type: ignore[no-untyped-def]
    hash_W = np.zeros(len(start_W) - 1, np.uint64)
    slot_H = np.full(size, -1, np.int32)
    for w in range(len(hash_W)):
        value = np.uint64(GOLDEN)
        for c in range(start_W[w], start_W[w + 1]):
            value = _mixed(value, char_C[c])
        hash_W[w] = value
        place = np.int64(value >> np.uint64(32)) & (size - 1)
        while slot_H[place] >= 0:
            place = (place + 1) & (size - 1)
        slot_H[place] = w
    return hash_W, slot_H


@jit()
def _numbers(char_C, end_D, vocabulary):  # type: ignore[no-untyped-def]
    word_N = np.empty(len(char_C) // 2 + len(end_D), np.int32)
    start_D = np.zeros(len(end_D) + 1, np.int32)
    is_word = vocabulary.is_word
    count = 0
    at = 0
    for d in range(len(end_D)):
        while at < end_D[d]:
            if not is_word[char_C[at]]:
                at += 1
                continue
            first = at
            value = np.uint64(GOLDEN)
            while at < end_D[d] and is_word[char_C[at]]:
                value = _mixed(value, char_C[at])
                at += 1
            word_N[count] = _number(char_C[first:at], value, vocabulary)
            count += 1
        start_D[d + 1] = count
    return start_D, word_N[:count]


@jit()
def _number(char_C, value, vocabulary):  # type: ignore[no-untyped-def]
    """The word of these characters, whose hash is `value`; else UNKNOWN."""
    slot_H, start_W = vocabulary.slot_H, vocabulary.start_W
    mask = len(slot_H) - 1
    place = np.int64(value >> np.uint64(32)) & mask
    while slot_H[place] >= 0:
        word = slot_H[place]
        first = start_W[word]
        if vocabulary.hash_W[word] == value and start_W[word + 1] - first == len(char_C):
            same = 0
            while same < len(char_C) and vocabulary.char_C[first + same] == char_C[same]:
                same += 1
            if same == len(char_C):
                return word
        place = (place + 1) & mask
    return UNKNOWN
