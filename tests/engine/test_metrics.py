"""`answers` against a loop over items in float64, with every formula written out, and against numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.special import entr, softmax

from evalengine.store.metrics import METRICS, Answers, answers


def ragged(items: int, most: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores, offsets and right choices; of every seventh item that is unknown."""
    rng = np.random.default_rng(0)
    choices_I = rng.integers(1, most + 1, items)
    gold_I = (rng.random(items) * choices_I).astype(int)
    gold_I[::7] = -1
    return -30 * rng.random(choices_I.sum()), np.concatenate([[0], choices_I.cumsum()]), gold_I


@pytest.mark.parametrize(("items", "most"), [(1, 1), (400, 5), (30, 40)])
def test_answers_equal_the_loop_and_an_item_has_the_same_bits_alone(items: int, most: int) -> None:
    score_C, offset_I1, gold_I = ragged(items, most)
    found = answers(score_C, offset_I1, gold_I)
    for i in range(items):
        mine = score_C[offset_I1[i] : offset_I1[i + 1]]
        p, known = softmax(mine), gold_I[i] >= 0
        top = [*np.sort(p)[::-1], 0.0]
        right = np.arange(len(p)) == gold_I[i]
        p_gold = p[right][0] if known else math.nan
        brier, nll = ((p - right) ** 2).sum() if known else math.nan, -np.log(p_gold)
        expected = [mine.argmax(), top[0], p_gold, top[0] - top[1], entr(p).sum(), brier, nll]
        alone = answers(mine, np.array([0, len(mine)]), gold_I[i : i + 1])
        for name, value, own, one in zip(Answers._fields, expected, alone, found, strict=True):
            np.testing.assert_allclose(one[i], value, atol=1e-6, rtol=1e-6, err_msg=name)
            np.testing.assert_array_equal(own[0], one[i], err_msg=name)


def test_metrics_by_hand() -> None:
    loglik_C, two, lengths_C = np.array([-2.0, -3.5]), np.array([0, 2]), np.array([2.0, 14.0])
    for name in ("acc_norm", "acc_bytes", "acc_token"):
        assert METRICS[name].score(loglik_C, lengths_C).tolist() == [-1.0, -0.25]
    assert METRICS["acc_pmi"].score(loglik_C, np.array([-1.0, -4.0])).tolist() == [-1.0, 0.5]
    found = answers(METRICS["acc"].score(loglik_C, None), two, np.array([1]))
    p = 1 / (1 + math.exp(-1.5))
    assert (found.pick[0], found.confidence[0], found.p_gold[0]) == pytest.approx((0, p, 1 - p))
    assert found.margin[0] == pytest.approx(2 * p - 1)


def test_ties_go_to_the_first_choice_and_leave_no_margin() -> None:
    found = answers(np.full(12, -1.0), np.array([0, 12]), np.array([3]))
    assert found.pick[0] == 0
    assert (found.margin[0], found.entropy[0]) == pytest.approx((0.0, math.log(12)))
