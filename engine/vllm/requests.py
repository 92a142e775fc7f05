"""Sequences -> requests for an engine with a prefix cache.

Each scored row is computed once: of the sequences that share the tokens up to it, the first request to compute it scores the
next tokens of all. So the first tokens of an item's choices come from one request, single-token choices are one request, and a
sequence whose fed tokens begin another's needs none. Requests come in the order of their tokens, so that siblings and equal
contexts stand together and find the prefix of the one before still in the cache, the longest first.

Cost: one sort of the sequences' bytes, and some microseconds a sequence.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from evalengine.encoding import Sequences
from evalengine.packing import common_prefix


class Request(NamedTuple):
    """Tokens to feed, and what to score on the way: target t is predicted from row `row_T[t]` of these tokens."""

    tokens: np.ndarray  # int32, (n)
    row_T: np.ndarray  # int32, increasing
    token_T: np.ndarray  # int32

    @property
    def first(self) -> int:
        """The first scored row: a prefix-cache hit may cover the rows before it, and no more."""
        return int(self.row_T[0])


class Requests(NamedTuple):
    """Distinct requests, and where each sequence finds its targets in their concatenated results."""

    requests: list[Request]
    offset: np.ndarray  # int64, (requests + 1): targets of request r are offset[r]:offset[r + 1]
    index_T: np.ndarray  # int64: place in the results of each target of each sequence, sequence by sequence
    start_S: np.ndarray  # int64, (sequences): where a sequence's targets begin in index_T


def plan(sequences: Sequences, ride: bool = True) -> Requests:
    """The requests that score `sequences`. Without `ride`, only sequences with equal fed tokens share one."""
    n = len(sequences)
    if not n:
        return Requests([], np.zeros(1, np.int64), np.zeros(0, np.int64), np.zeros(0, np.int64))
    fed = [sequences.tokens(s)[:-1] for s in range(n)]
    keys = [tokens.astype(">i4").tobytes() for tokens in fed]  # big-endian: bytes sort as tokens do
    order = sorted(range(n), key=keys.__getitem__, reverse=True)  # a prefix comes right after what extends it
    owners: list[np.ndarray] = [
        np.zeros(0, np.int64)
    ] * n  # of each sequence's targets: the request that scores it
    fed_by: list[int] = []  # of each request: the sequence whose tokens it feeds
    passed = Passed()
    before = order[0]
    for s in order:
        shared = common_prefix(fed[before], fed[s]) if fed_by else 0
        passed.keep(shared)
        rows = np.arange(int(sequences.start[s]) - 1, len(fed[s]))
        if ride:
            owner = passed.scored_by(rows)
        else:
            owner = np.full(len(rows), len(fed_by) - 1 if fed_by and keys[before] == keys[s] else -1)
        if (owner < 0).any():
            owner[owner < 0] = len(fed_by)
            passed.extend(len(fed[s]), len(fed_by), int(rows[owner == len(fed_by)][0]))
            fed_by.append(s)
        owners[s], before = owner, s
    return assemble(sequences, fed, fed_by, owners)


class Passed:
    """The path from the root of the tree of tokens to where the plan stands: which request computes each row of it first."""

    def __init__(self) -> None:
        self._ends: list[int] = []  # rows from the end before up to this one ...
        self._owners: list[int] = []  # ... are first computed by this request,
        self._firsts: list[int] = []  # whose first scored row is this

    def keep(self, depth: int) -> None:
        """Forgets the path below its first `depth` rows."""
        while self._ends and (self._ends[-2] if len(self._ends) > 1 else 0) >= depth:
            self._ends.pop(), self._owners.pop(), self._firsts.pop()
        if self._ends:
            self._ends[-1] = min(self._ends[-1], depth)

    def extend(self, depth: int, owner: int, first: int) -> None:
        if not self._ends or depth > self._ends[-1]:
            self._ends.append(depth)
            self._owners.append(owner)
            self._firsts.append(first)

    def scored_by(self, rows: np.ndarray) -> np.ndarray:
        """The request that scores each row on its way, -1 where none does.

        A request is given no row before its first scored one: that would shorten its cache hits.
        """
        at = np.searchsorted(self._ends, rows, side="right")
        known = np.flatnonzero(at < len(self._ends))
        out = np.full(len(rows), -1, np.int64)
        out[known] = np.where(
            np.asarray(self._firsts, np.int64)[at[known]] <= rows[known],
            np.asarray(self._owners, np.int64)[at[known]],
            -1,
        )
        return out


def assemble(
    sequences: Sequences, fed: list[np.ndarray], fed_by: list[int], owners: list[np.ndarray]
) -> Requests:
    """Requests with their distinct targets, and where each sequence's targets are among them."""
    owner_T = np.concatenate(owners)
    pair_T = np.concatenate([pairs(sequences, s) for s in range(len(sequences))])
    order_T = np.lexsort((pair_T, owner_T))
    owner_T, pair_T = owner_T[order_T], pair_T[order_T]
    new_T = np.ones(len(order_T), bool)
    new_T[1:] = (np.diff(owner_T) != 0) | (np.diff(pair_T) != 0)
    index_T = np.empty(len(order_T), np.int64)
    index_T[order_T] = np.cumsum(new_T) - 1
    offset = np.searchsorted(owner_T[new_T], np.arange(len(fed_by) + 1)).astype(np.int64)
    row_D, token_D = (pair_T[new_T] >> 32).astype(np.int32), (pair_T[new_T] & 0xFFFFFFFF).astype(np.int32)
    requests = [
        Request(fed[s], row_D[low:high], token_D[low:high])
        for s, low, high in zip(fed_by, offset[:-1].tolist(), offset[1:].tolist(), strict=True)
    ]
    counts = np.diff(sequences.offset) - sequences.start
    return Requests(requests, offset, index_T, np.concatenate([[0], np.cumsum(counts)[:-1]]).astype(np.int64))


def pairs(sequences: Sequences, s: int) -> np.ndarray:
    """(row, token) of each target of a sequence, as one int64 each: row in the upper half."""
    tokens, start = sequences.tokens(s).astype(np.int64), int(sequences.start[s])
    rows = np.arange(start - 1, len(tokens) - 1, dtype=np.int64)
    return (rows << 32) | tokens[start:]
