"""`target_logprobs` over the whole grid of heads: 255, 7 and 1 rows, vocabularies from 2 to 100,864, odd and real widths."""

from __future__ import annotations

import pytest
import torch
from oracle import SLACK, Problem, order_of_sums, problem, pytorch, raw_logits, truth

from evalengine.kernels import target_logprobs

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = pytest.mark.gpu
ROWS = 255
VOCABULARIES = (2, 255, 5_003, 50_257, 100_864)
WIDTHS = (33, 96, 768, 1_680)
HALVES = (torch.float16, torch.bfloat16)
LARGE = 50_257 * 96  # elements of a head; from here on float32 alone


@pytest.mark.slow
@pytest.mark.parametrize("d", WIDTHS)
@pytest.mark.parametrize("v", VOCABULARIES)
def test_no_error_beyond_pytorchs_and_fewer_rows_have_the_same_bits(v: int, d: int) -> None:
    """Elementwise, +1e-5; on a GPU also what the order of its sums loses."""
    for dtype in (torch.float32, *HALVES)[: 1 if v * d >= LARGE else 3]:
        x = problem(ROWS, v, d, dtype)
        answer = target_logprobs(*x.to(DEVICE))
        ours = [field.cpu() for field in answer]
        logits_NV = raw_logits(x)
        expected_T = logits_NV.log_softmax(1)[x.row_T, x.token_T]
        ours_T = (ours[0].double() - expected_T).abs()
        theirs_T = (pytorch(x).logprob_T.double() - expected_T).abs()
        assert float((ours_T - theirs_T).max()) <= SLACK + order_of_sums(answer, x), dtype
        top = logits_NV.topk(2, 1)
        clear_T = (top.values[:, 0] - top.values[:, 1] > 1e-4)[x.row_T]
        greedy_T = top.indices[:, 0][x.row_T] == x.token_T
        assert clear_T.any() and torch.equal(ours[1][clear_T], greedy_T[clear_T])
        for n in (1, 7):
            first = x.row_T < n
            few = Problem(x.h_ND[:n], x.w_VD, x.row_T[first], x.token_T[first])
            for alone, whole in zip(target_logprobs(*few.to(DEVICE)), ours, strict=True):
                assert torch.equal(alone.cpu(), whole[first]), (dtype, n)


@pytest.mark.parametrize("magnitude", [1e-4, 1e-2, 1e2, 1e4])
@pytest.mark.parametrize("v", [255, 5_003])
def test_magnitudes(v: int, magnitude: float) -> None:
    """From nearly uniform to nearly certain rows; at 1e4 one unit of float32 is 1e-3, which both sides are allowed."""
    for dtype in (torch.float32, *HALVES):
        if dtype == torch.float16 and magnitude == 1e4:
            continue  # the logits overflow float16 in PyTorch's answer
        x = problem(60, v, 96, dtype, magnitude=magnitude)
        answer = target_logprobs(*x.to(DEVICE))
        ours_T = (answer.logprob_T.cpu().double() - truth(x).logprob_T).abs()
        theirs_T = (pytorch(x).logprob_T.double() - truth(x).logprob_T).abs()
        unit = 2.0**-24 * float(raw_logits(x).abs().max())
        assert float((ours_T - theirs_T).max()) <= SLACK + 4 * unit + order_of_sums(answer, x)
