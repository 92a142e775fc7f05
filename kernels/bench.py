"""`evalengine bench kernels`: the kernels against what a user would take instead, on the shapes of real
models.

Per shape, all contenders are warmed, then timed in turns (so that a drift of the machine meets all alike);
the bare GEMM into a buffer that already exists is the limit. Memory is the peak beyond inputs; errors are
against float64 on a few rows. Baselines that are not installed, do not run on the device or would not fit are
left out.

Cost: about three minutes on two CPU cores, under eight on a GPU; seconds with `quick`.
"""

from __future__ import annotations

import contextlib
import functools
import os
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from evalengine.kernels.linear_cross_entropy import linear_cross_entropy
from evalengine.kernels.target_logprobs import target_logprobs

CHECKED_ROWS = 8
COLUMNS = ["model, NxDxV", "what", "ms", "p20", "p80", "ratio", "of GEMM", "GB/s", "MiB", "error"]


class Shape(NamedTuple):
    """A head, the rows that meet it, and the model it belongs to."""

    model: str
    rows: int
    hidden: int
    vocab: int
    softcap: float | None = None

    def label(self, dtype: torch.dtype) -> str:
        short = {torch.float32: "fp32", torch.bfloat16: "bf16"}[dtype]
        return f"{self.model} {self.rows}x{self.hidden}x{self.vocab} {short}"


class Case(NamedTuple):
    """The tensors of one measurement. One target a row."""

    shape: Shape
    h_ND: Tensor
    w_VD: Tensor
    row_N: Tensor
    token_N: Tensor


class Contender(NamedTuple):
    """Something to time; `answer` picks the per-row log-probabilities (or the loss) out of what it
    returns."""

    name: str
    call: Callable[[], Any]
    answer: Callable[[Any], Tensor] | None


class Timing(NamedTuple):
    p20: float  # milliseconds
    p50: float
    p80: float


HEADS = {  # model: hidden size, vocabulary, final soft-cap
    "study 240M": (768, 100_864, None),
    "study 1B": (1_680, 100_864, None),
    "GPT-2": (768, 50_257, None),
    "Llama-3 8B": (4_096, 128_256, None),
    "Gemma-2 2B": (2_304, 256_000, 30.0),
    "Qwen2.5 7B": (3_584, 152_064, None),
    "target": (2_048, 100_864, None),
}


def shapes(device: str, quick: bool) -> Iterator[tuple[Shape, torch.dtype]]:
    """What is measured where."""
    if quick:
        for dtype in (torch.float32, torch.bfloat16):
            yield Shape("small", 256, 128, 5_003), dtype
    elif device == "cuda":
        for model, (hidden, vocab, softcap) in HEADS.items():
            for rows in (64, 4_096) if model != "target" else (64, 1_024, 4_096, 16_384):
                yield Shape(model, rows, hidden, vocab, softcap), torch.bfloat16
        yield Shape("target", 1_024, 2_048, 100_864), torch.float32
    else:
        for hidden, vocab in ((128, 5_003), (512, 50_257)):
            for dtype in (torch.float32, torch.bfloat16):
                for rows in (64, 1_024):
                    yield Shape("small", rows, hidden, vocab), dtype
        yield Shape("GPT-2", 1_024, 768, 50_257), torch.float32
        yield Shape("study 240M", 1_024, 768, 100_864), torch.float32


def run(quick: bool = False, device: str | None = None) -> dict[str, Any]:
    """Measures and returns {"title", "columns", "rows", "ratios": {name: number}}."""
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    rounds = 3 if quick else 5
    rows: list[list[str]] = []
    ratios: dict[str, float] = {}
    for shape, dtype in shapes(device, quick):
        case = make_case(shape, dtype, device)
        for kind, contenders, flops in (
            ("score", scoring(case), 2.0),
            ("train", training(case) if shape.rows >= 256 else [], 6.0),
        ):
            if contenders:
                measure(kind, case, dtype, contenders, flops, rounds, rows, ratios)
        del case, contenders
    if device == "cuda" and not quick:
        sweep(rows, rounds)
    title = (
        f"Kernels on {device}, rows x hidden x vocabulary. score: log-probabilities; train: loss and gradients. "
        "ratio: time / ours; of GEMM: share of the bare GEMM's rate; GB/s: reading of the head; "
        "MiB: peak beyond inputs; error: largest against float64"
    )
    return {"title": title, "columns": COLUMNS, "rows": rows, "ratios": ratios}


def make_case(shape: Shape, dtype: torch.dtype, device: str) -> Case:
    generator = torch.Generator(device).manual_seed(0)
    h_ND = torch.randn(shape.rows, shape.hidden, device=device, generator=generator).to(dtype)
    w_VD = torch.randn(shape.vocab, shape.hidden, device=device, generator=generator).to(dtype)
    w_VD *= 3 / shape.hidden**0.5
    token_N = torch.randint(shape.vocab, (shape.rows,), device=device, generator=generator)
    return Case(shape, h_ND, w_VD, torch.arange(shape.rows, device=device), token_N)


