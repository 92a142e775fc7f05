"""The pooler that scores: hidden states of an engine step in, log-probabilities of the requests' targets out.

vLLM hands over the hidden states of the tokens it computed in this step, all requests one after another; which of a request's
positions those are, the pooling cursor says. One call of `target_logprobs` scores the wanted rows of all requests: the logits
are never stored, and only (2, T) numbers a request leave the worker. A prompt that is computed in chunks keeps its partial
results between steps, by position, so that a request that is preempted and computed again overwrites its rows and cannot
count them twice. A row that was never computed stays NaN, which the caller redoes.

Cost: 2 x D x V FLOPs a scored row; microseconds of Python a request and step.
"""

from __future__ import annotations

from collections.abc import Set
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.layers.pooler import Pooler

from evalengine.kernels import logits_logprobs, target_logprobs
from evalengine.vllm import TASK

PLAIN_LOGITS = 64 << 20  # logits held at once where the fused kernel cannot serve a model's output layer


class OutputLayer(NamedTuple):
    """A model's output layer: logits = cap(scale * (h @ weight.T + bias)), columns from `vocab` on do not exist."""

    layer: Any  # a module; its weight is looked up at each call: a swap may replace it
    bias: Tensor | None
    scale: float | None
    softcap: float | None
    vocab: int


