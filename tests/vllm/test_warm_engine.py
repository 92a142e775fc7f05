"""One engine for several checkpoints: weights swapped in place, and what happens when a swap is not what it seems."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest


@pytest.mark.parametrize(
    "architecture", ["llama", "qwen2"]
)  # an output layer of its own, and one tied to the embedding
def test_three_checkpoints_through_one_engine_score_as_through_three(
    architecture: str, engine: Any, references: Any, sequences: Any
) -> None:
    warm = engine()
    in_place = []
    for seed in (0, 1, 2, 0):
        warm.load(references[architecture, seed].checkpoint)
        in_place.append(warm.score(sequences).loglik)
    assert warm.swaps == 3
    for seed, loglik in zip((0, 1, 2), in_place[:3], strict=True):
        fresh = engine()
        fresh.load(references[architecture, seed].checkpoint)
        np.testing.assert_allclose(loglik, fresh.score(sequences).loglik, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(in_place[0], in_place[3])


def test_experts_are_swapped_too(engine: Any, references: Any, sequences: Any) -> None:
    backend = engine()
    for seed in (0, 1, 0):
        reference = references["mixtral", seed]
        backend.load(reference.checkpoint)
        np.testing.assert_allclose(backend.score(sequences).loglik, reference.loglik, rtol=0, atol=1e-4)
    assert backend.swaps == 2


def test_a_cache_that_is_not_emptied_is_noticed(
    engine: Any, references: Any, sequences: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the reset, the second checkpoint would be scored with the first one's keys and values."""
    first, second = references["llama", 0], references["llama", 1]
    backend = engine()
    backend.load(first.checkpoint)
    backend.score(sequences)
    backend._llm.collective_rpc("evalengine_swap", args=(str(second.checkpoint.path),))
    assert np.abs(backend.score(sequences).loglik - second.loglik).max() > 0.5  # the silent error

    backend = engine()
    monkeypatch.setattr(backend, "reset_prefix_cache", lambda: True)
    backend.load(first.checkpoint)
    backend.load(second.checkpoint)
    assert backend.swaps == 0
    assert "new engine was started" in backend.notes[0]
    np.testing.assert_allclose(backend.score(sequences).loglik, second.loglik, rtol=0, atol=1e-4)


def test_weights_that_did_not_arrive_are_noticed(
    engine: Any, references: Any, sequences: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from evalengine.vllm.worker import ScoringWorker

    backend = engine()
    backend.load(references["llama", 0].checkpoint)
    monkeypatch.setattr(ScoringWorker, "evalengine_swap", lambda self, path: None)
    backend.load(references["llama", 1].checkpoint)
    assert "not what the file holds" in backend.notes[0] and backend.swaps == 0
    np.testing.assert_allclose(
        backend.score(sequences).loglik, references["llama", 1].loglik, rtol=0, atol=1e-4
    )
