"""`emulated_logprobs` against its definition in float64: on the CPU, and the Triton kernel on a GPU or in the interpreter."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from evalengine.kernels.emulated_logprobs import EmulatedLogprobs, emulated_logprobs
from evalengine.kernels.head import Head, Rows
from evalengine.kernels.target_logprobs import target_logprobs

BETAS = (0.0, 0.5, 1.0, -1.5, 4.0)
N, V, T = 37, 301, 50


def model(seed: int, hidden: int, dtype: torch.dtype = torch.float64, vocab: int = V, **options: Any) -> Rows:
    g = torch.Generator().manual_seed(seed)
    h_ND = torch.randn(N, hidden, generator=g, dtype=torch.float64)
    w_VD = torch.randn(vocab, hidden, generator=g, dtype=torch.float64) / hidden**0.5 * 3
    bias_V = (
        torch.randn(vocab, generator=g, dtype=torch.float64).to(dtype) if options.pop("bias", False) else None
    )
    return Rows(h_ND.to(dtype), Head(w_VD.to(dtype), bias_V, **options))


def logits(rows: Rows, vocab: int = V) -> Tensor:
    """In float64, from what the model holds."""
    w_VD, bias_V, scale, softcap = rows.head
    x = rows.h_ND.double() @ w_VD.double().t()
    x = x if bias_V is None else x + bias_V.double()
    x = x if scale is None else x * scale
    return (x if softcap is None else softcap * torch.tanh(x / softcap))[:, :vocab]


def targets(count: int = T) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    return torch.randint(0, N, (count,), generator=g), torch.randint(0, V, (count,), generator=g)


def exact(
    models: tuple[Rows, ...], betas: tuple[float, ...], row_T: Tensor, token_T: Tensor
) -> tuple[Tensor, Tensor]:
    base, tuned, ref = map(logits, models)
    z = [base + beta * (tuned - ref) for beta in betas]
    logprob = torch.stack([torch.log_softmax(x, 1)[row_T, token_T] for x in z])
    return logprob, torch.stack([x.argmax(1)[row_T] == token_T for x in z])


OPTIONS: list[tuple[dict[str, Any], ...]] = [
    ({}, {}, {}),
    ({"softcap": 5.0}, {}, {}),
    ({"bias": True}, {"softcap": 3.0, "scale": 0.5}, {"softcap": 3.0, "scale": 0.5}),
    ({"scale": 2.0}, {"bias": True, "softcap": 4.0}, {}),
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_the_definition(options: tuple[dict[str, Any], ...], dtype: torch.dtype) -> None:
    models = tuple(
        model(k, hidden, dtype, **of)
        for k, (hidden, of) in enumerate(zip((64, 32, 48), options, strict=True))
    )
    row_T, token_T = targets()
    found = emulated_logprobs(*models, BETAS, row_T, token_T)
    logprob, greedy = exact(models, BETAS, row_T, token_T)
    # Products are exact in float32 for bfloat16; what is left is float32's rounding of sums, times 1 + 2 |beta|.
    exactly = dtype == torch.float64
    assert found.logprob_BT.dtype == (dtype if exactly else torch.float32)
    for b, beta in enumerate(BETAS):
        torch.testing.assert_close(
            found.logprob_BT[b].double(),
            logprob[b],
            atol=1e-12 if exactly else 4e-6 * (1 + 2 * abs(beta)),
            rtol=0 if exactly else 3e-7 * (1 + abs(beta)),
        )
    assert (found.greedy_BT == greedy).all()


def test_beta_0_is_the_base_and_a_base_that_is_the_ref_gives_the_tuned() -> None:
    base, tuned = model(0, 64, torch.float32), model(1, 64, torch.float32)
    row_T, token_T = targets()

    def own(rows: Rows) -> Tensor:
        return target_logprobs(rows.h_ND, rows.head.w_VD, row_T, token_T).logprob_T

    found = emulated_logprobs(base, tuned, base, (0.0, 1.0), row_T, token_T)
    torch.testing.assert_close(found.logprob_BT[0], own(base), atol=3e-6, rtol=0)
    torch.testing.assert_close(found.logprob_BT[1], own(tuned), atol=6e-6, rtol=0)


def test_a_constant_added_to_a_row_of_any_model_changes_nothing() -> None:
    models = [model(k, 32) for k in range(3)]
    row_T, token_T = targets()
    before = emulated_logprobs(*models, BETAS, row_T, token_T)
    for k in range(3):
        moved = list(models)
        bias_V = torch.full((V,), 7.5, dtype=torch.float64)
        moved[k] = Rows(models[k].h_ND, models[k].head._replace(bias_V=bias_V))
        after = emulated_logprobs(*moved, BETAS, row_T, token_T)
        torch.testing.assert_close(after.logprob_BT, before.logprob_BT, atol=1e-5, rtol=0)
        assert (after.greedy_BT == before.greedy_BT).all()


def test_columns_beyond_the_vocabulary_do_not_exist() -> None:
    models = (model(0, 32), model(1, 32, vocab=V + 19), model(2, 32, vocab=V + 7))
    row_T, token_T = targets()
    found = emulated_logprobs(*models, BETAS, row_T, token_T)
    torch.testing.assert_close(
        found.logprob_BT.double(), exact(models, BETAS, row_T, token_T)[0], atol=2e-5, rtol=1e-6
    )
    fewer = emulated_logprobs(*models, (1.0,), row_T, token_T % 100, vocab_size=100)
    z = sum(s * logits(m, 100) for s, m in zip((1, 1, -1), models, strict=True))
    assert isinstance(z, Tensor)
    truth = torch.log_softmax(z, 1)[row_T, token_T % 100]
    torch.testing.assert_close(fewer.logprob_BT[0].double(), truth, atol=1e-5, rtol=1e-6)


def test_rows_do_not_depend_on_their_neighbours_and_bad_rows_are_nan() -> None:
    models = [model(k, 32, torch.float32) for k in range(3)]
    row_T, token_T = targets()
    whole = emulated_logprobs(*models, BETAS, row_T, token_T)
    models[1].h_ND[3] = float("inf")
    models[2].h_ND[5] = float("nan")
    found = emulated_logprobs(*models, BETAS, row_T, token_T)
    bad = (row_T == 3) | (row_T == 5)
    assert bad.any() and found.logprob_BT[1:, bad].isnan().all() and not found.greedy_BT[1:, bad].any()
    assert torch.equal(found.logprob_BT[:, ~bad], whole.logprob_BT[:, ~bad])


def test_nothing_to_score_and_what_does_not_fit() -> None:
    models = [model(k, 32) for k in range(3)]
    none = torch.zeros(0, dtype=torch.long)
    assert emulated_logprobs(*models, BETAS, none, none).logprob_BT.shape == (5, 0)
    row_T, token_T = targets()
    with pytest.raises(ValueError, match="same rows"):
        emulated_logprobs(
            models[0], Rows(models[1].h_ND[1:], models[1].head), models[2], BETAS, row_T, token_T
        )
    with pytest.raises(ValueError, match="vocab_size"):
        emulated_logprobs(*models, BETAS, row_T, token_T, vocab_size=V + 1)
    with pytest.raises(IndexError, match="token_T"):
        emulated_logprobs(*models, BETAS, row_T, token_T + V)


def triton_call(models: tuple[Rows, ...], device: str, row_T: Tensor, token_T: Tensor) -> EmulatedLogprobs:
    from evalengine.kernels.emulated_logprobs_triton import emulated_logprobs_triton

    there = [
        Rows(r.h_ND.to(device), Head(*(x.to(device) if isinstance(x, Tensor) else x for x in r.head)))
        for r in models
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the interpreter computes masked lanes too
        found = emulated_logprobs_triton(there, BETAS, row_T.to(device), token_T.to(device), V)
    return EmulatedLogprobs(*(x.cpu() for x in found))


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("dtype", "options"),
    [*((torch.bfloat16, options) for options in OPTIONS), (torch.float16, OPTIONS[0])],
    ids=str,
)
def test_the_triton_kernel(dtype: torch.dtype, options: tuple[dict[str, Any], ...], device: str) -> None:
    models = tuple(
        model(k, hidden, dtype, **of)
        for k, (hidden, of) in enumerate(zip((64, 33, 48), options, strict=True))
    )
    row_T, token_T = targets(12)
    found = triton_call(models, device, row_T, token_T)
    logprob, greedy = exact(models, BETAS, row_T, token_T)
    for b, beta in enumerate(BETAS):
        bound = 2e-5 * (1 + 2 * abs(beta))
        torch.testing.assert_close(found.logprob_BT[b].double(), logprob[b], atol=bound, rtol=1e-6)
    assert (found.greedy_BT == greedy).all()


@pytest.mark.gpu
def test_the_triton_kernel_answers_for_what_is_out_of_range_and_not_finite(device: str) -> None:
    models = tuple(model(k, 32, torch.bfloat16) for k in range(3))
    row_T, token_T = targets(12)
    whole = triton_call(models, device, row_T, token_T)
    models[2].h_ND[int(row_T[0])] = float("inf")
    bad = row_T == row_T[0]
    row_T[7], token_T[9] = N, V
    found = triton_call(models, device, row_T, token_T)
    bad[[7, 9]] = True
    assert found.logprob_BT[1:, bad].isnan().all() and not found.greedy_BT[1:, bad].any()
    assert torch.equal(found.logprob_BT[:, ~bad], whole.logprob_BT[:, ~bad])


@pytest.mark.gpu
def test_the_triton_kernel_in_several_launches(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from evalengine.kernels import emulated_logprobs_triton

    models = tuple(model(k, 32, torch.bfloat16) for k in range(3))
    row_T, token_T = targets(12)
    whole = triton_call(models, device, row_T, token_T)
    monkeypatch.setattr(emulated_logprobs_triton, "CHUNK_N", 16)
    found = triton_call(models, device, row_T, token_T)
    assert torch.equal(found.logprob_BT, whole.logprob_BT) and torch.equal(found.greedy_BT, whole.greedy_BT)
