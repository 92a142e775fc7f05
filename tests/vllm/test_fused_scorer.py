"""The fused scorer against transformers: architectures, cache, chunks, lost rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from conftest import ARCHITECTURES
from evalengine.vllm import SCORER

TOLERANCE = 1e-4


def assert_agrees(scores: Any, reference: Any) -> None:
    np.testing.assert_allclose(scores.loglik, reference.loglik, rtol=0, atol=TOLERANCE)
    np.testing.assert_array_equal(scores.greedy, reference.greedy)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_agrees_with_transformers_and_the_torch_backend(
    architecture: str, engine: Any, references: Any, sequences: Any
) -> None:
    backend = engine()
    for seed in (0, 1):
        reference = references[architecture, seed]
        backend.load(reference.checkpoint)
        scores = backend.score(sequences)
        assert SCORER in backend.notes[-1]
        assert_agrees(scores, reference)
        assert backend.score(reference.likely).greedy.tolist() == [True, False] * 4
    np.testing.assert_allclose(scores.loglik, reference.torch_loglik, rtol=0, atol=TOLERANCE)


def test_small_chunks_and_no_cache_change_nothing(engine: Any, references: Any, sequences: Any) -> None:
    """Prompts cut into chunks of 48 tokens, four at once, with a cache too small for all, then without a cache."""
    reference = references["qwen2", 0]
    for cache in ({"num_gpu_blocks_override": 24}, {"enable_prefix_caching": False}):
        backend = engine(batch_tokens=48, max_num_seqs=4, **cache)
        backend.load(reference.checkpoint)
        assert_agrees(backend.score(sequences), reference)


def test_rows_that_the_cache_swallows_are_found_and_computed_again(
    engine: Any, references: Any, sequences: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was scored once is all in the cache: vLLM's own scheduler lets a hit cover scored rows; ours does not."""
    reference = references["llama", 0]
    for scheduler, lossy in (("vllm.v1.core.sched.scheduler.Scheduler", True), (None, False)):
        backend = engine(**({"scheduler_cls": scheduler} if scheduler else {}))
        backend.load(reference.checkpoint)
        for _ in range(2):
            assert_agrees(backend.score(sequences), reference)
        assert (backend.redone > 0) == lossy


def test_progress_counts_every_fed_token(engine: Any, references: Any, sequences: Any) -> None:
    backend = engine()
    backend.load(references["llama", 0].checkpoint)
    seen: list[int] = []
    backend.score(sequences, seen.append)
    fed = {sequences.tokens(s)[:-1].tobytes() for s in range(len(sequences))}
    assert 0 < sum(seen) <= sum(len(tokens) // 4 for tokens in fed)