def scoring(case: Case) -> list[Contender]:
    """Ours first, then the alternatives for scoring, then the bare GEMM."""
    shape, h_ND, w_VD, row_N, token_N = case
    cap = shape.softcap

    def logits(h: Tensor) -> Tensor:
        x = F.linear(h, w_VD)
        return x if cap is None else cap * torch.tanh(x / cap)

    def materialised() -> Tensor:
        x_NV = logits(h_ND)
        greedy = x_NV.argmax(1) == token_N  # the engine needs it too
        return x_NV.log_softmax(-1)[row_N, token_N] + 0 * greedy

    def in_float32() -> Tensor:
        return logits(h_ND).float().log_softmax(-1)[row_N, token_N]

    def chunked() -> Tensor:
        parts = zip(h_ND.split(256), token_N.split(256), strict=True)
        return torch.cat([logits(h).log_softmax(-1).gather(1, t[:, None])[:, 0] for h, t in parts])

    found = [
        Contender(
            "target_logprobs",
            lambda: target_logprobs(h_ND, w_VD, row_N, token_N, softcap=cap),
            lambda x: x.logprob_T,
        ),
        Contender("chunked log_softmax", chunked, _itself),
    ]
    if shape.rows * shape.vocab <= 2**31 / (1 if h_ND.is_cuda else 4):  # three copies of the logits
        found.append(Contender("F.linear + log_softmax", materialised, _itself))
        if h_ND.dtype != torch.float32:
            found.append(Contender("F.linear + float32 log_softmax", in_float32, _itself))
        if h_ND.is_cuda:
            found.append(
                Contender("torch.compile of it", torch.compile(materialised, dynamic=False), _itself)
            )
    if cap is None:
        found.append(Contender("F.linear_cross_entropy", lambda: -_torch_fused(case, "none"), _itself))
    found += optional_losses(case, gradients=False)
    out_NV = torch.empty(shape.rows, shape.vocab, dtype=h_ND.dtype, device=h_ND.device)
    found.append(Contender("bare GEMM", lambda: torch.mm(h_ND, w_VD.t(), out=out_NV), None))
    return found


def training(case: Case) -> list[Contender]:
    """Ours first, then the alternatives for a loss with gradients."""
    cap = case.shape.softcap

    def ours(case: Case) -> Tensor:
        return linear_cross_entropy(case.h_ND, case.w_VD, case.token_N, softcap=cap)

    def materialised(case: Case) -> Tensor:
        x_NV = F.linear(case.h_ND, case.w_VD)
        return F.cross_entropy(x_NV if cap is None else cap * torch.tanh(x_NV / cap), case.token_N)

    found = [Contender("linear_cross_entropy", _with_gradients(ours, case), _itself)]
    if case.shape.rows * case.shape.vocab <= 2**31 / (1 if case.h_ND.is_cuda else 4):
        found.append(Contender("F.linear + cross_entropy", _with_gradients(materialised, case), _itself))
    if cap is None:
        fused = _with_gradients(lambda c: _torch_fused(c, "mean"), case)
        found.append(Contender("F.linear_cross_entropy", fused, _itself))
    return found + optional_losses(case, gradients=True)


def optional_losses(case: Case, *, gradients: bool) -> list[Contender]:
    """Liger's and Apple's fused losses where they are installed; both need CUDA."""
    if not case.h_ND.is_cuda:
        return []
    losses: dict[str, Callable[[Case], Tensor]] = {}
    with contextlib.suppress(ImportError):
        from liger_kernel.transformers.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyLoss

        liger = LigerFusedLinearCrossEntropyLoss(softcap=case.shape.softcap)
        losses["Liger fused loss"] = lambda c: liger(c.w_VD, c.h_ND, c.token_N)
    with contextlib.suppress(ImportError):
        from cut_cross_entropy import linear_cross_entropy as cce

        losses["cut-cross-entropy"] = lambda c: cce(c.h_ND, c.w_VD, c.token_N, softcap=c.shape.softcap)
    if gradients:
        return [Contender(name, _with_gradients(loss, case), _itself) for name, loss in losses.items()]
    return [Contender(name, functools.partial(loss, case), None) for name, loss in losses.items()]


def _torch_fused(case: Case, reduction: str) -> Tensor:
    """PyTorch's own fused loss (torch >= 2.13), chunked."""
    options = torch.nn.LinearCrossEntropyOptions()
    return F.linear_cross_entropy(case.h_ND, case.w_VD, case.token_N, reduction=reduction, options=options)


def _with_gradients(loss: Callable[[Case], Tensor], case: Case) -> Callable[[], Tensor]:
    leaves = case._replace(h_ND=case.h_ND.detach().requires_grad_(), w_VD=case.w_VD.detach().requires_grad_())

    def step() -> Tensor:
        leaves.h_ND.grad = leaves.w_VD.grad = None
        value = loss(leaves)
        value.backward()
        return value.detach()

    return step


def _itself(x: Any) -> Tensor:
    return x


