"""The measure of every kernel test: float64 PyTorch is the truth, PyTorch in the same dtype the error allowed."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from evalengine.kernels.head import TargetLogprobs

SLACK = 1e-5  # beyond PyTorch's own error


def target_logprobs_reference(
    h_ND: Tensor,
    w_VD: Tensor,
    row_T: Tensor,
    token_T: Tensor,
    *,
    bias_V: Tensor | None = None,
    **options: Any,
) -> TargetLogprobs:
    """`target_logprobs` in plain PyTorch, in the dtype of its inputs, with all logits in memory."""
    return logits_logprobs_reference(F.linear(h_ND, w_VD, bias_V), row_T, token_T, **options)


def logits_logprobs_reference(
    logits_NV: Tensor,
    row_T: Tensor,
    token_T: Tensor,
    *,
    softcap: float | None = None,
    scale: float | None = None,
    vocab_size: int | None = None,
) -> TargetLogprobs:
    """`logits_logprobs` in plain PyTorch, in the dtype of the logits."""
    x_NV = logits_NV[:, :vocab_size]
    if scale is not None:
        x_NV = x_NV * scale
    if softcap is not None:
        x_NV = softcap * torch.tanh(x_NV / softcap)
    row_T, token_T = row_T.long(), token_T.long()
    return TargetLogprobs(torch.log_softmax(x_NV, -1)[row_T, token_T], x_NV.argmax(-1)[row_T] == token_T)


def linear_cross_entropy_reference(
    h_ND: Tensor,
    w_VD: Tensor,
    target_N: Tensor,
    *,
    bias_V: Tensor | None = None,
    ignore_index: int = -100,
    weight_N: Tensor | None = None,
    z_loss: float = 0.0,
    softcap: float | None = None,
    **reduction: Any,
) -> Tensor:
    """`linear_cross_entropy` in plain PyTorch with all logits in memory; autograd differentiates it."""
    x_NV = F.linear(h_ND, w_VD, bias_V)
    if softcap is not None:
        x_NV = softcap * torch.tanh(x_NV / softcap)
    if weight_N is not None:
        kept_N = target_N != ignore_index
        loss_M = F.cross_entropy(x_NV[kept_N], target_N[kept_N].long(), reduction="none")
        loss_M = (loss_M + z_loss * x_NV[kept_N].logsumexp(-1).square()) * weight_N[kept_N].to(loss_M.dtype)
        return loss_M.sum() if reduction.get("reduction") == "sum" else loss_M.sum() / kept_N.sum()
    loss = F.cross_entropy(x_NV, target_N.long(), ignore_index=ignore_index, **reduction)
    if z_loss:
        squared = x_NV[target_N != ignore_index].logsumexp(-1).square()
        loss = loss + z_loss * (squared.sum() if reduction.get("reduction") == "sum" else squared.mean())
    return loss


class Problem(NamedTuple):
    """A random head with hidden states and targets; among the targets each row's argmax and the last token."""

    h_ND: Tensor
    w_VD: Tensor
    row_T: Tensor
    token_T: Tensor

    def to(self, device: str) -> Problem:
        return Problem(*(x.to(device) for x in self))


def problem(n: int, v: int, d: int, dtype: torch.dtype, *, magnitude: float = 1.0, seed: int = 0) -> Problem:
    """Logits of standard deviation about 3 * magnitude; three targets a row."""
    generator = torch.Generator().manual_seed(seed)
    h_ND = torch.randn(n, d, generator=generator).to(dtype)
    w_VD = (torch.randn(v, d, generator=generator) * (3 * magnitude / d**0.5)).to(dtype)
    argmax_N = torch.cat([(part.float() @ w_VD.float().t()).argmax(1) for part in h_ND.split(256)])
    random_N = torch.randint(v, (n,), generator=generator)
    token_T = torch.cat([argmax_N, random_N, torch.full((n,), v - 1)])
    return Problem(h_ND, w_VD, torch.arange(n).repeat(3), token_T)


def exact(x: Problem) -> Problem:
    """The same head in steps of 1/2 and 1/8: float32 holds its logits exactly, whichever order a library adds in."""
    return x._replace(h_ND=(x.h_ND * 2).round() / 2, w_VD=(x.w_VD * 8).round() / 8)


def truth(x: Problem, **options: Any) -> TargetLogprobs:
    """The answer in float64."""
    return target_logprobs_reference(x.h_ND.double(), x.w_VD.double(), x.row_T, x.token_T, **_double(options))


def pytorch(x: Problem, **options: Any) -> TargetLogprobs:
    """PyTorch's answer in the dtype of the inputs."""
    return target_logprobs_reference(*x, **options)


def errors(ours: TargetLogprobs, x: Problem, **options: Any) -> tuple[Tensor, Tensor]:
    """(our error, PyTorch's error) of each target's log-probability against float64."""
    expected = truth(x, **options).logprob_T
    theirs = pytorch(x, **options).logprob_T.double()
    return (ours.logprob_T.cpu().double() - expected).abs(), (theirs - expected).abs()


def assert_no_worse(ours: TargetLogprobs, x: Problem, **options: Any) -> None:
    """No error beyond PyTorch's own in the same dtype, 1e-5 and the float32 resolution of the row's logits, element by
    element."""
    ours_T, allowed_T = errors(ours, x, **options)
    assert not ours_T.isnan().any()
    slack = (
        SLACK + 4 * 2.0**-24 * float(raw_logits(x, **options).abs().max()) + order_of_sums(ours, x, **options)
    )
    excess = float((ours_T - allowed_T).max())
    assert excess <= slack, f"worse than PyTorch by {excess:.2e}"


def order_of_sums(ours: TargetLogprobs, x: Problem, *, scale: float | None = None, **_: Any) -> float:
    """What a GPU's products may lose against the CPU's, which `errors` takes for PyTorch's: it adds the products of a logit
    in one long row, a CPU in many short ones. Four units of float32 at the largest sum of a logit's absolute products."""
    if not ours.logprob_T.is_cuda:
        return 0.0
    sum_T = (x.h_ND.double()[x.row_T] * x.w_VD.double()[x.token_T]).abs().sum(1)
    return 4 * 2.0**-24 * abs(scale or 1.0) * float(sum_T.max())


def assert_greedy(ours: TargetLogprobs, x: Problem, *, gap: float = 1e-5, **options: Any) -> None:
    """Greedy is the truth's wherever the two largest logits of the row differ by a share of more than `gap`."""
    top = raw_logits(x, **options).topk(2, 1).values
    clear_T = ((top[:, 0] - top[:, 1]) > gap * top.abs().amax(1))[x.row_T]
    assert clear_T.any()
    assert torch.equal(ours.greedy_T.cpu()[clear_T], truth(x, **options).greedy_T[clear_T])


def raw_logits(x: Problem, **options: Any) -> Tensor:
    """The float64 logits, soft-cap and scale included."""
    logits_NV = (x.h_ND.double() @ x.w_VD.double().t())[:, : options.get("vocab_size")]
    if options.get("bias_V") is not None:
        logits_NV = logits_NV + options["bias_V"].double()[: options.get("vocab_size")]
    logits_NV = logits_NV * (options.get("scale") or 1.0)
    cap = options.get("softcap")
    return logits_NV if cap is None else cap * torch.tanh(logits_NV / cap)


def _double(options: dict[str, Any]) -> dict[str, Any]:
    return {k: v.double() if isinstance(v, Tensor) else v for k, v in options.items()}
