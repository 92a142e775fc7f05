"""Tree attention: dense attention in float64 under a mask that is made of nothing but the tokens' depths."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import tiny_configs
import torch
from torch import Tensor

from evalengine.checkpoints.resolve import discover
from evalengine.kernels import tree_attention
from evalengine.kernels.target_logprobs import vectorised
from evalengine.kernels.tree_attention import takes
from evalengine.model.device_batch import DeviceBatch, on_device
from evalengine.model.gathered_attention import GatheredAttention
from evalengine.model.torch_backend import TorchBackend
from evalengine.model.tree_attention import UNBOUNDED, window_of
from evalengine.plan import packing
from evalengine.plan.encoding import Sequences

module = importlib.import_module("evalengine.kernels.tree_attention")  # the package's name is the function's
STEM = [1, 2, 3, 4, 5, 6, 7, 8, 9] * 4
TREES = {
    "one sequence": [[*STEM, *STEM]],
    "forks at all depths": [[*STEM[:depth], 20 + depth, 30, 31, 32, 33] for depth in range(0, 36, 3)],
    "items with choices": [[i, *STEM[: 5 + i], c, 2, 3, 4] for i in range(8) for c in (40, 50, 60)],
    "one-token choices": [[*STEM, c] for c in range(40, 45)],
    "one token": [[1, 2]],
}
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(params=["triton", "vectors"])
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The device of each kernel: Triton's, in its interpreter where there is no GPU, and that of this CPU's vectors."""
    if request.param == "triton":
        device: str = request.getfixturevalue("device")
        if device == "cpu":
            from evalengine.kernels.tree_attention_triton import tree_attention_triton

            monkeypatch.setattr(module, "kernel_of", lambda device: tree_attention_triton)
        return device
    if not vectorised(torch.float32):
        pytest.skip("no AVX-512 here")
    return "cpu"


def packed(lists: list[list[int]], block: int) -> list[packing.Batch]:
    return list(
        packing.pack(
            Sequences.of([np.array(x, np.int32) for x in lists], [len(x) - 1 for x in lists]), 4096, block
        )
    )


def behind_a_prefix(shots: int, block: int) -> packing.Batch:
    prefix, rest = packed([[*[i % 7 for i in range(shots)], 100 + i, 5, 6 + i, 7] for i in range(9)], block)
    assert prefix.is_prefix and rest.prefix == shots
    return rest


class Case(NamedTuple):
    """Inputs of one attention layer: q (H, N, d), k (G, N, d), v (G, N, e), and the kept prefix's (G, P, .)."""

    on: DeviceBatch
    q: Tensor
    k: Tensor
    v: Tensor
    kept: tuple[Tensor, Tensor] | None


def case(
    batch: packing.Batch,
    device: str,
    dtype: torch.dtype = torch.float32,
    heads: int = 2,
    key_heads: int = 2,
    width: int = 16,
    value_width: int = 0,
) -> Case:
    """Views of (tokens, heads, width), as a model's projections give them."""
    generator = torch.Generator().manual_seed(width)

    def rows(n: int, h: int, d: int) -> Tensor:
        return torch.randn(n, h, d, generator=generator).to(device, dtype).transpose(0, 1)

    n, value_width = len(batch.token_N), value_width or width
    kept = (rows(batch.prefix, key_heads, width), rows(batch.prefix, key_heads, value_width))
    q, k, v = rows(n, heads, width), rows(n, key_heads, width), rows(n, key_heads, value_width)
    return Case(on_device(batch, torch.device(device)), q, k, v, kept if batch.prefix else None)