def measure(
    kind: str,
    case: Case,
    dtype: torch.dtype,
    contenders: list[Contender],
    flops: float,
    rounds: int,
    rows: list[list[str]],
    ratios: dict[str, float],
) -> None:
    """Times the contenders in turns and appends their lines; the first is ours."""
    shape = case.shape
    running = [c for c in contenders if _runs(c)]
    times: list[list[float]] = [[] for _ in running]
    for _ in range(rounds):
        for contender, into in zip(running, times, strict=True):
            into.append(_milliseconds(contender.call, case.h_ND.device.type))
    timings = [Timing(*(statistics.quantiles(t, n=10)[i] for i in (1, 4, 7))) for t in times]
    by_name = {c.name: t for c, t in zip(running, timings, strict=True)}
    work = flops * shape.rows * shape.hidden * shape.vocab
    gemm = by_name.get("bare GEMM")
    truth = _truth(case) if kind == "score" else None
    for contender, timing in zip(running, timings, strict=True):
        faster = timing.p50 / timings[0].p50
        rate = work / timing.p50
        share = (
            "" if gemm is None else f"{rate / (2 * shape.rows * shape.hidden * shape.vocab / gemm.p50):.2f}"
        )
        gigabytes = case.w_VD.numel() * case.w_VD.element_size() / timing.p50 / 1e6
        error = ""
        if truth is not None and contender.answer is not None:
            answer = contender.answer(contender.call())[:CHECKED_ROWS].double().cpu()
            error = f"{float((answer - truth).abs().max()):.1e}"
        rows.append(
            [
                shape.label(dtype),
                f"{kind}: {contender.name}",
                f"{timing.p50:.2f}",
                f"{timing.p20:.2f}",
                f"{timing.p80:.2f}",
                "" if contender is running[0] else f"{faster:.2f}x",
                share,
                f"{gigabytes:.0f}" if kind == "score" else "",
                f"{_extra_mib(contender.call, case.h_ND.device.type):.1f}",
                error,
            ]
        )
        if contender is not running[0]:
            ratios[f"{kind} {shape.label(dtype)}: {contender.name} / ours"] = round(faster, 3)


def _runs(contender: Contender) -> bool:
    """Warms it up; a baseline that cannot run here is left out, ours never."""
    try:
        for _ in range(2):
            contender.call()
    except (RuntimeError, AttributeError, NotImplementedError, TypeError):
        if contender.name in ("target_logprobs", "linear_cross_entropy"):
            raise
        return False
    return True


def _milliseconds(call: Callable[[], Any], device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        call()
        end.record()
        torch.cuda.synchronize()
        return float(start.elapsed_time(end))
    begin = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - begin)


def _extra_mib(call: Callable[[], Any], device: str) -> float:
    """Peak memory beyond what is allocated before the call, results included."""
    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    activities = [torch.profiler.ProfilerActivity.CPU]
    with _silent_stderr(), torch.profiler.profile(activities=activities, profile_memory=True) as seen:
        call()
    assert seen.profiler is not None and seen.profiler.kineto_results is not None
    events = [e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak / 2**20


@contextlib.contextmanager
def _silent_stderr() -> Iterator[None]:
    """The profiler's C++ code announces itself and remarks on memory that is older than it."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _truth(case: Case) -> Tensor:
    """float64 log-probabilities of the first rows."""
    h = case.h_ND[:CHECKED_ROWS].cpu().double()
    x = torch.cat([h @ part.cpu().double().t() for part in case.w_VD.split(16_384)], 1)
    cap = case.shape.softcap
    x = x if cap is None else cap * torch.tanh(x / cap)
    return x.log_softmax(1).gather(1, case.token_N[:CHECKED_ROWS, None].cpu())[:, 0]


def sweep(rows: list[list[str]], rounds: int) -> None:
    """Other tile configurations of the main kernel on the target shape: which one should ship?"""
    from evalengine.kernels.target_logprobs_triton import HOPPER_16BIT, TileConfig, target_logprobs_triton

    shape = Shape("target", 4_096, 2_048, 100_864)
    case = make_case(shape, torch.bfloat16, "cuda")
    candidates = [
        HOPPER_16BIT,
        TileConfig(128, 256, 64, warps=8, stages=4, tma=True),
        TileConfig(128, 256, 64, warps=8, stages=3, tma=False),
        TileConfig(128, 128, 64, warps=4, stages=3, tma=True),
        TileConfig(128, 128, 64, warps=8, stages=4, tma=True),
        TileConfig(64, 256, 64, warps=4, stages=4, tma=True),
    ]
    for config in candidates:

        def call(config: TileConfig = config) -> Any:
            return target_logprobs_triton(*case[1:], None, None, None, config=config)

        contender = Contender(str(tuple(config)), call, None)
        if not _runs(contender):
            continue
        timing = statistics.quantiles([_milliseconds(call, "cuda") for _ in range(rounds)], n=10)
        label = shape.label(torch.bfloat16)
        cells = [f"{timing[i]:.2f}" for i in (4, 1, 7)]
        rows.append([label, f"tile {contender.name}", *cells, "", "", "", "", ""])
