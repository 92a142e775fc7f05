"""The n-grams of items, and how often documents hold them: exact counts.

Every n-gram (n = 1 to 8) of an item's words is a node of a trie. The children of a node are numbered one after another in the
order of their words, so an edge is a binary search: nothing is hashed, and nothing can collide. A document is walked word by
word with the nodes of all n-grams that end at the present word; as the parts of an n-gram are in the trie, too, the walk stops
at the first n that has no node.

Longer matches are found from crossing 8-grams: where a document holds one, it and the item are compared word by word to both
sides. That is rare, so a match of any length costs no more than one of eight words.

Cost: about 0.4 us a word of text. Memory: some 30 bytes for every different n-gram of the items, and 8 more a thread.
Dims: N words of a document, P positions, G nodes, X contexts, C choices (of all items, one after another), K = 7 lengths n.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np

from evalengine.benchmarks import Item
from evalengine.jit import jit
from evalengine.training.contamination import WORD
from evalengine.training.exposure.words import Rows, Vocabulary, numbers, vocabulary

LEAST, MOST = 2, 8
K = MOST - LEAST + 1
LONGEST = 127  # words of a match; what is longer counts as so long
NONE = -1


class Grams(NamedTuple):
    """What is looked for. The nodes of n words are numbered after those of n - 1; words are their own nodes."""

    first_G: np.ndarray  # int32, one more than nodes: the first child of each
    word_G: np.ndarray  # int32: the last word of each
    level_n: np.ndarray  # int32: the first node of n words, for n = 0 to MOST + 1
    context: Rows  # words of each context
    choice: Rows  # words of each choice
    context_of_C: np.ndarray  # int32
    holders: Rows  # row node: contexts that hold it, and choices c as ~c
    crossed_by: Rows  # row MOST-gram: choice * MOST + words before the boundary, where it crosses one


class Items(NamedTuple):
    """The texts of all items as words and n-grams."""

    words: Vocabulary
    grams: Grams
    own_C: np.ndarray  # bool: the choice has a context that no choice before it has
    cross: Rows  # row c * K + n - LEAST: the different crossing n-grams of choice c, as nodes
    of_choice: Rows  # the same within the choice
    of_context: Rows  # row x * K + n - LEAST


def gather(items: Sequence[Item]) -> Items:
    """The n-grams of items whose choices share one context, or have one each."""
    contexts, context_of, own = list[str](), list[int](), list[bool]()
    for item in items:
        shared = len(set(item.contexts)) == 1
        for j, text in enumerate(item.contexts):
            own.append(j == 0 or not shared)
            if own[-1]:
                contexts.append(text)
            context_of.append(len(contexts) - 1)
    choices = [choice for item in items for choice in item.continuations]
    words = vocabulary(dict.fromkeys(w for t in chain(contexts, choices) for w in WORD.findall(t.lower())))
    context, choice = numbers(contexts, words), numbers(choices, words)
    context_of_C = np.array(context_of, np.int32)
    return _trie(words, context, choice, context_of_C, np.array(own, bool))


def _trie(
    words: Vocabulary, context: Rows, choice: Rows, context_of_C: np.ndarray, own_C: np.ndarray
) -> Items:
    C, X, W = len(choice.start_R) - 1, len(context.start_R) - 1, len(words.hash_W)
    # the words next to the boundary: crossing n-grams lie in them
    before_C = np.minimum(np.diff(context.start_R)[context_of_C], MOST - 1)
    after_C = np.minimum(np.diff(choice.start_R), MOST - 1)
    end_C = context.start_R[context_of_C + 1]
    pieces = [np.zeros(0, np.int32)]
    for c in range(C):
        pieces.append(context.value[end_C[c] - before_C[c] : end_C[c]])
        pieces.append(choice.value[choice.start_R[c] : choice.start_R[c] + after_C[c]])
    start_R = np.concatenate(([0], np.cumsum(before_C + after_C))).astype(np.int32)
    around = Rows(start_R, np.concatenate(pieces))
    parts = (around, choice, context)
    word_P = np.concatenate([part.value for part in parts])
    owner_P = np.concatenate([np.repeat(np.arange(len(p.start_R) - 1), np.diff(p.start_R)) for p in parts])
    lengths = np.concatenate([np.diff(part.start_R) for part in parts])
    end_P = np.repeat(np.cumsum(lengths), lengths)
    cut = np.cumsum([0, *(len(part.value) for part in parts)])
    # of positions around a boundary: words from there to it, none or fewer where it lies behind
    left_P = (around.start_R[:-1] + before_C)[owner_P[: cut[1]]] - np.arange(cut[1])

    node_P = word_P.astype(np.int64)
    level, word_of, first_of = [0, 0], [np.arange(W, dtype=np.int32)], list[np.ndarray]()
    found: dict[str, list[np.ndarray]] = {"cross": [], "choice": [], "context": []}  # row << 32 | node
    crossing = np.zeros(0, np.int64)
    for n in range(LEAST, MOST + 1):
        at = np.flatnonzero(np.arange(len(word_P)) + n <= end_P)
        key, inverse = np.unique(node_P[at] << 32 | word_P[at + n - 1], return_inverse=True)
        level.append(level[-1] + len(word_of[-1]))
        first_of.append(level[-1] + np.searchsorted(key >> 32, np.arange(level[-2], level[-1])))
        word_of.append((key & 0xFFFFFFFF).astype(np.int32))
        node_P[at] = level[-1] + inverse.reshape(-1)
        row_P = owner_P * K + n - LEAST
        is_cross = at[: np.searchsorted(at, cut[1])]
        is_cross = is_cross[(left_P[is_cross] > 0) & (left_P[is_cross] < n)]
        for name, here in (
            ("cross", is_cross),
            ("choice", at[slice(*np.searchsorted(at, cut[1:3]))]),
            ("context", at[np.searchsorted(at, cut[2]) :]),
        ):
            found[name].append(row_P[here] << 32 | node_P[here])
        if n == MOST:
            held = owner_P[is_cross] * MOST + left_P[is_cross]
            crossing = node_P[is_cross] - level[-1] << 32 | held
    total = level[-1] + len(word_of[-1])
    level.append(total)
    first_of.append(np.full(total - level[-2] + 1, total))
    cross, of_choice, of_context = (
        _by_row(np.concatenate(found[name]), rows * K)
        for name, rows in (("cross", C), ("choice", C), ("context", X))
    )
    holder = np.concatenate([_owner(of_context), ~_owner(of_choice)])
    node = np.concatenate([of_context.value, of_choice.value])
    order = np.argsort(node, kind="stable")
    grams = Grams(
        np.concatenate(first_of).astype(np.int32),
        np.concatenate(word_of),
        np.array(level, np.int32),
        context,
        choice,
        context_of_C,
        Rows(np.searchsorted(node[order], np.arange(total + 1)).astype(np.int32), holder[order]),
        _by_row(crossing, total - level[MOST]),
    )
    return Items(words, grams, own_C, cross, of_choice, of_context)


def _by_row(pairs: np.ndarray, rows: int) -> Rows:
    """Pairs row << 32 | value, each once."""
    pairs = np.sort(pairs)
    pairs = pairs[np.diff(pairs, prepend=-1) != 0]
    start = np.searchsorted(pairs, np.arange(rows + 1, dtype=np.int64) << 32)
    return Rows(start.astype(np.int32), (pairs & 0xFFFFFFFF).astype(np.int32))


def _owner(rows: Rows) -> np.ndarray:
    """The context or choice of each value, where a row is one of its K lengths."""
    return np.repeat(np.arange(len(rows.start_R) - 1, dtype=np.int32) // K, np.diff(rows.start_R))


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
    """Makes Numba compile all that `add` runs, for text in ASCII and other text: some seconds, once for a machine."""
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
