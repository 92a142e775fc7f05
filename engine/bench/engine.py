"""The engine against lm-evaluation-harness and against the machine: `evalengine bench engine`.

Three randomly initialised Llama-shaped models, the same items, float32, both sides in one process on an otherwise idle
machine. The peer is lm-eval's HF backend at its best batch size of 1, 8 and 32. The floor is the arithmetic that cannot be
avoided (each distinct token once through the layers, each scored row once through the head, each attended pair) at the rate
of large matrix products measured in the same run. Our loop also runs with a plain head and with attention over gathered keys in
place of our kernels, and with compiled layers where the default is eager ones, or the other way round.
"""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from evalengine.bench import local_tasks
from evalengine.bench.harness import Measurement, Row, medians, timed
from evalengine.bench.inputs import make_checkpoints, read_items, sizes_of, workplace, world_data
from evalengine.benchmarks.load import ItemSet
from evalengine.checkpoints.resolve import discover
from evalengine.errors import UserError
from evalengine.kernels import TargetLogprobs
from evalengine.model.torch_backend import TorchBackend
from evalengine.plan import packing, plans
from evalengine.plan.encoding import Encoded
from evalengine.training.plan import product_rate

COLUMNS = (
    "model, params, items, lm-eval s (batch), evalengine s, ratio, with tokenising, plain head, gathered keys, eager / compiled,"
    " GFLOP/s, GEMM, of floor"
)


class Peer(NamedTuple):
    """lm-eval at one batch size."""

    loop: float  # seconds of its loop over token ids
    whole: float  # with its tokenising
    batch_size: int


def run(
    quick: bool = False,
    data: Path | None = None,
    sizes: str = "",
    limit: int | None = None,
    device: str = "cpu",
) -> Measurement:
    """`quick` takes one model, few items and one batch size. On a CPU both sides run in float32, on a GPU in bfloat16."""
    cpu = device == "cpu"
    known = sizes_of(sizes or ("1M,7M,50M" if cpu else "240M"))
    limit = limit or (4 if quick else 20 if cpu else 1000)
    batch_sizes = (8,) if quick else (1, 8, 32) if cpu else (32, 128)  # fewer starve a GPU
    rows: list[Row] = []
    ratios: dict[str, float] = {}
    with workplace() as work:
        data = data or world_data(work)
        item_sets = read_items(data, limit)
        for size in known[: 1 if quick else None]:
            (path,) = make_checkpoints(work, size, data)
            cells, found = compare(path, item_sets, batch_sizes, 1 if quick else 3, device)
            rows.append([size, *cells])
            ratios |= {f"{size}: {what} / evalengine": ratio for what, ratio in found.items()}
    where = f"float32, {torch.get_num_threads()} threads" if cpu else f"bfloat16, {device}"
    title = f"Scoring loop, {len(item_sets)} benchmarks x {limit} items, {where}"
    return Measurement(title, COLUMNS.split(", "), rows, ratios)


