"""Sequences -> packed batches: every distinct prefix is computed once, and nothing is padded but attention's keys.

The sequences of a benchmark are sorted, so that neighbours share their longest prefixes, and laid out as one token trie in
depth-first order: of each sequence only the tokens behind the prefix it shares with its neighbour are new. A token sees its
ancestors, at positions counted along its own path. So the choices of an item share its context, items share a paragraph, and
one-token choices cost nothing at all.

Attention needs no per-item mask: the flat order is cut into query blocks of BLOCK tokens, wherever items begin or end. Because
depth-first subtrees are intervals, whatever a block's tokens see is the ancestors of the block's first token, then the block
itself; who sees what follows from each token's subtree end: query sees key iff key <= query < end[key].

A prefix shared by all sequences of a benchmark (few-shot examples) is a batch of its own whose keys and values are kept.

Dims: N tokens of a batch, A ancestors, B blocks, K keys of a block, R scored rows, T targets.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np

from evalengine.plan.encoding import Sequences

BLOCK = 64  # query tokens of one attention block
SHARED_PREFIX = 96  # tokens all sequences must share for the prefix to be kept apart
KEYS = 8  # a bucket's keys are a multiple: a GPU's fused attention takes masks in rows of 16 bytes


class Bucket(NamedTuple):
    """Blocks that run together. A query sees key k iff key_BK <= query < end_BK, and the model's rule says so too."""

    block_B: np.ndarray  # int64: which blocks of the batch
    key_BK: np.ndarray  # int32: which of the kept prefix's and the batch's tokens, padded with 0
    end_BK: np.ndarray  # int32: where the key's subtree ends among them, 0 for padding


@dataclass(frozen=True)
class Batch:
    """One forward: a trie's tokens in depth-first order, and what is scored of them."""

    token_N: np.ndarray  # int32; N is a multiple of the block size
    position_N: np.ndarray  # int32: number of ancestors
    prefix: int  # tokens of the kept prefix that every token here sees; 0 if there is none
    is_prefix: bool  # this batch is that prefix: keep its keys and values
    block: int
    end_N: np.ndarray  # int32: where the token's subtree ends
    ancestor_A: np.ndarray  # int32: of each block's first token, block after block, without the kept prefix
    offset_B: np.ndarray  # int32, (blocks + 1,): where a block's ancestors begin, and the last one's end
    row_R: np.ndarray  # int32: tokens whose next token is scored
    target_row_T: np.ndarray  # int32, indices into row_R
    target_token_T: np.ndarray  # int32
    target_sequence_T: np.ndarray  # int32, which sequence the target counts for
    tokens: int  # tokens without alignment

    @cached_property
    def buckets(self) -> list[Bucket]:
        """Its blocks for attention with gathered keys (gathered_attention.py): made once, for every forward of every model."""
        return list(buckets(self))


