"""Sequences -> requests for an engine with a prefix cache.

One request scores as much as it passes by: sequences that share all fed tokens (single-token choices) are one request, and a
sequence whose fed tokens begin another's rides on that one. Requests come in the order of their tokens, so that siblings and
equal contexts stand together and find the prefix of the one before still in the cache, the longest first.

Cost: one sort of the sequences' bytes.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from evalengine.encoding import Sequences


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
    fed = [sequences.tokens(s)[:-1] for s in range(n)]
    keys = [tokens.astype(">i4").tobytes() for tokens in fed]  # big-endian: bytes sort as tokens do
    order = sorted(
        range(n), key=lambda s: keys[s], reverse=True
    )  # a prefix comes right after what extends it
    groups: list[list[int]] = []
    for s in order:
        if groups:
            leader = groups[-1][0]
            # riding must not lower the leader's first scored row: that would shorten its cache hits
            rides = (
                ride and keys[leader].startswith(keys[s]) and sequences.start[s] >= sequences.start[leader]
            )
            if rides or keys[leader] == keys[s]:
                groups[-1].append(s)
                continue
        groups.append([s])
    requests: list[Request] = []
    offsets = [0]
    index: list[np.ndarray] = [np.zeros(0, np.int64)] * n
    for group in groups:
        targets = np.concatenate([pairs(sequences, s) for s in group])
        distinct, inverse = np.unique(targets, return_inverse=True)
        requests.append(
            Request(
                fed[group[0]], (distinct >> 32).astype(np.int32), (distinct & 0xFFFFFFFF).astype(np.int32)
            )
        )
        at = offsets[-1]
        for s in group:
            count = len(fed[s]) + 1 - int(sequences.start[s])
            index[s], inverse = at + inverse[:count], inverse[count:]
        offsets.append(offsets[-1] + len(distinct))
    counts = np.diff(sequences.offset) - sequences.start
    start_S = np.concatenate([[0], np.cumsum(counts)[:-1]]).astype(np.int64) if n else np.zeros(0, np.int64)
    return Requests(
        requests,
        np.asarray(offsets, np.int64),
        np.concatenate(index) if n else np.zeros(0, np.int64),
        start_S,
    )


def pairs(sequences: Sequences, s: int) -> np.ndarray:
    """(row, token) of each target of a sequence, as one int64 each: row in the upper half."""
    tokens, start = sequences.tokens(s).astype(np.int64), int(sequences.start[s])
    rows = np.arange(start - 1, len(tokens) - 1, dtype=np.int64)
    return (rows << 32) | tokens[start:]