def compare(
    path: Path, item_sets: list[ItemSet], batch_sizes: tuple[int, ...], repeats: int, device: str
) -> tuple[list[str], dict[str, float]]:
    """One model, our loop, lm-eval's loop, the floor: (cells of the table, ratios)."""
    (checkpoint,) = discover([path])
    backend = TorchBackend(device=device, compile="off" if device == "cpu" else "on")
    other = counterpart(backend)
    for side in filter(None, (backend, other)):
        side.load(checkpoint)
    planner = plans.Planner()
    planner.plan(checkpoint, item_sets[0]._replace(items=item_sets[0].items[:1]))  # loads the tokenizer
    encoded: list[Encoded] = []
    tokenising = timed(lambda: encoded.extend(planner.plan(checkpoint, items) for items in item_sets))

    def ours(side: TorchBackend = backend) -> None:
        for e in encoded:
            side.score(e.sequences)

    def with_a_plain_head() -> None:
        with mock.patch("evalengine.model.forward.target_logprobs", plain_head):
            ours()

    def with_gathered_keys() -> None:
        with mock.patch("evalengine.model.tree_attention.takes", lambda query, value: False):
            ours()

    first = timed(ours)
    sides = {
        "ours": partial(timed, ours),
        "plain": partial(timed, with_a_plain_head),
        "gathered": partial(timed, with_gathered_keys),
    }
    if other is not None:
        ours(other)
        sides["other"] = partial(timed, partial(ours, other))
    took = medians(sides, repeats)
    seconds, plain, gathered = took["ours"], took["plain"], took["gathered"]
    eager, compiled = map(took.get, ("other", "ours") if backend.compile else ("ours", "other"))
    peer = min(lm_eval_seconds(path, item_sets, size, device) for size in batch_sizes)
    flops, rate = unavoidable_flops(encoded, backend), product_rate(device)
    of_floor = flops / rate / seconds
    cells = [
        f"{sum(p.numel() for p in backend.model.parameters()) / 1e6:.1f}M",
        f"{sum(len(e.item) for e in encoded):,}",
        f"{peer.loop:.2f} ({peer.batch_size})",
        f"{seconds:.2f}",
        f"{peer.loop / seconds:.1f}x",
        f"{peer.whole / (first + tokenising):.1f}x",
        f"{plain / seconds:.2f}x",
        f"{gathered / seconds:.2f}x",
        f"{eager / compiled:.2f}x" if eager and compiled else "no compiler",
        f"{flops / seconds / 1e9:.0f}",
        f"{rate / 1e9:.0f}",
        f"{of_floor:.2f}",
    ]
    ratios = {
        "lm-eval": peer.loop / seconds,
        "floor": of_floor,
        "with a plain head": plain / seconds,
        "with gathered keys": gathered / seconds,
    }
    if "other" in took:
        name = "with eager layers" if backend.compile else "with compiled layers"
        ratios[name] = took["other"] / seconds
    return cells, ratios


def counterpart(backend: TorchBackend) -> TorchBackend | None:
    """The same with compiled layers where it has eager ones, and the other way round; None where there is no compiler."""
    try:
        return TorchBackend(device=str(backend.device), compile="off" if backend.compile else "on")
    except UserError:
        return None


def plain_head(
    h_ND: Tensor, w_VD: Tensor, row_T: Tensor, token_T: Tensor, *, bias_V: Tensor | None = None, **_: Any
) -> TargetLogprobs:
    """The head as one would write it: all logits of the scored rows, log_softmax, gather, argmax."""
    row, token = (x.to(h_ND.device, torch.long) for x in (row_T, token_T))
    logprob_NV = torch.nn.functional.linear(h_ND, w_VD, bias_V).float().log_softmax(-1)
    return TargetLogprobs(logprob_NV[row, token], logprob_NV.argmax(-1)[row] == token)


def unavoidable_flops(encoded: list[Encoded], backend: TorchBackend) -> float:
    """2 per weight of the layers and distinct token, 4 per head dimension and attended pair, 2 D V per scored row."""
    model, config = backend.model, backend.model.config
    layers = sum(
        p.numel() for n, p in model.base_model.named_parameters() if p.dim() == 2 and "embed" not in n
    )
    tokens = rows = pairs = 0
    for e in encoded:
        for batch in packing.pack(e.sequences, backend.batch_tokens):
            tokens += batch.tokens
            rows += len(batch.row_R)
            pairs += int((batch.position_N[: batch.tokens].astype(np.int64) + 1).sum())
    width = config.num_attention_heads * config.head_dim
    head = 2 * config.hidden_size * config.vocab_size
    return float(2 * layers * tokens + 4 * width * config.num_hidden_layers * pairs + head * rows)


def lm_eval_seconds(path: Path, item_sets: list[ItemSet], batch_size: int, device: str) -> Peer:
    model = local_tasks.hf_model(path, batch_size, device)
    from lm_eval.api.instance import Instance

    requests = [
        Instance("loglikelihood", {}, pair, 0)
        for items in item_sets
        for item in items.items
        for pair in zip(item.contexts, item.continuations, strict=True)
    ]
    loop, inner = model._loglikelihood_tokens, list[float]()

    def watched(*args: Any, **kwargs: Any) -> Any:
        started = time.perf_counter()
        answer = loop(*args, **kwargs)
        inner.append(time.perf_counter() - started)
        return answer

    model._loglikelihood_tokens = watched
    with local_tasks.quiet():
        model.loglikelihood(requests[:8], disable_tqdm=True)
        whole = timed(lambda: model.loglikelihood(requests, disable_tqdm=True))
    return Peer(inner[-1], whole, batch_size)
