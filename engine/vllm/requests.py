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

from evalengine.plan.encoding import Sequences
from evalengine.plan.packing import common_prefix


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


def plan(sequences: Sequences) -> Requests:
    """The requests that score `sequences`."""
    n = len(sequences)
    if not n:
        return Requests([], np.zeros(1, np.int64), np.zeros(0, np.int64), np.zeros(0, np.int64))
    fed = [sequences.tokens(s)[:-1] for s in range(n)]
    keys = [tokens.astype(">i4").tobytes() for tokens in fed]  # big-endian: bytes sort as tokens do
    order = sorted(range(n), key=keys.__getitem__, reverse=True)  # a prefix comes right after what extends it
    owners: dict[int, np.ndarray] = {}  # of each sequence's targets: the request that scores it
    # Of each row on the way from the first token to where the plan stands: the request that computes it first, and the first
    # row that this request scores. It is given no row before that one: that would shorten its cache hits.
    longest = max(map(len, fed))
    owner_R, first_R = np.zeros(longest, np.int64), np.zeros(longest, np.int64)
    known = 0  # rows of that way
    fed_by: list[int] = []  # of each request: the sequence whose tokens it feeds
    before = order[0]
    for s in order:
        known = min(known, common_prefix(fed[before], fed[s]))
        row_T = np.arange(int(sequences.start[s]) - 1, len(fed[s]))
        scored = (row_T < known) & (first_R[row_T] <= row_T)
        if not scored.all():
            owner_R[known : len(fed[s])] = len(fed_by)
            first_R[known : len(fed[s])] = row_T[~scored][0]
            known = max(known, len(fed[s]))
            fed_by.append(s)
        owners[s], before = np.where(scored, owner_R[row_T], len(fed_by) - 1), s
    return assemble(sequences, fed, fed_by, [owners[s] for s in range(n)])


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
