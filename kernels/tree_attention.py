"""Attention in which every token sees its own ancestors in a tree of tokens, each token computed once.

Cost: one launch; keys and values are read by index, grouped heads share theirs, and no mask is made.
Dims: H heads, G key heads, N tokens, P tokens of the kept prefix, A ancestors, B blocks, d head width, e value width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from evalengine.kernels.target_logprobs import vectorised
from evalengine.kernels.token_tree import WIDEST, Tree

DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def kernel_of(device: torch.device) -> Callable[..., Tensor] | None:
    """The kernel for tensors there: Triton's on CUDA, that of vectors on CPUs with AVX-512, None elsewhere."""
    if device.type == "cuda":
        from evalengine.kernels.tree_attention_triton import tree_attention_triton

        return tree_attention_triton
    if device.type == "cpu" and vectorised(torch.float32):
        from evalengine.kernels.tree_attention_simd import tree_attention_simd

        return tree_attention_simd
    return None


def takes(query: Tensor, value: Tensor) -> bool:
    """Whether `tree_attention` has a kernel for such tensors."""
    fits = query.dtype in DTYPES and max(query.shape[-1], value.shape[-1]) <= WIDEST
    return fits and kernel_of(query.device) is not None


def tree_attention(
    query_HNd: Tensor,  # any strides, the last one 1
    key_GNd: Tensor,  # likewise; G divides H, and query head h reads key head h * G // H
    value_GNe: Tensor,
    tree: Tree,
    *,
    scale: float | None = None,  # of the logits; d ** -0.5 by default
    window: int | None = None,  # a query sees keys of its own position and the `window - 1` before it
    softcap: float | None = None,  # logits become softcap * tanh(logit / softcap)
    sink_H: Tensor | None = None,  # a further logit of every query, without a value
    kept: tuple[Tensor, Tensor] | None = None,  # the prefix's keys (G, P, d) and values (G, P, e)
) -> Tensor:
    """softmax(q k^T * scale) v over what each token sees, (N, H, e) in the dtype of the queries; sums in float32.

    Raises ValueError for tensors that do not fit or that `takes` refuses.
    """
    if not takes(query_HNd, value_GNe):
        raise ValueError(
            f"tree_attention needs CUDA or a CPU with AVX-512, and at most {WIDEST} 16 or 32-bit numbers a head, not"
            f" {query_HNd.dtype} {tuple(query_HNd.shape)} on {query_HNd.device}"
        )
    (heads, n, width), (key_heads, _, value_width) = query_HNd.shape, value_GNe.shape
    prefix = kept[0].shape[1] if kept else 0
    fits = [
        heads % key_heads == 0,
        n % tree.block == 0,
        key_GNd.shape == (key_heads, n, width),
        value_GNe.shape == (key_heads, n, value_width),
        tree.offset_B.shape == (n // tree.block + 1,),
        tree.end_N.shape == tree.position_N.shape == (n,),
        kept is None or kept[0].shape == (key_heads, prefix, width),
        kept is None or kept[1].shape == (key_heads, prefix, value_width),
        sink_H is None or sink_H.shape == (heads,),
        len({query_HNd.dtype, key_GNd.dtype, value_GNe.dtype}) == 1,
    ]
    if not all(fits):
        shapes = [tuple(x.shape) for x in (query_HNd, key_GNd, value_GNe, *(kept or ()), *tree[:4])]
        raise ValueError(
            f"tree_attention got tensors that do not fit each other: {shapes}, blocks of {tree.block}"
        )
    query_HNd, key_GNd, value_GNe, *kept_ = (
        x if x.stride(-1) == 1 else x.contiguous() for x in (query_HNd, key_GNd, value_GNe, *(kept or ()))
    )
    scale = width**-0.5 if scale is None else scale
    options = scale, window, softcap, sink_H, (kept_[0], kept_[1]) if prefix else None
    kernel = kernel_of(query_HNd.device)
    assert kernel is not None
    with torch.cuda.device_of(query_HNd):  # Triton launches on the current device
        return kernel(query_HNd, key_GNd, value_GNe, tree, *options)
