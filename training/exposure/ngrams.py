"""How often documents hold the items' n-grams: exact counts.

A document is walked word by word with the nodes (grams.py) of all n-grams that end at the present word; as the parts of an
n-gram are in the trie, too, the walk stops at the first n that has no node.

Longer matches are found from crossing 8-grams: where a document holds one, it and the item are compared word by word to both
sides. That is rare, so a match of any length costs no more than one of eight words.

Cost: about 0.4 us a word of text. Memory: 8 bytes a thread for every different n-gram of the items.
Dims: N words of a document, G nodes, X contexts, C choices (of all items, one after another), K = 7 lengths n.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from evalengine.benchmarks import Item
from evalengine.jit import jit
from evalengine.training.exposure.grams import LEAST, MOST, Grams, Items, K, gather
from evalengine.training.exposure.words import numbers

LONGEST = 127  # words of a match; what is longer counts as so long
NONE = -1


class Tally(NamedTuple):
    """What a thread has counted, and the marks it needs."""

    count_G: np.ndarray  # (G, 2) int32: occurrences, and the last document that held it
    context_KX: np.ndarray  # uint8: the last document, modulo 255, that held an n-gram of the context
    choice_KC: np.ndarray  # uint8
    task_CK: np.ndarray  # int64
    longest_C2: np.ndarray  # int64: words of the longest crossing match, 0 up to MOST; its occurrences
    read_3: np.ndarray  # int64: documents, words, bytes
    seen: np.ndarray  # int32, room for every choice and n


def tally(grams: Grams) -> Tally:
    """Nothing counted yet."""
    G, X, C = len(grams.word_G), len(grams.context.start_R) - 1, len(grams.context_of_C)
    return Tally(
        np.zeros((G, 2), np.int32),
        np.zeros((K, X), np.uint8),
        np.zeros((K, C), np.uint8),
        np.zeros((C, K), np.int64),
        np.zeros((C, 2), np.int64),
        np.zeros(3, np.int64),
        np.zeros(C * K, np.int32),
    )


def add(documents: Sequence[str], items: Items, into: Tally) -> None:
    """Counts documents."""
    word = numbers(documents, items.words)
    _count(word, items.grams, into)
    into.read_3[1:] += (len(word.value), sum(map(utf8_bytes, documents)))


def utf8_bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())


def compile_kernels() -> None:
    """Makes Numba compile all that `add` runs, for ASCII and other text, or load it from its cache."""
    tiny = gather([Item("", ("a", "a"), (" b", " c"), ("b", "c"), 0)])
    into = tally(tiny.grams)
    for text in ("a", "\u00e9"):
        add([text], tiny, into)


@jit()
def _child(node, word, first_G, word_G):  # type: ignore[no-untyped-def]
    low, high = first_G[node], first_G[node + 1]
    while low < high:
        middle = (low + high) >> 1
        if word_G[middle] < word:
            low = middle + 1
        else:
            high = middle
    return low if low < first_G[node + 1] and word_G[low] == word else NONE


@jit()
def _count(word, grams, into):  # type: ignore[no-untyped-def]
    start_D, word_N = word
    for d in range(len(start_D) - 1):
        into.read_3[0] += 1
        held = _walk(word_N[start_D[d] : start_D[d + 1]], grams, into)
        _together(held, grams, into)


@jit()
def _walk(word_N, grams, into):  # type: ignore[no-untyped-def]
    """Counts the n-grams of a document, and returns their nodes, each once."""
    document = into.read_3[0]
    first_G, word_G, level_n = grams.first_G, grams.word_G, grams.level_n
    count_G = into.count_G
    held = np.empty(min(K * len(word_N), len(word_G)), np.int32)
    found = 0
    node_n = np.empty(MOST + 1, np.int32)
    most = 0  # the largest n whose n-gram that ends here has a node
    for at in range(len(word_N)):
        word = word_N[at]
        if word < 0:
            most = 0
            continue
        now = 1
        for n in range(min(most, MOST - 1), 0, -1):
            node = _child(node_n[n], word, first_G, word_G)
            node_n[n + 1] = node
            if node != NONE:
                now = max(now, n + 1)
                count_G[node, 0] += 1
                if count_G[node, 1] != document:
                    count_G[node, 1] = document
                    held[found] = node
                    found += 1
        node_n[1] = word
        most = now
        if most == MOST:
            _extend(word_N, at, node_n[MOST] - level_n[MOST], grams, into.longest_C2)
    return held[:found]


@jit()
def _together(held, grams, into):  # type: ignore[no-untyped-def]
    """Adds this document to the choices that share it with their context, for each n."""
    start_G, holder = grams.holders
    context_KX, choice_KC = into.context_KX, into.choice_KC
    mark = np.uint8(into.read_3[0] % 255 + 1)
    if mark == 1:  # the marks of 255 documents ago
        context_KX[:] = 0
        choice_KC[:] = 0
    seen = into.seen
    pairs = 0
    for node in held:
        k = 0
        while grams.level_n[LEAST + k + 1] <= node:
            k += 1
        context_X, choice_C = context_KX[k], choice_KC[k]
        for p in range(start_G[node], start_G[node + 1]):
            place = holder[p]
            if place >= 0:
                context_X[np.uint32(place)] = mark
            elif choice_C[np.uint32(~place)] != mark:
                choice_C[np.uint32(~place)] = mark
                seen[pairs] = ~place * K + k
                pairs += 1
    for pair in seen[:pairs]:
        choice, k = pair // K, pair % K
        if context_KX[k, grams.context_of_C[choice]] == mark:
            into.task_CK[choice, k] += 1


@jit()
def _extend(word_N, at, gram, grams, longest_C2):  # type: ignore[no-untyped-def]
    """Follows the MOST-gram that ends at `at` to both sides, for each choice whose boundary it crosses.

    A match holds several crossing MOST-grams; it is counted at the first of them, and where the same words stand twice
    around one boundary, for the first of the two places.
    """
    start_R, crossed = grams.crossed_by
    for p in range(start_R[gram], start_R[gram + 1]):
        choice, before = crossed[p] // MOST, crossed[p] % MOST
        context = grams.context_of_C[choice]
        context_word = grams.context.value[
            grams.context.start_R[context] : grams.context.start_R[context + 1]
        ]
        choice_word = grams.choice.value[grams.choice.start_R[choice] : grams.choice.start_R[choice + 1]]
        after = MOST - before
        end = at + 1
        while end < len(word_N) and after < len(choice_word) and word_N[end] == choice_word[after]:
            end += 1
            after += 1
        begin = at + 1 - MOST
        first = before
        while begin > 0 and before < len(context_word) and word_N[begin - 1] == context_word[-1 - before]:
            begin -= 1
            before += 1
        length = before + after
        if length <= MOST or (first < MOST - 1 and before > first):
            continue
        if _stands_earlier(context_word, choice_word, before, length):
            continue
        length = min(length, LONGEST)
        if length > longest_C2[choice, 0]:
            longest_C2[choice, 0] = length
            longest_C2[choice, 1] = 0
        if length == longest_C2[choice, 0]:
            longest_C2[choice, 1] += 1


@jit()
def _stands_earlier(context_word, choice_word, before, length):  # type: ignore[no-untyped-def]
    """Whether the words from `before` words before the boundary on also begin further left, and still cross it."""
    first = len(context_word) - before
    boundary = len(context_word)
    for other in range(max(0, boundary - length + 1), first):
        same = 0
        while same < length:
            a, b = first + same, other + same
            left = context_word[a] if a < boundary else choice_word[a - boundary]
            right = context_word[b] if b < boundary else choice_word[b - boundary]
            if left != right:
                break
            same += 1
        if same == length:
            return True
    return False
