"""What `evalengine bench kernels` times: our calls and what a user would take in their place, on one head.

Each is a function by name, ours first. A baseline that is not installed, has no compiler, or would not fit is left out.
Dims: N rows, V vocabulary, D hidden.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from evalengine.kernels.emulated_logprobs import emulated_logprobs
from evalengine.kernels.head import Head, HeadedRows
from evalengine.kernels.linear_cross_entropy import linear_cross_entropy
from evalengine.kernels.target_logprobs import target_logprobs

BETAS = (0.25, 0.5, 1.0, 1.5, 2.0)  # of emulated fine-tuning
GEMM, GEMMS, TORCH_FUSED = "bare GEMM", "three bare GEMMs", "F.linear_cross_entropy"
Call = Callable[[], Tensor]
Loss = Callable[..., Tensor]  # of hidden states, head and right tokens


class HeadShape(NamedTuple):
    """A head, the rows that meet it, and the model it belongs to."""

    model: str
    rows: int
    hidden: int
    vocab: int
    softcap: float | None = None
    dtype: torch.dtype = torch.bfloat16
    everything: bool = False  # with the baselines that compile or tune themselves for half a minute

    def __str__(self) -> str:
        short = {torch.float32: "fp32", torch.bfloat16: "bf16"}[self.dtype]
        return f"{self.model} {self.rows}x{self.hidden}x{self.vocab} {short}"


class KernelCase(NamedTuple):
    """The tensors of one measurement. One target a row."""

    shape: HeadShape
    h_ND: Tensor
    w_VD: Tensor
    row_N: Tensor
    token_N: Tensor


def make_case(shape: HeadShape, device: str) -> KernelCase:
    generator = torch.Generator(device).manual_seed(0)
    h_ND = torch.randn(shape.rows, shape.hidden, device=device, generator=generator).to(shape.dtype)
    w_VD = torch.randn(shape.vocab, shape.hidden, device=device, generator=generator).to(shape.dtype)
    w_VD *= 3 / shape.hidden**0.5
    token_N = torch.randint(shape.vocab, (shape.rows,), device=device, generator=generator)
    return KernelCase(shape, h_ND, w_VD, torch.arange(shape.rows, device=device), token_N)


def scoring(case: KernelCase) -> dict[str, Call]:
    """The log-probability of each row's target; Liger's and Apple's losses give the mean, the bare GEMM the logits alone."""
    shape, h_ND, w_VD, row_N, token_N = case
    cap = shape.softcap

    def materialised() -> Tensor:
        x_NV = logits(h_ND, w_VD, cap)
        greedy = x_NV.argmax(1) == token_N  # the engine needs it too
        return x_NV.log_softmax(-1)[row_N, token_N] + 0 * greedy

    def chunked() -> Tensor:
        parts = zip(h_ND.split(256), token_N.split(256), strict=True)
        return torch.cat([logits(h, w_VD, cap).log_softmax(-1).gather(1, t[:, None])[:, 0] for h, t in parts])

    calls: dict[str, Call] = {
        "target_logprobs": lambda: target_logprobs(h_ND, w_VD, row_N, token_N, softcap=cap).logprob_T,
        "chunked log_softmax": chunked,
    }
    if fits(case):
        calls["F.linear + log_softmax"] = materialised
        if shape.everything:  # needs a C++ compiler on a CPU
            calls["torch.compile of it"] = torch.compile(materialised, dynamic=False)
    losses = fused_losses(case)
    calls |= {name: functools.partial(loss, h_ND, w_VD, token_N) for name, loss in losses.items()}
    if TORCH_FUSED in losses:
        calls[TORCH_FUSED] = lambda: -losses[TORCH_FUSED](h_ND, w_VD, token_N, reduction="none")
    out_NV = torch.empty(shape.rows, shape.vocab, dtype=shape.dtype, device=h_ND.device)
    return calls | {GEMM: lambda: torch.mm(h_ND, w_VD.t(), out=out_NV)}


def shift_of(case: KernelCase) -> tuple[HeadedRows, HeadedRows, HeadedRows]:
    """Base, tuned and ref of emulated fine-tuning: the case's own head, and two of half its width."""
    half = case.shape.hidden // 2
    columns = (slice(None), slice(half), slice(half, 2 * half))
    base, tuned, ref = (
        HeadedRows(
            case.h_ND[:, c].contiguous(), Head(case.w_VD[:, c].contiguous(), softcap=case.shape.softcap)
        )
        for c in columns
    )
    return base, tuned, ref


