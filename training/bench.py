"""`evalengine bench training`: tokens per second against a plain loop, and the memory of the loss.

The baseline is what one would write first: a nanoGPT-style loop over the same Llama-shaped model, with the
modules written out, logits in full and `F.cross_entropy`. Both sides see the same batches and the same
optimiser settings. Each measurement is a process of its own (memory settings and peaks do not leak), the
sides alternate, the best of each counts.

Dims: B rows, T positions, D hidden, V vocabulary.
"""

from __future__ import annotations

import multiprocessing as mp
import resource
import time
from typing import Any, NamedTuple

ROUNDS = 3


class Case(NamedTuple):
    """A model and batch to train on."""

    name: str
    d_model: int
    layers: int
    vocab: int
    rows: int
    context: int
    steps: int


CASES = (
    Case("0.2M, vocabulary 1k", 64, 3, 1024, 4, 256, 40),
    Case("1M, vocabulary 4k", 128, 4, 4096, 8, 256, 12),
    Case("8M, vocabulary 16k", 256, 6, 16384, 4, 512, 4),
)
LOSS_ROWS, LOSS_D, LOSS_V = 2048, 256, 100_864


def run(quick: bool = False) -> dict[str, Any]:
    """Measures; `quick` runs the first case once. Ratios above 1 favour the trainer."""
    ratios: dict[str, float] = {}
    rows: list[list[str]] = []
    for case in CASES[:1] if quick else CASES:
        best = dict.fromkeys(("ours", "plain"), 0.0)
        for _ in range(1 if quick else ROUNDS):
            for kind in best:
                best[kind] = max(best[kind], _alone(_tokens_per_second, kind, case))
        reached = _alone(_reached_share, case, best["ours"])
        ratios[f"tokens/s, {case.name}"] = best["ours"] / best["plain"]
        rows.append(
            [
                case.name,
                f"{best['ours']:,.0f}",
                f"{best['plain']:,.0f}",
                f"{best['ours'] / best['plain']:.2f}",
                f"{reached:.0%}",
            ]
        )
    memory = {kind: _alone(_loss_memory, kind, LOSS_ROWS, LOSS_D, LOSS_V) for kind in ("ours", "plain")}
    name = f"memory of the loss, vocabulary {LOSS_V:,}"
    ratios[name] = memory["plain"] / memory["ours"]
    shown = [f"{memory[kind] / 2**20:,.0f} MiB" for kind in ("ours", "plain")]
    rows.append([name, *shown, f"{ratios[name]:.2f}", ""])
    return {
        "title": "training against a plain loop",
        "columns": ["case", "evalengine", "plain loop", "ratio", "of the matrix-product rate"],
        "rows": rows,
        "ratios": ratios,
    }


def _alone(function: Any, *args: Any) -> Any:
    """Runs `function(*args)` in a fresh process."""
    context = mp.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(theirs, function, args))
    process.start()
    theirs.close()
    try:
        return ours.recv()
    finally:
        process.join()


def _answer(pipe: Any, function: Any, args: tuple[Any, ...]) -> None:
    pipe.send(function(*args))


def _shape(case: Case) -> Any:
    from evalengine.training.model import Shape

    heads = case.d_model // 32
    return Shape(case.d_model, case.layers, heads, 32, 3 * case.d_model, case.vocab, case.context)


def _batches(case: Case) -> Any:
    """Rows of one document each, so that plain causal attention is right for both sides."""
    import numpy as np

    from evalengine.training.rows import Batch

    class Rows:
        steps = case.steps + 2

        def batch(self, step: int) -> Batch:
            token = np.random.default_rng(step).integers(0, case.vocab, (case.rows, case.context + 1))
            position = np.tile(np.arange(case.context), (case.rows, 1))
            return Batch(token[:, :-1], position, token[:, 1:], "random tokens")

    return Rows()


