"""The Triton kernels themselves: on the GPU where there is one, else in Triton's interpreter on small shapes."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from types import SimpleNamespace
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
    raw_logits,
)
from test_linear_cross_entropy import OPTIONS, case, row_weights
from test_logits_logprobs import case as logits_case
from torch import Tensor

from evalengine.kernels.head import Head, TargetLogprobs

pytestmark = pytest.mark.gpu


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
@pytest.mark.parametrize(("n", "v", "d"), [(1, 2, 33), (7, 255, 96), (131, 507, 33)])
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_strided_inputs(dtype: torch.dtype, device: str) -> None:
    wide = problem(30, 600, 64, dtype)
    bias_V = torch.randn(600, generator=torch.Generator().manual_seed(1)).to(dtype)
    x = Problem(wide.h_ND[::2, ::2], wide.w_VD[::3, ::2], torch.arange(15), torch.arange(30)[::2])
    plain = Problem(*(t.contiguous() for t in x))
    ours = call(x, device, bias_V=bias_V[::3])
    assert_no_worse(ours, plain, bias_V=bias_V[::3])
    expected = call(plain, device, bias_V=bias_V[::3].contiguous())
    assert torch.equal(ours.logprob_T, expected.logprob_T)


@pytest.mark.parametrize("magnitude", [1e-4, 1e4])
def test_target_logprobs_magnitudes(magnitude: float, device: str) -> None:
    x = problem(20, 400, 64, torch.float32, magnitude=magnitude)
    assert_no_worse(call(x, device), x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_only_token_of_a_vocabulary_is_certain(dtype: torch.dtype, device: str) -> None:
    x = problem(5, 1, 64, dtype)
    h_ND = x.h_ND.clone()
    h_ND[3, 0] = torch.nan
    ours = call(x._replace(h_ND=h_ND), device, scale=2.0)
    expected = torch.where(x.row_T == 3, torch.nan, 0.0)
    torch.testing.assert_close(ours.logprob_T.cpu(), expected, atol=0, rtol=0, equal_nan=True)
    assert torch.equal(ours.greedy_T.cpu(), x.row_T != 3)


def test_an_argmax_that_is_certain_has_log_probability_zero(device: str) -> None:
    """The logit of a target and the maximum of its row's tile are sums in two orders, which must not show."""
    x = problem(30, 400, 96, torch.bfloat16, magnitude=1e3)
    top = raw_logits(x).topk(2, 1)
    certain_N = top.values[:, 0] - top.values[:, 1] > 40
    assert certain_N.sum() > 20
    tokens = Problem(x.h_ND, x.w_VD, torch.arange(30)[certain_N], top.indices[certain_N, 0])
    ours = call(tokens, device)
    assert ours.logprob_T.eq(0).all() and ours.greedy_T.all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_indices_out_of_range_give_nan(
    dtype: torch.dtype, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import evalengine.kernels.target_logprobs_triton as module

    monkeypatch.setattr(module, "CHUNK_N", 16)
    x = problem(40, 30, 32, dtype)
    row_T, token_T = x.row_T.clone(), x.token_T.clone()
    for t, row, token in ((0, -1, 0), (1, 40, 0), (2, 3, -1), (3, 39, 30), (4, 2**31 - 1, 2**31 - 1)):
        row_T[t], token_T[t] = row, token
    ours, whole = call(x._replace(row_T=row_T, token_T=token_T), device), call(x, device)
    assert ours.logprob_T[:5].isnan().all() and not ours.greedy_T[:5].any()
    assert torch.equal(ours.logprob_T[5:], whole.logprob_T[5:])
    nothing = call(Problem(x.h_ND[:0], x.w_VD, torch.tensor([0]), torch.tensor([0])), device)
    assert nothing.logprob_T.isnan().all() and not nothing.greedy_T.any()


@pytest.fixture
def small_slices(device: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The module of the slices, which the interpreter runs with a sixteenth of the rows and columns: as many blocks."""
    from evalengine.kernels import float32_slices_triton as module

    if device == "cuda":
        yield module
        return
    for name in ("BLOCK_N", "BLOCK_V", "SLICE_V"):
        monkeypatch.setattr(module, name, getattr(module, name) // 16)
    module._launcher.cache_clear()
    yield module
    module._launcher.cache_clear()


@pytest.mark.parametrize("softcap", [None, 20.0])
def test_float32_beyond_one_slice_of_the_vocabulary_and_one_block_of_rows(
    softcap: float | None, device: str, small_slices: Any
) -> None:
    block_n, block_v, slice_v = small_slices.BLOCK_N, small_slices.BLOCK_V, small_slices.SLICE_V
    n, v = block_n + 2, slice_v + block_v + 7
    assert slice_v % block_v, "the last block of a slice is partial"
    x = exact(problem(n, v, 8, torch.float32))
    bias_V = torch.randn(v, generator=torch.Generator().manual_seed(1))
    bias_V[block_v : 2 * block_v] = -torch.inf if softcap is None else 0.0
    x = x._replace(token_T=torch.where(bias_V[x.token_T].isfinite(), x.token_T, 1))
    x = Problem(*x[:2], x.row_T[n:], x.token_T[n:])
    ours = call(x, device, bias_V=bias_V, softcap=softcap)
    assert_no_worse(ours, x, bias_V=bias_V, softcap=softcap)
    for rows in ([n - 1], [3, block_n + 1, 0]):
        part = Problem(x.h_ND[rows], x.w_VD, torch.arange(len(rows)), x.token_T[rows])
        alone = call(part, device, bias_V=bias_V, softcap=softcap)
        assert torch.equal(alone.logprob_T, ours.logprob_T[rows])


@pytest.mark.parametrize(
    ("major", "shared", "hopper"),
    [(8, 166_912, False), (9, 232_448, True), (10, 232_448, True), (12, 101_376, False), (9, None, True)],
    ids=["A100", "H100", "B200", "RTX 5090", "H100 under a PyTorch that does not state its memory"],
)
def test_hopper_is_told_by_its_generation_and_its_shared_memory(
    major: int, shared: int | None, hopper: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from evalengine.kernels import target_logprobs_triton as triton
    from evalengine.kernels.triton_common import is_hopper

    about = SimpleNamespace(major=major, **({"shared_memory_per_block_optin": shared} if shared else {}))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: about)
    device = torch.device("cuda", 0)
    assert is_hopper(device) is hopper and not is_hopper(torch.device("cpu"))
    assert triton.config_for(device, False, False, aligned=True).tma is hopper


def test_a_launcher_goes_past_the_dispatch_from_the_second_launch_on() -> None:
    from evalengine.kernels.triton_common import Launcher

    launches: list[Any] = []

    class Compiled:
        def __getitem__(self, grid: tuple[int, int, int]) -> Any:
            return lambda *arguments: launches.append((grid, arguments))

    class Kernel:
        arg_names = ("x_N", "N", "EVEN", "BLOCK")

        def __getitem__(self, grid: tuple[int, int, int]) -> Any:
            def launch(*arguments: Any, **options: Any) -> Compiled:
                launches.append((grid, arguments, options))
                return Compiled()

            return launch

    launcher = Launcher(Kernel(), {"BLOCK": 8, "EVEN": True}, warps=2, stages=5)
    launcher(3, "x", 10)
    launcher(4, "y", 11)
    assert launches == [
        ((3, 1, 1), ("x", 10, True, 8), {"num_warps": 2, "num_stages": 5}),
        ((4, 1, 1), ("y", 11, True, 8)),
    ]


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
    x[1][0], x[2][1] = 20, -1
    spoilt_T, greedy_T = logits_logprobs_triton(*x)
    assert spoilt_T[:2].isnan().all() and not greedy_T[:2].any()
    assert torch.equal(spoilt_T[2:], logprob_T[2:])


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize(
    ("chunks", "dtype"), [(1, torch.float32), (2, torch.bfloat16), (2, torch.float16)], ids=str
)
def test_linear_cross_entropy(
    chunks: int, dtype: torch.dtype, options: dict[str, Any], device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All rows at once, with the last columns' logits in the memory of w's gradient, and two chunks of rows."""
    from evalengine.kernels import linear_cross_entropy_triton as triton

    options = dict(options)
    bias, reduction = options.pop("bias", False), options.pop("reduction", "mean")
    leaves, target_N = case(14, 1100, 90, dtype, bias)
    weight_N = row_weights(target_N) if options.pop("weights", False) else None
    assert 0 < triton.own_columns(14, 1100, 90) < 1100, "two parts"
    if chunks == 2:
        monkeypatch.setattr(triton, "LOGITS_BYTES", 8 * 1100 * leaves[0].element_size())
        monkeypatch.setattr(triton, "ROWS", 8)

    def reference(inputs: list[Tensor]) -> list[Tensor]:
        inputs = [x.detach().clone().requires_grad_() for x in inputs]
        bias_V = inputs[2] if bias else None
        loss = linear_cross_entropy_reference(
            *inputs[:2], target_N, bias_V=bias_V, weight_N=weight_N, reduction=reduction, **options
        )
        return [loss.detach().double(), *(x.double() for x in torch.autograd.grad(loss, inputs))]

    truth, theirs = reference([x.double() for x in leaves]), reference(leaves)
    moved = [x.to(device) for x in leaves]
    its_head = Head(moved[1], moved[2] if bias else None, softcap=options.get("softcap"))
    weight = 1.0 if reduction == "sum" else 1 / int((target_N != -100).sum())
    target_N = target_N.to(device)
    args = (moved[0], its_head, target_N, -100, options.get("z_loss", 0.0), weight)
    weight_N = None if weight_N is None else weight_N.to(device)
    ours = triton.loss_and_gradients(*args, (True, True, bias), weight_N)
    unit = max(1e-5, torch.finfo(dtype).eps)
    for mine, yours, expected in zip(ours, theirs, truth, strict=False):
        slack = unit * max(1e-3, float(expected.abs().max()))
        worst = float((mine.cpu().double() - expected).abs().max())
        assert worst <= float((yours - expected).abs().max()) + slack
    assert (ours[1][target_N == -100] == 0.0).all()
    alone, *nothing = triton.loss_and_gradients(*args, (False, False, False), weight_N)
    assert alone.item() == pytest.approx(ours[0].item(), rel=1e-5)
    assert [x.numel() for x in nothing] == [0, 0, 0]
    target_N[3] = 1100
    spoilt = triton.loss_and_gradients(*args, (True, True, False), weight_N)
    assert all(x.isnan().any() for x in spoilt[:3])


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
    from evalengine.kernels.linear_cross_entropy_triton import own_columns
    from evalengine.kernels.loss_chunks import aligned

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