def dense(
    c: Case,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
    sink_H: Any = None,
) -> Tensor:
    """(tokens, H, e) in float64. A token's parent is the last token before it that is one less deep."""
    batch = c.on.batch
    n, prefix = batch.tokens, batch.prefix
    depth = [*range(prefix), *batch.position_N[:n]]
    seen = torch.zeros(prefix + n, prefix + n, dtype=torch.bool)
    for token in range(prefix + n):
        parents = [m for m in range(token) if depth[m] == depth[token] - 1]
        if parents:
            seen[token] = seen[parents[-1]]
        seen[token, token] = True
    q, k, v = (x[:, :n].double().cpu() for x in (c.q, c.k, c.v))
    if c.kept is not None:
        k, v = (torch.cat([a.double().cpu(), b], 1) for a, b in zip(c.kept, (k, v), strict=True))
    seen = seen[prefix:]
    if window is not None:
        at = torch.tensor(depth)
        seen &= at[prefix:, None] - at[None, :] < window
    group = len(q) // len(k)
    k, v = k.repeat_interleave(group, 0), v.repeat_interleave(group, 0)
    x = q @ k.transpose(1, 2) * (scale or q.shape[-1] ** -0.5)
    x = x if softcap is None else softcap * torch.tanh(x / softcap)
    x = x.masked_fill(~seen, float("-inf"))
    if sink_H is not None:
        x = torch.cat([x, sink_H.double().cpu()[:, None, None].expand(-1, len(x[0]), 1)], 2)
    return (x.softmax(2)[..., : k.shape[1]] @ v).transpose(0, 1)


def compare(c: Case, **options: Any) -> None:
    found = tree_attention(
        c.q,
        c.k,
        c.v,
        c.on.tree,
        kept=c.kept,
        **{("sink_H" if n == "sink" else n): x for n, x in options.items()},
    )
    assert found.dtype == c.q.dtype and found.is_contiguous() and bool(found.isfinite().all())
    # shares and the sum are each rounded once to the dtype: half a unit of the last place of the largest value, twice
    largest = max(float(x.abs().max()) for x in (c.v, *(c.kept or ())[1:]))
    limit = largest * torch.finfo(c.q.dtype).eps if c.q.dtype != torch.float32 else 3e-6
    truth = dense(c, **options)
    torch.testing.assert_close(found[: len(truth)].double().cpu(), truth, rtol=0, atol=limit)


@pytest.mark.parametrize("block", [4, 16, 64])
@pytest.mark.parametrize("tree", TREES)
def test_every_tree(tree: str, block: int, place: str) -> None:
    (batch,) = packed(TREES[tree], block)
    compare(case(batch, place))


@pytest.mark.parametrize("block", [16, 128])
def test_a_kept_prefix(block: int, place: str) -> None:
    c = case(behind_a_prefix(101, block), place, key_heads=1)
    compare(c)
    compare(c, window=50)
    compare(c, window=3)


def test_a_block_of_several_tiles(place: str) -> None:
    lists = [[*STEM, i, *STEM, *STEM[:20], i, 7] for i in range(60, 63)]
    (batch,) = packed(lists, 128)
    assert len(batch.token_N) == 256
    compare(case(batch, place))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("width", "value_width"), [(16, 16), (64, 64), (80, 80), (96, 64), (24, 128), (256, 256)]
)
def test_head_widths(width: int, value_width: int, dtype: torch.dtype, place: str) -> None:
    (batch,) = packed(TREES["forks at all depths"], 32)
    compare(case(batch, place, dtype, 1, 1, width, value_width))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "options",
    [
        {"window": 4},
        {"softcap": 2.0},
        {"sink_H": 0},
        {"scale": 0.7},
        {"window": 9, "softcap": 1.5, "sink_H": 0, "scale": 2.0},
    ],
    ids=str,
)
def test_options_and_grouped_heads(options: dict[str, Any], dtype: torch.dtype, place: str) -> None:
    (batch,) = packed(TREES["items with choices"], 32)
    c = case(batch, place, dtype, heads=6, key_heads=2)
    if "sink_H" in options:
        options = options | {"sink_H": torch.linspace(-1, 3, 6, dtype=dtype, device=place)}
    compare(c, **options)


def test_the_gathered_way_is_the_same(place: str) -> None:
    from transformers.masking_utils import sliding_window_causal_mask_function

    for batch in (packed(TREES["items with choices"], 16)[0], behind_a_prefix(101, 16)):
        c = case(batch, place, heads=4, key_heads=2, width=32)
        sink = torch.linspace(-1, 1, 4, device=place)
        k, v = (
            (torch.cat([a, b], 1) for a, b in zip(c.kept, (c.k, c.v), strict=True)) if c.kept else (c.k, c.v)
        )
        for softcap, sink_H in ((None, None), (2.0, sink)):
            rule = sliding_window_causal_mask_function(6)
            truth = GatheredAttention(c.on)(c.q, k, v, rule, None, softcap, sink_H)
            found = tree_attention(
                c.q, c.k, c.v, c.on.tree, window=6, softcap=softcap, sink_H=sink_H, kept=c.kept
            )
            torch.testing.assert_close(found[: batch.tokens], truth[: batch.tokens], rtol=0, atol=1e-6)


