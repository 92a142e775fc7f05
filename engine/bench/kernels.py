"""`evalengine bench kernels`: the kernels against what a user would take instead, on the shapes of real models.

Per shape, all contenders are warmed, then timed in turns; the bare GEMM into a buffer that already exists is the limit.
Memory is the peak beyond inputs; errors are against float64 on a few rows. Baselines that are not installed, do not run on the
device or would not fit are left out.

Cost: a shape gets an equal share of SECONDS, a contender an equal share of its shape's. Ours runs three rounds
at least; a baseline that outlasts its share keeps the one time it took and no memory is measured for it; shapes
for which no time is left are named and left out. Every line is shown as it is measured.
"""

from __future__ import annotations

import contextlib
import functools
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from evalengine import console
from evalengine.bench import kernel_sweep
from evalengine.bench.harness import Result, Table, milliseconds, quantiles, rounds, silent_stderr
from evalengine.bench.kernel_contenders import OURS, Case, Contender, Shape, make_case, scoring, training

CHECKED_ROWS = 8
HOPELESS = 10  # a baseline this many times slower has said enough; the time is the others'
COLUMNS = ["model, NxDxV", "what", "ms", "p20", "p80", "ratio", "of GEMM", "GB/s", "MiB", "error"]
SECONDS = {"cpu": 120.0, "cuda": 90.0}  # of measuring, all shapes together
MIN_ROUNDS, MAX_ROUNDS = 3, 20
Say = Callable[[str], None]


class Measured(NamedTuple):
    """One shape, scored or trained on."""

    rows: list[list[str]]
    ratios: dict[str, float]  # time of each baseline over ours
    hopeless: list[str]  # baselines that are not worth measuring again


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


def run(quick: bool = False, device: str | None = None, say: Say | None = None) -> Result:
    """`say` gets each line as it is measured (default: shown, unless `quick`)."""
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    say = say or ((lambda line: None) if quick else console.say)
    rows: list[list[str]] = []
    ratios: dict[str, float] = {}
    failures: list[str] = []
    hopeless: dict[str, set[str]] = {"score": set(), "train": set()}
    start = time.perf_counter()
    end = start + SECONDS[device.split(":")[0]]
    cases = shapes(device, quick)
    try:
        with stoppable():
            for i, (shape, dtype) in enumerate(cases):
                left = end - time.perf_counter()
                if left <= 0:
                    say(f"no time left for {shape.label(dtype)}")
                    continue
                seconds = 0.5 if quick else left / (len(cases) - i) / 2
                for kind in ("score", "train") if shape.rows >= 256 else ("score",):
                    try:
                        found = measure_shape(kind, shape, dtype, device, seconds, hopeless[kind])
                    except (RuntimeError, AssertionError) as problem:  # the other shapes keep their figures
                        if device == "cpu":
                            raise
                        reason = (str(problem).strip().splitlines() or [type(problem).__name__])[0]
                        failures.append(f"{kind} {shape.label(dtype)}: {reason}")
                        say(f"failed: {failures[-1]}")
                        continue
                    rows += found.rows
                    ratios |= found.ratios
                    hopeless[kind].update(found.hopeless)
                    for row in found.rows:
                        say("  ".join(filter(None, row)))
                    for name in found.hopeless:
                        say(f"{kind}: {name} takes over {HOPELESS}x as long: left out from here on")
            if device != "cpu" and not quick:
                left = end + kernel_sweep.SECONDS - time.perf_counter()
                rows.extend(kernel_sweep.sweep(say, min(kernel_sweep.SECONDS, left)))
    except Stopped:
        failures.append(f"stopped from outside after {time.perf_counter() - start:.0f} s")
        say(failures[-1])
    title = (
        f"Kernels on {device}, rows x hidden x vocabulary. score: log-probabilities; train: loss and gradients. "
        "ratio: time / ours; of GEMM: share of the bare GEMM's rate; GB/s: reading of the head; "
        "MiB: peak beyond inputs; error: largest against float64"
    )
    return Result(Table(title, COLUMNS, rows), ratios, failures=failures)


class Stopped(BaseException):
    """A time limit outside (`timeout` in `make gpu`) has run out: what is measured is still reported."""


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Turns a SIGTERM into Stopped, where signals may be handled."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: Any) -> None:
        raise Stopped

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


