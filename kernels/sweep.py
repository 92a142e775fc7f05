"""Other configurations of the main kernel on the target shape: which one should ship?

Each candidate runs in a process of its own with a time limit, because a compiler's new feature may hang a GPU
kernel; its answer is compared with the first candidate's. Cost: at most LIMIT seconds a candidate.
"""

from __future__ import annotations

import multiprocessing as mp
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

LIMIT, SECONDS = 25.0, 75.0
ROWS, HIDDEN, VOCAB = 4_096, 2_048, 100_864


def sweep(say: Callable[[str], None], seconds: float = SECONDS) -> Iterator[list[str]]:
    """Within that many seconds, a line a candidate: [shape, configuration, median, p20, p80 in milliseconds]."""
    from evalengine.kernels.target_logprobs_triton import CANDIDATES, tile_name

    first: list[float] | None = None
    end = time.perf_counter() + seconds
    for config in CANDIDATES:
        name = f"tile {tile_name(config)} {config.warps} warps {config.stages} stages x{config.programs}"
        answer = _alone(config, min(LIMIT, end - time.perf_counter()))
        if answer is None:
            say(f"{name}: no answer")
            continue
        times, logprobs = answer
        first = first or logprobs
        apart = max(abs(a - b) for a, b in zip(first, logprobs, strict=True))
        p20, p50, p80 = (statistics.quantiles(times, n=10)[i] for i in (1, 4, 7))
        say(f"{name}: {p50:.2f} ms, {apart:.1e} from the first")
        label = f"target {ROWS}x{HIDDEN}x{VOCAB} bf16"
        yield [label, name, f"{p50:.2f}", f"{p20:.2f}", f"{p80:.2f}", "", "", "", "", f"{apart:.1e}"]


def _alone(config: Any, seconds: float) -> tuple[list[float], list[float]] | None:
    """(milliseconds of ten calls, the first log-probabilities) from a fresh process, None if it gave none."""
    if seconds <= 0:
        return None
    context = mp.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_time, args=(tuple(config), theirs))
    process.start()
    theirs.close()
    try:
        return ours.recv() if ours.poll(seconds) else None
    except EOFError:
        return None
    finally:
        process.kill()
        process.join()


def _time(config: tuple[Any, ...], pipe: Any) -> None:
    import torch

    from evalengine.kernels.baselines import Shape, make_case
    from evalengine.kernels.bench import _milliseconds
    from evalengine.kernels.head import Head
    from evalengine.kernels.target_logprobs_triton import TileConfig, target_logprobs_triton

    case = make_case(Shape("target", ROWS, HIDDEN, VOCAB), torch.bfloat16, "cuda")

    def call() -> torch.Tensor:
        head = Head(case.w_VD)
        return target_logprobs_triton(case.h_ND, head, case.row_N, case.token_N, TileConfig(*config))[0]

    logprobs = call()[:64].tolist()
    call()
    pipe.send(([_milliseconds(call, "cuda") for _ in range(10)], logprobs))
