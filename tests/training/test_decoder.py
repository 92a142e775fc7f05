"""The decoder against Hugging Face's Llama, and packed rows against documents on their own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from evalengine.errors import UserError
from evalengine.training.data.rows import IGNORE
from evalengine.training.decoder import export
from evalengine.training.decoder.attention import DocumentMask
from evalengine.training.decoder.model import Decoder, Shape
from evalengine.training.prepare import shape_of
from evalengine.training.study import load

SHAPE = Shape(d_model=48, layers=2, heads=3, head_dim=32, ffn=80, vocab=520, context=64)


def decoder(shape: Shape = SHAPE, **options: bool) -> Decoder:
    model = Decoder(shape, **options).initialise(torch.Generator().manual_seed(5))
    with torch.no_grad():  # norms off one and weights large, so that a mistake shows
        for weight in model.parameters():
            weight.mul_(3.0).add_(
                0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(weight.numel()))
            )
    return model


@pytest.mark.parametrize(("scale", "billions"), [("240M", "0.241"), ("1B", "1.147")])
def test_the_papers_scales_have_its_parameter_counts(scale: str, billions: str):
    assert f"{shape_of(load('paper').scales[scale], 100_864).params / 1e9:.3f}" == billions


@pytest.mark.parametrize("tied", [True, False])
def test_shape_counts_the_parameters_of_the_module(tied: bool):
    shape = Shape(d_model=32, layers=3, heads=2, head_dim=32, ffn=48, vocab=300, tied=tied)
    assert shape.params == sum(p.numel() for p in Decoder(shape).parameters())


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    ("d_model", "heads", "head_dim"), [(48, 3, 32), (64, 1, 64), (40, 4, 96), (210, 2, 256)]
)
def test_export_loads_in_transformers_with_equal_logits(
    tied: bool, d_model: int, heads: int, head_dim: int, tokenizer, tmp_path: Path
):
    from transformers import AutoModelForCausalLM

    shape = Shape(d_model, 2, heads, head_dim, ffn=80, vocab=520, context=64, tied=tied)
    model = decoder(shape)
    export.save(model, tokenizer, tmp_path / "S-m-pt", {"scale": "S"})
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "S-m-pt", dtype=torch.float32)
    token_BT = torch.randint(0, 520, (2, 64), generator=torch.Generator().manual_seed(0))
    ours, reference = model.logits(token_BT), theirs(token_BT).logits
    assert reference.abs().max() > 1  # the comparison means something
    torch.testing.assert_close(ours, reference, atol=1e-4, rtol=0)
    assert sum(p.numel() for p in theirs.parameters()) == shape.params


def test_a_checkpoint_read_back_is_the_model_that_was_saved(tokenizer, tmp_path: Path):
    model = decoder()
    export.save(model, tokenizer, tmp_path / "S-m-pt", {"scale": "S"})
    again = export.load(tmp_path / "S-m-pt", SHAPE)
    for name, weight in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], weight), name


def test_a_damaged_checkpoint_is_refused_by_name(tokenizer, tmp_path: Path):
    path = tmp_path / "S-m-pt"
    export.save(decoder(), tokenizer, path, {"scale": "S"})
    whole = (path / "model.safetensors").read_bytes()
    flipped = bytearray(whole)
    flipped[-3] ^= 1  # the last bits of a weight: a value as good as any
    for content in (whole[:1000], bytes(flipped)):
        (path / "model.safetensors").write_bytes(content)
        with pytest.raises(UserError, match="S-m-pt is damaged"):
            export.load(path, SHAPE)


def test_saving_leaves_no_partial_directory(tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from safetensors import SafetensorError

    def full(*args: object, **options: object) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(UserError, match=r"No space left on device .*make room on the disk"):
        export.save(decoder(), tokenizer, tmp_path / "S-m-pt", {})
    assert list(tmp_path.iterdir()) == []


def packed(lengths: list[int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(1)
    token = torch.from_numpy(rng.integers(0, 520, (1, sum(lengths))))
    position = torch.cat([torch.arange(n) for n in lengths])[None]
    return token, position, torch.from_numpy(rng.integers(0, 520, (1, sum(lengths))))


def test_a_packed_row_is_its_documents_on_their_own_loss_and_gradient():
    """Against Hugging Face's Llama, fed one document at a time, in float64."""
    from transformers import LlamaConfig, LlamaForCausalLM

    model = decoder().double()
    config = {
        k: v for k, v in export.config(SHAPE, type("T", (), {"end": 0})(), "float64").items() if k != "dtype"
    }
    theirs = LlamaForCausalLM(LlamaConfig(**config)).double()
    theirs.load_state_dict({**export.to_llama(model), "lm_head.weight": model.head.weight}, strict=True)
    token, position, target = packed([17, 1, 30, 16])
    target[0, 5] = IGNORE
    loss = model(token, position, target)
    loss.backward()
    total, at = torch.zeros((), dtype=torch.float64), 0
    for n in (17, 1, 30, 16):
        logits = theirs(token[:, at : at + n]).logits[0]
        total = total + torch.nn.functional.cross_entropy(
            logits, target[0, at : at + n], reduction="sum", ignore_index=IGNORE
        )
        at += n
    total.backward()
    torch.testing.assert_close(loss.double(), total, rtol=1e-6, atol=0)
    ours, reference = model.embedding.weight.grad, theirs.model.embed_tokens.weight.grad
    scale = float(reference.abs().max())  # transformers normalises in float32 whatever the model's dtype
    torch.testing.assert_close(ours, reference, rtol=0, atol=1e-5 * scale)


def test_activation_checkpointing_gives_the_same_gradients():
    token, position, target = packed([40, 24])
    plain, lean = decoder(), decoder(checkpoint_activations=True)
    plain(token, position, target).backward()
    lean(token, position, target).backward()
    for (name, a), b in zip(plain.named_parameters(), lean.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad), name


def test_flops_per_token_counts_products_of_forward_and_backward():
    """Against torch's own FLOP counter; without attention, whose backward it counts by another rule."""
    from torch.utils.flop_counter import FlopCounterMode

    shape = Shape(d_model=64, layers=2, heads=2, head_dim=32, ffn=96, vocab=512, context=32)
    model, position = Decoder(shape), torch.arange(32)[None]
    with FlopCounterMode(display=False) as counter:
        h = model.hidden(
            torch.zeros(1, 32, dtype=torch.long), position, DocumentMask.from_positions(position)
        )
        torch.nn.functional.linear(h, model.head.weight).sum().backward()
    counts = counter.get_flop_counts()["Global"]
    products = sum(count for name, count in counts.items() if "attention" not in str(name))
    assert products == 32 * shape.flops_per_token(attended=0)
