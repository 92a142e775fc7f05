"""MFU of the progress line, by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from evalengine.training.data.rows import TrainingBatch
from evalengine.training.decoder.model import Decoder, Shape
from evalengine.training.fitting.loop import Step, fit
from evalengine.training.fitting.mfu import Utilisation, peak_flops, peak_of
from evalengine.training.fitting.state import Place
from evalengine.training.study import Pretrain


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H200", 989e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA A10", 125e12),
        ("NVIDIA GeForce GTX 1080", None),
    ],
)
def test_peaks_by_device_name(name: str, peak: float | None):
    assert peak_flops(name) == peak


def test_utilisation_counts_from_the_first_report():
    used = Utilisation(1000.0)
    assert used.add(5e9, now=10.0) == ""  # loading and compiling
    assert used.add(900.0, now=12.0) == ", MFU 45%"
    assert used.add(1100.0, now=14.0) == ", MFU 50%"
    assert Utilisation(None).add(1.0, now=1.0) == ""
    assert peak_of("cpu") is None


def test_a_steps_flops_are_those_of_its_documents(tmp_path: Path):
    """Two rows of documents of 3 and 1 tokens: attended 1, 2, 3 and 1, in the mean 7/4."""
    shape = Shape(d_model=32, layers=2, heads=1, head_dim=32, ffn=48, vocab=64, context=4)

    class Rows:
        steps = 1

        def batch(self, step: int) -> TrainingBatch:
            token = np.arange(8).reshape(2, 4)
            return TrainingBatch(token, np.array([[0, 1, 2, 0]] * 2), token, "")

    seen: list[Step] = []
    model = Decoder(shape).initialise(torch.Generator().manual_seed(0))
    fit(model, Rows(), Pretrain(tokens=8, lr=1e-3), Place(), seen.append)
    matrices = 2 * (4 * 32 * 32 + 3 * 32 * 48) + 64 * 32
    assert seen[0].flops == 8 * (6 * matrices + 12 * 2 * 32 * 7 / 4)
