"""Attention over a packed token trie, through the attention interface of transformers.

The model's linear layers see one flat row of N tokens; here each block of BLOCK query tokens gathers its keys (the ancestors
of its first token, then itself) and runs as one entry of a batched scaled-dot-product attention. Which of its ancestors a
token attends to is the model's own rule (causal, sliding window, chunks): transformers gives it as a function of two
positions, and it is asked about positions along the token's own path. Soft-caps (Gemma 2) and sinks (gpt-oss) take the plain
formula, which no fused CPU kernel has.

Dims: N tokens, B blocks of a bucket, Q tokens of a block, K keys of a block, H heads, d head width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from evalengine import attention_operator, packing

Rule = Callable[..., Tensor]  # (batch, head, query position, key position) -> whether the key is seen


class DeviceBatch(NamedTuple):
    """A packed batch on the device, masks ready for attention."""

    batch: packing.Batch
    token_1N: Tensor
    position_1N: Tensor
    # blocks (None: all, in order), keys, mask, key positions
    buckets: list[tuple[Tensor | None, Tensor, Tensor, Tensor]]


class TreeAttention:
    """Attention over a packed batch, known to transformers as attention_operator.NAME. Holds the batch that is running."""

    def __init__(self) -> None:
        attention_operator.register()
        self.running: DeviceBatch | None = None
        self.kept: dict[int, tuple[Tensor, Tensor]] = {}  # by number of the call: the prefix's keys, values
        self._calls = 0  # of this forward: one for each attention layer
        self._rules: dict[int, tuple[Tensor, Rule]] = {}
        self._masks: dict[tuple[int, int], list[Tensor]] = {}

    def start(self, batch: DeviceBatch) -> None:
        attention_operator.running.attention = self
        self.running, self._calls = batch, 0
        self._rules.clear()
        self._masks.clear()
        if not batch.batch.prefix:
            self.kept.clear()

    def mask(self, *, mask_function: Rule, device: torch.device, **_: Any) -> Tensor:
        """transformers asks for a mask: a tensor that only stands for the rule, until the attention layer gets it."""
        handle = torch.zeros(1, 1, 1, 1, device=device)
        self._rules[handle.data_ptr()] = (handle, mask_function)  # a view of it stands for the same rule
        return handle

    def masks(self, handle: Tensor | None, group: int) -> list[Tensor]:
        """Additive masks (B, 1, group * Q, K) of the running batch's buckets under one of the model's rules."""
        from transformers.masking_utils import causal_mask_function

        assert self.running is not None
        number = 0 if handle is None else handle.data_ptr()
        if number and number not in self._rules:
            raise NotImplementedError("it makes attention masks of its own")
        causal: Any = causal_mask_function
        rule: Rule = self._rules[number][1] if number else causal
        key = (number, group)
        if key not in self._masks:
            position_N, made = self.running.position_1N[0], []
            zero = position_N.new_zeros(())
            for blocks, _, mask_B1QK, key_position_BK in self.running.buckets:
                if rule is not causal:
                    query_BQ = position_N.view(-1, self.running.batch.block)
                    query_BQ = query_BQ if blocks is None else query_BQ[blocks]
                    seen_BQK = rule(zero, zero, query_BQ[:, :, None], key_position_BK[:, None, :])
                    mask_B1QK = mask_B1QK.masked_fill(~seen_BQK.unsqueeze(1), float("-inf"))
                made.append(mask_B1QK.repeat(1, 1, group, 1) if group > 1 else mask_B1QK)
            self._masks[key] = made
        return self._masks[key]

    def __call__(
        self,
        module: torch.nn.Module | None,
        query: Tensor,  # (1, H, N, d)
        key: Tensor,  # (1, Hkv, N, d)
        value: Tensor,  # (1, Hkv, N, dv)
        attention_mask: Tensor | None = None,
        scaling: float | None = None,
        dropout: float = 0.0,
        softcap: float | None = None,
        s_aux: Tensor | None = None,  # (H,): a sink's logit for each head
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        if self.running is None:
            raise NotImplementedError("no batch is running")
        batch = self.running.batch
        call, self._calls = self._calls, self._calls + 1
        key_NHd, value_NHd = key[0].transpose(0, 1), value[0].transpose(0, 1)
        if batch.is_prefix:
            self.kept[call] = (key_NHd[: batch.tokens].clone(), value_NHd[: batch.tokens].clone())
        elif batch.prefix:
            kept_key, kept_value = self.kept[call]
            key_NHd, value_NHd = torch.cat([kept_key, key_NHd]), torch.cat([kept_value, value_NHd])
        query_BQHd = query[0].transpose(0, 1).unflatten(0, (-1, batch.block))
        out_BQHd = query.new_empty(*query_BQHd.shape[:3], value.shape[-1])
        # The query heads that share a key head become further queries of it: no kernel has to know grouped heads, which
        # with a mask only PyTorch's slow one does on a GPU.
        group = query.shape[1] // key.shape[1]
        for (blocks, key_BK, _, _), mask in zip(
            self.running.buckets, self.masks(attention_mask, group), strict=True
        ):
            q = (query_BQHd if blocks is None else query_BQHd[blocks]).transpose(1, 2)
            q = q.unflatten(1, (-1, group)).flatten(2, 3) if group > 1 else q
            shape = (*key_BK.shape, key.shape[1], -1)
            k = key_NHd.index_select(0, key_BK.view(-1)).view(shape).transpose(1, 2)
            v = value_NHd.index_select(0, key_BK.view(-1)).view(shape).transpose(1, 2)
            if softcap is None and s_aux is None:
                o = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scaling)
            else:
                o = plain_attention(q, k, v, mask, scaling, softcap, s_aux)
            o = o.unflatten(2, (group, -1)).flatten(1, 2) if group > 1 else o
            if blocks is None:
                out_BQHd = o.transpose(1, 2)
            else:
                out_BQHd.index_copy_(0, blocks, o.transpose(1, 2))
        return out_BQHd.flatten(0, 1).unsqueeze(0).contiguous(), None  # some models take a view of it


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
        column = sink_H.flatten().repeat_interleave(queries).view(1, *q.shape[1:3], 1)
        scores = torch.cat([scores, column.expand(len(q), -1, -1, 1).float()], -1)
    share = F.softmax(scores, dim=-1)[..., : k.shape[2]]
    return (share @ v.float()).to(q.dtype)


def moved(array: np.ndarray, device: torch.device) -> Tensor:
    """int64 indices on the device; a GPU copies them while it still computes the batch before."""
    tensor = torch.from_numpy(array.astype(np.int64))
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def on_device(batch: packing.Batch, device: torch.device, dtype: torch.dtype) -> DeviceBatch:
    """A batch's tensors, with the additive attention masks, which are made anew for each forward."""
    position_K = moved(np.concatenate([np.arange(batch.prefix), batch.position_N]), device)
    everything = len(batch.token_N) // batch.block
    offset_Q = torch.arange(batch.block, device=device)
    buckets = []
    for bucket in batch.buckets:
        block_B, key_BK, end_BK = (moved(indices, device) for indices in bucket)
        query_BQ1 = (batch.prefix + block_B[:, None] * batch.block + offset_Q)[:, :, None]
        hidden_BQK = (key_BK[:, None, :] > query_BQ1) | (query_BQ1 >= end_BK[:, None, :])
        mask = torch.zeros(hidden_BQK.shape, dtype=dtype, device=device)
        mask.masked_fill_(hidden_BQK, float("-inf"))
        whole = len(bucket.block_B) == everything
        buckets.append((None if whole else block_B, key_BK, mask.unsqueeze(1), position_K[key_BK]))
    token, position = moved(batch.token_N, device), moved(batch.position_N, device)
    return DeviceBatch(batch, token.unsqueeze(0), position.unsqueeze(0), buckets)
