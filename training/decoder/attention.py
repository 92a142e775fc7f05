"""Causal attention that stays inside documents, for rows that pack several documents.

Rows of one document need no mask. For others it is, on the CPU, a dense additive (B, 1, T, T) tensor built once per
batch and shared by every layer; on a GPU PyTorch's flex attention skips the masked blocks, so a long row costs what its
documents cost.

Dims: B rows, T positions, H heads, E head size, Q and K blocks of queries and keys.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 128  # positions that flex attention computes or skips together


class DocumentMask(NamedTuple):
    """Which positions may attend to which. Without any field plain causal attention is exact."""

    bias_B1TT: Tensor | None = None  # additive: 0 where allowed, -inf elsewhere (CPU)
    blocks: Any = None  # flex attention's BlockMask (CUDA)

    @staticmethod
    def from_positions(position_BT: Tensor, whole: bool | None = None) -> DocumentMask:
        """The mask of rows whose positions restart at 0 with each document.

        whole: whether each row is one document; None looks at the positions, and waits for them where they are on a GPU.
        """
        if whole_rows(position_BT) if whole is None else whole:
            return DocumentMask()
        if position_BT.is_cuda:
            return DocumentMask(blocks=block_mask(document_ids(position_BT)))
        T = position_BT.shape[1]
        document_BT = document_ids(position_BT)
        other_B1TT = (document_BT[:, :, None] != document_BT[:, None, :]).unsqueeze(1)
        return DocumentMask(_causal(T).masked_fill(other_B1TT, float("-inf")))


def whole_rows(position_BT: Tensor) -> bool:
    """Whether each row is one document."""
    return torch.equal(
        position_BT, torch.arange(position_BT.shape[1], device=position_BT.device).expand_as(position_BT)
    )


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


def block_mask(document_BT: Tensor) -> Any:
    """Flex attention's mask, from the documents where blocks begin and end (`create_block_mask` looks at all pairs)."""
    from torch.nn.attention.flex_attention import BlockMask

    def inside(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (q >= k) & (document_BT[b, q] == document_BT[b, k])

    T = document_BT.shape[1]
    begin_K = torch.arange(0, T, BLOCK, device=document_BT.device)
    first_BK, last_BK = document_BT[:, begin_K], document_BT[:, (begin_K + BLOCK - 1).clamp(max=T - 1)]
    earlier_QK = begin_K[:, None] > begin_K
    full_BQK = earlier_QK & (first_BK[:, None, :] == last_BK[:, :, None])
    some_BQK = (begin_K[:, None] >= begin_K) & (last_BK[:, None, :] >= first_BK[:, :, None])
    lists = (*_listed(some_BQK & ~full_BQK), *_listed(full_BQK))
    return BlockMask.from_kv_blocks(*lists, BLOCK_SIZE=BLOCK, mask_mod=inside, seq_lengths=(T, T))


def _listed(block_BQK: Tensor) -> tuple[Tensor, Tensor]:
    """(how many, which first) of the key blocks of each query block, with a dimension for all heads."""
    block_B1QK = block_BQK.unsqueeze(1).int()
    return block_B1QK.sum(-1, dtype=torch.int32), block_B1QK.argsort(
        dim=-1, descending=True, stable=True
    ).int()
