"""The attention of a packed batch under one name of transformers' registry, and as one operator of compiled graphs.

The registry is global and what is registered in it becomes part of a compiled layer, so the name stands for whichever
`TreeAttention` runs in this thread, not for one of them: a layer compiled for one module serves the next. In a graph the
attention is a single operator that the compiler does not look into.
"""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import Tensor

NAME = "evalengine_tree"
running = threading.local()  # .attention: the TreeAttention whose batch runs in this thread


def register() -> None:
    """Makes NAME known to transformers."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, mask)


def mask(**arguments: Any) -> Tensor:
    handle: Tensor = running.attention.mask(**arguments)
    return handle


def attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The running batch's attention, with the arguments of transformers' attention interface."""
    call = _operator if torch.compiler.is_compiling() else _attend
    return call(query, key, value, attention_mask, scaling, softcap, s_aux), None


def _attend(*arguments: Any) -> Tensor:
    out: Tensor = running.attention(*arguments)
    return out


_SCHEMA = "(Tensor query, Tensor key, Tensor value, Tensor? mask, float? scaling, float? softcap, Tensor? sink) -> Tensor"
_operator = torch.library.custom_op("evalengine::tree_attention", _attend, mutates_args=(), schema=_SCHEMA)


@_operator.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, *_: Any) -> Tensor:
    return query.new_empty(query.shape[0], query.shape[2], query.shape[1], value.shape[3])
