"""What `evalengine bench kernels` times: our calls and what a user would take in their place, on one head.

A baseline that is not installed, has no compiler, or would not fit is left out. Dims: N rows, V vocabulary.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from evalengine.kernels.linear_cross_entropy import linear_cross_entropy
from evalengine.kernels.target_logprobs import target_logprobs

OURS = ("target_logprobs", "linear_cross_entropy")


class Shape(NamedTuple):
    """A head, the rows that meet it, and the model it belongs to."""

    model: str
    rows: int
    hidden: int
    vocab: int
    softcap: float | None = None
    everything: bool = False  # with the baselines that compile or tune themselves for half a minute

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
    """Something to time. `checked`: it returns the log-probability of each row, to be compared with float64."""

    name: str
    call: Callable[[], Tensor]
    checked: bool = True


Loss = Callable[[Case], Tensor]


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
        return capped(F.linear(h, w_VD), cap)

    def materialised() -> Tensor:
        x_NV = logits(h_ND)
        greedy = x_NV.argmax(1) == token_N  # the engine needs it too
        return x_NV.log_softmax(-1)[row_N, token_N] + 0 * greedy

    def in_float32() -> Tensor:
        return logits(h_ND).float().log_softmax(-1)[row_N, token_N]

    def chunked() -> Tensor:
        parts = zip(h_ND.split(256), token_N.split(256), strict=True)
        return torch.cat([logits(h).log_softmax(-1).gather(1, t[:, None])[:, 0] for h, t in parts])

    def ours() -> Tensor:
        return target_logprobs(h_ND, w_VD, row_N, token_N, softcap=cap).logprob_T

    found = [Contender("target_logprobs", ours), Contender("chunked log_softmax", chunked)]
    if fits(case):
        found.append(Contender("F.linear + log_softmax", materialised))
        if h_ND.dtype != torch.float32:
            found.append(Contender("F.linear + float32 log_softmax", in_float32))
        if shape.everything and can_compile(h_ND.is_cuda):
            found.append(Contender("torch.compile of it", torch.compile(materialised, dynamic=False)))
    if can_torch_fuse(case):
        found.append(Contender("F.linear_cross_entropy", lambda: -torch_fused(case, "none")))
    losses = optional_losses(case).items()
    found += [Contender(name, functools.partial(loss, case), checked=False) for name, loss in losses]
    out_NV = torch.empty(shape.rows, shape.vocab, dtype=h_ND.dtype, device=h_ND.device)
    return [*found, Contender("bare GEMM", lambda: torch.mm(h_ND, w_VD.t(), out=out_NV), checked=False)]


def training(case: Case) -> list[Contender]:
    """Ours first, then the alternatives for a loss with gradients."""
    cap = case.shape.softcap
    losses: dict[str, Loss] = {
        "linear_cross_entropy": lambda c: linear_cross_entropy(c.h_ND, c.w_VD, c.token_N, softcap=cap)
    }
    if fits(case):
        losses["F.linear + cross_entropy"] = lambda c: F.cross_entropy(
            capped(F.linear(c.h_ND, c.w_VD), cap), c.token_N
        )
    if can_torch_fuse(case):
        losses["F.linear_cross_entropy"] = lambda c: torch_fused(c, "mean")
    losses |= optional_losses(case)
    return [Contender(name, with_gradients(loss, case), checked=False) for name, loss in losses.items()]


def capped(x: Tensor, cap: float | None) -> Tensor:
    return x if cap is None else cap * torch.tanh(x / cap)


def fits(case: Case) -> bool:
    """Whether three copies of the logits are small enough."""
    return case.shape.rows * case.shape.vocab <= 2**31 / (1 if case.h_ND.is_cuda else 4)


def optional_losses(case: Case) -> dict[str, Loss]:
    """Liger's and Apple's fused losses where they are installed; both need CUDA."""
    losses: dict[str, Loss] = {}
    if not case.h_ND.is_cuda or not case.shape.everything:
        return losses
    with contextlib.suppress(Exception):  # not installed, or not made for these versions
        from liger_kernel.transformers.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyLoss

        liger = LigerFusedLinearCrossEntropyLoss(softcap=case.shape.softcap)
        losses["Liger fused loss"] = lambda c: liger(c.w_VD, c.h_ND, c.token_N)
    with contextlib.suppress(Exception):
        from cut_cross_entropy import linear_cross_entropy as cce

        losses["cut-cross-entropy"] = lambda c: cce(c.h_ND, c.w_VD, c.token_N, softcap=c.shape.softcap)
    return losses


def can_compile(cuda: bool) -> bool:
    """torch.compile makes Triton kernels on CUDA and needs a C++ compiler on a CPU."""
    return cuda or any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "g++", "clang++"))


def can_torch_fuse(case: Case) -> bool:
    return case.shape.softcap is None and hasattr(F, "linear_cross_entropy")


def torch_fused(case: Case, reduction: str) -> Tensor:
    """PyTorch's own fused loss (torch >= 2.13), chunked."""
    options = torch.nn.LinearCrossEntropyOptions()
    return F.linear_cross_entropy(case.h_ND, case.w_VD, case.token_N, reduction=reduction, options=options)


def with_gradients(loss: Loss, case: Case) -> Callable[[], Tensor]:
    leaves = case._replace(h_ND=case.h_ND.detach().requires_grad_(), w_VD=case.w_VD.detach().requires_grad_())

    def step() -> Tensor:
        leaves.h_ND.grad = leaves.w_VD.grad = None
        value = loss(leaves)
        value.backward()
        return value.detach()

    return step
