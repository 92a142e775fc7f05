"""The one place where the trainer computes its loss.

`linear_cross_entropy` fuses the head's product with the cross-entropy, so that the (N, V) logits are never
stored: at a vocabulary of 100,864 they would be larger than the model.
"""

from __future__ import annotations

from torch import Tensor

from evalengine.kernels import linear_cross_entropy

IGNORE = -100  # a target that carries no loss


def summed_cross_entropy(h_ND: Tensor, w_VD: Tensor, target_N: Tensor, z_loss: float = 0.0) -> Tensor:
    """Sum over targets other than `IGNORE` of -log softmax(h @ w.T)[target] + z_loss * logsumexp(h @ w.T)^2,
    a float32 scalar.
    """
    return linear_cross_entropy(
        h_ND, w_VD.to(h_ND.dtype), target_N, ignore_index=IGNORE, reduction="sum", z_loss=z_loss
    )
