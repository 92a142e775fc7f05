"""The Triton kernels themselves: on the GPU where there is one, else in Triton's interpreter on small shapes."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from oracle import (
    Problem,
    assert_greedy,
    assert_no_worse,
    exact,
    linear_cross_entropy_reference,
    logits_logprobs_reference,
    problem,
)
from test_linear_cross_entropy import OPTIONS, case
from test_logits_logprobs import case as logits_case
from torch import Tensor

from evalengine.kernels.head import Head, TargetLogprobs


@pytest.fixture(autouse=True)
def _quiet_numpy() -> Iterator[None]:
    """The interpreter computes masked lanes too, and NumPy remarks on them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        yield


def config(block_n: int, block_v: int, block_d: int, *, tma: bool = False) -> Any:
    from evalengine.kernels.target_logprobs_triton import TileConfig

    return TileConfig(block_n, block_v, block_d, warps=4, stages=2, tma=tma)


def call(x: Problem, device: str, tile: Any = None, **options: Any) -> TargetLogprobs:
    from evalengine.kernels.target_logprobs_triton import target_logprobs_triton

    h_ND, w_VD, row_T, token_T = x.to(device)
    moved = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in options.items()}
    return TargetLogprobs(*target_logprobs_triton(h_ND, Head(w_VD, **moved), row_T, token_T, config=tile))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("n", "v", "d"), [(1, 2, 33), (7, 255, 96), (255, 507, 33)])
