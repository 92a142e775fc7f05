"""`evalengine bench kernels`: the kernels against what a user would take instead, on the shapes of real
models.

Per shape, all contenders are warmed, then timed in turns (so that a drift of the machine meets all alike);
the bare GEMM into a buffer that already exists is the limit. Memory is the peak beyond inputs; errors are
against float64 on a few rows. Baselines that are not installed, do not run on the device or would not fit are
left out.

Cost: a shape gets an equal share of SECONDS, a contender an equal share of its shape's. Ours runs three rounds
at least; a baseline that outlasts its share keeps the one time it took and no memory is measured for it; shapes
for which no time is left are named and left out. Every line is shown as it is measured.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from evalengine.kernels.baselines import OURS, Case, Contender, Shape, make_case, scoring, training

CHECKED_ROWS = 8
HOPELESS = 10  # a baseline this many times slower has said enough; the time is the others'
COLUMNS = ["model, NxDxV", "what", "ms", "p20", "p80", "ratio", "of GEMM", "GB/s", "MiB", "error"]
SECONDS = {"cpu": 120.0, "cuda": 90.0}  # of measuring, all shapes together
MIN_ROUNDS, MAX_ROUNDS = 3, 20
Say = Callable[[str], None]


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


def shapes(device: str, quick: bool) -> list[tuple[Shape, torch.dtype]]:
    """What is measured where, the most telling first."""
    fp32, bf16 = torch.float32, torch.bfloat16
    if quick:
        return [(Shape("small", 256, 128, 5_003), dtype) for dtype in (fp32, bf16)]
    if device == "cuda":
        rows = [(model, n) for model in HEADS for n in (4_096, 64)] + [("target", 1_024), ("target", 16_384)]
        rows.sort(key=lambda x: x[0] != "target")
        full = {("target", 4_096), ("study 240M", 4_096)}
        found = [(Shape(model, n, *HEADS[model], (model, n) in full), bf16) for model, n in rows]
        return [*found, (Shape("target", 1_024, 2_048, 100_864), fp32)]
    found = [
        (Shape("small", n, hidden, vocab), dtype)
        for hidden, vocab in ((128, 5_003), (512, 50_257))
        for dtype in (fp32, bf16)
        for n in (64, 512)
    ]
    real = [("study 240M", fp32, True), ("study 240M", bf16, False), ("GPT-2", fp32, False)]
    return [(Shape(model, 256, *HEADS[model], full), dtype) for model, dtype, full in real] + found


def run(quick: bool = False, device: str | None = None, say: Say | None = None) -> dict[str, Any]:
    """Measures and returns {"title", "columns", "rows", "ratios": {name: number}}; `say` gets each line at once."""
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    say = say or (lambda line: None)
    rows: list[list[str]] = []
    ratios: dict[str, float] = {}
    cases = shapes(device, quick)
    hopeless: set[tuple[str, str]] = set()
    start = time.perf_counter()
    end = start + SECONDS[device.split(":")[0]]
    failures: list[str] = []
    try:
        with _terminated():
            for i, (shape, dtype) in enumerate(cases):
                left = end - time.perf_counter()
                if left <= 0:
                    say(f"no time left for {shape.label(dtype)}")
                    continue
                seconds = 0.5 if quick else left / (len(cases) - i) / 2
                for kind in ("score", "train"):
                    if kind == "train" and shape.rows < 256:
                        continue
                    try:
                        measured, its_ratios = _one(kind, shape, dtype, device, seconds, hopeless)
                    except (
                        RuntimeError,
                        AssertionError,
                    ) as problem:  # one shape must not cost the others' figures
                        if device == "cpu":
                            raise
                        failures.append(f"{kind} {shape.label(dtype)}: {_first_line(problem)}")
                        say(f"failed: {failures[-1]}")
                        continue
                    rows += measured
                    ratios |= its_ratios
                    for row in measured:
                        say("  ".join(cell for cell in row if cell))
                    for name in sorted(_hopeless(kind, its_ratios) - hopeless):
                        hopeless.add(name)
                        say(f"{kind}: {name[1]} takes over {HOPELESS}x as long: left out from here on")
            if device != "cpu" and not quick:
                from evalengine.kernels.sweep import SECONDS as SWEEP_SECONDS
                from evalengine.kernels.sweep import sweep

                for row in sweep(say, min(SWEEP_SECONDS, end + SWEEP_SECONDS - time.perf_counter())):
                    rows.append(row + [""] * (len(COLUMNS) - len(row)))
    except _Terminated:
        failures.append(f"stopped from outside after {time.perf_counter() - start:.0f} s")
        say(failures[-1])
    title = (
        f"Kernels on {device}, rows x hidden x vocabulary. score: log-probabilities; train: loss and gradients. "
        "ratio: time / ours; of GEMM: share of the bare GEMM's rate; GB/s: reading of the head; "
        "MiB: peak beyond inputs; error: largest against float64"
    )
    return {"title": title, "columns": COLUMNS, "rows": rows, "ratios": ratios, "failures": failures}


class _Terminated(BaseException):
    """A time limit outside (`timeout` in `make gpu`) has run out: what is measured is still told."""


@contextlib.contextmanager
def _terminated() -> Iterator[None]:
    """Turns a SIGTERM into _Terminated, where signals may be handled."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: Any) -> None:
        raise _Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@functools.lru_cache(maxsize=1)
