"""Causal attention that stays inside documents, for rows that pack several documents.

On the CPU the mask is a dense additive (B, 1, T, T) tensor built once per batch and shared by every layer; a
row that holds one document needs none. On a GPU PyTorch's flex attention skips the masked blocks, so a long row
costs what its documents cost.

Dims: B rows, T positions, H heads, E head size.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class DocumentMask(NamedTuple):
    """Which positions may attend to which. Without any field plain causal attention is exact."""

    bias_B1TT: Tensor | None = None  # additive: 0 where allowed, -inf elsewhere (CPU)
    blocks: Any = None  # flex attention's BlockMask (CUDA)

    @staticmethod
    def from_positions(position_BT: Tensor) -> DocumentMask:
        """The mask of rows whose positions restart at 0 with each document."""
        if position_BT.is_cuda:
            return DocumentMask(blocks=_block_mask(document_ids(position_BT)))
        T = position_BT.shape[1]
        if torch.equal(position_BT, torch.arange(T).expand_as(position_BT)):
            return DocumentMask()
        document_BT = document_ids(position_BT)
        other_B1TT = (document_BT[:, :, None] != document_BT[:, None, :]).unsqueeze(1)
        return DocumentMask(_causal(T).masked_fill(other_B1TT, float("-inf")))


@lru_cache(maxsize=8)
def _causal(T: int) -> Tensor:
    """(1, 1, T, T), 0 where a key does not come after the query, -inf elsewhere."""
    return torch.full((1, 1, T, T), float("-inf")).triu_(1)


def document_ids(position_BT: Tensor) -> Tensor:
    """Numbers the documents of each row; a document begins where the position is 0."""
    return (position_BT == 0).cumsum(1)


def attend(q_BHTE: Tensor, k_BHTE: Tensor, v_BHTE: Tensor, mask: DocumentMask) -> Tensor:
    """Scaled dot-product attention under `mask`, (B, H, T, E)."""
    if mask.blocks is not None:
        from torch.nn.attention.flex_attention import flex_attention

        flex = flex_attention if torch.compiler.is_compiling() else _compiled_flex()
        return flex(q_BHTE, k_BHTE, v_BHTE, block_mask=mask.blocks)
    if mask.bias_B1TT is None:
        return F.scaled_dot_product_attention(q_BHTE, k_BHTE, v_BHTE, is_causal=True)
    return F.scaled_dot_product_attention(q_BHTE, k_BHTE, v_BHTE, attn_mask=mask.bias_B1TT.to(q_BHTE.dtype))


@lru_cache(maxsize=1)
def _compiled_flex() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False)


def _block_mask(document_BT: Tensor) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    def inside(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (q >= k) & (document_BT[b, q] == document_BT[b, k])

    B, T = document_BT.shape
    return create_block_mask(inside, B, None, T, T, device=str(document_BT.device))
