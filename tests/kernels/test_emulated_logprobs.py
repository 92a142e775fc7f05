"""`emulated_logprobs` against its definition in float64: both CPU paths, and the Triton kernel on a GPU or in the interpreter."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from oracle import SLACK
from torch import Tensor

from evalengine.kernels import EmulatedLogprobs, Head, HeadedRows, TargetLogprobs, emulated_logprobs
from evalengine.kernels.target_logprobs import target_logprobs, vectorised
from evalengine.kernels.target_logprobs_simd import CHUNK_N, TILE_V

BETAS = (0.0, 0.5, 1.0, -2.0, 8.0)
N, V, T = 37, 301, 50


def model(
    seed: int, hidden: int, dtype: torch.dtype = torch.float64, vocab: int = V, n: int = N, **options: Any
) -> HeadedRows:
    g = torch.Generator().manual_seed(seed)
    h_ND = torch.randn(n, hidden, generator=g, dtype=torch.float64)
    w_VD = torch.randn(vocab, hidden, generator=g, dtype=torch.float64) / hidden**0.5 * 3
    bias_V = (
        torch.randn(vocab, generator=g, dtype=torch.float64).to(dtype) if options.pop("bias", False) else None
    )
    return HeadedRows(h_ND.to(dtype), Head(w_VD.to(dtype), bias_V, **options))


def logits(rows: HeadedRows, vocab: int | None = None) -> Tensor:
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
    models: tuple[HeadedRows, ...], betas: tuple[float, ...], row_T: Tensor, token_T: Tensor
) -> tuple[Tensor, Tensor]:
    vocab = min(len(rows.head.w_VD) for rows in models)
    base, tuned, ref = (logits(rows, vocab) for rows in models)
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
def test_the_definition(options: tuple[dict[str, Any], ...], dtype: torch.dtype, path: str) -> None:
    models = tuple(
        model(k, hidden, dtype, **of)
        for k, (hidden, of) in enumerate(zip((64, 32, 48), options, strict=True))
    )
    check(models)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("n", "vocab", "widths"),
    [
        (1, 1, (5, 3, 2)),
        (1, 2 * TILE_V + 7, (96, 33, 40)),
        (65, TILE_V + 1, (513, 17, 600)),
        (130, TILE_V - 1, (768, 1, 256)),
        (CHUNK_N + 3, 2 * TILE_V, (8, 3, 5)),
    ],
)
def test_shapes(n: int, vocab: int, widths: tuple[int, ...], dtype: torch.dtype, path: str) -> None:
    check(tuple(model(k, hidden, dtype, vocab, n) for k, hidden in enumerate(widths)), SLACK)


def check(models: tuple[HeadedRows, ...], slack: float = 4e-6) -> None:
    """The definition holds for the argmax at each beta, a random token and the last one of every row.

    What 16 and 32 bits may lose is float32's rounding of sums (bfloat16's products are exact in float32): `slack` for one model,
    times 1 + 2 |beta| for the three.
    """
    dtype, n = models[0].h_ND.dtype, len(models[0].h_ND)
    base, tuned, ref = map(logits, models)
    argmax = [(base + beta * (tuned - ref)).argmax(1) for beta in BETAS]
    vocab = base.shape[1]
    drawn = torch.randint(vocab, (n,), generator=torch.Generator().manual_seed(0))
    token_T = torch.cat([*argmax, drawn, torch.full((n,), vocab - 1)])
    row_T = torch.arange(n).repeat(len(BETAS) + 2)
    found = emulated_logprobs(*models, BETAS, row_T, token_T)
    logprob, greedy = exact(models, BETAS, row_T, token_T)
    exactly = dtype == torch.float64
    assert found.logprob_BT.dtype == (dtype if exactly else torch.float32)
    for b, beta in enumerate(BETAS):
        torch.testing.assert_close(
            found.logprob_BT[b].double(),
            logprob[b],
            atol=1e-12 if exactly else slack * (1 + 2 * abs(beta)),
            rtol=0 if exactly else 3e-7 * (1 + abs(beta)),
        )
        assert greedy[b].sum() >= n
    assert (found.greedy_BT == greedy).all()


def own(rows: HeadedRows, row_T: Tensor, token_T: Tensor) -> TargetLogprobs:
    """What the ordinary call gives for a single model."""
    w_VD, bias_V, scale, softcap = rows.head
    return target_logprobs(rows.h_ND, w_VD, row_T, token_T, bias_V=bias_V, scale=scale, softcap=softcap)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("n", [1, CHUNK_N + 3])
def test_beta_0_has_the_bits_of_the_base(
    n: int, dtype: torch.dtype, options: tuple[dict[str, Any], ...], path: str
) -> None:
    widths = zip((65, 32, 600), options, strict=True)
    models = [model(k, hidden, dtype, n=n, **of) for k, (hidden, of) in enumerate(widths)]
    row_T, token_T = torch.arange(n).repeat(2), torch.arange(2 * n) % V
    token_T[:n] = logits(models[0]).argmax(1)
    found, alone = emulated_logprobs(*models, (3.0, 0.0), row_T, token_T), own(models[0], row_T, token_T)
    assert torch.equal(found.logprob_BT[1].float(), alone.logprob_T)
    assert torch.equal(found.greedy_BT[1], alone.greedy_T) and alone.greedy_T.any()
    assert not torch.equal(found.logprob_BT[0].float(), alone.logprob_T)


def test_beta_0_is_the_base_and_a_base_that_is_the_ref_gives_the_tuned(path: str) -> None:
    base, tuned = model(0, 64, torch.float32), model(1, 64, torch.float32)
    row_T, token_T = targets()
    found = emulated_logprobs(base, tuned, base, (0.0, 1.0), row_T, token_T)
    torch.testing.assert_close(found.logprob_BT[0], own(base, row_T, token_T).logprob_T, atol=3e-6, rtol=0)
    torch.testing.assert_close(found.logprob_BT[1], own(tuned, row_T, token_T).logprob_T, atol=6e-6, rtol=0)


def test_the_first_of_equal_logits_is_the_argmax(path: str) -> None:
    vocab, one = 2 * TILE_V + 10, torch.ones(1, 1)
    marks = 5, 9, TILE_V + 1, 2 * TILE_V + 3
    heads = torch.zeros(3, vocab, 1)
    heads[0, list(marks)] = 1.0
    heads[1, [9, TILE_V + 1]] = 1.0  # beta 1 lifts the second and third above the others, beta -1 undoes them
    heads[2, 0] = -2.0  # at beta 1, token 0 is as high as they are
    models = [HeadedRows(one, Head(w_VD)) for w_VD in heads]
    tokens = torch.tensor([0, *marks])
    found = emulated_logprobs(*models, (0.0, 0.25, -1.0, 1.0), torch.zeros(5, dtype=torch.long), tokens)
    assert tokens[found.greedy_BT.float().argmax(1)].tolist() == [5, 9, 5, 0]
    assert found.greedy_BT.sum(1).tolist() == [1, 1, 1, 1]


def test_a_constant_added_to_a_row_of_any_model_changes_nothing() -> None:
    models = [model(k, 32) for k in range(3)]
    row_T, token_T = targets()
    before = emulated_logprobs(*models, BETAS, row_T, token_T)
    for k in range(3):
        moved = list(models)
        bias_V = torch.full((V,), 7.5, dtype=torch.float64)
        moved[k] = HeadedRows(models[k].h_ND, models[k].head._replace(bias_V=bias_V))
        after = emulated_logprobs(*moved, BETAS, row_T, token_T)
        torch.testing.assert_close(after.logprob_BT, before.logprob_BT, atol=1e-5, rtol=0)
        assert (after.greedy_BT == before.greedy_BT).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_columns_beyond_the_vocabulary_do_not_exist(dtype: torch.dtype, path: str) -> None:
    models = (
        model(0, 32, dtype),
        model(1, 32, dtype, vocab=V + 19, bias=True),
        model(2, 32, dtype, vocab=V + 7),
    )
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


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("k", [0, 1, 2])
def test_a_row_that_is_not_finite_in_one_model_spoils_itself_alone(
    k: int, softcap: float | None, path: str
) -> None:
    models = [model(seed, 32, torch.float32, softcap=softcap) for seed in range(3)]
    row_T, token_T = torch.arange(N), torch.arange(N)
    whole = emulated_logprobs(*models, BETAS, row_T, token_T)
    for row, bad in ((3, torch.inf), (5, torch.nan), (36, -torch.inf)):
        models[k].h_ND[row, row % 32] = bad
    found = emulated_logprobs(*models, BETAS, row_T, token_T)
    bad_T = torch.isin(row_T, torch.tensor([3, 5, 36]))
    assert found.logprob_BT[:, bad_T].isnan().all() and not found.greedy_BT[:, bad_T].any()
    assert torch.equal(found.logprob_BT[:, ~bad_T], whole.logprob_BT[:, ~bad_T])
    assert torch.equal(found.greedy_BT[:, ~bad_T], whole.greedy_BT[:, ~bad_T])
    alone = own(models[k], row_T, token_T)
    assert torch.equal(alone.logprob_T.isnan(), bad_T) and not alone.greedy_T[bad_T].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_bits_depend_on_no_other_row_beta_or_thread(dtype: torch.dtype, path: str) -> None:
    models = [model(k, hidden, dtype, n=70, bias=True) for k, hidden in enumerate((65, 32, 48))]
    row_T, token_T = torch.arange(70), torch.arange(70) * 4
    whole = emulated_logprobs(*models, BETAS, row_T, token_T)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3 - min(threads, 2))
        again = emulated_logprobs(*models, BETAS, row_T, token_T)
    finally:
        torch.set_num_threads(threads)
    if path == "vectors":
        assert torch.equal(again.logprob_BT, whole.logprob_BT)
    for rows in ([69], [66, 0, 3], list(range(17))):
        few = [HeadedRows(x.h_ND[rows], x.head) for x in models]
        found = emulated_logprobs(*few, BETAS[::-2], torch.arange(len(rows)), token_T[rows])
        assert torch.equal(found.logprob_BT, whole.logprob_BT[:, rows][[4, 2, 0]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_vector_kernel_is_what_runs_where_it_can(
    dtype: torch.dtype, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = [model(k, 32, dtype) for k in range(3)]
    other = torch.float32 if dtype == torch.bfloat16 else torch.bfloat16
    mixed = [models[0], model(1, 32, other), models[2]]
    row_T, token_T = targets()
    plain = emulated_logprobs(*mixed, BETAS, row_T, token_T).logprob_BT.double()
    torch.testing.assert_close(plain, exact(tuple(mixed), BETAS, row_T, token_T)[0], atol=1e-4, rtol=1e-6)

    def no_products(*_: Tensor) -> Tensor:
        raise AssertionError("PyTorch's products")

    monkeypatch.setattr("evalengine.kernels.cpu.products", no_products)
    if path == "vectors" and vectorised(dtype):
        emulated_logprobs(*models, BETAS, row_T, token_T)
    else:
        with pytest.raises(AssertionError, match="PyTorch"):
            emulated_logprobs(*models, BETAS, row_T, token_T)


def test_nothing_to_score_and_what_does_not_fit() -> None:
    models = [model(k, 32) for k in range(3)]
    none = torch.zeros(0, dtype=torch.long)
    assert emulated_logprobs(*models, BETAS, none, none).logprob_BT.shape == (5, 0)
    row_T, token_T = targets()
    assert emulated_logprobs(*models, (), row_T, token_T).logprob_BT.shape == (0, T)
    with pytest.raises(ValueError, match="same rows"):
        emulated_logprobs(
            models[0], HeadedRows(models[1].h_ND[1:], models[1].head), models[2], BETAS, row_T, token_T
        )
    with pytest.raises(ValueError, match="vocab_size"):
        emulated_logprobs(*models, BETAS, row_T, token_T, vocab_size=V + 1)
    with pytest.raises(IndexError, match="token_T"):
        emulated_logprobs(*models, BETAS, row_T, token_T + V)


def triton_call(
    models: tuple[HeadedRows, ...], device: str, row_T: Tensor, token_T: Tensor
) -> EmulatedLogprobs:
    from evalengine.kernels.emulated_logprobs_triton import emulated_logprobs_triton

    there = [
        HeadedRows(r.h_ND.to(device), Head(*(x.to(device) if isinstance(x, Tensor) else x for x in r.head)))
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
    assert found.logprob_BT[:, bad].isnan().all() and not found.greedy_BT[:, bad].any()
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


@pytest.mark.gpu
@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize("indices", ["cpu", "cuda"])
def test_a_call_never_waits_for_the_device(indices: str) -> None:
    models = [model(k, 32, torch.bfloat16) for k in range(3)]
    there = [HeadedRows(rows.h_ND.cuda(), Head(rows.head.w_VD.cuda())) for rows in models]
    row_T, token_T = (index_T.to(indices) for index_T in targets(12))
    first = emulated_logprobs(*there, BETAS, row_T, token_T)  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        second = emulated_logprobs(*there, BETAS, row_T, token_T)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(first.logprob_BT, second.logprob_BT) and torch.equal(first.greedy_BT, second.greedy_BT)