case_of = functools.lru_cache(maxsize=1)(make_case)  # scoring and training share one


def measure_shape(
    kind: str, shape: Shape, dtype: torch.dtype, device: str, seconds: float, hopeless: set[str]
) -> Measured:
    """One shape, all contenders but the hopeless."""
    case = case_of(shape, dtype, device)
    contenders = scoring(case) if kind == "score" else training(case)
    return measure(kind, case, dtype, [c for c in contenders if c.name not in hopeless], seconds)


def measure(
    kind: str, case: Case, dtype: torch.dtype, contenders: list[Contender], seconds: float
) -> Measured:
    """Times the contenders in turns; the first is ours."""
    label, device = case.shape.label(dtype), case.h_ND.device.type
    share = 1e3 * seconds / len(contenders)
    once = {c: functools.partial(attempt, c, milliseconds, c.call, device) for c in contenders}
    warm = {c: ms for c in contenders if (ms := warmed(once[c], share)) is not None}
    counts = {
        c: min(MAX_ROUNDS, max(MIN_ROUNDS if c.name in OURS else 0, int(share / ms)))
        for c, ms in warm.items()
    }
    times = rounds({c: once[c] for c in warm}, counts)
    timings = {c: quantiles(times[c] or [ms]) for c, ms in warm.items()}
    p50 = {c.name: timing.p50 for c, timing in timings.items()}
    ours, gemm = next(iter(p50.values())), p50.get("bare GEMM")
    truth = float64_logprobs(case) if kind == "score" else None
    passes = 1 if kind == "score" else 3  # products of a GEMM's size
    gigabytes = case.w_VD.numel() * case.w_VD.element_size() / 1e9
    rows = []
    for c, timing in timings.items():
        extra, error = None, None
        if counts[c]:
            extra, error = attempt(c, memory_and_error, c, device, truth) or (None, None)
        rows.append(
            [
                label,
                f"{kind}: {c.name}",
                *(f"{ms:.2f}" for ms in (timing.p50, timing.p20, timing.p80)),
                "" if c.name in OURS else f"{timing.p50 / ours:.2f}x",
                "" if gemm is None else f"{passes * gemm / timing.p50:.2f}",
                f"{gigabytes / timing.p50 * 1e3:.0f}" if kind == "score" else "",
                "" if extra is None else f"{extra:.1f}",
                "" if error is None else f"{error:.1e}",
            ]
        )
    slower = {name: round(ms / ours, 3) for name, ms in p50.items() if name not in OURS}
    ratios = {f"{kind} {label}: {name} / ours": ratio for name, ratio in slower.items()}
    return Measured(rows, ratios, sorted(name for name, ratio in slower.items() if ratio > HOPELESS))


def warmed(once: Callable[[], float | None], share: float) -> float | None:
    """Milliseconds of a warm call (of the first, if that outlasts the share by far); None for a baseline that
    cannot run on this machine."""
    first = once()
    return first if first is None or first > 5 * share else once()


def attempt(contender: Contender, function: Callable[..., Any], *arguments: Any) -> Any:
    """What the function returns; None where a baseline fails (no memory, no compiler, another version). Ours must not."""
    try:
        return function(*arguments)
    except Exception:
        if contender.name in OURS:
            raise
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return None


def memory_and_error(contender: Contender, device: str, truth: Tensor | None) -> tuple[float, float | None]:
    """(peak MiB beyond what is allocated before a call, results included; the call's largest error)."""
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
    if truth is None or not contender.checked:
        return peak / 2**20, None
    answer = result[:CHECKED_ROWS].double().cpu()
    return peak / 2**20, float((answer - truth).abs().max())


def float64_logprobs(case: Case) -> Tensor:
    """float64 log-probabilities of the first rows."""
    h = case.h_ND[:CHECKED_ROWS].cpu().double()
    x = torch.cat([h @ part.cpu().double().t() for part in case.w_VD.split(16_384)], 1)
    cap = case.shape.softcap
    x = x if cap is None else cap * torch.tanh(x / cap)
    return x.log_softmax(1).gather(1, case.token_N[:CHECKED_ROWS, None].cpu())[:, 0]
