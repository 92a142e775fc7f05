"""`logits_logprobs` against float64 log_softmax."""

from __future__ import annotations

import pytest
import torch
from oracle import logits_logprobs_reference

from evalengine.kernels import logits_logprobs
from evalengine.kernels.logits_logprobs import logits_logprobs_op

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = pytest.mark.gpu


def case(n: int, v: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(n + v)
    logits_NV = (3 * torch.randn(n, v, generator=generator)).to(dtype)
    token_T = torch.cat(
        [logits_NV.argmax(1), torch.randint(v, (n,), generator=generator), torch.full((n,), v - 1)]
    )
    return logits_NV.to(DEVICE), torch.arange(n).repeat(3).to(DEVICE), token_T.to(DEVICE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("n", "v"), [(1, 2), (7, 255), (513, 5_500), (3, 100_864)])
def test_exact_for_the_given_logits(n: int, v: int, dtype: torch.dtype) -> None:
    logits_NV, row_T, token_T = case(n, v, dtype)
    ours = logits_logprobs(logits_NV, row_T, token_T)
    expected = logits_logprobs_reference(logits_NV.double(), row_T, token_T)
    torch.testing.assert_close(ours.logprob_T.double(), expected.logprob_T, atol=1e-5, rtol=0)
    assert torch.equal(ours.greedy_T, expected.greedy_T)


def test_strides_and_ties() -> None:
    padded_NV = torch.full((3, 4_000), 5.0, device=DEVICE)
    logits_NV = padded_NV[:, :2_400].zero_()
    rows, tokens = torch.arange(3).to(DEVICE), torch.tensor([0, 1, 2_399]).to(DEVICE)
    ours = logits_logprobs(logits_NV, rows, tokens)
    torch.testing.assert_close(ours.logprob_T.cpu(), torch.full((3,), 1 / 2_400).log())
    assert ours.greedy_T.tolist() == [True, False, False]


def test_rows_that_are_not_finite_are_nan_and_alone() -> None:
    logits_NV, row_T, token_T = case(8, 1_200, torch.float32)
    clean = logits_logprobs(logits_NV, row_T, token_T)
    logits_NV[2, 5], logits_NV[6, 1_100] = torch.nan, torch.inf
    ours = logits_logprobs(logits_NV, row_T, token_T)
    hit = (row_T == 2) | (row_T == 6)
    assert ours.logprob_T[hit].isnan().all() and not ours.greedy_T[hit].any()
    assert torch.equal(ours.logprob_T[~hit], clean.logprob_T[~hit])


def test_bad_arguments_are_refused() -> None:
    logits_NV, row_T, token_T = case(4, 10, torch.float32)
    with pytest.raises(IndexError, match="token_T"):
        logits_logprobs(logits_NV, row_T.cpu(), token_T.cpu() + 10)
    with pytest.raises(ValueError, match="floating"):
        logits_logprobs(logits_NV.long(), row_T, token_T)


def test_operator() -> None:
    x = case(4, 300, torch.float32)
    torch.library.opcheck(logits_logprobs_op, x)
    compiled = torch.compile(logits_logprobs, fullgraph=True, backend="aot_eager")(*x)
    assert torch.equal(compiled.logprob_T, logits_logprobs(*x).logprob_T)
