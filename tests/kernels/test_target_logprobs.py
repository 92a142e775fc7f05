"""`target_logprobs` as users call it: on CUDA where there is a GPU, else on both CPU paths."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from oracle import Problem, assert_greedy, assert_no_worse, problem
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from evalengine.kernels import target_logprobs
from evalengine.kernels.cpu import CHUNK_LOGITS, MIN_ROWS
from evalengine.kernels.target_logprobs import target_logprobs_op, vectorised
from evalengine.kernels.target_logprobs_simd import CHUNK_N

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = pytest.mark.gpu
TILE_V = 2048  # columns that a bias masks together
ROWS = 518
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def call(x: Problem, **options: Any) -> Any:
    moved = {k: v.to(DEVICE) if isinstance(v, Tensor) else v for k, v in options.items()}
    return target_logprobs(*x.to(DEVICE), **moved)


def check(x: Problem, **options: Any) -> None:
    """No worse than PyTorch in the same dtype."""
    ours = call(x, **options)
    assert ours.logprob_T.dtype == torch.float32 and ours.greedy_T.dtype == torch.bool
    assert_no_worse(ours, x, **options)
    assert_greedy(ours, x, **options)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("n", "v", "d"),
    [(1, 2, 33), (7, 255, 96), (20, 300, 513), (255, 5_003, 33), (ROWS, 5_500, 40), (CHUNK_N + 3, 500, 1)],
)
def test_no_further_from_float64_than_pytorch(n: int, v: int, d: int, dtype: torch.dtype, path: str) -> None:
    check(problem(n, v, d, dtype))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_the_vocabulary_of_a_real_model(dtype: torch.dtype) -> None:
    check(problem(7, 100_864, 768, dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "options",
    [
        {"scale": 0.25},
        {"softcap": 5.0},
        {"vocab_size": 2_047},
        {"scale": 2.0, "softcap": 30.0, "vocab_size": 1},
    ],
    ids=str,
)
def test_scale_softcap_padding(options: dict[str, Any], dtype: torch.dtype, path: str) -> None:
    x = problem(30, 2_100, 64, dtype)
    if "vocab_size" in options:
        x = x._replace(token_T=x.token_T.clamp(max=options["vocab_size"] - 1))
    if options.get("vocab_size") == 1:
        ours = call(x, **options)
        assert ours.logprob_T.eq(0).all() and ours.greedy_T.all()  # the only token is certain
    else:
        check(x, **options)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bias_joins_scale_and_softcap(dtype: torch.dtype, path: str) -> None:
    bias_V = torch.randn(1_300, generator=torch.Generator().manual_seed(1)).to(dtype)
    check(problem(40, 1_300, 64, dtype), bias_V=bias_V, scale=0.5, softcap=8.0)


@pytest.mark.parametrize("magnitude", [1e-4, 1e-2, 1e2, 1e4])
def test_magnitudes_of_logits(magnitude: float, path: str) -> None:
    check(problem(20, 3_000, 64, torch.float32, magnitude=magnitude))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("tiles", [[0], [1], [2, 3], [0, 1, 2]], ids=str)
def test_a_bias_may_mask_whole_tiles(tiles: list[int], dtype: torch.dtype, path: str) -> None:
    vocab = 3 * TILE_V + 300
    x = problem(9, vocab, 48, dtype)
    bias_V = torch.randn(vocab, generator=torch.Generator().manual_seed(1)).to(dtype)
    for k in tiles:
        bias_V[k * TILE_V : (k + 1) * TILE_V] = -torch.inf
    open_tokens = bias_V.isfinite().nonzero()[:, 0]
    x = x._replace(token_T=open_tokens[x.token_T % open_tokens.numel()])
    assert_no_worse(call(x, bias_V=bias_V), x, bias_V=bias_V)
    masked = Problem(*x[:2], torch.tensor([0]), torch.tensor([tiles[0] * TILE_V + 3]))
    hidden = call(masked, bias_V=bias_V)
    assert hidden.logprob_T.item() == -torch.inf and not hidden.greedy_T.item()


def test_a_bias_that_masks_everything_leaves_nothing_to_say(path: str) -> None:
    x = problem(3, TILE_V + 9, 16, torch.float32)
    ours = call(x, bias_V=torch.full((TILE_V + 9,), -torch.inf))
    assert ours.logprob_T.isnan().all() and not ours.greedy_T.any()


@pytest.mark.skipif(DEVICE == "cuda", reason="the CPU's threads")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_number_of_threads_changes_no_bit_of_the_vector_kernels(dtype: torch.dtype) -> None:
    if not vectorised(dtype):
        pytest.skip("no AVX-512 here")
    x, threads = problem(130, 1_000, 65, dtype), torch.get_num_threads()
    try:
        answers = []
        for n in (1, 2, 5):
            torch.set_num_threads(n)
            answers.append(call(x, bias_V=torch.ones(1_000, dtype=dtype), softcap=30))
    finally:
        torch.set_num_threads(threads)
    for other in answers[1:]:
        assert torch.equal(other.logprob_T, answers[0].logprob_T)
        assert torch.equal(other.greedy_T, answers[0].greedy_T)


def test_strided_inputs() -> None:
    wide = problem(30, 900, 128, torch.float32)
    h_ND, w_VD, bias_V = wide.h_ND[::2, ::2], wide.w_VD[::3, ::2], torch.randn(600)[::2]
    tokens = torch.arange(30)[::2]
    x = Problem(h_ND, w_VD, torch.arange(15), tokens)
    plain = Problem(h_ND.contiguous(), w_VD.contiguous(), torch.arange(15), tokens.contiguous())
    ours = call(x, bias_V=bias_V)
    assert_no_worse(ours, plain, bias_V=bias_V)
    assert torch.equal(ours.logprob_T, call(plain, bias_V=bias_V.contiguous()).logprob_T)


def test_narrow_heads_have_the_same_bits_whatever_else_is_in_the_call(path: str) -> None:
    for v in (1, 2, 3, 11, TILE_V + 2):
        x = problem(100, v, 33, torch.float32)
        whole = call(x)
        for n in (1, 2, 5, 7, 33):
            few = x._replace(h_ND=x.h_ND[:n], row_T=torch.arange(n), token_T=x.token_T[:n])
            assert torch.equal(call(few).logprob_T, whole.logprob_T[:n]), (v, n)


def test_the_first_of_equal_logits_is_the_argmax(path: str) -> None:
    w_VD = torch.zeros(2 * TILE_V + 10, 8)
    w_VD[[5, 9, TILE_V + 1, 2 * TILE_V + 3]] = 1.0
    tokens = torch.tensor([5, 9, TILE_V + 1, 2 * TILE_V + 3, 0])
    ours = call(Problem(torch.ones(1, 8), w_VD, torch.zeros(5, dtype=torch.long), tokens))
    assert ours.greedy_T.tolist() == [True, False, False, False, False]


def test_targets_share_rows_in_any_order_and_rows_may_repeat(path: str) -> None:
    x = problem(50, 2_500, 32, torch.float32)
    order = torch.randperm(150, generator=torch.Generator().manual_seed(2))
    shuffled = x._replace(row_T=x.row_T[order].int(), token_T=x.token_T[order].int())
    plain, mixed = call(x), call(shuffled)
    assert torch.equal(plain.logprob_T[order], mixed.logprob_T)
    assert torch.equal(plain.greedy_T[order], mixed.greedy_T)
    twice = x._replace(h_ND=torch.cat([x.h_ND, x.h_ND]), row_T=x.row_T + 50)
    assert torch.equal(plain.logprob_T, call(twice).logprob_T)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("d", [33, 96, 768])
@pytest.mark.parametrize("v", [1_100, 5_500])
def test_a_row_has_the_same_bits_whatever_else_is_in_the_call(
    v: int, d: int, dtype: torch.dtype, path: str
) -> None:
    x, n = problem(ROWS, v, d, dtype), ROWS
    whole = call(x)
    for rows in ([3], [n - 1], [n - 2, 0], list(range(5)), list(range(7, 24)), list(range(n - 1, 500, -1))):
        part = Problem(x.h_ND[rows], x.w_VD, torch.arange(len(rows)), x.token_T[rows])
        result = call(part)
        assert torch.equal(result.logprob_T, whole.logprob_T[rows])
        assert torch.equal(result.greedy_T, whole.greedy_T[rows])


@pytest.mark.parametrize("options", [{}, {"softcap": 3.0}], ids=str)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_row_that_is_not_finite_spoils_itself_alone(bad: float, options: dict[str, Any], path: str) -> None:
    x = problem(12, 1_400, 32, torch.float32)
    clean = call(x, **options)
    h_ND = x.h_ND.clone()
    h_ND[4, 7] = bad
    spoilt = call(x._replace(h_ND=h_ND), **options)
    hit = (x.row_T == 4).to(spoilt.logprob_T.device)
    assert spoilt.logprob_T[hit].isnan().all() and not spoilt.greedy_T[hit].any()
    assert torch.equal(spoilt.logprob_T[~hit], clean.logprob_T[~hit])
    assert torch.equal(spoilt.greedy_T[~hit], clean.greedy_T[~hit])


def test_three_models_as_one_concatenated_head() -> None:
    """log p of base + beta * (tuned - reference) is one head over [h1, beta*h2, -beta*h3]."""
    beta, parts = 0.7, [problem(11, 900, d, torch.float32, seed=d) for d in (24, 40, 40)]
    factors = (1.0, beta, -beta)
    h_ND = torch.cat([f * p.h_ND for f, p in zip(factors, parts, strict=True)], 1)
    w_VD = torch.cat([p.w_VD for p in parts], 1)
    logits = sum(f * p.h_ND.double() @ p.w_VD.double().t() for f, p in zip(factors, parts, strict=True))
    expected = logits.log_softmax(1)[parts[0].row_T, parts[0].token_T]
    ours = call(Problem(h_ND, w_VD, parts[0].row_T, parts[0].token_T))
    torch.testing.assert_close(ours.logprob_T.cpu().double(), expected, atol=1e-5, rtol=0)


def test_no_targets_and_no_rows() -> None:
    empty = torch.empty(0, dtype=torch.long)
    for n in (0, 3):
        ours = call(Problem(torch.ones(n, 4), torch.ones(6, 4), empty, empty))
        assert ours.logprob_T.shape == ours.greedy_T.shape == (0,)


def test_bad_arguments_are_refused_before_anything_runs() -> None:
    h_ND, w_VD = problem(4, 10, 8, torch.float32).to(DEVICE)[:2]
    row_T, token_T = problem(4, 10, 8, torch.float32)[2:]
    for token in (-1, 10):
        with pytest.raises(IndexError, match=r"token_T must lie in \[0, 10\)"):
            target_logprobs(h_ND, w_VD, row_T, token_T.fill_(token))
    with pytest.raises(IndexError, match=r"row_T must lie in \[0, 4\)"):
        target_logprobs(h_ND, w_VD, row_T + 4, token_T)
    with pytest.raises(IndexError, match="token_T"):
        target_logprobs(h_ND, w_VD, row_T, token_T.fill_(9), vocab_size=9)
    with pytest.raises(ValueError, match="one length"):
        target_logprobs(h_ND, w_VD, row_T[:2], token_T)
    with pytest.raises(ValueError, match=r"\(N, D\) and \(V, D\)"):
        target_logprobs(h_ND[:, :7], w_VD, row_T, token_T)
    with pytest.raises(ValueError, match="one floating dtype"):
        target_logprobs(h_ND.half(), w_VD, row_T, token_T)
    with pytest.raises(ValueError, match="int32 or int64"):
        target_logprobs(h_ND, w_VD, row_T.float(), token_T)
    with pytest.raises(ValueError, match="bias_V"):
        target_logprobs(h_ND, w_VD, row_T, token_T, bias_V=h_ND[0])
    with pytest.raises(ValueError, match="softcap"):
        target_logprobs(h_ND, w_VD, row_T, token_T, softcap=0.0)
    with pytest.raises(ValueError, match="vocab_size"):
        target_logprobs(h_ND, w_VD, row_T, token_T, vocab_size=11)


@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("indices", ["cpu", "cuda"])
def test_a_call_never_waits_for_the_device(indices: str, dtype: torch.dtype) -> None:
    x = problem(70, 1_030, 64, dtype)
    h_ND, w_VD, row_T, token_T = *x.to("cuda")[:2], *x.to(indices)[2:]
    first = target_logprobs(h_ND, w_VD, row_T, token_T, softcap=30.0)  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        second = target_logprobs(h_ND, w_VD, row_T, token_T, softcap=30.0)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(first.logprob_T, second.logprob_T) and torch.equal(first.greedy_T, second.greedy_T)
    assert_no_worse(second, x, softcap=30.0)


@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_indices_on_the_device_that_are_out_of_range_give_nan(dtype: torch.dtype) -> None:
    h_ND, w_VD, row_T, token_T = problem(6, 300, 64, dtype).to("cuda")
    whole = target_logprobs(h_ND, w_VD, row_T, token_T)
    row_T[0], row_T[1], token_T[2], token_T[3] = 6, -1, 300, -1
    ours = target_logprobs(h_ND, w_VD, row_T, token_T)
    assert ours.logprob_T[:4].isnan().all() and not ours.greedy_T[:4].any()
    assert torch.equal(ours.logprob_T[4:], whole.logprob_T[4:])


def test_no_tensor_grows_with_rows_times_vocabulary(path: str) -> None:
    class Largest(TorchDispatchMode):
        numel = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            for x in out if isinstance(out, tuple | list) else (out,):
                if isinstance(x, Tensor):
                    self.numel = max(self.numel, x.untyped_storage().nbytes() // x.element_size())
            return out

    x = problem(8_192, 9_000, 16, torch.float32)
    with Largest() as seen:
        call(x)
    # on CUDA float32 goes by blocks of 256 rows, and rows of logits are rounded up to 16
    padded = 256 if DEVICE == "cuda" else MIN_ROWS
    assert seen.numel <= max(CHUNK_LOGITS, padded * 9_008, x.w_VD.numel())
    assert seen.numel < 8_192 * 9_000 / 25


@pytest.mark.skipif(DEVICE == "cuda", reason="what a CPU-only process may not load")
def test_triton_is_not_imported_without_cuda() -> None:
    code = (
        "import sys, torch; from evalengine.kernels import target_logprobs as t;"
        "i = torch.zeros(1, dtype=torch.int64); t(torch.ones(1, 4), torch.ones(3, 4), i, i);"
        "assert not any(m.split('.')[0] == 'triton' for m in sys.modules), 'triton was imported'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_plain_path_ends_with_the_test_that_asked_for_it() -> None:
    """Else other tests of the process would compare scores of two paths."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import conftest, pytest;"
        "patch = pytest.MonkeyPatch(); conftest.without_vectors(patch); patch.undo();"
        "from evalengine.kernels.emulated_logprobs import vectorised as found;"
        "from evalengine.kernels.target_logprobs import vectorised; assert found is vectorised"
    )
    subprocess.run([sys.executable, "-c", code, str(Path(__file__).parent)], check=True)


def test_compiled_and_exported_programs_contain_the_operator() -> None:
    x = problem(6, 300, 32, torch.float32).to(DEVICE)
    eager = target_logprobs(*x, softcap=5.0)
    compiled = torch.compile(target_logprobs, fullgraph=True, backend="aot_eager")(*x, softcap=5.0)
    assert torch.equal(eager.logprob_T, compiled.logprob_T) and torch.equal(eager.greedy_T, compiled.greedy_T)
    torch.library.opcheck(target_logprobs_op, (*x, None, None, 5.0))

    class Score(torch.nn.Module):
        def forward(self, h: Tensor, w: Tensor, row: Tensor, token: Tensor) -> Tensor:
            return target_logprobs(h, w, row, token).logprob_T

    program = torch.export.export(Score(), tuple(x))
    assert any("evalengine.target_logprobs" in str(node.target) for node in program.graph.nodes)
    assert torch.equal(program.module()(*x), target_logprobs(*x).logprob_T)
