"""The loss of direct preference optimisation, as a cross-entropy whose rows have weights.

A pair's loss is -log sigmoid(beta Delta), where Delta = log p(chosen) - log p(rejected) less the same difference under the
reference. Its gradient is

    -beta sigmoid(-beta Delta) (grad log p(chosen) - grad log p(rejected)),

which is that of a sum of cross-entropies in which a token of the chosen response has the weight beta sigmoid(-beta Delta) and
one of the rejected response the negative of it. One pass over the output layer without gradients gives Delta, on the same
hidden states that the weighted pass then takes its gradients from: the body of the model runs once, no logits are kept, and
both responses of a pair must be in the same rows.

Reference: Rafailov et al. (2023), "Direct preference optimization", equation 7 and its gradient.
Cost: of the output layer 8*M*V*D FLOPs for M tokens of responses, where a cross-entropy takes 6*M*V*D.
Dims: B rows, T positions, N = B*T, M tokens of responses, P pairs, D hidden, V vocabulary.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from evalengine.kernels import linear_cross_entropy, target_logprobs
from evalengine.training.data.rows import IGNORE, Pairs


def preference_loss(
    h_ND: Tensor,  # hidden states
    w_VD: Tensor,  # LM head
    target_N: Tensor,  # int64, IGNORE but for the tokens of responses
    pairs: Pairs,
) -> Tensor:
    """(3,): the loss summed over the pairs, which is differentiable; and what `rows.MEASURES` names, summed likewise.

    Pairs of which no token is in these rows are left out. Log-probabilities are summed in float64.
    """
    device = h_ND.device
    label_N = torch.from_numpy(pairs.label_BT).reshape(-1)
    row_M = (label_N >= 0).nonzero().squeeze(1)
    pair_M, sign_M = label_N[row_M] // 2, (1 - 2 * (label_N[row_M] % 2)).double()
    here_P = (torch.bincount(pair_M, minlength=len(pairs.reference_P)) > 0).to(device)
    token_M = target_N[row_M.to(target_N.device)]
    with torch.no_grad():
        logprob_M = target_logprobs(h_ND.detach(), w_VD.detach(), row_M, token_M).logprob_T
        row_M, pair_M, sign_M = row_M.to(device), pair_M.to(device), sign_M.to(device)
        delta_P = -torch.from_numpy(pairs.reference_P).to(device)
        delta_P.index_add_(0, pair_M, sign_M * logprob_M.double())
        margin_P = pairs.beta * delta_P
        weight_N = torch.zeros(len(h_ND), dtype=torch.float64, device=device)
        weight_N[row_M] = sign_M * (pairs.beta * torch.sigmoid(-margin_P))[pair_M]
        loss = torch.where(here_P, -F.logsigmoid(margin_P), 0.0).sum()
        measured = [torch.where(here_P, x, 0.0).sum() for x in (margin_P, (margin_P > 0).double())]
    weighted = linear_cross_entropy(
        h_ND, w_VD, target_N, weight_N=weight_N, ignore_index=IGNORE, reduction="sum"
    )
    # the gradient of the one, the value of the other
    return torch.stack(
        [weighted - weighted.detach() + loss.to(weighted), *(x.to(weighted) for x in measured)]
    )