def emulating(case: KernelCase) -> dict[str, Call]:
    """The log-probability of each row's target at BETAS; of each call the answer at beta 1.

    Separate calls: one linear layer for each beta, over the three hidden states (scaled) and heads side by side.
    """
    base, tuned, ref = shift_of(case)
    row_N, token_N, cap = case.row_N, case.token_N, case.shape.softcap
    one = BETAS.index(1.0)

    def fused(betas: Sequence[float]) -> Tensor:
        return emulated_logprobs(base, tuned, ref, betas, row_N, token_N).logprob_BT[list(betas).index(1.0)]

    def separate(betas: Sequence[float]) -> Tensor:
        w_VD = torch.cat([base.head.w_VD, tuned.head.w_VD, ref.head.w_VD], 1)
        found = [
            target_logprobs(
                torch.cat([base.h_ND, b * tuned.h_ND, -b * ref.h_ND], 1), w_VD, row_N, token_N
            ).logprob_T
            for b in betas
        ]
        return found[list(betas).index(1.0)]

    def materialised() -> Tensor:
        base_NV, tuned_NV, ref_NV = (logits(rows.h_ND, rows.head.w_VD, cap) for rows in (base, tuned, ref))
        found = []
        for beta in BETAS:
            x_NV = base_NV + beta * (tuned_NV - ref_NV)
            greedy = x_NV.argmax(1) == token_N
            found.append(x_NV.log_softmax(-1)[row_N, token_N] + 0 * greedy)
        return found[one]

    calls: dict[str, Call] = {
        "emulated_logprobs": lambda: fused(BETAS),
        "the same, one beta": lambda: fused((1.0,)),
    }
    if cap is None:  # soft-caps are not linear
        calls |= {
            "target_logprobs side by side": lambda: separate(BETAS),
            "the same side by side, one beta": lambda: separate((1.0,)),
        }
    return calls | {"materialised logits": materialised} if fits(case) else calls


def training(case: KernelCase) -> dict[str, Call]:
    """The mean loss, with gradients; the bare GEMMs are those of logits that are their own gradient."""
    cap = case.shape.softcap
    losses: dict[str, Loss] = {"linear_cross_entropy": functools.partial(linear_cross_entropy, softcap=cap)}
    if fits(case):
        losses["F.linear + cross_entropy"] = lambda h, w, token: F.cross_entropy(logits(h, w, cap), token)
    losses |= fused_losses(case)
    calls: dict[str, Call] = {
        name: functools.partial(with_gradients, loss, case) for name, loss in losses.items()
    }
    return calls | {GEMMS: functools.partial(bare_products, case)} if fits(case) else calls


def bare_products(case: KernelCase) -> Tensor:
    """Logits, gradient of h and gradient of w."""
    x_NV = case.h_ND @ case.w_VD.t()
    torch.mm(x_NV, case.w_VD)
    return torch.mm(x_NV.t(), case.h_ND)[0, 0]


def with_gradients(loss: Loss, case: KernelCase) -> Tensor:
    h_ND, w_VD = case.h_ND.detach().requires_grad_(), case.w_VD.detach().requires_grad_()
    value = loss(h_ND, w_VD, case.token_N)
    value.backward()
    return value.detach()


def logits(h_ND: Tensor, w_VD: Tensor, cap: float | None) -> Tensor:
    x_NV = F.linear(h_ND, w_VD)
    return x_NV if cap is None else cap * torch.tanh(x_NV / cap)


def fits(case: KernelCase) -> bool:
    """Whether three copies of the logits are small enough."""
    return case.shape.rows * case.shape.vocab <= 2**31 / (1 if case.h_ND.is_cuda else 4)


def fused_losses(case: KernelCase) -> dict[str, Loss]:
    """PyTorch's own fused loss (torch >= 2.13), and Liger's and Apple's where they are installed; these two need CUDA."""
    cap = case.shape.softcap
    losses: dict[str, Loss] = {}
    if cap is None and hasattr(F, "linear_cross_entropy"):
        options = torch.nn.LinearCrossEntropyOptions()
        losses[TORCH_FUSED] = functools.partial(F.linear_cross_entropy, options=options)
    if not case.h_ND.is_cuda or not case.shape.everything:
        return losses
    with contextlib.suppress(Exception):  # not installed, or not made for these versions
        from liger_kernel.transformers.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyLoss

        liger = LigerFusedLinearCrossEntropyLoss(softcap=cap)
        losses["Liger fused loss"] = lambda h, w, token: liger(w, h, token)
    with contextlib.suppress(Exception):
        from cut_cross_entropy import linear_cross_entropy as cce

        losses["cut-cross-entropy"] = functools.partial(cce, softcap=cap)
        losses["cut-cross-entropy, compiled"] = functools.partial(cce, softcap=cap, impl="torch_compile")
    return losses
