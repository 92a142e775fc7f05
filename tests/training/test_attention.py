"""Attention inside documents on the CPU against a float64 softmax over a dense mask."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from evalengine.training.decoder.attention import BLOCK, DocumentMask, attend, block_mask, document_ids


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
    [rows([256]), rows([512], [512], [512]), rows([100, 28, 172], [300], [1, 1, 298]), rows([130, 170])],
)
def test_output_and_gradients(position_BT: Tensor) -> None:
    B, T = position_BT.shape
    generator = torch.Generator().manual_seed(T)
    # (B, T, H, E) in memory, as the model's products are
    q, k, v, d = (torch.randn(B, T, 2, 32, generator=generator).transpose(1, 2) for _ in range(4))
    inputs = [x.requires_grad_() for x in (q, k, v)]
    ours = attend(q, k, v, DocumentMask.from_positions(position_BT))
    wide = [x.detach().double().requires_grad_() for x in inputs]
    exact = reference(*wide, position_BT)
    torch.testing.assert_close(ours.double(), exact, atol=2e-6, rtol=1e-5)
    found, right = torch.autograd.grad(ours, inputs, d), torch.autograd.grad(exact, wide, d.double())
    for gradient, correct in zip(found, right, strict=True):
        torch.testing.assert_close(gradient.double(), correct, atol=1e-5, rtol=1e-4)


def test_other_documents_are_not_read() -> None:
    """Keys and values of an earlier document may be any numbers."""
    mask = DocumentMask.from_positions(rows([200, 184]))
    q, k, v = (torch.randn(1, 2, 384, 32, generator=torch.Generator().manual_seed(n)) for n in range(3))
    before = attend(q, k, v, mask)
    k[:, :, :200], v[:, :, :200] = 1e4, -1e4
    assert torch.equal(attend(q, k, v, mask)[:, :, 200:], before[:, :, 200:])


@pytest.mark.parametrize(
    ("length", "dtype"), [(128, torch.float32), (1088, torch.float32), (256, torch.bfloat16)]
)
@pytest.mark.parametrize("documents", [1, 4])
def test_lengths_and_dtypes(length: int, dtype: torch.dtype, documents: int) -> None:
    q = torch.randn(1, 2, length, 32, generator=torch.Generator().manual_seed(0)).to(dtype)
    position_BT = (torch.arange(length) % (length // documents))[None]
    ours = attend(q, q, q, DocumentMask.from_positions(position_BT))
    exact = reference(q.double(), q.double(), q.double(), position_BT)
    torch.testing.assert_close(
        ours.double(), exact, atol=3e-2 if dtype == torch.bfloat16 else 2e-6, rtol=1e-2
    )


@pytest.mark.parametrize(
    "position_BT", [rows([512], [512]), rows([100, 28, 172], [1, 1, 298]), rows([128, 256, 130]), rows([40])]
)
def test_blocks_of_flex_attention(position_BT: Tensor) -> None:
    """Every pair that may attend lies in a listed block, every pair of a full block may, and no list has idle blocks."""
    from torch.nn.attention.flex_attention import create_mask

    document_BT = document_ids(position_BT)
    mask = block_mask(document_BT)
    B, T = document_BT.shape
    allowed_BTT = create_mask(mask.mask_mod, B, None, T, T, device="cpu")[:, 0]
    causal_BTT = (document_BT[:, :, None] == document_BT[:, None, :]).tril()
    assert torch.equal(allowed_BTT, causal_BTT)
    size = -(-T // BLOCK)
    found = []
    for count, index in (
        (mask.kv_num_blocks, mask.kv_indices),
        (mask.full_kv_num_blocks, mask.full_kv_indices),
    ):
        listed = torch.zeros(B, size, size, dtype=torch.bool)
        for b in range(B):
            for q in range(size):
                listed[b, q, index[b, 0, q, : count[b, 0, q]].long()] = True
        found.append(listed)
    spread = torch.zeros(B, size * BLOCK, size * BLOCK, dtype=torch.bool)
    spread[:, :T, :T] = causal_BTT
    tiles = spread.view(B, size, BLOCK, size, BLOCK)
    rest = torch.zeros(size * BLOCK, size * BLOCK, dtype=torch.bool)
    rest[:T, :T] = True
    within = rest.view(size, BLOCK, size, BLOCK)
    assert torch.equal(found[1], (tiles | ~within).all(4).all(2))
    assert torch.equal(found[0], tiles.any(4).any(2) & ~found[1])
