"""Attention over a packed token trie, through the attention interface of transformers.

The model's linear layers see one flat row of N tokens; here each token attends to its own ancestors, in one kernel where there is
one (kernels/tree_attention.py: GPUs, CPUs with AVX-512), elsewhere with gathered keys (gathered_attention.py). Which of its
ancestors a token attends to is the model's own rule (causal, sliding window, chunks): transformers gives it as a function of two
positions. The kernels know causal and sliding windows, which are recognised by their code; every other rule is asked, about
positions along the token's own path.

Dims: N tokens, H heads, G key heads, P tokens of the kept prefix, d head width, e value width.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

from evalengine.kernels import tree_attention
from evalengine.kernels.tree_attention import takes
from evalengine.model import attention_operator
from evalengine.model.device_batch import DeviceBatch
from evalengine.model.gathered_attention import GatheredAttention, Rule

UNBOUNDED = 1 << 30  # tokens: the window of causal attention


class TreeAttention:
    """Attention over a packed batch, known to transformers as attention_operator.NAME. Holds the batch that is running."""

    def __init__(self) -> None:
        attention_operator.register()
        self.running: DeviceBatch | None = None
        self.kept: dict[int, tuple[Tensor, Tensor]] = {}  # by number of the call: the prefix's keys, values
        self._longest = 0  # path of the running batch
        self._gathered: GatheredAttention | None = None  # made where the kernel does not run
        self._calls = 0  # of this forward: one for each attention layer
        self._rules: dict[int, tuple[Tensor, Rule]] = {}

    def start(self, on: DeviceBatch) -> None:
        attention_operator.running.attention = self
        self.running, self._calls, self._gathered = on, 0, None
        self._longest = 1 + int(on.batch.position_N.max())
        self._rules.clear()
        if not on.batch.prefix:
            self.kept.clear()

    def mask(self, *, mask_function: Rule, device: torch.device, **_: Any) -> Tensor:
        """transformers asks for a mask: a tensor that only stands for the rule, until the attention layer gets it."""
        handle = torch.zeros(1, 1, 1, 1, device=device)
        self._rules[handle.data_ptr()] = (handle, mask_function)  # a view of it stands for the same rule
        return handle

    def rule(self, handle: Tensor | None) -> Rule:
        from transformers.masking_utils import causal_mask_function

        if handle is None:
            causal: Any = causal_mask_function
            return causal
        if handle.data_ptr() not in self._rules:
            raise NotImplementedError("it makes attention masks of its own")
        return self._rules[handle.data_ptr()][1]

    def __call__(
        self,
        query: Tensor,  # (1, H, N, d)
        key: Tensor,  # (1, G, N, d)
        value: Tensor,  # (1, G, N, e)
        mask: Tensor | None,
        scale: float | None,
        softcap: float | None,
        sink_H: Tensor | None,  # a sink's logit for each head
    ) -> Tensor:
        """(1, N, H, e)."""
        if self.running is None:
            raise NotImplementedError("no batch is running")
        batch, rule = self.running.batch, self.rule(mask)
        call, self._calls = self._calls, self._calls + 1
        q, k, v = query[0], key[0], value[0]
        sink_H = None if sink_H is None else sink_H.flatten()
        if batch.is_prefix:
            self.kept[call] = (k[:, : batch.tokens].clone(), v[:, : batch.tokens].clone())
        kept = self.kept[call] if batch.prefix else None
        window = window_of(rule) if takes(q, v) else None
        if window is not None:
            bounded = window if window < self._longest else None
            tree = self.running.tree
            out_NHe = tree_attention(
                q, k, v, tree, scale=scale, window=bounded, softcap=softcap, sink_H=sink_H, kept=kept
            )
        else:
            if kept is not None:
                k, v = torch.cat([kept[0], k], 1), torch.cat([kept[1], v], 1)
            if self._gathered is None:
                self._gathered = GatheredAttention(self.running)
            out_NHe = self._gathered(q, k, v, rule, scale, softcap, sink_H)
        return out_NHe.unsqueeze(0).contiguous()  # some models take a view of it


def window_of(rule: Rule) -> int | None:
    """The sliding window of a rule, UNBOUNDED for a causal one; None for what is neither of the two of transformers."""
    from transformers.masking_utils import causal_mask_function, sliding_window_causal_mask_function

    causal: Any = causal_mask_function
    if rule is causal:
        return UNBOUNDED
    for number in numbers(rule):
        if same_code(rule, sliding_window_causal_mask_function(number)):
            return number
    return None


def numbers(rule: object) -> Iterator[int]:
    """Integers that a function closes over, at any depth."""
    if isinstance(rule, FunctionType):
        for cell in rule.__closure__ or ():
            yield from numbers(cell.cell_contents)
    elif isinstance(rule, tuple):
        for part in rule:
            yield from numbers(part)
    elif type(rule) is int:
        yield rule


def same_code(a: object, b: object) -> bool:
    """Whether two functions are the same code that closes over the same integers and functions."""
    if isinstance(a, FunctionType) and isinstance(b, FunctionType):
        mine, others = ([c.cell_contents for c in f.__closure__ or ()] for f in (a, b))
        return a.__code__ is b.__code__ and same_code(tuple(mine), tuple(others))
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(map(same_code, a, b))
    return type(a) is type(b) is int and a == b
