"""`linear_cross_entropy`: loss and gradients against float64 autograd."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from oracle import linear_cross_entropy_reference
from torch import Tensor

from evalengine.kernels import linear_cross_entropy
from evalengine.kernels.head import Head
from evalengine.kernels.linear_cross_entropy import (
    MIN_ROWS,
    linear_cross_entropy_op,
    loss_in_chunks,
    losses_,
)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = pytest.mark.gpu
TILE_V = 2048  # columns that a bias masks together
OPTIONS: list[dict[str, Any]] = [
    {},
    {"weights": True, "z_loss": 1e-3, "bias": True},
    {"weights": True, "softcap": 4.0, "reduction": "sum"},
    {"reduction": "sum", "z_loss": 1e-3},
    {"softcap": 4.0},
    {"softcap": 4.0, "z_loss": 1e-2, "bias": True},
]


def case(n: int, v: int, d: int, dtype: torch.dtype, bias: bool) -> tuple[list[Tensor], Tensor]:
    """([h, w] or [h, w, bias], targets with every fifth ignored)."""
    generator = torch.Generator().manual_seed(n + v + d)
    leaves = [torch.randn(n, d, generator=generator), torch.randn(v, d, generator=generator) * 3 / d**0.5]
    if bias:
        leaves.append(torch.randn(v, generator=generator))
    target_N = torch.randint(v, (n,), generator=generator)
    target_N[::5] = -100
    return [x.to(dtype) for x in leaves], target_N


def row_weights(target_N: Tensor) -> Tensor:
    """From -1 to 2; those of ignored rows may hold anything."""
    return torch.where(target_N == -100, torch.nan, torch.linspace(-1, 2, len(target_N)))


def loss_and_gradients(function: Any, leaves: list[Tensor], target_N: Tensor, **options: Any) -> list[Tensor]:
    leaves = [x.detach().clone().requires_grad_() for x in leaves]
    loss = function(*leaves[:2], target_N, bias_V=leaves[2] if len(leaves) > 2 else None, **options)
    (loss * 3).backward()
    return [loss.detach().cpu().double(), *(x.grad.cpu().double() for x in leaves if x.grad is not None)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_what_lies_in_fresh_memory_does_not_matter(dtype: torch.dtype) -> None:
    """PyTorch's deterministic mode fills it with NaN. CPUs with AMX read beyond the end of rows of 1,100 logits."""
    leaves, target_N = case(5 * MIN_ROWS, 1_100, 24, dtype, False)
    moved = [x.to(DEVICE) for x in leaves]
    plain = loss_and_gradients(linear_cross_entropy, moved, target_N.to(DEVICE))
    torch.use_deterministic_algorithms(True)  # with `fill_uninitialized_memory`, which is on by default
    try:
        assert torch.empty(3).isnan().all()
        filled = loss_and_gradients(linear_cross_entropy, moved, target_N.to(DEVICE))
    finally:
        torch.use_deterministic_algorithms(False)
    for one, other in zip(plain, filled, strict=True):
        assert torch.equal(one, other) and one.isfinite().all()


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("n", "v", "d"), [(7, 255, 33), (200, 2_100, 96), (70, 2_100, 96)])
def test_no_further_from_float64_than_pytorch(
    n: int, v: int, d: int, dtype: torch.dtype, options: dict[str, Any]
) -> None:
    options = dict(options)
    leaves, target_N = case(n, v, d, dtype, options.pop("bias", False))
    if options.pop("weights", False):
        options["weight_N"] = row_weights(target_N)
    truth = loss_and_gradients(
        linear_cross_entropy_reference, [x.double() for x in leaves], target_N, **options
    )
    theirs = loss_and_gradients(linear_cross_entropy_reference, leaves, target_N, **options)
    moved = [x.to(DEVICE) for x in leaves]
    options = {k: x.to(DEVICE) if isinstance(x, Tensor) else x for k, x in options.items()}
    ours = loss_and_gradients(linear_cross_entropy, moved, target_N.to(DEVICE), **options)
    unit = max(1e-5, torch.finfo(dtype).eps)  # the gradient is rounded once more by the factor 3
    for mine, yours, expected in zip(ours, theirs, truth, strict=True):
        slack = unit * max(1.0, float(expected.abs().max()))
        assert float((mine - expected).abs().max()) <= float((yours - expected).abs().max()) + slack


