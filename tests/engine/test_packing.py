"""The trie: what each token sees is exactly its own sequence's tokens, at the right positions, each prefix once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evalengine.plan import packing
from evalengine.plan.encoding import Sequences


def sequences_of(lists: list[list[int]], starts: list[int]) -> Sequences:
    return Sequences(
        np.concatenate([np.asarray(t, np.int32) for t in lists]),
        np.concatenate([[0], np.cumsum([len(t) for t in lists])]).astype(np.int64),
        np.asarray(starts, np.int32),
    )


def seen(batch: packing.Batch, token: int) -> set[int]:
    """Key indices (prefix first) that a token of the batch attends to, by the flat list and by the buckets made of it."""
    block, first = token // batch.block, token // batch.block * batch.block
    listed = [
        *batch.ancestor_A[batch.offset_B[block] : batch.offset_B[block + 1]],
        *range(first, first + batch.block),
    ]
    flat = [*range(batch.prefix)] + [batch.prefix + k for k in listed if k <= token < batch.end_N[k]]
    assert len(set(flat)) == len(flat), "a key counted twice"
    for bucket in batch.buckets:
        for b, member in enumerate(bucket.block_B):
            if member == block:
                at = batch.prefix + token
                keys = bucket.key_BK[b][(bucket.key_BK[b] <= at) & (at < bucket.end_BK[b])]
                assert sorted(keys) == sorted(flat)
                return set(flat)
    raise AssertionError(f"block {block} is in no bucket")


def check(sequences: Sequences, batch_tokens: int, block: int) -> list[packing.Batch]:
    batches = list(packing.pack(sequences, batch_tokens, block))
    prefix = batches[0].token_N[: batches[0].tokens] if batches[0].is_prefix else np.zeros(0, np.int64)
    targets: dict[int, list[tuple[int, int]]] = {s: [] for s in range(len(sequences))}
    for batch in batches:
        assert len(batch.token_N) % batch.block == 0
        assert sum(len(b.block_B) for b in batch.buckets) * batch.block == len(batch.token_N)
        everything = np.concatenate([prefix if not batch.is_prefix else prefix[:0], batch.token_N])
        for row, token, s in zip(
            batch.target_row_T, batch.target_token_T, batch.target_sequence_T, strict=True
        ):
            flat = int(batch.row_R[row])
            keys = sorted(seen(batch, flat))
            position = int(batch.position_N[flat])
            assert len(keys) == position + 1
            whole = sequences.tokens(int(s))
            assert everything[keys].tolist() == whole[: position + 1].tolist()
            targets[int(s)].append((position + 1, int(token)))
    for s, found in targets.items():
        whole = sequences.tokens(s)
        expected = [(i, int(whole[i])) for i in range(int(sequences.start[s]), len(whole))]
        assert sorted(found) == expected
    return batches


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_every_target_sees_its_own_path(data: st.DataObject) -> None:
    stem = data.draw(st.lists(st.integers(0, 3), max_size=150))
    tails = data.draw(st.lists(st.lists(st.integers(0, 2), min_size=2, max_size=40), min_size=1, max_size=12))
    unique = {tuple(stem + t) for t in tails}
    lists = [list(t) for t in sorted(unique, key=lambda t: t[::-1])]
    starts = [data.draw(st.integers(max(1, len(t) - 5), len(t) - 1)) for t in lists]
    check(
        sequences_of(lists, starts),
        data.draw(st.sampled_from([16, 100, 1000])),
        data.draw(st.sampled_from([4, 16])),
    )


def test_a_prefix_is_computed_once() -> None:
    context = list(range(50))
    lists = [[*context, 60 + i, 70 + i, 80] for i in range(4)]
    (batch,) = check(sequences_of(lists, [50] * 4), 1000, 8)
    assert batch.tokens == 50 + 4 * 2


def test_one_token_choices_cost_one_context() -> None:
    lists = [[*range(30), 40 + i] for i in range(5)]
    (batch,) = check(sequences_of(lists, [30] * 5), 1000, 8)
    assert batch.tokens == 30
    assert len(batch.row_R) == 1 and len(batch.target_token_T) == 5


def test_a_long_shared_prefix_is_a_batch_of_its_own() -> None:
    shots = [i % 7 for i in range(200)]
    lists = [[*shots, 100 + i, 5, 6, 7] for i in range(20)]
    batches = check(sequences_of(lists, [201] * 20), 64, 16)
    assert batches[0].is_prefix and batches[0].tokens == 200
    assert sum(b.tokens for b in batches[1:]) == 20 * 3


@pytest.mark.parametrize("batch_tokens", [10, 100, 10_000])
def test_batches_hold_about_what_was_asked(batch_tokens: int) -> None:
    rng = np.random.default_rng(0)
    lists = [rng.integers(0, 9, size=rng.integers(5, 30)).tolist() for _ in range(200)]
    lists = [list(t) for t in {tuple(t) for t in lists}]
    for batch in check(sequences_of(lists, [2] * len(lists)), batch_tokens, 8):
        assert batch.tokens <= max(batch_tokens, 30)
