"""An engine that fails or hangs: one sentence, its memory given back, and a process that ends."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest

from evalengine.errors import UserError

HANG = """
import signal, sys
import vllm
from evalengine.cli import main
from evalengine.vllm import engine

def hang(*args, **kwargs):
    while True:
        signal.pause()

engine.START_S = 1
vllm.LLM = hang
sys.exit(main(["score", sys.argv[1], "--data", sys.argv[2], "--out", sys.argv[3], "--backend", "vllm"]))
"""


def fail_on_requests(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Lets the scorer fail at the first request, and not before: weak references to the models that did."""
    from evalengine.vllm.pooler import TargetPooler

    plain, models = TargetPooler.forward, []

    def forward(self: Any, hidden_states: Any, pooling_metadata: Any) -> Any:
        if any(params.extra_kwargs for params in pooling_metadata.pooling_params):
            models.append(weakref.ref(self._model[0]))
            raise RuntimeError("planted")
        return plain(self, hidden_states, pooling_metadata)

    monkeypatch.setattr(TargetPooler, "forward", forward)
    return models


def test_failure_at_the_first_request_is_one_sentence_and_frees_the_engine_for_the_next(
    engine: Any, references: Any, sequences: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = references["llama", 0]
    backend = engine()
    with monkeypatch.context() as patch:
        models = fail_on_requests(patch)
        with pytest.raises(
            UserError, match=r"^llama0 cannot be scored by vLLM \(planted\): use --backend torch$"
        ) as raised:
            backend.load(reference.checkpoint)
    # while the error, and the frames it came through, are alive
    assert len(models) == 1 and models[0]() is None
    assert raised.value.__context__ is not None
    backend.load(reference.checkpoint)
    with monkeypatch.context() as patch:
        models = fail_on_requests(patch)
        with pytest.raises(UserError, match=r"vLLM's engine died \(planted\): .*--backend torch$"):
            backend.score(sequences)
    assert len(models) == 1 and models[0]() is None
    assert abs(backend.score(sequences).loglik - reference.loglik).max() < 1e-4


def test_a_closed_engine_leaves_nothing(engine: Any, references: Any) -> None:
    backend = engine()
    backend.load(references["qwen2", 0].checkpoint)
    runner = backend._llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker.model_runner
    model, layer = weakref.ref(runner.get_model()), weakref.ref(runner.kv_caches[0])
    del runner
    backend.close()
    gc.collect()
    assert model() is None and layer() is None


def test_an_engine_that_hangs_ends_the_process_with_one_sentence(
    references: Any, small_world: Path, tmp_path: Path
) -> None:
    checkpoint = str(references["llama", 0].checkpoint.path)
    command = [sys.executable, "-c", HANG, checkpoint, str(small_world / "bench"), str(tmp_path / "scores")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    said = [line for line in done.stderr.splitlines() if line.startswith("evalengine: ")]
    assert len(said) == 1 and "did not start within 1 seconds" in said[0] and "--backend torch" in said[0]
    assert "Traceback" not in done.stderr