@pytest.mark.skipif(DEVICE == "cuda", reason="float64 runs on the CPU")
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_gradcheck(options: dict[str, Any]) -> None:
    options = dict(options)
    leaves, target_N = case(6, 19, 5, torch.float64, options.pop("bias", False))
    leaves = [x.requires_grad_() for x in leaves]
    if options.pop("weights", False):
        options["weight_N"] = row_weights(target_N).double()

    def loss(h: Tensor, w: Tensor, bias: Tensor | None = None) -> Tensor:
        return linear_cross_entropy(h, w, target_N, bias_V=bias, **options)

    assert torch.autograd.gradcheck(loss, leaves)


@pytest.mark.skipif(DEVICE == "cuda", reason="the CPU's chunks")
@pytest.mark.parametrize("softcap", [None, 4.0])
def test_chunks_of_rows_add_up(softcap: float | None) -> None:
    (h_ND, w_VD), target_N = case(300, 1_100, 24, torch.float64, False)
    target_N = target_N.clamp(min=0)
    head = Head(w_VD, softcap=softcap)

    def losses(logits_RV: Tensor, rows: slice) -> Tensor:
        return losses_(logits_RV, head, target_N[rows], 1e-3, None)

    args = (h_ND, head, losses, 1 / 300, (True, True, False))
    whole, parts = loss_in_chunks(*args, 300), loss_in_chunks(*args, MIN_ROWS)
    for x, y in zip(whole, parts, strict=True):
        torch.testing.assert_close(x, y, atol=1e-12, rtol=1e-9)


@pytest.mark.skipif(DEVICE == "cuda", reason="the CPU's chunks")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_gradients_of_chunks_add_up_in_float32(dtype: torch.dtype) -> None:
    """Many chunks are no further from float64 than one."""
    (h_ND, w_VD), target_N = case(5 * MIN_ROWS, 1_100, 24, dtype, False)
    target_N = target_N.clamp(min=0)
    inputs = [x.double().requires_grad_() for x in (h_ND, w_VD)]
    linear_cross_entropy_reference(*inputs, target_N).backward()

    def losses(logits_RV: Tensor, rows: slice) -> Tensor:
        return losses_(logits_RV, Head(w_VD), target_N[rows], 0.0, None)

    args = (h_ND, Head(w_VD), losses, 1 / (5 * MIN_ROWS), (True, True, False))
    parts, whole = loss_in_chunks(*args, MIN_ROWS), loss_in_chunks(*args, 5 * MIN_ROWS)
    for x, y, leaf in zip(parts[1:3], whole[1:3], inputs, strict=True):
        unit = max(1e-6, torch.finfo(dtype).eps) * float(leaf.grad.abs().max())
        theirs = float((y.double() - leaf.grad).abs().max())
        assert float((x.double() - leaf.grad).abs().max()) <= theirs + unit


