"""lm-evaluation-harness with this engine's vLLM backend inside, against its own HF model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from evalengine.bench import lm_eval as lm_eval_bench
from evalengine.bench import local_tasks


def test_five_tasks_give_lm_evals_own_results_through_vllm(references: Any, small_world: Path) -> None:
    path = references["llama", 0].checkpoint.path
    data = small_world / "bench"
    theirs = lm_eval_bench.evaluated(local_tasks.hf_model(path, 4), data, limit=8)
    ours = lm_eval_bench.our_model(path, "vllm")
    try:
        found = lm_eval_bench.evaluated(ours, data, limit=8)
    finally:
        ours.engine.close()
    assert len(found.loglik) == 5 and sum(map(len, found.loglik.values())) > 100
    of_metrics, of_loglik = lm_eval_bench.largest_differences(found, theirs)
    assert of_metrics == 0.0
    assert of_loglik < 1e-3
