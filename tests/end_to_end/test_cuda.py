"""On a CUDA device: scores are those of transformers on the CPU, and training steps are those of the CPU."""

from __future__ import annotations

import json
from pathlib import Path

import contract
import numpy as np
import pytest
import torch

import tiny_models
from evalengine import store
from evalengine.cli import main
from evalengine.training.data.rows import IGNORE, NO_PAIR, Pairs, TrainingBatch
from evalengine.training.decoder.model import Decoder, Shape
from evalengine.training.fitting.loop import fit
from evalengine.training.fitting.state import Place
from evalengine.training.study import Pretrain

pytestmark = pytest.mark.gpu
STEPS = 12


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("architecture", "compiled"),
    [("llama", "on"), ("llama", "off"), ("qwen2", "off"), ("gemma2", "off"), ("gpt2", "off")],
)
def test_scores_keep_the_contract(
    cuda: str, architecture: str, compiled: str, dtype: str, tmp_path: Path
) -> None:
    """The contract of contract.py, with its float32 truth from a plain forward on the CPU."""
    path = tiny_models.save(tmp_path / "m", architecture)
    items = contract.encoded(path, contract.mixed())
    exact = contract.plain(path, "float32", items.sequences)
    plain = contract.truth(path, dtype, items.sequences, device=cuda, exact=exact)
    backend = contract.engine(dtype, device=cuda, compile=compiled)
    found = contract.score(backend, path, items.sequences)
    assert found.loglik is not None and found.path == "packed" and not found.notes, found.notes
    assert backend.modes[0].compiled == (compiled == "on")
    limit = contract.FLOAT32 if dtype == "float32" else 2 * plain.error + contract.HALF
    assert np.abs(found.loglik - exact.loglik).max() <= limit


def test_a_command_gives_the_scores_of_the_cpu(cuda: str, small_world: Path, tmp_path: Path) -> None:
    path = tiny_models.save(tmp_path / "1M-m-pt", "llama", window=1024)
    for device in ("cpu", cuda):
        where = [
            "--device",
            device,
            "--dtype",
            "float32",
            "--compile",
            "off",
            "--out",
            str(tmp_path / device),
        ]
        names = ["--benchmarks", "copa,arc_easy", "--data", str(small_world / "bench")]
        assert main(["score", str(path), *names, *where]) == 0
    for name in ("copa", "arc_easy"):
        cpu, gpu = (store.read(tmp_path / device / path.name / f"{name}.arrow") for device in ("cpu", cuda))
        flat = (np.concatenate(table["loglik"].to_pylist()) for table in (cpu, gpu))
        np.testing.assert_allclose(*flat, rtol=0, atol=contract.FLOAT32)


class Documents:
    """Batches as a function of the step: two documents a row, targets that are ignored, a next token that can be learnt."""

    steps = STEPS

    def batch(self, step: int) -> TrainingBatch:
        rng = np.random.default_rng(step)
        token = (rng.integers(0, 20, (8, 1)) + 3 * np.arange(65)) % 300
        position = np.tile(np.concatenate([np.arange(40), np.arange(24)]), (8, 1))
        target = token[:, 1:].copy()
        target[0, :7] = IGNORE
        return TrainingBatch(token[:, :-1], position, target, f"rows of step {step}")


class Preferences(Documents):
    """The same rows: the end of the first document is preferred to that of the second, which goes on at random."""

    def batch(self, step: int) -> TrainingBatch:
        batch = super().batch(step)
        label = np.full(batch.target_BT.shape, NO_PAIR)
        label[:, 34:40], label[:, 58:64] = 2 * np.arange(8)[:, None], 2 * np.arange(8)[:, None] + 1
        target = np.where(label == NO_PAIR, IGNORE, batch.target_BT)
        target[:, 58:64] = np.random.default_rng((step, 1)).integers(0, 300, (8, 6))
        return batch._replace(target_BT=target, pairs=Pairs(label, np.zeros(8), 0.1))


def losses(log: Path, place: Place, batches: Documents) -> np.ndarray:
    shape = Shape(d_model=64, layers=2, heads=2, head_dim=32, ffn=128, vocab=300, context=64)
    model = Decoder(shape).initialise(torch.Generator().manual_seed(2))
    fit(model, batches, Pretrain(tokens=0, lr=5e-3, warmup=0.2), place)
    return np.array([json.loads(line)["loss"] for line in log.read_text().splitlines()])


@pytest.mark.parametrize(
    ("batches", "fall"), [(Documents(), 0.5), (Preferences(), 0.2)], ids=["targets", "pairs"]
)
@pytest.mark.parametrize(
    ("autocast", "compiled", "close"), [(False, False, 1e-3), (True, False, 0.05), (True, True, 0.05)]
)
def test_training_steps_are_those_of_the_cpu(
    cuda: str, autocast: bool, compiled: bool, close: float, batches: Documents, fall: float, tmp_path: Path
) -> None:
    cpu = losses(tmp_path / "cpu", Place("cpu", log=tmp_path / "cpu"), batches)
    place = Place(cuda, autocast=autocast, compile=compiled, log=tmp_path / "gpu")
    gpu = losses(tmp_path / "gpu", place, batches)
    assert len(gpu) == STEPS and cpu[-1] < cpu[0] - fall
    np.testing.assert_allclose(gpu, cpu, rtol=0, atol=close)
