"""`evalengine bench kernels`: the kernels against what a user would take instead, on the shapes of real models.

Per shape, all contenders are warmed, then timed in turns; the bare GEMM into a buffer that already exists is the limit.
Errors are against float64 on a few rows; memory, on a GPU, is the peak beyond inputs. Baselines that are not installed, do not
run on the device or would not fit are left out.

Cost: a shape gets an equal share of the SECONDS that are left, and three rounds at least; shapes for which no time is left are
named and left out. Every line is shown as it is measured.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from evalengine import console
from evalengine.bench.harness import Measurement, Row, medians, rounds, timed
from evalengine.bench.kernel_contenders import (
    BETAS,
    GEMM,
    GEMMS,
    Call,
    HeadShape,
    KernelCase,
    emulating,
    logits,
    make_case,
    scoring,
    shift_of,
    training,
)
from evalengine.kernels.head import Head, HeadedRows

OURS = ("score: target_logprobs", "train: linear_cross_entropy", "emulate: emulated_logprobs")
KINDS = {"score": scoring, "train": training, "emulate": emulating}
CHECKED_ROWS = 8
HOPELESS = 10  # a baseline this many times slower has said enough; the time is the others'
COLUMNS = ["model, NxDxV", "what", "ms", "ratio", "of GEMM", "MiB", "error"]
SECONDS = {"cpu": 120.0, "cuda": 90.0}  # of measuring, all shapes together
MIN_ROUNDS, MAX_ROUNDS = 3, 20

HEADS = {  # model: hidden size, vocabulary, final soft-cap
    "study 240M": (768, 100_864, None),
    "study 1B": (1_680, 100_864, None),
    "GPT-2": (768, 50_257, None),
    "Llama-3 8B": (4_096, 128_256, None),
    "Gemma-2 2B": (2_304, 256_000, 30.0),
    "Qwen2.5 7B": (3_584, 152_064, None),
    "target": (2_048, 100_864, None),
}


def shapes(device: str, quick: bool) -> list[HeadShape]:
    """What is measured where: on a GPU the most telling first, on a CPU the smallest, where a hopeless baseline costs little."""
    fp32, bf16 = torch.float32, torch.bfloat16
    if quick:
        return [HeadShape("small", 256, 128, 5_003, dtype=dtype) for dtype in (fp32, bf16)]
    if device != "cpu":
        rows = [(model, n) for model in HEADS for n in (4_096, 64)]
        rows += [("target", 1_024), ("target", 16_384), ("study 240M", 8_192)]
        rows.sort(key=lambda x: x[0] != "target")
        full = {("target", 4_096), ("study 240M", 8_192), ("Llama-3 8B", 4_096)}
        found = [HeadShape(model, n, *HEADS[model], everything=(model, n) in full) for model, n in rows]
        return [*found, HeadShape("target", 1_024, *HEADS["target"], dtype=fp32)]
    small = [
        HeadShape("small", n, hidden, vocab, dtype=dtype)
        for hidden, vocab in ((128, 5_003), (512, 50_257))
        for dtype in (fp32, bf16)
        for n in (64, 512)
    ]
    real = [("GPT-2", fp32, False), ("study 240M", bf16, False), ("study 240M", fp32, True)]
    return small + [HeadShape(model, 256, *HEADS[model], dtype, full) for model, dtype, full in real]


def run(quick: bool = False, device: str = "cpu") -> Measurement:
    rows: list[Row] = []
    ratios: dict[str, float] = {}
    failures: list[str] = []
    hopeless: set[str] = set()
    end = time.perf_counter() + SECONDS[device.split(":")[0]]
    cases = shapes(device, quick)
    for i, shape in enumerate(cases):
        left = end - time.perf_counter()
        if left <= 0:
            console.say(f"no time left for {shape}")
            continue
        seconds = 0.5 if quick else left / (len(cases) - i) / len(KINDS)
        case = make_case(shape, device)
        for kind in KINDS if shape.rows >= 256 else ("score",):
            contenders = KINDS[kind](case)
            calls = {
                what: call for name, call in contenders.items() if (what := f"{kind}: {name}") not in hopeless
            }
            try:
                took = measure(calls, seconds, case.h_ND.is_cuda)
            except (RuntimeError, AssertionError) as problem:  # the other shapes keep their figures
                failures.append(f"{kind} {shape}: {(str(problem).strip() or 'no reason').splitlines()[0]}")
                console.say(f"failed: {failures[-1]}")
                continue
            ours, *others = took
            ratios |= {f"{shape}, {what} / ours": round(took[what] / took[ours], 3) for what in others}
            hopeless |= {what for what in others if took[what] > HOPELESS * took[ours]}
            for row in table_rows(kind, case, calls, took):
                console.say("  ".join(filter(None, row)))
                rows.append(row)
    title = (
        f"Kernels on {device}, rows x hidden x vocabulary. score: log-probabilities; train: loss and gradients; emulate: "
        f"log-probabilities at {len(BETAS)} strengths of a shift by two heads of half the width. "
        "ratio: time / ours; of GEMM: share of the rate of the bare GEMM, or of the three that a loss needs; "
        "MiB: peak beyond inputs, on a GPU; "
        f"error: largest against float64. What takes {HOPELESS}x as long as ours is left out from there on"
    )
    return Measurement(title, COLUMNS, rows, ratios, failures=failures)


def measure(calls: dict[str, Call], seconds: float, gpu: bool) -> dict[str, float]:
    """Median milliseconds of the contenders that run here, ours first."""
    once = {what: functools.partial(attempt, what, milliseconds, call, gpu) for what, call in calls.items()}
    rounds(once, 1)  # compiles them
    took = medians(once, 1)
    ours = next(iter(took.values()))
    lasting = {what: once[what] for what, ms in took.items() if ms <= HOPELESS * ours}
    count = int(1e3 * seconds / sum(took[what] for what in lasting))
    return took | medians(lasting, min(MAX_ROUNDS, max(MIN_ROUNDS, count)))


def table_rows(kind: str, case: KernelCase, calls: dict[str, Call], took: dict[str, float]) -> list[Row]:
    own = HeadedRows(case.h_ND, Head(case.w_VD, softcap=case.shape.softcap))
    truth = float64_logprobs(shift_of(case) if kind == "emulate" else [own], case.token_N)
    ours, gemm = next(iter(took.values())), took.get(f"score: {GEMM}") or took.get(f"train: {GEMMS}")
    rows: list[Row] = []
    for what, ms in took.items():
        known = ms <= HOPELESS * ours and attempt(
            what, memory_and_error, calls[what], case.h_ND.is_cuda, truth
        )
        extra, error = known or (None, None)
        cells = [str(case.shape), what, f"{ms:.2f}", f"{ms / ours:.2f}x"]
        cells += ["" if gemm is None else f"{gemm / ms:.2f}", "" if extra is None else f"{extra:.1f}"]
        rows.append([*cells, "" if error is None else f"{error:.1e}"])
    return rows


def attempt(what: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """What the function returns; None where a baseline fails (no memory, no compiler, another version). Ours must not."""
    try:
        return function(*arguments)
    except Exception:
        if what in OURS:
            raise
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return None


def milliseconds(call: Call, gpu: bool) -> float:
    """Of a call; on a GPU between two events on its stream."""
    if not gpu:
        return 1e3 * timed(call)
    torch.cuda.synchronize()
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    call()
    end.record()
    torch.cuda.synchronize()
    return float(start.elapsed_time(end))


def memory_and_error(call: Call, gpu: bool, truth: Tensor) -> tuple[float | None, float | None]:
    """(on a GPU the MiB of a call's peak beyond what was allocated before it; the largest error of log-probabilities)."""
    extra = None
    if gpu:
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
    answer = call()
    if gpu:
        extra = (torch.cuda.max_memory_allocated() - before) / 2**20
    if answer.ndim != 1:  # a loss, or logits
        return extra, None
    return extra, float((answer[:CHECKED_ROWS].double().cpu() - truth).abs().max())


def float64_logprobs(models: Sequence[HeadedRows], token_N: Tensor) -> Tensor:
    """float64 log-probabilities of the first rows, of one model or of base, tuned and ref at beta 1."""
    z = []
    for rows in models:
        h, cap = rows.h_ND[:CHECKED_ROWS].cpu().double(), rows.head.softcap
        z.append(torch.cat([logits(h, part.cpu().double(), cap) for part in rows.head.w_VD.split(16_384)], 1))
    x = z[0] + z[1] - z[2] if len(z) > 1 else z[0]
    return x.log_softmax(1).gather(1, token_N[:CHECKED_ROWS, None].cpu())[:, 0]