def _tokens_per_second(kind: str, case: Case) -> float:
    """Over `steps` optimiser steps after two to warm up."""
    import torch

    torch.manual_seed(0)
    stamps: list[float] = []
    if kind == "ours":
        from evalengine.training.loop import Place, fit
        from evalengine.training.model import Decoder
        from evalengine.training.runner import keep_freed_memory
        from evalengine.training.study import Pretrain

        keep_freed_memory()
        model = Decoder(_shape(case)).initialise(torch.Generator().manual_seed(0))
        settings = Pretrain(tokens=0, lr=1e-3)
        fit(model, _batches(case), settings, Place(), lambda step: stamps.append(time.perf_counter()))
    else:
        _plain_loop(case, stamps)
    return case.steps * case.rows * case.context / (stamps[-1] - stamps[1])


def _plain_loop(case: Case, stamps: list[float]) -> None:
    """The baseline: zero_grad, forward to full logits, cross-entropy, backward, clip, step."""
    import torch
    import torch.nn.functional as F

    model = _plain_model(case)
    optim = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    batches = _batches(case)
    for step in range(batches.steps):
        batch = batches.batch(step)
        x, y = torch.from_numpy(batch.token_BT), torch.from_numpy(batch.target_BT)
        loss = F.cross_entropy(model(x).view(-1, case.vocab), y.reshape(-1))
        optim.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optim.step()
        float(loss.detach())
        stamps.append(time.perf_counter())


def _plain_model(case: Case) -> Any:
    """The same decoder as one would write it: a projection per matrix, norms and rotation spelled out."""
    import torch
    import torch.nn.functional as F
    from torch import Tensor, nn

    D, H = case.d_model, case.d_model // 32

    class Norm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(D))

        def forward(self, x: Tensor) -> Tensor:
            return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5))

    def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        a, b = x.chunk(2, -1)
        return x * cos + torch.cat((-b, a), -1) * sin

    class PlainBlock(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm1, self.norm2 = Norm(), Norm()
            self.q, self.k, self.v, self.o = (nn.Linear(D, D, bias=False) for _ in range(4))
            self.gate, self.up = nn.Linear(D, 3 * D, bias=False), nn.Linear(D, 3 * D, bias=False)
            self.down = nn.Linear(3 * D, D, bias=False)

        def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
            B, T, _ = x.shape
            h = self.norm1(x)
            q, k, v = (f(h).view(B, T, H, 32).transpose(1, 2) for f in (self.q, self.k, self.v))
            y = F.scaled_dot_product_attention(turned(q, cos, sin), turned(k, cos, sin), v, is_causal=True)
            x = x + self.o(y.transpose(1, 2).reshape(B, T, D))
            h = self.norm2(x)
            return x + self.down(F.silu(self.gate(h)) * self.up(h))

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.norm = nn.Embedding(case.vocab, D), Norm()
            self.blocks = nn.ModuleList(PlainBlock() for _ in range(case.layers))
            self.head = nn.Linear(D, case.vocab, bias=False)
            self.head.weight = self.embedding.weight
            angle = torch.arange(case.context)[:, None] * (10_000.0 ** -(torch.arange(0, 32, 2) / 32))
            self.register_buffer("cos", torch.cat((angle, angle), -1).cos())
            self.register_buffer("sin", torch.cat((angle, angle), -1).sin())
            for weight in self.parameters():
                if weight.ndim == 2:
                    nn.init.normal_(weight, 0.0, 0.02)

        def forward(self, token: Tensor) -> Tensor:
            x = self.embedding(token)
            for block in self.blocks:
                x = block(x, self.cos, self.sin)
            return self.head(self.norm(x))

    return Plain()


def _reached_share(case: Case, tokens_per_second: float) -> float:
    """Model FLOP/s over this machine's rate of large matrix products, measured now."""
    from evalengine.training.plan import product_rate

    return tokens_per_second * _shape(case).flops_per_token() / product_rate("cpu")


def _loss_memory(kind: str, rows: int, dim: int, vocab: int) -> float:
    """Bytes that the loss and its gradients add to the peak resident memory."""
    import torch
    import torch.nn.functional as F

    from evalengine.training.loss import summed_cross_entropy

    h = torch.randn(rows, dim, requires_grad=True)
    w = torch.randn(vocab, dim, requires_grad=True)
    target = torch.randint(0, vocab, (rows,))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if kind == "ours":
        summed_cross_entropy(h, w, target).backward()
    else:
        F.cross_entropy(F.linear(h, w), target, reduction="sum").backward()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024.0
