"""The loss of direct preference optimisation against autograd on plain logits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from evalengine.training.data.rows import IGNORE, Pairs
from evalengine.training.decoder.preference_loss import preference_loss

BETA = 0.3


def case(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Pairs]:
    """Three pairs over two rows of ten positions; the responses of a pair differ in length, and one position is no one's."""
    generator = torch.Generator().manual_seed(5)
    label_BT = np.array([[-1, 0, 0, -1, 1, 1, 1, -1, -1, 2], [3, 3, -1, -1, 4, -1, 5, 5, 5, 5]])
    target_BT = torch.randint(30, (2, 10), generator=generator)
    target_BT[torch.from_numpy(label_BT) < 0] = IGNORE
    h_ND = torch.randn(20, 8, generator=generator, dtype=torch.float64).to(dtype)
    w_VD = torch.randn(30, 8, generator=generator, dtype=torch.float64).to(dtype)
    return h_ND, w_VD, target_BT.reshape(-1), Pairs(label_BT, np.array([0.5, -1.0, 2.0]), BETA)


def reference(h_ND: Tensor, w_VD: Tensor, target_N: Tensor, pairs: Pairs) -> Tensor:
    """-log sigmoid of the closed form, differentiated through the log-softmax of all logits."""
    logprob_NV = F.log_softmax(h_ND @ w_VD.T, -1)
    total = torch.zeros((), dtype=h_ND.dtype)
    for p, expected in enumerate(pairs.reference_P):
        of = [np.flatnonzero(pairs.label_BT.reshape(-1) == 2 * p + side) for side in (0, 1)]
        chosen, rejected = (logprob_NV[rows, target_N[rows]].sum() for rows in of)
        total = total - F.logsigmoid(pairs.beta * (chosen - rejected - expected))
    return total


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_loss_and_gradient_are_those_of_the_closed_form(dtype: torch.dtype):
    h_ND, w_VD, target_N, pairs = case(dtype)
    leaves = [x.clone().requires_grad_() for x in (h_ND, w_VD)]
    doubled = [x.double().clone().requires_grad_() for x in (h_ND, w_VD)]
    loss, expected = preference_loss(*leaves, target_N, pairs)[0], reference(*doubled, target_N, pairs)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    found = torch.autograd.grad(loss * 0.25, leaves)
    for ours, truth in zip(found, torch.autograd.grad(expected * 0.25, doubled), strict=True):
        assert float(truth.abs().max()) > 1e-3
        # log-probabilities are float32, and so is Delta's error
        torch.testing.assert_close(
            ours.double(), truth, atol=1e-6 if dtype == torch.float32 else 1e-8, rtol=0
        )


def test_margins_and_how_many_are_positive():
    """A reference shifted by s moves each margin by -beta s."""
    h_ND, w_VD, target_N, pairs = case(torch.float64)
    own = []
    for p in range(3):  # a margin of 0 where the reference is the model itself
        shown = pairs._replace(reference_P=np.zeros(3), label_BT=only(pairs.label_BT, p))
        target_p = torch.where(torch.from_numpy(shown.label_BT.reshape(-1)) < 0, IGNORE, target_N)
        own.append(preference_loss(h_ND, w_VD, target_p, shown)[1].item() / BETA)
    loss, margin, _ = preference_loss(
        h_ND, w_VD, target_N, pairs._replace(reference_P=np.array(own))
    ).tolist()
    assert (loss, margin) == (pytest.approx(3 * np.log(2)), pytest.approx(0, abs=1e-6))
    shifted = pairs._replace(reference_P=np.add(own, [1.0, -2.0, 3.0]))
    _, margin, right = preference_loss(h_ND, w_VD, target_N, shifted).tolist()
    assert (margin, right) == (pytest.approx(-2 * BETA), 1)


def only(label_BT: np.ndarray, *pairs: int) -> np.ndarray:
    return np.where(np.isin(label_BT // 2, pairs), label_BT, -1)


def test_rows_that_hold_some_of_the_pairs_count_those():
    """What micro-batches and processes see: their sums are the batch's."""
    h_ND, w_VD, target_N, pairs = case(torch.float64)
    pairs = pairs._replace(label_BT=only(pairs.label_BT, 0, 2))  # pair 1 lies in both rows
    target_N = torch.where(torch.from_numpy(pairs.label_BT.reshape(-1)) < 0, IGNORE, target_N)
    parts = [
        preference_loss(h_ND[rows], w_VD, target_N[rows], pairs._replace(label_BT=pairs.label_BT[[r]]))
        for r, rows in enumerate((slice(0, 10), slice(10, 20)))
    ]
    assert all(part[0] > 0 for part in parts)
    torch.testing.assert_close(sum(parts), preference_loss(h_ND, w_VD, target_N, pairs))
    padding = pairs._replace(label_BT=only(pairs.label_BT))
    assert preference_loss(h_ND, w_VD, torch.full((20,), IGNORE), padding).tolist() == [0.0, 0.0, 0.0]
