"""Attention over a packed token trie in plain PyTorch: for devices, dtypes and rules of models that the kernels do not have.

Each block of query tokens gathers its keys (the kept prefix, the ancestors of its first token, then itself). Blocks with similar
numbers of keys are a bucket, which runs as one batched scaled-dot-product attention; soft-caps (Gemma 2) and sinks (gpt-oss)
take the plain formula, which no fused CPU kernel has.

Dims: H heads, G key heads, N tokens, M keys (the kept prefix, then the tokens), B blocks of a bucket, Q tokens of a block, K keys
of a block, d head width, e value width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from evalengine.model.device_batch import DeviceBatch, moved

Rule = Callable[..., Tensor]  # (batch, head, query position, key position) -> whether the key is seen


class GatheredAttention:
    """The attention of one batch: its buckets on the device, and their masks under each of the model's rules."""

    def __init__(self, on: DeviceBatch) -> None:
        batch, device = on.batch, on.token_1N.device
        self.block = batch.block
        self.position_N = on.position_1N[0]
        self.position_M = torch.cat([torch.arange(batch.prefix, device=device), self.position_N])
        self.query_BQ = batch.prefix + torch.arange(len(self.position_N), device=device).view(-1, batch.block)
        self.buckets = [tuple(moved(array, device) for array in bucket) for bucket in batch.buckets]
        self._masks: dict[tuple[Rule, torch.dtype], list[Tensor]] = {}

    def __call__(
        self,
        query_HNd: Tensor,
        key_GMd: Tensor,
        value_GMe: Tensor,
        rule: Rule,
        scale: float | None,
        softcap: float | None,
        sink_H: Tensor | None,
    ) -> Tensor:
        """(N, H, e)."""
        query_BQHd = query_HNd.transpose(0, 1).unflatten(0, (-1, self.block))
        key_MGd, value_MGe = key_GMd.transpose(0, 1), value_GMe.transpose(0, 1)
        out_BQHe = query_HNd.new_empty(*query_BQHd.shape[:3], value_GMe.shape[-1])
        # The query heads that share a key head become further queries of it: no kernel has to know grouped heads, which
        # with a mask only PyTorch's slow one does on a GPU.
        group = len(query_HNd) // len(key_GMd)
        for (block_B, key_BK, _), mask in zip(self.buckets, self.masks(rule, query_HNd.dtype), strict=True):
            whole = len(block_B) == len(query_BQHd)
            q = (query_BQHd if whole else query_BQHd[block_B]).transpose(1, 2)
            q = q.unflatten(1, (-1, group)).flatten(2, 3) if group > 1 else q
            shape = (*key_BK.shape, len(key_GMd), -1)
            k = key_MGd.index_select(0, key_BK.view(-1)).view(shape).transpose(1, 2)
            v = value_MGe.index_select(0, key_BK.view(-1)).view(shape).transpose(1, 2)
            mask = mask.repeat(1, 1, group, 1) if group > 1 else mask
            if softcap is None and sink_H is None:
                o = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
            else:
                o = plain_attention(q, k, v, mask, scale, softcap, sink_H)
            o = o.unflatten(2, (group, -1)).flatten(1, 2) if group > 1 else o
            if whole:
                out_BQHe = o.transpose(1, 2)
            else:
                out_BQHe.index_copy_(0, block_B, o.transpose(1, 2))
        return out_BQHe.flatten(0, 1)

    def masks(self, rule: Rule, dtype: torch.dtype) -> list[Tensor]:
        """Additive masks (B, 1, Q, K) of the buckets under one of the model's rules, made once for all its layers."""
        if (rule, dtype) not in self._masks:
            position_BQ, made = self.position_N.view(-1, self.block), []
            zero = self.position_N.new_zeros(())
            for block_B, key_BK, end_BK in self.buckets:
                query_BQ1 = self.query_BQ[block_B][:, :, None]
                seen_BQK = (key_BK[:, None, :] <= query_BQ1) & (query_BQ1 < end_BK[:, None, :])
                position_B1K = self.position_M[key_BK][:, None, :]
                seen_BQK &= rule(zero, zero, position_BQ[block_B][:, :, None], position_B1K)
                mask = torch.zeros(seen_BQK.shape, dtype=dtype, device=zero.device)
                made.append(mask.masked_fill_(~seen_BQK, float("-inf")).unsqueeze(1))
            self._masks[rule, dtype] = made
        return self._masks[rule, dtype]


def plain_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor,
    scaling: float | None,
    softcap: float | None,
    sink_H: Tensor | None,
) -> Tensor:
    """softmax([softcap * tanh(q k / softcap) + mask, sink]) [v, 0] in float32: what fused kernels lack.

    The sink of a query head is a logit that takes mass and gives no value.
    """
    scores = q.float() @ k.float().transpose(2, 3) * (scaling if scaling is not None else q.shape[-1] ** -0.5)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores + mask
    if sink_H is not None:
        queries = q.shape[1] * q.shape[2] // sink_H.numel()  # of a query head: q has one head after the other
        column = sink_H.repeat_interleave(queries).view(1, *q.shape[1:3], 1)
        scores = torch.cat([scores, column.expand(len(q), -1, -1, 1).float()], -1)
    share = F.softmax(scores, dim=-1)[..., : k.shape[2]]
    return (share @ v.float()).to(q.dtype)
