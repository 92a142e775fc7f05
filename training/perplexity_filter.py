"""A perplexity filter for fine-tuning: keeps the conversations that the pretrained model finds least surprising.

Cost: one forward over the conversations in batches of similar length, and the output layer on learned positions
only; logits are never stored.

Dims: B rows, T positions, N learned positions, D hidden, M conversations.
"""

from __future__ import annotations

import numpy as np
import torch

from evalengine.kernels import target_logprobs
from evalengine.training.attention import DocumentMask
from evalengine.training.conversations import Example
from evalengine.training.loop import autocast
from evalengine.training.model import Decoder
from evalengine.training.state import Place

BATCH_TOKENS = 8192  # positions in a batch


def least_surprising(model: Decoder, examples: list[Example], share: float, place: Place) -> list[Example]:
    """The `share` of conversations whose responses have the lowest mean loss per learned token."""
    losses = surprise(model, examples, place)
    keep = max(1, round(share * len(examples)))
    return [examples[i] for i in sorted(np.argsort(losses, kind="stable")[:keep])]


def surprise(model: Decoder, examples: list[Example], place: Place) -> np.ndarray:
    """Mean loss per learned token of every conversation, float64."""
    return loss_sums(model, examples, place) / [example.learned_T[1:].sum() for example in examples]


@torch.no_grad()
def loss_sums(model: Decoder, examples: list[Example], place: Place) -> np.ndarray:
    """Summed loss of every conversation's learned tokens, float64.

    Conversations of similar length share a batch, one a row. The processes of a group divide the batches among them, and
    all get the same numbers.
    """
    model.to(place.device).eval()
    group, loss_M = place.group, np.zeros(len(examples))
    longest_first = np.argsort([-len(ids) for ids, _ in examples], kind="stable")
    at, number = 0, 0
    while at < len(longest_first):
        width = len(examples[longest_first[at]].token_T) - 1
        chosen = longest_first[at : at + max(1, BATCH_TOKENS // max(1, width))]
        at, number = at + len(chosen), number + 1
        if number % group.size == group.rank:
            loss_M[chosen] = _row_sums(model, [examples[i] for i in chosen], place)
    return group.sum(torch.from_numpy(loss_M).to(place.device)).cpu().numpy()


def _row_sums(model: Decoder, rows: list[Example], place: Place) -> np.ndarray:
    """Summed loss of each row's learned tokens; padding follows what is learned, where nothing attends to it."""
    width = max(len(ids) for ids, _ in rows) - 1
    ids_BT, learned_BT = np.zeros((len(rows), width + 1), np.int64), np.zeros((len(rows), width + 1), bool)
    for number, (ids, learned) in enumerate(rows):
        ids_BT[number, : len(ids)], learned_BT[number, : len(ids)] = ids, learned
    row, at = learned_BT[:, 1:].nonzero()  # predicted from the position before
    token_BT, row_N, at_N, target_N = (
        torch.from_numpy(array).to(place.device) for array in (ids_BT[:, :-1], row, at, ids_BT[row, at + 1])
    )
    position_BT = torch.arange(width, device=place.device).expand(len(rows), width)
    with autocast(place):  # one document a row: plain causal attention is exact
        h_BTD = model.hidden(token_BT, position_BT, DocumentMask())
    h_ND = h_BTD[row_N, at_N]
    index_N = torch.arange(len(row_N), device=place.device)
    scored = target_logprobs(h_ND, model.head.weight.to(h_ND.dtype), index_N, target_N)
    total_B = torch.zeros(len(rows), dtype=torch.float64, device=place.device)
    return total_B.index_add_(0, row_N, -scored.logprob_T.double()).cpu().numpy()
