"""An output layer whose vocabulary is split over ranks, against float64 over all of it. Ranks are run one after another."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest


@pytest.mark.parametrize(
    ("vocab", "shards", "bias", "scale", "softcap"),
    [
        (101, [(0, 64), (64, 101)], False, None, None),
        (128, [(0, 64), (64, 128)], True, None, None),
        (101, [(0, 64), (64, 101)], False, 0.25, 3.0),
        (60, [(0, 64), (64, 64)], True, 2.0, None),  # the second rank holds padding alone
    ],
)
def test_shards_give_the_scores_of_the_whole(
    vocab: int,
    shards: list[tuple[int, int]],
    bias: bool,
    scale: float | None,
    softcap: float | None,
    monkeypatch: Any,
) -> None:
    import torch
    import vllm.distributed

    from evalengine.vllm import pooler

    torch.manual_seed(0)
    monkeypatch.setattr(pooler, "PLAIN_LOGITS", 4 * 64 * 3)  # three rows at a time
    h_RD = torch.randn(10, 16)
    w_VD, bias_V = torch.randn(128, 16), torch.randn(128)
    row_T = torch.tensor([0, 0, 3, 4, 7, 9, 9])
    token_T = torch.tensor([0, vocab - 1, 5, vocab // 2, 59, 1, vocab - 2])
    heads = []
    for low, high in shards:
        own = torch.zeros(64, 16)
        own[: high - low] = w_VD[low:high]
        indices = SimpleNamespace(org_vocab_start_index=low, org_vocab_end_index=high)
        layer = SimpleNamespace(weight=own, tp_size=2, shard_indices=indices)
        own_bias = torch.zeros(64)
        own_bias[: high - low] = bias_V[low:high]
        heads.append(pooler.OutputLayer(layer, own_bias if bias else None, scale, softcap, vocab))

    said: list[list[Any]] = [
        [],
        [],
    ]  # what each rank brings to the gathers, which does not depend on their results
    for rank, head in enumerate(heads):
        monkeypatch.setattr(
            vllm.distributed,
            "tensor_model_parallel_all_gather",
            lambda x, dim, to=said[rank]: to.append(x) or torch.cat([x, x]),
        )
        pooler.run_head(head, h_RD, row_T, token_T)
    gathered = [torch.cat(parts) for parts in zip(*said, strict=True)]

    x_RV = h_RD.double() @ w_VD[:vocab].double().T
    if bias:
        x_RV += bias_V[:vocab].double()
    if scale is not None:
        x_RV *= scale
    if softcap is not None:
        x_RV = softcap * torch.tanh(x_RV / softcap)
    expected = x_RV.log_softmax(1)[row_T, token_T]
    for head in heads:
        replay = iter(gathered)
        monkeypatch.setattr(
            vllm.distributed, "tensor_model_parallel_all_gather", lambda x, dim, it=replay: next(it)
        )
        logprob_T, greedy_T = pooler.run_head(head, h_RD, row_T, token_T)
        torch.testing.assert_close(logprob_T.double(), expected, rtol=0, atol=1e-5)
        assert greedy_T.tolist() == (x_RV.argmax(1)[row_T] == token_T).tolist()
