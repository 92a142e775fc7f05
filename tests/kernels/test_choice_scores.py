"""`choice_scores` against a float64 loop over items and against numbers worked out by hand."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from evalengine.kernels import SCORES, choice_scores
from evalengine.kernels.choice_scores import ChoiceScores, choice_scores_op

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = pytest.mark.gpu


def choice_scores_reference(
    logprob_T: Tensor,
    target_offset_C1: Tensor,
    choice_offset_I1: Tensor,
    gold_I: Tensor | None = None,
    chars_C: Tensor | None = None,
    bytes_C: Tensor | None = None,
    loglik_uncond_C: Tensor | None = None,
) -> ChoiceScores:
    """`choice_scores` as a loop over items in float64, with every formula written out."""
    offset = target_offset_C1.tolist()
    loglik_C = torch.stack([logprob_T[a:b].double().sum() for a, b in itertools.pairwise(offset)])
    lengths = torch.tensor([max(1, b - a) for a, b in itertools.pairwise(offset)])
    nan_C = torch.full_like(loglik_C, torch.nan)
    score_SC = torch.stack(
        [
            loglik_C,
            nan_C if chars_C is None else loglik_C / chars_C,
            nan_C if bytes_C is None else loglik_C / bytes_C,
            loglik_C / lengths,
            nan_C if loglik_uncond_C is None else loglik_C - loglik_uncond_C.double(),
        ]
    )
    items = choice_offset_I1.tolist()
    out = torch.full((5, len(SCORES), len(items) - 1), torch.nan, dtype=torch.float64)
    for i, (first, last) in enumerate(itertools.pairwise(items)):
        for s in range(len(SCORES)):
            score = score_SC[s, first:last]
            if score.isnan().any():
                out[0, s, i] = -1
                continue
            p = score.softmax(0)
            top = p.sort(descending=True).values.tolist()
            gold = -1 if gold_I is None else int(gold_I[i])
            out[0, s, i], out[1, s, i] = float(score.argmax()), top[0]
            out[2, s, i] = p[gold] if gold >= 0 else torch.nan
            out[3, s, i] = top[0] - (top[1] if len(top) > 1 else 0.0)
            out[4, s, i] = torch.special.entr(p).sum()
    return ChoiceScores(loglik_C, score_SC, out[0].int(), out[1], out[2], out[3], out[4])


def offsets(lengths: Tensor) -> Tensor:
    return torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)])


def ragged(
    items: int, most_choices: int, seed: int = 0
) -> tuple[tuple[Tensor, Tensor, Tensor], dict[str, Any]]:
    generator = torch.Generator().manual_seed(seed)
    choices_I = torch.randint(1, most_choices + 1, (items,), generator=generator)
    count = int(choices_I.sum())
    targets_C = torch.randint(0, 12, (count,), generator=generator)
    logprob_T = -4 * torch.rand(int(targets_C.sum()), generator=generator)
    gold_I = (torch.rand(items, generator=generator) * choices_I).long()
    gold_I[::7] = -1
    lengths = {
        "gold_I": gold_I,
        "chars_C": torch.randint(1, 60, (count,), generator=generator),
        "bytes_C": torch.randint(1, 60, (count,), generator=generator),
        "loglik_uncond_C": -30 * torch.rand(count, generator=generator),
    }
    return (logprob_T, offsets(targets_C), offsets(choices_I)), lengths


def on_device(x: Any) -> Any:
    if isinstance(x, dict):
        return {k: v.to(DEVICE) for k, v in x.items()}
    return tuple(v.to(DEVICE) for v in x)


@pytest.mark.parametrize(
    "given", [(), ("gold_I", "chars_C"), ("gold_I", "chars_C", "bytes_C", "loglik_uncond_C")]
)
@pytest.mark.parametrize(("items", "most"), [(1, 1), (400, 5), (30, 40)])
def test_equals_the_loop(items: int, most: int, given: tuple[str, ...]) -> None:
    args, extra = ragged(items, most)
    extra = {k: extra[k] for k in given}
    ours = choice_scores(*on_device(args), **on_device(extra))
    expected = choice_scores_reference(*args, **extra)
    for name, x, y in zip(ours._fields, ours, expected, strict=True):
        torch.testing.assert_close(
            x.cpu().double(),
            y.double(),
            atol=2e-5,
            rtol=1e-6,
            equal_nan=True,
            msg=lambda m, n=name: f"{n}: {m}",
        )


def test_numbers_by_hand() -> None:
    logprob_T = torch.tensor([-1.0, -1.0, -3.0, -0.5])  # two choices: -2 over 2 tokens; -3.5 over 2 tokens
    ours = choice_scores(
        *on_device((logprob_T, torch.tensor([0, 2, 4]), torch.tensor([0, 2]))),
        **on_device({"gold_I": torch.tensor([1]), "chars_C": torch.tensor([2, 14])}),
    )
    assert ours.loglik_C.tolist() == [-2.0, -3.5]
    row = {name: i for i, name in enumerate(SCORES)}
    assert ours.score_SC[row["acc_norm"]].tolist() == [-1.0, -0.25]
    assert ours.score_SC[row["acc_token"]].tolist() == [-1.0, -1.75]
    assert ours.pick_SI[:, 0].tolist() == [0, 1, -1, 0, -1]
    p = 1 / (1 + math.exp(-1.5))
    assert ours.confidence_SI[0, 0].item() == pytest.approx(p)
    assert ours.p_gold_SI[0, 0].item() == pytest.approx(1 - p)
    assert ours.margin_SI[0, 0].item() == pytest.approx(2 * p - 1)
    assert ours.entropy_SI[0, 0].item() == pytest.approx(-p * math.log(p) - (1 - p) * math.log(1 - p))


def test_ties_go_to_the_first_choice_and_leave_no_margin() -> None:
    logprob_T, target, choice = torch.full((12,), -1.0), torch.arange(13), torch.tensor([0, 12])
    ours = choice_scores(*on_device((logprob_T, target, choice)))
    assert ours.pick_SI[0].item() == 0
    assert ours.margin_SI[0].item() == pytest.approx(0.0, abs=1e-6)
    assert ours.entropy_SI[0].item() == pytest.approx(math.log(12), abs=1e-5)


def test_an_item_has_the_same_bits_alone() -> None:
    (logprob_T, target, choice), _ = ragged(50, 6, seed=3)
    whole = choice_scores(*on_device((logprob_T, target, choice)))
    for i in (0, 17, 49):
        a, b = int(choice[i]), int(choice[i + 1])
        t0, t1 = int(target[a]), int(target[b])
        alone = choice_scores(
            *on_device((logprob_T[t0:t1], target[a : b + 1] - t0, torch.tensor([0, b - a])))
        )
        assert torch.equal(alone.loglik_C, whole.loglik_C[a:b])
        for field in ("confidence_SI", "margin_SI", "entropy_SI"):
            assert torch.equal(getattr(alone, field)[[0, 3], 0], getattr(whole, field)[[0, 3], i])


def test_no_items() -> None:
    zero = torch.zeros(1, dtype=torch.long)
    ours = choice_scores(*on_device((torch.empty(0), zero, zero)))
    assert ours.loglik_C.shape == (0,) and ours.pick_SI.shape == (len(SCORES), 0)


def test_bad_arguments_are_refused() -> None:
    (logprob_T, target, choice), extra = ragged(5, 3)
    with pytest.raises(ValueError, match="target_offset_C1"):
        choice_scores(logprob_T[:-1], target, choice)
    with pytest.raises(ValueError, match="choice_offset_I1"):
        choice_scores(logprob_T, target, torch.cat([choice, choice[-1:]]))  # an item without choices
    with pytest.raises(ValueError, match="chars_C"):
        choice_scores(logprob_T, target, choice, chars_C=extra["chars_C"][1:])
    with pytest.raises(ValueError, match="gold_I"):
        choice_scores(logprob_T, target, choice, gold_I=torch.full((5,), 3))


def test_operator() -> None:
    args, extra = ragged(6, 4)
    extra["gold_I"] = extra["gold_I"].clamp(min=0)  # opcheck takes NaN for a difference
    args, extra = on_device(args), on_device(extra)
    torch.library.opcheck(choice_scores_op, (*args, *extra.values()))
    compiled = torch.compile(choice_scores, fullgraph=True, backend="aot_eager")(*args, **extra)
    assert torch.equal(compiled.confidence_SI, choice_scores(*args, **extra).confidence_SI)
