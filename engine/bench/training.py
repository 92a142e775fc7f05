"""`evalengine bench training`: tokens per second against a plain loop, and the memory of the loss.

The baseline is `plain_loop.py`. Both sides see the same model, batches and optimiser settings. Each measurement is a process of
its own (memory settings and peaks do not leak), the sides alternate, the median of each counts; on a CPU the trainer is not
compiled, as `evalengine train` does not by default there, and one compiled measurement is shown with it. The share of the
machine's rate is model FLOPs over the rate of bare matrix products, measured in the process of our loop; on a GPU whose peak is
known also MFU, model FLOPs over that peak. A profile of the last steps of our loop, which are not timed, says where time goes.

Dims: B rows, T positions, D hidden, V vocabulary.
"""

from __future__ import annotations

import shutil
import time
from functools import partial
from typing import Any, NamedTuple

from evalengine.bench.harness import Result, Side, Table, alone, medians, peak_memory, silent_stderr
from evalengine.errors import UserError

ROUNDS = 2
WARM_STEPS, PROFILED_STEPS = 2, 3  # before and after the timed ones
COLUMNS = ["case", "evalengine", "plain loop", "ratio", "of the matrix-product rate"]
LOSS_ROWS, LOSS_D, LOSS_V = 2048, 256, 100_864


class Case(NamedTuple):
    """A model and batch to train on."""

    name: str
    shape: tuple[int, int, int, int, int, int, int]  # Shape's first fields, up to context
    rows: int
    steps: int  # that are timed
    document: int = 0  # tokens of a document; 0: a row is one


CASES = {
    "cpu": (
        Case("0.2M, vocabulary 1k", (64, 3, 2, 32, 192, 1024, 256), 4, 40),
        Case("0.4M, vocabulary 4k, documents of 150", (64, 3, 2, 32, 192, 4096, 512), 2, 30, document=150),
        Case("1M, vocabulary 4k", (128, 4, 4, 32, 384, 4096, 256), 8, 12),
        Case("8M, vocabulary 16k", (256, 6, 8, 32, 768, 16384, 512), 4, 4),
    ),
    "cuda": (Case("240M, vocabulary 100,864", (768, 8, 8, 256, 6144, 100_864, 4096), 8, 9),),
}


class Ours(NamedTuple):
    """One measurement of the trainer."""

    tokens_per_second: float
    product_rate: float  # FLOP/s of bare matrix products on one device
    peak: float | None  # FLOP/s by the maker's data sheet, where it is known
    profile: list[list[str]]


def run(quick: bool = False, device: str = "cpu") -> Result:
    """`quick` runs the first case once. Ratios above 1 favour the trainer."""
    kind = device.split(":")[0]
    if kind not in CASES:
        raise UserError(f"--device must be cpu or cuda, not {device}")
    if kind == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise UserError("this machine has no CUDA device: leave --device out")
    cases = CASES[kind][:1] if quick else CASES[kind]
    rows: list[list[str]] = []
    ratios: dict[str, float] = {}
    profiles: list[Table] = []
    for case in cases:
        row, found, profile = compare(case, device, quick)
        rows.append(row)
        ratios |= found
        if case in (cases[0], cases[-1]):
            profiles.append(profile)
    if kind == "cpu":
        ours, plain = (alone(loss_memory, side) for side in ("ours", "plain"))
        name = f"memory of the loss, vocabulary {LOSS_V:,}"
        ratios[name] = plain / ours
        rows.append([name, f"{ours:,.0f} MiB", f"{plain:,.0f} MiB", f"{plain / ours:.2f}", ""])
    return Result(Table(f"training against a plain loop, {device}", COLUMNS, rows), ratios, profiles)


def compare(case: Case, device: str, quick: bool) -> tuple[list[str], dict[str, float], Table]:
    """(row of the table, ratios, profile) of one case."""
    gpu = device.startswith("cuda")
    measured: list[Ours] = []

    def ours() -> float:
        measured.append(alone(our_side, case, device, gpu))
        return measured[-1].tokens_per_second

    sides: dict[str, Side] = {"ours": ours, "plain": partial(alone, plain_side, case, device)}
    rate = medians(sides, 1 if quick or gpu else ROUNDS)
    last, flops = measured[-1], rate["ours"] * decoder_shape(case).flops_per_token()
    shares = {"share of the matrix-product rate": flops / last.product_rate}
    if last.peak:
        shares["MFU"] = flops / last.peak
    ratio = rate["ours"] / rate["plain"]
    ratios = {f"tokens/s, {case.name}": ratio} | {f"{k}, {case.name}": v for k, v in shares.items()}
    fast, plain = (f"{value:,.0f} tokens/s" for value in rate.values())
    if not gpu and not quick and shutil.which("g++"):
        fast += f" (compiled {alone(our_side, case, device, True).tokens_per_second:,.0f})"
    share = ", MFU ".join(f"{value:.0%}" for value in shares.values())
    profile = Table(f"where a step's time goes, {case.name}", ["part", "share of the time"], last.profile)
    return [case.name, fast, plain, f"{ratio:.2f}", share], ratios, profile


def decoder_shape(case: Case) -> Any:
    from evalengine.training.model import Shape

    return Shape(*case.shape)


