"""The n-grams of items, as a trie.

Every n-gram (n = 1 to 8) of an item's words is a node. The children of a node are numbered one after another in the order of
their words, so an edge is a binary search: nothing is hashed, and nothing can collide.

Memory: some 30 bytes for every different n-gram of the items.
Dims: P positions, G nodes, W words, X contexts, C choices (of all items, one after another), K = 7 lengths n.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np

from evalengine.benchmarks import Item
from evalengine.training.data.contamination import WORD
from evalengine.training.exposure.words import Ragged, Vocabulary, numbers, vocabulary

LEAST, MOST = 2, 8
K = MOST - LEAST + 1


class Grams(NamedTuple):
    """What is looked for. The nodes of n words are numbered after those of n - 1; words are their own nodes."""

    first_G: np.ndarray  # int32, one more than nodes: the first child of each
    word_G: np.ndarray  # int32: the last word of each
    level_n: np.ndarray  # int32: the first node of n words, for n = 0 to MOST + 1
    context: Ragged  # words of each context
    choice: Ragged  # words of each choice
    context_of_C: np.ndarray  # int32
    holders: Ragged  # row node: contexts that hold it, and choices c as ~c
    crossed_by: Ragged  # row MOST-gram: choice * MOST + words before the boundary, where it crosses one


class Items(NamedTuple):
    """The texts of all items as words and n-grams."""

    words: Vocabulary
    grams: Grams
    own_C: np.ndarray  # bool: the choice has a context that no choice before it has
    cross: Ragged  # row c * K + n - LEAST: the different crossing n-grams of choice c, as nodes
    of_choice: Ragged  # the same within the choice
    of_context: Ragged  # row x * K + n - LEAST


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
    words: Vocabulary, context: Ragged, choice: Ragged, context_of_C: np.ndarray, own_C: np.ndarray
) -> Items:
    C, X, W = len(choice.start_R) - 1, len(context.start_R) - 1, len(words.hash_W)
    around, before_C = _around(context, choice, context_of_C)
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
        for name, chosen_P in (
            ("cross", is_cross),
            ("choice", at[slice(*np.searchsorted(at, cut[1:3]))]),
            ("context", at[np.searchsorted(at, cut[2]) :]),
        ):
            found[name].append(row_P[chosen_P] << 32 | node_P[chosen_P])
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
        Ragged(np.searchsorted(node[order], np.arange(total + 1)).astype(np.int32), holder[order]),
        _by_row(crossing, total - level[MOST]),
    )
    return Items(words, grams, own_C, cross, of_choice, of_context)


def _around(context: Ragged, choice: Ragged, context_of_C: np.ndarray) -> tuple[Ragged, np.ndarray]:
    """Each choice's words next to the boundary, in which the crossing n-grams lie; how many of them stand before it."""
    before_C = np.minimum(np.diff(context.start_R)[context_of_C], MOST - 1)
    after_C = np.minimum(np.diff(choice.start_R), MOST - 1)
    end_C = context.start_R[context_of_C + 1]
    pieces = [np.zeros(0, np.int32)]
    for c in range(len(before_C)):
        pieces.append(context.value[end_C[c] - before_C[c] : end_C[c]])
        pieces.append(choice.value[choice.start_R[c] : choice.start_R[c] + after_C[c]])
    start_R = np.concatenate(([0], np.cumsum(before_C + after_C))).astype(np.int32)
    return Ragged(start_R, np.concatenate(pieces)), before_C


def _by_row(pairs: np.ndarray, rows: int) -> Ragged:
    """Pairs row << 32 | value, each once."""
    pairs = np.sort(pairs)
    pairs = pairs[np.diff(pairs, prepend=-1) != 0]
    start = np.searchsorted(pairs, np.arange(rows + 1, dtype=np.int64) << 32)
    return Ragged(start.astype(np.int32), (pairs & 0xFFFFFFFF).astype(np.int32))


def _owner(rows: Ragged) -> np.ndarray:
    """The context or choice of each value, where a row is one of its K lengths."""
    return np.repeat(np.arange(len(rows.start_R) - 1, dtype=np.int32) // K, np.diff(rows.start_R))