def test_other_tokens_do_not_matter(place: str) -> None:
    """Bit by bit: a sequence's rows when every token off its path changes."""
    (batch,) = packed(TREES["forks at all depths"], 16)
    c = case(batch, place)
    before = tree_attention(c.q, c.k, c.v, c.on.tree)
    last = batch.tokens - 1
    path = [k for k in range(last + 1) if last < batch.end_N[k]]
    others = [k for k in range(len(batch.token_N)) if k not in path]
    for x in (c.q, c.k, c.v):
        x[:, others] = 1e4
    after = tree_attention(c.q, c.k, c.v, c.on.tree)
    assert torch.equal(before[path], after[path]) and not torch.equal(before[others], after[others])


def test_columns_with_gaps_are_copied(place: str) -> None:
    (batch,) = packed(TREES["one sequence"], 16)
    c = case(batch, place)
    found = tree_attention(*(x.repeat_interleave(2, 2)[..., ::2] for x in (c.q, c.k, c.v)), c.on.tree)
    assert torch.equal(found, tree_attention(c.q, c.k, c.v, c.on.tree))


def test_what_does_not_fit_is_refused(place: str) -> None:
    (batch,) = packed(TREES["one sequence"], 16)
    c = case(batch, place)
    with pytest.raises(ValueError, match="do not fit each other"):
        tree_attention(c.q, c.k[:, 1:], c.v, c.on.tree)
    with pytest.raises(ValueError, match="at most 256"):
        tree_attention(c.q.double(), c.k.double(), c.v.double(), c.on.tree)
    assert not takes(torch.empty(1, 1, 257, device=place), c.v)


def test_rules_are_known_by_their_code() -> None:
    from transformers import masking_utils as known

    sliding = known.sliding_window_causal_mask_function
    assert window_of(known.causal_mask_function) == UNBOUNDED
    assert window_of(sliding(77)) == 77
    assert window_of(known.and_masks(known.causal_mask_function, known.sliding_window_overlay(5))) is None
    assert window_of(known.or_masks(known.sliding_window_overlay(5), known.causal_mask_function)) is None
    assert window_of(known.chunked_causal_mask_function(8, torch.zeros(1))) is None
    assert window_of(known.bidirectional_mask_function) is None
    assert window_of(lambda b, h, q, k: k <= q) is None


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gpt_oss", "deepseek_v3"])
def test_a_model_scores_the_same(
    architecture: str, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through the backend: kept prefix, grouped heads, windows, soft-caps and sinks as transformers passes them."""
    (checkpoint,) = discover([tiny_configs.save(tmp_path / "m", architecture)])
    backend = TorchBackend(device=place, dtype="float32")
    rng = np.random.default_rng(0)
    shots = rng.integers(1, 90, size=100)
    lists = [np.concatenate([shots, rng.integers(1, 90, size=n)]).astype(np.int32) for n in (3, 7, 12, 5)]
    lists.append(np.append(lists[-1][:-2], 3).astype(np.int32))
    sequences = Sequences.of(lists, [len(x) - 2 for x in lists])
    calls = dict.fromkeys(("kernel", "gathered"), 0)

    def counted(name: str, call: Any) -> Any:
        def run(*args: Any, **kwargs: Any) -> Any:
            calls[name] += 1
            return call(*args, **kwargs)

        return run

    monkeypatch.setattr(GatheredAttention, "__call__", counted("gathered", GatheredAttention.__call__))
    monkeypatch.setattr("evalengine.model.tree_attention.tree_attention", counted("kernel", tree_attention))
    with monkeypatch.context() as without:
        without.setattr("evalengine.model.tree_attention.takes", lambda query, value: False)
        backend.load(checkpoint)  # with its many forwards, slow in the interpreter
        assert [part.way for part in backend.parts(sequences)] == ["packed"]
        truth = backend.score(sequences)
    assert calls["kernel"] == 0 and calls["gathered"] > 0
    calls["gathered"] = 0
    found = backend.score(sequences)
    assert calls["kernel"] > 0 and calls["gathered"] == 0
    np.testing.assert_allclose(found.loglik, truth.loglik, rtol=1e-6, atol=2e-5)
    np.testing.assert_array_equal(found.greedy, truth.greedy)
