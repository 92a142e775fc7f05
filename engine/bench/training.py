"""`evalengine bench training`: tokens per second against a plain loop, and the memory of the loss.

The baseline is `plain_loop.py`. Both sides see the same model, batches and optimiser settings. Each measurement is a process of
its own (memory settings and peaks do not leak), the sides alternate, the median of each counts; on a CPU the trainer is not
compiled, as `evalengine train` does not by default there, and one compiled measurement is shown with it. The share of the
machine's rate is model FLOPs over the rate of bare matrix products; on a GPU whose peak is known also MFU, model FLOPs over
that peak.

Dims: B rows, T positions, D hidden, V vocabulary.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from evalengine.bench import plain_loop
from evalengine.bench.harness import Measurement, Row, alone, medians, peak_memory
from evalengine.kernels import linear_cross_entropy
from evalengine.training.data.rows import TrainingBatch
from evalengine.training.decoder.model import Decoder, Shape
from evalengine.training.fitting.loop import fit
from evalengine.training.fitting.mfu import peak_of
from evalengine.training.fitting.state import Place
from evalengine.training.plan import product_rate
from evalengine.training.study import Pretrain
from evalengine.training.workers import keep_freed_memory

ROUNDS = 2
WARM_STEPS = 2  # before those that are timed
COLUMNS = ["case", "evalengine", "plain loop", "ratio", "of the matrix-product rate"]
LOSS_ROWS, LOSS_D, LOSS_V = 2048, 256, 100_864


class TrainingCase(NamedTuple):
    """A model and batch to train on."""

    name: str
    shape: Shape
    rows: int
    steps: int  # that are timed
    document: int = 0  # tokens of a document; 0: a row is one


CASES = {
    "cpu": (
        TrainingCase("0.2M, vocabulary 1k", Shape(64, 3, 2, 32, 192, 1024, 256), 4, 40),
        TrainingCase(
            "0.4M, vocabulary 4k, documents of 150", Shape(64, 3, 2, 32, 192, 4096, 512), 2, 30, 150
        ),
        TrainingCase("1M, vocabulary 4k", Shape(128, 4, 4, 32, 384, 4096, 256), 8, 12),
        TrainingCase("8M, vocabulary 16k", Shape(256, 6, 8, 32, 768, 16384, 512), 4, 4),
    ),
    "cuda": (TrainingCase("240M, vocabulary 100,864", Shape(768, 8, 8, 256, 6144, 100_864, 4096), 8, 9),),
}


class RandomBatches:
    """Random tokens, in rows of one document or of several, where attention must stay inside them."""

    def __init__(self, case: TrainingCase) -> None:
        self.case, self.steps = case, WARM_STEPS + case.steps

    def batch(self, step: int) -> TrainingBatch:
        context, rows = self.case.shape.context, self.case.rows
        token_BT = np.random.default_rng(step).integers(0, self.case.shape.vocab, (rows, context + 1))
        position_BT = np.tile(np.arange(context) % (self.case.document or context), (rows, 1))
        return TrainingBatch(token_BT[:, :-1], position_BT, token_BT[:, 1:], "random tokens")


def run(quick: bool = False, device: str = "cpu") -> Measurement:
    """`quick` runs the first case once. Ratios above 1 favour the trainer."""
    kind = device.split(":")[0]
    rows: list[Row] = []
    ratios: dict[str, float] = {}
    for case in CASES[kind][: 1 if quick else None]:
        row, found = compare(case, device, quick)
        rows.append(row)
        ratios |= found
    if kind == "cpu":
        ours, plain = (alone(loss_memory, side) for side in ("ours", "plain"))
        name = f"memory of the loss, vocabulary {LOSS_V:,}"
        ratios[name] = plain / ours
        rows.append([name, f"{ours:,.0f} MiB", f"{plain:,.0f} MiB", f"{plain / ours:.2f}", ""])
    return Measurement(f"training against a plain loop, {device}", COLUMNS, rows, ratios)


def compare(case: TrainingCase, device: str, quick: bool) -> tuple[Row, dict[str, float]]:
    """(row of the table, ratios) of one case."""
    gpu = device.startswith("cuda")
    ours_alone, plain_alone = (
        partial(alone, our_rate, case, device, gpu),
        partial(alone, plain_rate, case, device),
    )
    rate = medians({"ours": ours_alone, "plain": plain_alone}, 1 if quick or gpu else ROUNDS)
    flops = rate["ours"] * case.shape.flops_per_token()
    shares = {"share of the matrix-product rate": flops / alone(product_rate, device)}
    if peak := peak_of(device):
        shares["MFU"] = flops / peak
    ratio = rate["ours"] / rate["plain"]
    ours, plain = (f"{value:,.0f} tokens/s" for value in rate.values())
    if not gpu and not quick and shutil.which("g++"):
        ours += f" (compiled {alone(our_rate, case, device, True):,.0f})"
    share = ", MFU ".join(f"{value:.0%}" for value in shares.values())
    ratios = {f"{k}, {case.name}": v for k, v in ({"tokens/s": ratio} | shares).items()}
    return [case.name, ours, plain, f"{ratio:.2f}", share], ratios


def our_rate(case: TrainingCase, device: str, compiled: bool) -> float:
    """Tokens per second, as `evalengine train` runs on this device."""
    keep_freed_memory()
    model = Decoder(case.shape).initialise(torch.Generator().manual_seed(0))
    place = Place(device, autocast=device.startswith("cuda"), compile=compiled)
    return rate_of(
        case, lambda report: fit(model, RandomBatches(case), Pretrain(tokens=0, lr=1e-3), place, report)
    )


def plain_rate(case: TrainingCase, device: str) -> float:
    """Tokens per second of the plain loop."""
    return rate_of(case, lambda report: plain_loop.run(case.shape, RandomBatches(case), device, report))


def rate_of(case: TrainingCase, train: Callable[[Callable[[object], None]], object]) -> float:
    """Tokens per second of the timed steps of a loop that reports the end of each step."""
    ends: list[float] = []
    train(lambda step: ends.append(time.perf_counter()))
    return case.steps * case.rows * case.shape.context / (ends[-1] - ends[WARM_STEPS - 1])


def loss_memory(side: str) -> float:
    """MiB that the loss and its gradients add to the peak of resident memory."""
    h = torch.randn(LOSS_ROWS, LOSS_D, requires_grad=True)
    w = torch.randn(LOSS_V, LOSS_D, requires_grad=True)
    target = torch.randint(0, LOSS_V, (LOSS_ROWS,))
    before = peak_memory()
    if side == "ours":
        linear_cross_entropy(h, w, target, reduction="sum").backward()
    else:
        F.cross_entropy(F.linear(h, w), target, reduction="sum").backward()
    return peak_memory() - before