def _case(shape: Shape, dtype: torch.dtype, device: str) -> Case:
    return make_case(shape, dtype, device)


def _one(
    kind: str, shape: Shape, dtype: torch.dtype, device: str, seconds: float, hopeless: set[tuple[str, str]]
) -> tuple[list[list[str]], dict[str, float]]:
    """One shape measured for scoring or training: (its lines, ratios)."""
    case = _case(shape, dtype, device)
    contenders = scoring(case) if kind == "score" else training(case)
    return measure(kind, case, dtype, [c for c in contenders if (kind, c.name) not in hopeless], seconds)


def _hopeless(kind: str, ratios: dict[str, float]) -> set[tuple[str, str]]:
    """Baselines of these ratios that are not worth measuring again."""
    names = {key.split(": ")[1].removesuffix(" / ours"): ratio for key, ratio in ratios.items()}
    return {(kind, name) for name, ratio in names.items() if ratio > HOPELESS}


def _first_line(problem: BaseException) -> str:
    return (str(problem).strip().splitlines() or [type(problem).__name__])[0]


def measure(
    kind: str, case: Case, dtype: torch.dtype, contenders: list[Contender], seconds: float
) -> tuple[list[list[str]], dict[str, float]]:
    """Times the contenders in turns: (their lines, ratios to the first, which is ours)."""
    shape, device = case.shape, case.h_ND.device.type
    share = 1e3 * seconds / len(contenders)
    warmed = [(c, warm) for c in contenders if (warm := _warmed(c, device, share)) is not None]
    rounds = [min(MAX_ROUNDS, max(MIN_ROUNDS if c.name in OURS else 0, int(share / ms))) for c, ms in warmed]
    times: list[list[float]] = [[] for _ in warmed]
    for turn in range(max(rounds)):
        for (contender, _), into, count in zip(warmed, times, rounds, strict=True):
            if (
                turn < count
                and (again := _tried(contender, _milliseconds, contender.call, device)) is not None
            ):
                into.append(again)
    timings = [_timing(t or [ms]) for t, (_, ms) in zip(times, warmed, strict=True)]
    gemm = {c.name: t.p50 for (c, _), t in zip(warmed, timings, strict=True)}.get("bare GEMM")
    truth = _truth(case) if kind == "score" else None
    passes = 1 if kind == "score" else 3  # products of a GEMM's size
    rows, ratios = [], {}
    for (contender, _), timing, count in zip(warmed, timings, rounds, strict=True):
        slower = timing.p50 / timings[0].p50
        remembered = _tried(contender, _extra_mib, contender, device, truth) if count else None
        extra, error = remembered or (None, None)
        gigabytes = case.w_VD.numel() * case.w_VD.element_size() / timing.p50 / 1e6
        rows.append(
            [
                shape.label(dtype),
                f"{kind}: {contender.name}",
                *(f"{ms:.2f}" for ms in (timing.p50, timing.p20, timing.p80)),
                "" if contender.name in OURS else f"{slower:.2f}x",
                "" if gemm is None else f"{passes * gemm / timing.p50:.2f}",
                f"{gigabytes:.0f}" if kind == "score" else "",
                "" if extra is None else f"{extra:.1f}",
                "" if error is None else f"{error:.1e}",
            ]
        )
        if contender.name not in OURS:
            ratios[f"{kind} {shape.label(dtype)}: {contender.name} / ours"] = round(slower, 3)
    return rows, ratios


def _timing(times: list[float]) -> Timing:
    if len(times) == 1:
        return Timing(times[0], times[0], times[0])
    return Timing(*(statistics.quantiles(times, n=10)[i] for i in (1, 4, 7)))


def _warmed(contender: Contender, device: str, share: float) -> float | None:
    """Milliseconds of a warm call (of the first, if that outlasts the share by far); None for a baseline that
    cannot run here. Ours always must."""
    first = _tried(contender, _milliseconds, contender.call, device)
    if first is None or first > 5 * share:
        return first
    return _tried(contender, _milliseconds, contender.call, device)


def _tried(contender: Contender, function: Callable[..., Any], *arguments: Any) -> Any:
    """What the function returns; None where a baseline fails (no memory, no compiler, another version). Ours must not."""
    try:
        return function(*arguments)
    except Exception:
        if contender.name in OURS:
            raise
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return None


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


def _extra_mib(contender: Contender, device: str, truth: Tensor | None) -> tuple[float, float | None]:
    """(peak memory beyond what is allocated before a call, results included; the call's largest error)."""
    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        result = contender.call()
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated() - before
    else:
        with (
            silent_stderr(),
            torch.profiler.profile(
                activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
            ) as seen,
        ):
            result = contender.call()
        assert seen.profiler is not None and seen.profiler.kineto_results is not None
        events = [e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]
        now = peak = 0
        for event in sorted(events, key=lambda e: e.start_ns()):
            now += event.nbytes()
            peak = max(peak, now)
    if truth is None or contender.answer is None:
        return peak / 2**20, None
    answer = contender.answer(result)[:CHECKED_ROWS].double().cpu()
    return peak / 2**20, float((answer - truth).abs().max())


@contextlib.contextmanager
def silent_stderr() -> Iterator[None]:
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