def test_target_logprobs_in_its_shipped_configuration(
    n: int, v: int, d: int, dtype: torch.dtype, device: str
) -> None:
    x = problem(n, v, d, dtype)
    ours = call(x, device)
    assert_no_worse(ours, x)
    assert_greedy(ours, x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("options", [{"softcap": 5.0}, {"bias": True, "scale": 0.5, "softcap": 8.0}], ids=str)
def test_target_logprobs_options(options: dict[str, Any], dtype: torch.dtype, device: str) -> None:
    options = dict(options)
    if options.pop("bias", False):
        options["bias_V"] = torch.randn(300, generator=torch.Generator().manual_seed(1)).to(dtype)
    x = problem(20, 300, 64, dtype)
    ours = call(x, device, **options)
    assert_no_worse(ours, x, **options)
    assert_greedy(ours, x, **options)


@pytest.mark.parametrize("magnitude", [1e-4, 1e4])
def test_target_logprobs_magnitudes(magnitude: float, device: str) -> None:
    x = problem(20, 400, 64, torch.float32, magnitude=magnitude)
    assert_no_worse(call(x, device), x)


def test_a_large_vocabulary_has_many_tiles(device: str) -> None:
    x = problem(5, 5_003, 48, torch.bfloat16)
    ours = call(x, device, config(16, 128, 32))
    assert_no_worse(ours, x)
    assert_greedy(ours, x)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_descriptors_and_pointers_give_the_same_bits(dtype: torch.dtype, device: str) -> None:
    if device == "cuda" and torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("the tensor memory accelerator needs compute capability 9.0")
    x = problem(40, 300, 80, dtype)  # the last tile of every dimension is partial
    pointers, tma = (call(x, device, config(32, 64, 32, tma=tma)) for tma in (False, True))
    assert torch.equal(pointers.logprob_T, tma.logprob_T) and torch.equal(pointers.greedy_T, tma.greedy_T)


def test_a_row_has_the_same_bits_whatever_else_is_in_the_launch(device: str) -> None:
    x, tile = problem(70, 520, 40, torch.bfloat16), config(16, 128, 32)
    if device == "cpu":  # the interpreter multiplies by NumPy, whose bits may depend on where a row stands
        x = exact(x)
    whole = call(x, device, tile)
    for rows in ([69], [3, 3, 0], list(range(69, 20, -1))):
        part = call(Problem(x.h_ND[rows], x.w_VD, torch.arange(len(rows)), x.token_T[rows]), device, tile)
        assert torch.equal(part.logprob_T, whole.logprob_T[rows])
        assert torch.equal(part.greedy_T, whole.greedy_T[rows])


def test_rows_beyond_one_launch(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import evalengine.kernels.target_logprobs_triton as module

    x, tile = problem(50, 300, 32, torch.float32), config(16, 64, 32)
    whole = call(x, device, tile)
    monkeypatch.setattr(module, "CHUNK_N", 16)
    chunked = call(x, device, tile)
    assert torch.equal(whole.logprob_T, chunked.logprob_T) and torch.equal(whole.greedy_T, chunked.greedy_T)


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_row_that_is_not_finite_spoils_itself_alone(bad: float, softcap: float | None, device: str) -> None:
    x, tile = problem(12, 200, 32, torch.float32), config(16, 64, 32)
    clean = call(x, device, tile, softcap=softcap)
    h_ND = x.h_ND.clone()
    h_ND[4, 7] = bad
    spoilt = call(x._replace(h_ND=h_ND), device, tile, softcap=softcap)
    hit = (x.row_T == 4).to(device)
    assert spoilt.logprob_T[hit].isnan().all() and not spoilt.greedy_T[hit].any()
    assert torch.equal(spoilt.logprob_T[~hit], clean.logprob_T[~hit])


def test_the_first_of_equal_logits_is_the_argmax_and_a_bias_may_mask_a_tile(device: str) -> None:
    w_VD = torch.zeros(200, 16)
    w_VD[[70, 75, 130]] = 1.0
    bias_V = torch.zeros(200)
    bias_V[:64] = -torch.inf
    tokens = torch.tensor([70, 75, 130, 5])
    x = Problem(torch.ones(1, 16), w_VD, torch.zeros(4, dtype=torch.long), tokens)
    ours = call(x, device, config(16, 64, 32), bias_V=bias_V)
    assert ours.greedy_T.tolist() == [True, False, False, False]
    expected = (x.h_ND.double() @ w_VD.double().t() + bias_V).log_softmax(1)[0, tokens]
    torch.testing.assert_close(ours.logprob_T.cpu().double(), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_logits_logprobs(dtype: torch.dtype, device: str) -> None:
    from evalengine.kernels.logits_logprobs_triton import logits_logprobs_triton

    x = [t.to(device) for t in logits_case(20, 9_001, dtype)]
    logprob_T, greedy_T = logits_logprobs_triton(*x)
    expected = logits_logprobs_reference(x[0].double(), *x[1:])
    torch.testing.assert_close(logprob_T.double(), expected.logprob_T, atol=1e-5, rtol=0)
    assert torch.equal(greedy_T, expected.greedy_T)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("chunks", [1, 2])
def test_linear_cross_entropy(
    chunks: int, dtype: torch.dtype, options: dict[str, Any], device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All rows at once, with the last columns' logits in the memory of w's gradient, and two chunks of rows."""
    from evalengine.kernels import linear_cross_entropy_triton as triton

    options = dict(options)
    bias, reduction = options.pop("bias", False), options.pop("reduction", "mean")
    leaves, target_N = case(40, 1100, 90, dtype, bias)
    assert 0 < triton.own_columns(40, 1100, 90) < 1100, "two parts"
    if chunks == 2:
        monkeypatch.setattr(triton, "LOGITS_BYTES", 24 * 1100 * leaves[0].element_size())
        monkeypatch.setattr(triton, "ROWS", 8)

    def reference(inputs: list[Tensor]) -> list[Tensor]:
        inputs = [x.detach().clone().requires_grad_() for x in inputs]
        bias_V = inputs[2] if bias else None
        loss = linear_cross_entropy_reference(
            *inputs[:2], target_N, bias_V=bias_V, reduction=reduction, **options
        )
        return [loss.detach().double(), *(x.double() for x in torch.autograd.grad(loss, inputs))]

    truth, theirs = reference([x.double() for x in leaves]), reference(leaves)
    moved = [x.to(device) for x in leaves]
    its_head = Head(moved[1], moved[2] if bias else None, softcap=options.get("softcap"))
    weight = 1.0 if reduction == "sum" else 1 / int((target_N != -100).sum())
    target_N = target_N.to(device)
    args = (moved[0], its_head, target_N, -100, options.get("z_loss", 0.0), weight)
    ours = triton.loss_and_gradients(*args, (True, True, bias))
    unit = max(1e-5, torch.finfo(dtype).eps)
    for mine, yours, expected in zip(ours, theirs, truth, strict=False):
        slack = unit * max(1e-3, float(expected.abs().max()))
        worst = float((mine.cpu().double() - expected).abs().max())
        assert worst <= float((yours - expected).abs().max()) + slack
    assert (ours[1][target_N == -100] == 0.0).all()
    alone, *nothing = triton.loss_and_gradients(*args, (False, False, False))
    assert alone.item() == pytest.approx(ours[0].item(), rel=1e-5)
    assert [x.numel() for x in nothing] == [0, 0, 0]
    target_N[3] = 1100
    assert all(x.isnan().any() for x in triton.loss_and_gradients(*args, (True, True, False))[:3])


@pytest.mark.parametrize("chunks", [1, 2])
def test_a_bias_may_mask_whole_blocks_of_the_loss(
    chunks: int, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from evalengine.kernels import linear_cross_entropy_triton as triton

    block = triton.LOSS_LANES * 4
    vocab = 2 * block + 30
    if chunks == 2:
        monkeypatch.setattr(triton, "LOGITS_BYTES", 1)
        monkeypatch.setattr(triton, "ROWS", 3)
    leaves, target_N = case(6, vocab, 16, torch.float32, bias=True)
    leaves[2][:block] = -torch.inf
    target_N = vocab - 1 - target_N.clamp(min=0) % block
    inputs = [x.double().requires_grad_() for x in leaves]
    expected = linear_cross_entropy_reference(*inputs[:2], target_N, bias_V=inputs[2], z_loss=1e-3)
    expected.backward()
    h_ND, w_VD, bias_V = (x.to(device) for x in leaves)
    args = (h_ND, Head(w_VD, bias_V), target_N.to(device), -100, 1e-3, 1 / 6)
    loss, *gradients = triton.loss_and_gradients(*args, (True, True, True))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for ours, x in zip(gradients, inputs, strict=True):
        torch.testing.assert_close(ours.cpu().double(), x.grad, atol=1e-5, rtol=1e-4)


def test_logits_fit_into_the_gradient_that_they_wait_in() -> None:
    from evalengine.kernels.linear_cross_entropy import aligned
    from evalengine.kernels.linear_cross_entropy_triton import own_columns

    for n in (1, 70, 4096, 8192, 100_000):
        for v in (1, 255, 257, 1100, 50_257, 100_864):
            for d in (1, 16, 768, 4096):
                columns = own_columns(n, v, d)
                assert 0 < columns <= v
                if columns < v:
                    assert n * aligned(v - columns) <= columns * d
    assert own_columns(4096, 128_256, 4096) <= 128_256 / 2 + 256


@pytest.mark.parametrize("factor", [1.0, 0.3])
def test_scale(factor: float, device: str) -> None:
    from evalengine.kernels.linear_cross_entropy_triton import SCALE_BLOCK, scale_

    x = torch.randn(3, SCALE_BLOCK - 5)
    found = x.clone().to(device)
    scale_(found, torch.tensor(factor, device=device))
    assert torch.equal(found.cpu(), x * torch.tensor(factor))
