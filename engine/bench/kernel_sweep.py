"""Other configurations of the main kernel on the target shape: which one should ship?

Each candidate runs in a process of its own with a time limit, because a compiler's new feature may hang a GPU
kernel; its answer is compared with the first candidate's. Cost: at most LIMIT seconds a candidate.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from evalengine.bench.harness import alone, milliseconds, quantiles
from evalengine.bench.kernel_contenders import Shape, make_case
from evalengine.errors import UserError

LIMIT, SECONDS = 25.0, 75.0
TARGET = Shape("target", 4_096, 2_048, 100_864)


def sweep(say: Callable[[str], None], seconds: float = SECONDS) -> Iterator[list[str]]:
    """Within that many seconds, a line a candidate: [shape, configuration, median, p20, p80 in milliseconds, ..., error]."""
    from evalengine.kernels.target_logprobs_triton import CANDIDATES, tile_name

    first: list[float] | None = None
    end = time.perf_counter() + seconds
    for config in CANDIDATES:
        name = f"tile {tile_name(config)} {config.warps} warps {config.stages} stages x{config.programs}"
        try:
            times, logprobs = alone(
                time_config, config, limit=max(0.0, min(LIMIT, end - time.perf_counter()))
            )
        except UserError as problem:
            say(f"{name}: no answer ({problem})")
            continue
        first = first or logprobs
        apart = max(abs(a - b) for a, b in zip(first, logprobs, strict=True))
        p20, p50, p80 = quantiles(times)
        say(f"{name}: {p50:.2f} ms, {apart:.1e} from the first")
        label = TARGET.label(torch.bfloat16)
        yield [label, name, f"{p50:.2f}", f"{p20:.2f}", f"{p80:.2f}", "", "", "", "", f"{apart:.1e}"]


def time_config(config: Any) -> tuple[list[float], list[float]]:
    """(milliseconds of ten calls, the first log-probabilities)."""
    from evalengine.kernels.head import Head
    from evalengine.kernels.target_logprobs_triton import target_logprobs_triton

    case = make_case(TARGET, torch.bfloat16, "cuda")

    def call() -> torch.Tensor:
        return target_logprobs_triton(case.h_ND, Head(case.w_VD), case.row_N, case.token_N, config)[0]

    logprobs = call()[:64].tolist()
    call()
    return [milliseconds(call, "cuda") for _ in range(10)], logprobs