def test_without_gradients_the_loss_is_the_same() -> None:
    (h_ND, w_VD), target_N = case(60, 3_000, 40, torch.float32, False)
    expected = linear_cross_entropy_reference(h_ND.double(), w_VD.double(), target_N, z_loss=1e-3)
    with torch.no_grad():
        ours = linear_cross_entropy(h_ND.to(DEVICE), w_VD.to(DEVICE), target_N.to(DEVICE), z_loss=1e-3)
    assert ours.dtype == torch.float32 and not ours.requires_grad
    assert ours.item() == pytest.approx(expected.item(), abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("z_loss", [0.0, 1e-3])
@pytest.mark.parametrize("tiles", [[0], [1], [0, 2]], ids=str)
def test_a_bias_may_mask_whole_tiles(tiles: list[int], z_loss: float, dtype: torch.dtype) -> None:
    leaves, target_N = case(20, 3 * TILE_V + 7, 24, dtype, bias=True)
    bias_V = leaves[2]
    for k in tiles:
        bias_V[k * TILE_V : (k + 1) * TILE_V] = -torch.inf
    target_N[:] = bias_V.isfinite().nonzero()[target_N % int(bias_V.isfinite().sum()), 0]
    doubled = [x.double() for x in leaves]
    truth = loss_and_gradients(linear_cross_entropy_reference, doubled, target_N, z_loss=z_loss)
    theirs = loss_and_gradients(linear_cross_entropy_reference, leaves, target_N, z_loss=z_loss)
    moved = [x.to(DEVICE) for x in leaves]
    ours = loss_and_gradients(linear_cross_entropy, moved, target_N.to(DEVICE), z_loss=z_loss)
    with torch.no_grad():
        alone = linear_cross_entropy(*moved[:2], target_N.to(DEVICE), bias_V=moved[2], z_loss=z_loss)
    assert abs(float(alone) - float(truth[0])) <= abs(float(theirs[0] - truth[0])) + 1e-4
    for mine, yours, expected in zip(ours, theirs, truth, strict=True):
        slack = max(1e-5, torch.finfo(dtype).eps) * max(1.0, float(expected.abs().max()))
        assert expected.isfinite().all()
        assert float((mine - expected).abs().max()) <= float((yours - expected).abs().max()) + slack


def test_only_the_gradients_that_are_wanted() -> None:
    (h_ND, w_VD), target_N = case(20, 300, 16, torch.float32, False)
    h_ND, w_VD, target_N = h_ND.to(DEVICE).requires_grad_(), w_VD.to(DEVICE), target_N.to(DEVICE)
    linear_cross_entropy(h_ND, w_VD, target_N).backward()
    assert h_ND.grad is not None and w_VD.grad is None
    assert torch.equal(h_ND.grad[target_N == -100], torch.zeros_like(h_ND.grad[target_N == -100]))


def test_ignored_rows_may_hold_anything() -> None:
    (h_ND, w_VD), target_N = case(20, 300, 16, torch.float32, False)
    expected = linear_cross_entropy(h_ND.to(DEVICE), w_VD.to(DEVICE), target_N.to(DEVICE))
    h_ND[target_N == -100] = torch.nan
    assert linear_cross_entropy(h_ND.to(DEVICE), w_VD.to(DEVICE), target_N.to(DEVICE)) == expected
    everything = torch.full_like(target_N, -100).to(DEVICE)
    assert linear_cross_entropy(h_ND.to(DEVICE), w_VD.to(DEVICE), everything, reduction="sum") == 0.0
    assert linear_cross_entropy(h_ND.to(DEVICE), w_VD.to(DEVICE), everything).isnan()


def test_targets_may_stay_on_the_cpu() -> None:
    leaves, target_N = case(50, 300, 16, torch.float32, bias=True)
    moved = [x.to(DEVICE) for x in leaves]
    there = loss_and_gradients(linear_cross_entropy, moved, target_N.to(DEVICE), z_loss=1e-3)
    here = loss_and_gradients(linear_cross_entropy, moved, target_N, z_loss=1e-3)
    for x, y in zip(there, here, strict=True):
        torch.testing.assert_close(x, y, atol=1e-6, rtol=1e-5)


def test_a_gradient_can_be_asked_for_again() -> None:
    """Backward may overwrite the saved gradients only where the graph is not kept."""
    (h_ND, w_VD), target_N = case(20, 300, 16, torch.float32, False)
    leaves = [x.to(DEVICE).requires_grad_() for x in (h_ND, w_VD)]
    loss = linear_cross_entropy(*leaves, target_N.to(DEVICE)) * 3
    first = torch.autograd.grad(loss, leaves, retain_graph=True)
    once = [x.clone() for x in first]
    loss.backward(retain_graph=True)
    loss.backward()
    for x, y, leaf in zip(first, once, leaves, strict=True):
        assert torch.equal(x, y), "what a caller holds is the caller's"
        torch.testing.assert_close(leaf.grad, 2 * y)


def test_second_derivatives_are_refused() -> None:
    (h_ND, w_VD), target_N = case(20, 300, 16, torch.float32, False)
    h_ND = h_ND.to(DEVICE).requires_grad_()
    loss = linear_cross_entropy(h_ND, w_VD.to(DEVICE), target_N.to(DEVICE))
    (dh_ND,) = torch.autograd.grad(loss, h_ND, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiable once"):
        dh_ND.square().sum().backward()


@pytest.mark.parametrize("wrong", [-5, 300])
def test_targets_out_of_range_on_the_gpu_give_nan(wrong: int, cuda: str) -> None:
    leaves, target_N = case(20, 300, 16, torch.float32, bias=True)
    target_N[3] = wrong
    moved = [x.to(cuda) for x in leaves]
    for x in loss_and_gradients(linear_cross_entropy, moved, target_N.to(cuda)):
        assert x.isnan().any()


@pytest.mark.parametrize("where", ["cpu", "cuda"])
def test_a_call_never_waits_for_the_device(where: str, cuda: str) -> None:
    leaves, target_N = case(300, 2_100, 96, torch.bfloat16, bias=True)
    h_ND, w_VD, bias_V = (x.to(cuda).requires_grad_() for x in leaves)
    target_N, by = target_N.to(where), torch.tensor(3.0, device=cuda)
    for mode in ("default", "error"):  # the first call compiles
        torch.cuda.set_sync_debug_mode(mode)
        try:
            (linear_cross_entropy(h_ND, w_VD, target_N, bias_V=bias_V) * by).backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("where", sorted({"cpu", DEVICE}))
def test_gradients_of_ignored_rows_that_hold_anything(where: str) -> None:
    (h_ND, w_VD), target_N = case(20, 300, 16, torch.float32, False)
    expected = loss_and_gradients(
        linear_cross_entropy, [h_ND.to(DEVICE), w_VD.to(DEVICE)], target_N.to(where)
    )
    h_ND[target_N == -100] = torch.nan
    found = loss_and_gradients(linear_cross_entropy, [h_ND.to(DEVICE), w_VD.to(DEVICE)], target_N.to(where))
    for x, y in zip(found, expected, strict=True):
        assert torch.equal(x, y)


def test_bad_arguments_are_refused() -> None:
    (h_ND, w_VD), target_N = case(6, 30, 8, torch.float32, False)
    with pytest.raises(ValueError, match="target_N"):
        linear_cross_entropy(h_ND, w_VD, target_N.double())
    with pytest.raises(IndexError, match="target_N"):
        linear_cross_entropy(h_ND, w_VD, target_N.clamp(min=30))
    with pytest.raises(IndexError, match="target_N"):
        linear_cross_entropy(h_ND, w_VD, target_N, ignore_index=-1)  # -100 is then no token
    with pytest.raises(ValueError, match="target_N"):
        linear_cross_entropy(h_ND, w_VD, target_N[:3])
    with pytest.raises(ValueError, match="weight_N must be 6 numbers"):
        linear_cross_entropy(h_ND, w_VD, target_N, weight_N=torch.ones(5))
    with pytest.raises(ValueError, match="weight_N is a constant"):
        linear_cross_entropy(h_ND, w_VD, target_N, weight_N=torch.ones(6, requires_grad=True))
    with pytest.raises(ValueError, match="reduction"):
        linear_cross_entropy(h_ND, w_VD, target_N, reduction="none")


def test_operator() -> None:
    (h_ND, w_VD), target_N = case(12, 300, 16, torch.float32, False)
    h_ND, w_VD, target_N = (
        h_ND.to(DEVICE).requires_grad_(),
        w_VD.to(DEVICE).requires_grad_(),
        target_N.to(DEVICE),
    )
    options = (
        target_N,
        None,
        torch.linspace(-1, 1, 12, device=DEVICE),
        -100,
        True,
        0.0,
        None,
        [True, True, False],
    )
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(linear_cross_entropy_op, (h_ND, w_VD, *options), test_utils=checks)
    # this one differentiates every output, the gradients too
    checks = ("test_aot_dispatch_dynamic",)
    torch.library.opcheck(
        linear_cross_entropy_op, (h_ND.detach(), w_VD.detach(), *options), test_utils=checks
    )
    eager = torch.autograd.grad(linear_cross_entropy(h_ND, w_VD, target_N) * 2, (h_ND, w_VD))
    compiled = torch.compile(linear_cross_entropy, fullgraph=True, backend="aot_eager")
    for x, y in zip(
        eager, torch.autograd.grad(compiled(h_ND, w_VD, target_N) * 2, (h_ND, w_VD)), strict=True
    ):
        torch.testing.assert_close(x, y)


@pytest.mark.skipif(DEVICE == "cuda", reason="the CPU's products")
def test_what_memory_held_before_does_not_reach_the_gradients() -> None:
    """PyTorch's deterministic mode fills new memory with NaN; the products read behind rows that end within a block."""
    leaves, target_N = case(40, 1_100, 90, torch.bfloat16, True)
    clean = loss_and_gradients(linear_cross_entropy, leaves, target_N)
    torch.use_deterministic_algorithms(True)
    try:
        found = loss_and_gradients(linear_cross_entropy, leaves, target_N)
    finally:
        torch.use_deterministic_algorithms(False)
    for mine, expected in zip(found, clean, strict=True):
        assert expected.isfinite().all()
        torch.testing.assert_close(mine, expected, atol=0, rtol=0)
