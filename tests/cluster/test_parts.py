"""A benchmark cut in parts has the bits of the whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import tiny_models
from evalengine import forward, plans
from evalengine.benchmarks import load_items, resolve
from evalengine.cluster import parts
from evalengine.resolve import discover
from evalengine.torch_backend import TorchBackend


@pytest.mark.parametrize("architecture", ["llama", "mamba"])  # mamba cannot share prefixes
@pytest.mark.parametrize(("benchmark", "fewshot"), [("hellaswag", 0), ("boolq", 3)])
def test_parts_have_the_bits_of_the_whole(
    architecture: str,
    benchmark: str,
    fewshot: int,
    bench: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(forward, "HEAD_ROWS", 64)
    path = tiny_models.save(tmp_path / "m-a-pt", architecture, window=2048)
    (checkpoint,) = discover([path])
    backend = TorchBackend(device="cpu", batch_tokens=256)
    backend.load(checkpoint)
    items = load_items(resolve(benchmark)[0], bench, fewshot=fewshot)
    sequences = plans.Planner().plan(checkpoint, items).sequences
    whole = backend.score(sequences)
    for n in (2, 3):
        pieces = [parts.score_part(backend, sequences, part, n) for part in range(n)]
        loglik, greedy = parts.merge(pieces)
        assert loglik.tobytes() == whole.loglik.tobytes()
        assert np.array_equal(greedy, whole.greedy)
        if architecture == "llama" and benchmark == "hellaswag":
            assert sum((p.loglik != 0).any() for p in pieces) == n  # every part has some of the work


def test_how_many_parts() -> None:
    assert parts.count(1, "torch") == 1
    assert parts.count(parts.PART_TOKENS, "torch") == 1
    assert parts.count(parts.PART_TOKENS * 3 + 1, "torch") == 4
    assert parts.count(parts.PART_TOKENS * 3 + 1, "vllm") == 1
