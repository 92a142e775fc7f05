"""The benchmark's baseline is fair: the trainer's model, and the trainer's curve."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from evalengine.bench import plain_loop
from evalengine.bench import training as bench
from evalengine.training.decoder.export import from_llama, to_llama
from evalengine.training.decoder.model import Decoder, Shape
from evalengine.training.fitting.loop import fit
from evalengine.training.fitting.state import Place
from evalengine.training.study import Pretrain

SHAPE = Shape(d_model=64, layers=2, heads=2, head_dim=32, ffn=96, vocab=300, context=32)
NAMES = {
    "model.embed_tokens": "embedding",
    "model.norm": "norm",
    "model.layers": "blocks",
    "self_attn.o_proj": "o",
    "self_attn.q_proj": "q",
    "self_attn.k_proj": "k",
    "self_attn.v_proj": "v",
    "mlp.gate_proj": "gate",
    "mlp.up_proj": "up",
    "mlp.down_proj": "down",
    "input_layernorm": "norm1",
    "post_attention_layernorm": "norm2",
}


def plain_name(name: str) -> str:
    for theirs, own in NAMES.items():
        name = name.replace(theirs, own)
    return name


def test_the_plain_model_is_the_trainers():
    ours, plain = Decoder(SHAPE).initialise(torch.Generator().manual_seed(1)), plain_loop.Plain(SHAPE)
    weights = {plain_name(name): weight for name, weight in to_llama(ours).items()}
    missing, unexpected = plain.load_state_dict(weights, strict=False)
    assert not unexpected and set(missing) == {"head.weight", "cos", "sin"}
    token_BT = torch.randint(0, 300, (2, 32), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(plain(token_BT), ours.logits(token_BT), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("document", [0, 9])
def test_both_loops_do_the_same_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, document: int):
    """From the same weights, at the same constant rate, the losses of six steps agree."""
    case = bench.TrainingCase("tiny", SHAPE, rows=4, steps=4, document=document)
    start = Decoder(SHAPE).initialise(torch.Generator().manual_seed(1))
    made, seen = plain_loop.Plain, []

    def with_weights(shape: Shape) -> plain_loop.Plain:
        model = made(shape)
        model.load_state_dict({plain_name(n): w for n, w in to_llama(start).items()}, strict=False)
        return model

    monkeypatch.setattr(plain_loop, "Plain", with_weights)
    plain_loop.run(SHAPE, bench.RandomBatches(case), "cpu", seen.append)
    ours = Decoder(SHAPE)
    from_llama(ours, to_llama(start))
    settings = Pretrain(tokens=0, lr=1e-3, warmup=0.0, min_lr=1.0)
    fit(ours, bench.RandomBatches(case), settings, Place(log=tmp_path / "log"))
    losses = [json.loads(line)["loss"] for line in (tmp_path / "log").read_text().splitlines()]
    assert len(losses) == 6
    # the plain loop decays norms too: a difference of 1e-4 of a weight of one in a step
    assert losses == pytest.approx(seen, rel=1e-4)