class TargetPooler(Pooler):
    """Scores targets with the head of `model`, which it does not own (no submodule: the weights' loader walks those)."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self._model = (model,)
        self._head: OutputLayer | None = None
        self._resolved = False

    def get_supported_tasks(self) -> Set[Any]:
        return {TASK}

    def forget(self) -> None:
        """The weights have changed: look the head up again."""
        self._resolved = False

    @torch.inference_mode()
    def forward(self, hidden_states: Tensor, pooling_metadata: Any) -> list[Tensor | None]:
        cursor = pooling_metadata.get_pooling_cursor()
        count = cursor.num_scheduled_tokens_cpu.tolist()
        end = cursor.seq_lens_cpu.tolist()
        wanted = [params.extra_kwargs for params in pooling_metadata.pooling_params]
        if not any(wanted):
            return self._warm_up(hidden_states, len(count))
        rows, tokens, places = [], [], []
        offset = 0
        for i, kwargs in enumerate(wanted):
            row_T = np.frombuffer(kwargs["rows"], np.int32)
            token_T = np.frombuffer(kwargs["tokens"], np.int32)
            begin = end[i] - count[i]
            low, high = np.searchsorted(row_T, (begin, end[i]))
            if high > low:
                rows.append(row_T[low:high].astype(np.int64) + (offset - begin))
                tokens.append(token_T[low:high])
            places.append((low, high, len(row_T)))
            offset += count[i]
        scored = self._score(hidden_states, rows, tokens) if rows else np.zeros((2, 0), np.float32)
        out: list[Tensor | None] = []
        at = 0
        finished_R = (cursor.prompt_lens_cpu == cursor.seq_lens_cpu).tolist()
        for state, (low, high, targets), finished in zip(
            pooling_metadata.pooling_states, places, finished_R, strict=True
        ):
            kept = getattr(state, "evalengine", None)
            if kept is None:
                kept = np.full((2, targets), np.nan, np.float32)
            kept[:, low:high] = scored[:, at : at + high - low]
            at += high - low
            state.evalengine = None if finished else kept
            out.append(torch.from_numpy(kept) if finished else None)
        return out

    def _warm_up(self, hidden_ND: Tensor, requests: int) -> list[Tensor | None]:
        """A run without requests, by which vLLM measures memory: the head over every token of the step."""
        n = hidden_ND.shape[0]
        self._score(hidden_ND, [np.arange(n)], [np.zeros(n, np.int32)])
        return [torch.zeros(2, 1) for _ in range(requests)]

    def _score(self, hidden_ND: Tensor, rows: list[np.ndarray], tokens: list[np.ndarray]) -> np.ndarray:
        """(2, T): log-probability, and 1.0 where the target is the argmax."""
        row_R, row_T = np.unique(np.concatenate(rows), return_inverse=True)
        h_RD = hidden_ND[torch.from_numpy(row_R).to(hidden_ND.device)]
        index_T = torch.from_numpy(row_T.astype(np.int64))
        token_T = torch.from_numpy(np.concatenate(tokens).astype(np.int64))
        if not self._resolved:
            self._head, self._resolved = find_head(self._model[0], hidden_ND), True
        if self._head is None:
            logprob_T, greedy_T = self._own_logits(h_RD, index_T, token_T)
        else:
            logprob_T, greedy_T = run_head(self._head, h_RD, index_T, token_T)
        return torch.stack([logprob_T.float(), greedy_T.float()]).cpu().numpy()

    def _own_logits(self, h_RD: Tensor, row_T: Tensor, token_T: Tensor) -> tuple[Tensor, Tensor]:
        """Through the model's own `compute_logits`, a few rows at a time. `row_T` increases."""
        model: Any = self._model[0]
        parts = []
        step = max(1, PLAIN_LOGITS // (4 * vocabulary(model)))
        for start in range(0, h_RD.shape[0], step):
            logits = model.compute_logits(h_RD[start : start + step])
            low, high = torch.searchsorted(row_T, torch.tensor([start, start + step])).tolist()
            if logits is not None:  # None: the logits are gathered on another rank
                parts.append(logits_logprobs(logits, row_T[low:high] - start, token_T[low:high]))
        if not parts:
            return torch.full(row_T.shape, torch.nan), torch.zeros(row_T.shape)
        return torch.cat([p.logprob_T for p in parts]), torch.cat([p.greedy_T for p in parts])


def vocabulary(model: torch.nn.Module) -> int:
    return max((m.org_vocab_size for m in model.modules() if isinstance(m, LogitsProcessor)), default=1 << 17)


def run_head(head: OutputLayer, h_RD: Tensor, row_T: Tensor, token_T: Tensor) -> tuple[Tensor, Tensor]:
    if getattr(head.layer, "tp_size", 1) > 1:
        return sharded(head, h_RD, row_T, token_T)
    score = partial(target_logprobs, bias_V=head.bias, softcap=head.softcap, scale=head.scale)
    return score(h_RD, head.layer.weight, row_T, token_T, vocab_size=head.vocab)


def find_head(model: Any, like: Tensor) -> OutputLayer | None:
    """The output layer that `compute_logits` uses, found by watching it; None if it does more than apply one.

    A forward hook on vLLM's LogitsProcessor sees what it is given. If that is exactly the hidden states that went into
    `compute_logits`, and what comes out is exactly its result, then layer, bias, scale and cap are all there is. The claim is
    checked with numbers.
    """
    generator = torch.Generator().manual_seed(0)
    h_ND = torch.randn(4, like.shape[-1], generator=generator).to(like.device, like.dtype)
    seen: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []
    processors = [m for m in model.modules() if isinstance(m, LogitsProcessor)]
    hooks = [
        p.register_forward_hook(lambda m, a, k, out: seen.append((m, a, k, out)), with_kwargs=True)
        for p in processors
    ]
    try:
        logits = model.compute_logits(h_ND)
    finally:
        for hook in hooks:
            hook.remove()
    if len(seen) != 1:
        return None
    processor, args, kwargs, out = seen[0]
    given = dict(zip(("lm_head", "hidden_states", "embedding_bias"), args, strict=False)) | kwargs
    layer, bias = given["lm_head"], given.get("embedding_bias")
    weight = getattr(layer, "weight", None)
    method = type(getattr(layer, "quant_method", None)).__name__
    plain = method in ("UnquantizedEmbeddingMethod", "UnquantizedLinearMethod")
    if out is not logits or given["hidden_states"] is not h_ND or not plain:
        return None
    if weight is None or weight.dtype != like.dtype:
        return None
    scale = None if processor.scale == 1.0 else float(processor.scale)
    softcap = processor.soft_cap
    if softcap is not None and scale is not None:
        # vLLM scales after the cap, the kernel before it: the same function
        softcap = float(softcap) * abs(scale)
    head = OutputLayer(layer, bias, scale, softcap, processor.org_vocab_size)
    if getattr(layer, "tp_size", 1) > 1 or logits is None:
        return head
    row_T = torch.arange(4)
    token_T = logits.float().argmax(1).cpu()
    ours, theirs = run_head(head, h_ND, row_T, token_T)[0], logits_logprobs(logits, row_T, token_T)[0]
    return head if torch.allclose(ours.cpu(), theirs.cpu(), atol=1e-2, rtol=1e-2) else None


def sharded(head: OutputLayer, h_RD: Tensor, row_T: Tensor, token_T: Tensor) -> tuple[Tensor, Tensor]:
    """The head where each rank holds a slice of the vocabulary: maxima, sums, best tokens and targets meet in one gather.

    Runs on every rank. Each rank's logits exist for a few rows at a time, in float32.
    """
    from vllm.distributed import tensor_model_parallel_all_gather

    layer = head.layer
    low = layer.shard_indices.org_vocab_start_index
    width = max(0, min(layer.shard_indices.org_vocab_end_index, head.vocab) - low)
    device = h_RD.device
    row_T, token_T = row_T.to(device), token_T.to(device)
    mine_T = (token_T >= low) & (token_T < low + width)
    local_T = torch.where(mine_T, token_T - low, 0)
    stats, target_T = [], torch.full(row_T.shape, -torch.inf, device=device)
    step = max(1, PLAIN_LOGITS // (4 * max(width, 1)))
    for start in range(0, h_RD.shape[0], step):
        x_RV = torch.nn.functional.linear(h_RD[start : start + step].float(), layer.weight[:width].float())
        if head.bias is not None:
            x_RV += head.bias[:width].float()
        if head.scale is not None:
            x_RV *= head.scale
        if head.softcap is not None:
            x_RV = head.softcap * torch.tanh(x_RV / head.softcap)
        if width == 0:
            stats.append(torch.tensor([[-torch.inf, 0.0, 0.0]], device=device).expand(x_RV.shape[0], 3))
            continue
        best_R, at_R = x_RV.max(1)
        sum_R = (x_RV - best_R[:, None]).exp().sum(1)
        stats.append(torch.stack([best_R, sum_R, (at_R + low).float()], 1))
        in_block_T = mine_T & (row_T >= start) & (row_T < start + step)
        target_T[in_block_T] = x_RV[row_T[in_block_T] - start, local_T[in_block_T]]
    stats_PR3 = tensor_model_parallel_all_gather(torch.cat(stats)[None].contiguous(), dim=0)
    target_T = tensor_model_parallel_all_gather(target_T[None].contiguous(), dim=0).amax(0)
    max_PR, sum_PR, at_PR = stats_PR3.unbind(2)
    best_R, rank_R = max_PR.max(0)  # the first rank on ties, which holds the lower token ids
    logsumexp_R = best_R + (sum_PR * (max_PR - best_R).exp()).sum(0).log()
    best_token_R = at_PR.gather(0, rank_R[None])[0].long()
    return target_T - logsumexp_R[row_T], best_token_R[row_T] == token_T
