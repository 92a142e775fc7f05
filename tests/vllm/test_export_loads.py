"""The trainer's exports in vLLM: its raw logits are the trainer's own, in float32."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest

VOCAB, CONTEXT, TOLERANCE = 520, 96, 1e-4
LENGTHS = (1, 2, 17, 31, 32, 33, 64, 90)  # around the cache's blocks


@pytest.mark.parametrize(
    ("tied", "heads", "head_dim"), [(True, 4, 32), (False, 2, 64)], ids=["tied", "untied"]
)
def test_an_export_has_the_trainers_logits(tied: bool, heads: int, head_dim: int, tmp_path: Path) -> None:
    import torch

    from evalengine.training.data import tokenizer as tokenizers
    from evalengine.training.decoder import export
    from evalengine.training.decoder.model import Decoder, Shape
    from evalengine.vllm.engine import prepare

    shape = Shape(
        d_model=64, layers=2, heads=heads, head_dim=head_dim, ffn=96, vocab=VOCAB, context=CONTEXT, tied=tied
    )
    model = Decoder(shape).initialise(torch.Generator().manual_seed(4))
    with torch.no_grad():  # norms off one and weights large, so that a mistake shows
        for weight in model.parameters():
            noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(weight.numel()))
            weight.mul_(3.0).add_(0.05 * noise)
    tokenizer = tokenizers.train(["some words to learn a tokenizer of"] * 20, 300, tmp_path / "tokenizer")
    export.save(model, tokenizer, tmp_path / "S-m-pt", {"scale": "S"})
    token_BT = torch.randint(0, VOCAB, (2, max(LENGTHS)), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = model.logits(token_BT)

    prepare(verbose=False)
    from vllm import LLM, SamplingParams

    llm = LLM(
        model=str(tmp_path / "S-m-pt"),
        dtype="float32",
        enforce_eager=True,
        max_model_len=CONTEXT,
        max_logprobs=VOCAB,
        logprobs_mode="raw_logits",
        disable_log_stats=True,
    )
    try:
        ends = [(row, length) for row in range(len(token_BT)) for length in LENGTHS]
        prompts: list[Any] = [{"prompt_token_ids": token_BT[row, :length].tolist()} for row, length in ends]
        asked = SamplingParams(temperature=0.0, max_tokens=1, logprobs=VOCAB)
        answers = llm.generate(prompts, asked, use_tqdm=False)
        assert len(answers) == len(ends)
        for (row, length), answer in zip(ends, answers, strict=True):
            given = answer.outputs[0].logprobs[0]
            found = torch.tensor([given[token].logprob for token in range(VOCAB)])
            own = expected[row, length - 1]
            assert own.abs().max() > 1  # the comparison means something
            torch.testing.assert_close(found, own, atol=TOLERANCE, rtol=0)
    finally:
        llm.llm_engine.engine_core.shutdown()
        del llm
        gc.collect()