def pack(
    sequences: Sequences, batch_tokens: int, block: int = BLOCK, gathered: bool = True
) -> Iterator[Batch]:
    """Yields the batches that score all sequences, about `batch_tokens` tokens each (a longer sequence stays whole).

    `gathered`: attention copies the kept prefix for every block, so that behind a long one the blocks are larger.
    """
    if not len(sequences):
        return
    order = lexicographic(sequences)
    first, last = sequences.tokens(order[0]), sequences.tokens(order[-1])
    prefix = min(common_prefix(first, last), int(sequences.start.min()) - 1)
    if prefix < SHARED_PREFIX:
        prefix = 0
    else:
        yield prefix_batch(first[:prefix], block)
        if gathered:
            block = max(block, min(256, block * (1 + prefix // 256)))
    fed = [sequences.tokens(s)[:-1] for s in order]
    shared = np.array([common_prefix(a, b) for a, b in itertools.pairwise(fed)])
    lengths = np.diff(sequences.offset)[order] - 1
    for start, stop in cut(lengths, np.concatenate([[0], shared]), prefix, batch_tokens):
        yield build(sequences, order[start:stop], shared[start : stop - 1], prefix, block)


def lexicographic(sequences: Sequences) -> list[int]:
    """Indices of the sequences in the order of their tokens; big-endian bytes compare as the tokens do."""
    keys = [sequences.tokens(s).astype(">u4").tobytes() for s in range(len(sequences))]
    return sorted(range(len(sequences)), key=keys.__getitem__)


def common_prefix(a: np.ndarray, b: np.ndarray) -> int:
    """Length of the longest common prefix."""
    n = min(len(a), len(b))
    different = a[:n] != b[:n]
    at = int(different.argmax()) if n else 0
    return at if n and different[at] else n


def cut(
    length_S: np.ndarray, shared_S: np.ndarray, prefix: int, batch_tokens: int
) -> Iterator[tuple[int, int]]:
    """Ranges of sequences for each batch; in the last quarter of a batch, cuts where the least is shared."""
    start, n = 0, len(length_S)
    while start < n:
        new = length_S[start:] - shared_S[start:]
        new[0] = length_S[start] - prefix
        filled = np.cumsum(new)
        stop = max(1, int(np.searchsorted(filled, batch_tokens, side="right")))
        if start + stop < n:
            soft = max(1, int(np.searchsorted(filled, 0.75 * batch_tokens)))
            if soft < stop:
                window = shared_S[start + soft : start + stop + 1]
                stop = soft + int(len(window) - 1 - window[::-1].argmin())
        yield start, start + stop
        start += stop


def prefix_batch(token_P: np.ndarray, block: int) -> Batch:
    one = Sequences.of([np.append(token_P, 0).astype(np.int32)], [len(token_P)])
    batch = build(one, [0], np.zeros(0, np.int64), 0, block)
    none = np.zeros(0, dtype=np.int32)
    return replace(
        batch, is_prefix=True, row_R=none, target_row_T=none, target_token_T=none, target_sequence_T=none
    )


def build(sequences: Sequences, order: list[int], shared: np.ndarray, prefix: int, block: int) -> Batch:
    """Lays the sequences `order` out as one trie. `shared[i]` tokens of sequence i + 1 are those of sequence i."""
    length_S = np.diff(sequences.offset)[order]
    path = np.zeros(length_S.max(), dtype=np.int64)  # the token at each depth of the current path
    tokens, positions = [], []
    rows, target_tokens, target_sequences = [], [], []
    ancestors: list[np.ndarray] = []
    end = np.zeros(length_S.sum() + block, dtype=np.int64)
    at, depth = 0, prefix
    for i, s in enumerate(order):
        ids = sequences.tokens(s)
        fed, start = len(ids) - 1, int(sequences.start[s])
        keep = max(prefix, int(shared[i - 1])) if i else prefix
        end[path[keep:depth]] = at
        new = fed - keep
        path[keep:fed] = np.arange(at, at + new)
        tokens.append(ids[keep:fed])
        positions.append(np.arange(keep, fed))
        next_block = len(ancestors) * block
        while next_block < at + new:
            ancestors.append(path[prefix : keep + next_block - at].copy())
            next_block += block
        rows.append(path[start - 1 : fed].copy())
        target_tokens.append(ids[start:])
        target_sequences.append(np.full(len(ids) - start, s, dtype=np.int32))
        at, depth = at + new, fed
    end[path[prefix:depth]] = at
    padding = -at % block
    end[at : at + padding] = np.arange(at + 1, at + padding + 1)  # a padding token sees itself alone
    row_R, target_row_T = np.unique(np.concatenate(rows), return_inverse=True)
    return Batch(
        token_N=np.concatenate([*tokens, np.zeros(padding, np.int32)]),
        position_N=np.concatenate([*positions, np.zeros(padding, np.int64)]).astype(np.int32),
        prefix=prefix,
        is_prefix=False,
        block=block,
        end_N=end[: at + padding].astype(np.int32),
        ancestor_A=np.concatenate(ancestors).astype(np.int32),
        offset_B=np.cumsum([0, *map(len, ancestors)]).astype(np.int32),
        row_R=row_R.astype(np.int32),
        target_row_T=target_row_T.astype(np.int32),
        target_token_T=np.concatenate(target_tokens),
        target_sequence_T=np.concatenate(target_sequences),
        tokens=at,
    )


def buckets(batch: Batch) -> Iterator[Bucket]:
    """Groups blocks so that padding a bucket's keys to its longest stays below a quarter."""
    prefix, block = batch.prefix, batch.block
    count = prefix + np.diff(batch.offset_B)
    end_M = np.concatenate([np.full(prefix, prefix + len(batch.end_N)), prefix + batch.end_N]).astype(
        np.int32
    )
    order = np.argsort(-count, kind="stable")
    start = 0
    while start < len(order):
        longest = int(count[order[start]])
        floor = 0.8 * (longest + block) - block
        stop = start + int((count[order[start:]] >= floor).sum())
        block_B = np.sort(order[start:stop])
        longest += -longest % KEYS
        key_BK = np.zeros((len(block_B), longest + block), dtype=np.int32)
        key_BK[:, longest:] = prefix + block_B[:, None] * block + np.arange(block)
        end_BK = np.where(np.arange(longest + block) < longest, 0, end_M[key_BK])
        for b, number in enumerate(block_B):
            above = prefix + batch.ancestor_A[slice(*batch.offset_B[number : number + 2])]
            keys = np.concatenate([np.arange(prefix), above])
            key_BK[b, : len(keys)], end_BK[b, : len(keys)] = keys, end_M[keys]
        yield Bucket(block_B, key_BK, end_BK)
        start = stop
