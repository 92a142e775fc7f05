"""Attention over a packed token trie, through the attention interface of transformers.

The model's linear layers see one flat row of N tokens; here each block of BLOCK query tokens gathers its keys (the ancestors
of its first token, then itself) and runs as one entry of a batched scaled-dot-product attention. Sliding windows are measured
in positions along a token's own path; soft-capped attention (Gemma 2) takes the plain formula, which no fused CPU kernel has.

Dims: N tokens, B blocks of a bucket, Q tokens of a block, K keys of a block, H heads, d head width.
"""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from evalengine import packing


class DeviceBatch(NamedTuple):
    """A packed batch on the device, masks ready for attention."""

    batch: packing.Batch
    token_1N: Tensor
    position_1N: Tensor
    buckets: list[
        tuple[Tensor | None, Tensor, Tensor, Tensor]
    ]  # blocks (None: all, in order), keys, mask, key positions


class TreeAttention:
    """Attention over a packed batch, registered with transformers under `name`. Holds the batch that is running."""

    _instances = itertools.count()

    def __init__(self) -> None:
        self.name = (
            f"evalengine_tree_{next(self._instances)}"  # the registry is global, a backend's batches are not
        )
        self.running: DeviceBatch | None = None
        self.kept: dict[int, tuple[Tensor, Tensor]] = {}  # layer -> keys and values of the kept prefix
        self._windowed: dict[int, list[Tensor]] = {}

    def start(self, batch: DeviceBatch) -> None:
        self.running = batch
        self._windowed.clear()
        if not batch.batch.prefix:
            self.kept.clear()

    def masks(self, window: int | None) -> list[Tensor]:
        assert self.running is not None
        if window is None or int(self.running.position_1N.max()) < window:
            return [mask for _, _, mask, _ in self.running.buckets]
        if window not in self._windowed:
            position_N, block = self.running.position_1N[0], self.running.batch.block
            narrowed = []
            for blocks, _, mask_B1QK, key_position_BK in self.running.buckets:
                query_BQ = position_N.view(-1, block)
                query_BQ = query_BQ if blocks is None else query_BQ[blocks]
                far = query_BQ[:, None, :, None] - key_position_BK[:, None, None, :] >= window
                narrowed.append(mask_B1QK.masked_fill(far, float("-inf")))
            self._windowed[window] = narrowed
        return self._windowed[window]

    def __call__(
        self,
        module: torch.nn.Module,
        query: Tensor,  # (1, H, N, d)
        key: Tensor,  # (1, Hkv, N, d)
        value: Tensor,  # (1, Hkv, N, dv)
        attention_mask: Tensor | None = None,
        scaling: float | None = None,
        dropout: float = 0.0,
        sliding_window: int | None = None,
        softcap: float | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        unknown = [k for k in ("position_bias", "s_aux", "alibi") if kwargs.get(k) is not None]
        if unknown or self.running is None:
            raise NotImplementedError(f"attention with {unknown}")
        batch = self.running.batch
        layer = int(getattr(module, "layer_idx", -1))
        key_NHd, value_NHd = key[0].transpose(0, 1), value[0].transpose(0, 1)
        if batch.is_prefix:
            self.kept[layer] = (key_NHd[: batch.tokens].clone(), value_NHd[: batch.tokens].clone())
        elif batch.prefix:
            kept_key, kept_value = self.kept[layer]
            key_NHd, value_NHd = torch.cat([kept_key, key_NHd]), torch.cat([kept_value, value_NHd])
        query_BQHd = query[0].transpose(0, 1).unflatten(0, (-1, batch.block))
        out_BQHd = query.new_empty(*query_BQHd.shape[:3], value.shape[-1])
        grouped = query.shape[1] != key.shape[1]
        for (blocks, key_BK, _, _), mask in zip(
            self.running.buckets, self.masks(sliding_window), strict=True
        ):
            q = (query_BQHd if blocks is None else query_BQHd[blocks]).transpose(1, 2)
            shape = (*key_BK.shape, key.shape[1], -1)
            k = key_NHd.index_select(0, key_BK.view(-1)).view(shape).transpose(1, 2)
            v = value_NHd.index_select(0, key_BK.view(-1)).view(shape).transpose(1, 2)
            if softcap is None:
                o = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scaling, enable_gqa=grouped)
            else:
                o = capped_attention(q, k, v, mask, scaling, softcap)
            if blocks is None:
                out_BQHd = o.transpose(1, 2)
            else:
                out_BQHd.index_copy_(0, blocks, o.transpose(1, 2))
        return out_BQHd.flatten(0, 1).unsqueeze(0), None


def capped_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scaling: float | None, softcap: float
) -> Tensor:
    """softmax(softcap * tanh(q k / softcap) + mask) v: Gemma 2's attention, which no fused CPU kernel has."""
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
    scores = q @ k.transpose(2, 3) * (scaling if scaling is not None else q.shape[-1] ** -0.5)
    scores = softcap * torch.tanh(scores / softcap) + mask
    return F.softmax(scores, dim=-1, dtype=torch.float32).to(q.dtype) @ v


def on_device(batch: packing.Batch, device: torch.device, dtype: torch.dtype) -> DeviceBatch:
    """A batch's tensors, with the additive attention masks, which are made anew for each forward."""
    position_K = torch.from_numpy(np.concatenate([np.arange(batch.prefix), batch.position_N])).to(device)
    everything = len(batch.token_N) // batch.block
    offset_Q = torch.arange(batch.block, device=device)
    buckets = []
    for bucket in batch.buckets:
        block_B = torch.from_numpy(bucket.block_B).to(device, torch.long)
        key_BK = torch.from_numpy(bucket.key_BK).to(device, torch.long)
        end_BK = torch.from_numpy(bucket.end_BK).to(device, torch.long)
        query_BQ1 = (batch.prefix + block_B[:, None] * batch.block + offset_Q)[:, :, None]
        hidden_BQK = (key_BK[:, None, :] > query_BQ1) | (query_BQ1 >= end_BK[:, None, :])
        mask = torch.zeros(hidden_BQK.shape, dtype=dtype, device=device).masked_fill_(
            hidden_BQK, float("-inf")
        )
        whole = len(bucket.block_B) == everything
        buckets.append((None if whole else block_B, key_BK, mask.unsqueeze(1), position_K[key_BK]))
    token = torch.from_numpy(batch.token_N).to(device, torch.long).unsqueeze(0)
    position = torch.from_numpy(batch.position_N).to(device, torch.long).unsqueeze(0)
    return DeviceBatch(batch, token, position, buckets)
