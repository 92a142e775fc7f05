"""Attention by blocks on the CPU against a float64 softmax over a dense mask."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from evalengine.training import attention, attention_blocks
from evalengine.training.attention import DocumentMask, attend


def reference(q: Tensor, k: Tensor, v: Tensor, position_BT: Tensor) -> Tensor:
    """Spelled out, in the inputs' dtype: a token sees its own document's earlier tokens."""
    T = position_BT.shape[1]
    start_BT = torch.arange(T) - position_BT
    seen = (torch.arange(T)[None, :] <= torch.arange(T)[:, None]) & (
        torch.arange(T)[None, None, :] >= start_BT[:, :, None]
    )
    score = (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(~seen[:, None], float("-inf"))
    return torch.softmax(score, -1) @ v


def rows(*lengths: list[int]) -> Tensor:
    return torch.stack([torch.cat([torch.arange(n) for n in row]) for row in lengths])


@pytest.mark.parametrize(
    "position_BT",
    [
        rows([256]),
        rows([512], [512], [512]),
        rows([100, 28, 172], [300], [1, 1, 298]),  # 300: the last block is not full
        rows([130, 170] * 1, [150, 150]),  # no row needs the first document for its last block
    ],
)
@pytest.mark.parametrize("tile", [1, 2**16, 2**30])  # one row a tile, a few, all
def test_output_and_gradients(position_BT: Tensor, tile: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(attention_blocks, "TILE", tile)
    B, T = position_BT.shape
    generator = torch.Generator().manual_seed(T)
    # (B, T, H, E) in memory, as the model's products are
    q, k, v, d = (torch.randn(B, T, 2, 32, generator=generator).transpose(1, 2) for _ in range(4))
    inputs = [x.requires_grad_() for x in (q, k, v)]
    mask = DocumentMask.from_positions(position_BT)
    assert mask.start_BT is not None  # by blocks
    ours = attend(q, k, v, mask)
    wide = [x.detach().double().requires_grad_() for x in inputs]
    exact = reference(*wide, position_BT)
    torch.testing.assert_close(ours.double(), exact, atol=2e-6, rtol=1e-5)
    found, right = torch.autograd.grad(ours, inputs, d), torch.autograd.grad(exact, wide, d.double())
    for gradient, correct in zip(found, right, strict=True):
        torch.testing.assert_close(gradient.double(), correct, atol=1e-5, rtol=1e-4)


def test_other_documents_are_not_read():
    """Keys and values of an earlier document may be anything: they are skipped or weigh nothing."""
    position_BT = rows([200, 184])
    mask = DocumentMask.from_positions(position_BT)
    q, k, v = (torch.randn(1, 2, 384, 32, generator=torch.Generator().manual_seed(n)) for n in range(3))
    before = attend(q, k, v, mask)
    k[:, :, :192], v[:, :, :192] = float("nan"), float("nan")  # before the border's block
    assert torch.equal(attend(q, k, v, mask)[:, :, 256:], before[:, :, 256:])


@pytest.mark.parametrize(
    ("length", "dtype"), [(128, torch.float32), (1088, torch.float32), (256, torch.bfloat16)]
)
@pytest.mark.parametrize("documents", [1, 4])
def test_short_long_and_rounded_rows_go_to_pytorch(
    length: int, dtype: torch.dtype, documents: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delattr(attention, "attend_blocks")
    q = torch.randn(1, 2, length, 32, generator=torch.Generator().manual_seed(0)).to(dtype)
    position_BT = (torch.arange(length) % (length // documents))[None]
    ours = attend(q, q, q, DocumentMask.from_positions(position_BT))
    exact = reference(q.double(), q.double(), q.double(), position_BT)
    torch.testing.assert_close(
        ours.double(), exact, atol=3e-2 if dtype == torch.bfloat16 else 2e-6, rtol=1e-2
    )


def test_the_operator_is_sound_under_compile():
    """PyTorch's own check of schema, shapes, strides and gradients of the two operators."""
    q, k, v = (torch.randn(2, 256, 2, 32).transpose(1, 2).requires_grad_() for _ in range(3))
    mask = DocumentMask.from_positions(rows([256], [56, 200]))
    torch.library.opcheck(
        attention_blocks._attend_op,
        (q, k, v, mask.bias_B1TT, mask.start_BT),
        test_utils=("test_schema", "test_autograd_registration", "test_faketensor"),
    )