class Rows:
    """Random tokens, in rows of one document or of several, where attention must stay inside them."""

    def __init__(self, case: Case) -> None:
        self.document = case.document
        self.shape, self.rows, self.steps = (
            decoder_shape(case),
            case.rows,
            WARM_STEPS + case.steps + PROFILED_STEPS,
        )

    def batch(self, step: int) -> Any:
        import numpy as np

        from evalengine.training.rows import Batch

        context = self.shape.context
        token = np.random.default_rng(step).integers(0, self.shape.vocab, (self.rows, context + 1))
        position = np.tile(np.arange(context) % (self.document or context), (self.rows, 1))
        return Batch(token[:, :-1], position, token[:, 1:], "random tokens")


def plain_side(case: Case, device: str) -> float:
    """Tokens per second."""
    from evalengine.bench import plain_loop

    stamps: list[float] = []
    plain_loop.run(decoder_shape(case), Rows(case), device, lambda loss: stamps.append(time.perf_counter()))
    return rate_of(case, stamps)


def rate_of(case: Case, stamps: list[float]) -> float:
    """Tokens per second of the timed steps, by the times at which all of them ended."""
    seconds = stamps[WARM_STEPS + case.steps - 1] - stamps[WARM_STEPS - 1]
    return case.steps * case.rows * decoder_shape(case).context / seconds


def our_side(case: Case, device: str, compiled: bool) -> Ours:
    """As `evalengine train` runs it on this device."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    from evalengine.training.loop import fit
    from evalengine.training.mfu import peak_of
    from evalengine.training.model import Decoder
    from evalengine.training.plan import product_rate
    from evalengine.training.state import Place
    from evalengine.training.study import Pretrain
    from evalengine.training.workers import keep_freed_memory

    keep_freed_memory()
    gpu = device.startswith("cuda")
    model = Decoder(decoder_shape(case)).initialise(torch.Generator().manual_seed(0))
    profiler = profile(activities=[ProfilerActivity.CUDA if gpu else ProfilerActivity.CPU])
    stamps: list[float] = []
    began: list[float] = []  # when the profiler was ready

    def report(step: Any) -> None:
        stamps.append(time.perf_counter())
        if step.step == step.steps - PROFILED_STEPS:
            with silent_stderr():
                profiler.start()
            began.append(time.perf_counter())
        if step.step == step.steps:
            with silent_stderr():
                profiler.stop()

    place = Place(device, autocast=gpu, compile=compiled)
    fit(model, Rows(case), Pretrain(tokens=0, lr=1e-3), place, report)
    products = product_rate(device) / (torch.cuda.device_count() if gpu else 1)
    profiled = profile_rows(profiler, stamps[-1] - began[0], gpu)
    return Ours(rate_of(case, stamps), products, peak_of(device), profiled)


def loss_memory(side: str) -> float:
    """MiB that the loss and its gradients add to the peak of resident memory. (The kernels' benchmark has the GPU's.)"""
    import torch
    import torch.nn.functional as F

    from evalengine.kernels import linear_cross_entropy

    h = torch.randn(LOSS_ROWS, LOSS_D, requires_grad=True)
    w = torch.randn(LOSS_V, LOSS_D, requires_grad=True)
    target = torch.randint(0, LOSS_V, (LOSS_ROWS,))
    before = peak_memory()
    if side == "ours":
        linear_cross_entropy(h, w, target, reduction="sum").backward()
    else:
        F.cross_entropy(F.linear(h, w), target, reduction="sum").backward()
    return peak_memory() - before


# A profile's parts: the first whose mark occurs in the names of an event and of those it lies in.
PARTS = (
    ("optimiser and clipping", ("Optimizer.step", "adam", "foreach", "multi_tensor", "_norm_")),
    ("output layer and loss", ("linear_cross_entropy", "LinearCrossEntropy", "cross_entropy")),
    ("attention", ("scaled_dot_product", "flex", "flash", "triton_tem")),
    ("matrix products", ("aten::mm", "addmm", "bmm", "matmul", "gemm", "nvjet", "cutlass", "xmma")),
)
REST, OUTSIDE = "norms, rotations, activations, sums", "outside of operators (Python, batches)"


def profile_rows(profiler: Any, wall: float, gpu: bool) -> list[list[str]]:
    """Shares of the `wall` seconds that were profiled, by part, largest first."""
    import torch

    kind = torch.autograd.DeviceType.CUDA if gpu else torch.autograd.DeviceType.CPU
    spent = dict.fromkeys([name for name, _ in PARTS] + [REST], 0.0)
    for event in profiler.events():
        if event.device_type == kind:
            micros = event.time_range.elapsed_us() if gpu else event.self_cpu_time_total
            spent[part_of(event)] += micros * 1e-6
    spent[OUTSIDE] = max(0.0, wall - sum(spent.values()))
    ordered = sorted(spent.items(), key=lambda pair: -pair[1])
    return [[name, f"{seconds / wall:.0%}"] for name, seconds in ordered]


def part_of(event: Any) -> str:
    names, above = [], event
    while above is not None:
        names.append(above.name)
        above = above.cpu_parent
    return next((part for part, marks in PARTS if any(m in name for name in names for m in marks)), REST)
