"""Fine-tuning data: what is learned, how it is packed, where it comes from."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from evalengine.errors import UserError
from evalengine.training.chat import Conversation, Message
from evalengine.training.data.conversations import Example, read, tokenise, within
from evalengine.training.data.packed import PackedExamples, Shuffled, pack, tokens_of_steps
from evalengine.training.data.rows import IGNORE
from evalengine.training.decoder.model import Decoder, Shape
from evalengine.training.fitting.loop import mean_loss
from evalengine.training.fitting.state import Place
from evalengine.training.study import ChatSource, FineTune, SftData

SHAPE = Shape(d_model=32, layers=2, heads=1, head_dim=32, ffn=64, vocab=512, context=96)


def chat(*turns: str) -> Conversation:
    roles = ("user", "assistant") * len(turns)
    return tuple(Message(role, text) for role, text in zip(roles, turns, strict=False))


CHATS = [
    chat(f"question {i} " + "really " * (i % 7), "yes" if i % 2 else "no, it is not", "and then?", f"{i}")
    for i in range(23)
]


@pytest.fixture(scope="module")
def examples(tokenizer) -> list[Example]:
    return tokenise(CHATS, tokenizer)


def test_packing_keeps_every_target_and_nothing_else(examples: list[Example]):
    batch = pack(examples, 96, "all")
    assert batch.token_BT.shape[1] <= 96
    assert len(batch.token_BT) < len(CHATS) / 2  # it does pack
    learned = [
        (int(ids[k]), int(ids[k + 1])) for ids, mask in examples for k in range(len(ids) - 1) if mask[k + 1]
    ]
    kept = batch.target_BT != IGNORE
    packed = list(zip(batch.token_BT[kept].tolist(), batch.target_BT[kept].tolist(), strict=True))
    assert sorted(packed) == sorted(learned)


def test_packed_loss_is_transformers_loss_of_each_conversation_alone(
    examples: list[Example], tokenizer, tmp_path: Path
):
    """Labels are -100 except on what the assistant says; each conversation is a batch of its own there."""
    from transformers import AutoModelForCausalLM

    from evalengine.training.decoder import export

    model = Decoder(SHAPE).initialise(torch.Generator().manual_seed(0))
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(4)
    export.save(model, tokenizer, tmp_path / "m", {})
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "m", dtype=torch.float32)
    total, count = 0.0, 0
    for ids, learned in examples:
        token = torch.from_numpy(ids.astype(np.int64))[None]
        labels = torch.where(torch.from_numpy(learned)[None], token, -100)
        total += float(theirs(token, labels=labels).loss.detach()) * int(learned.sum())
        count += int(learned.sum())
    batch = pack(examples, 96, "all")
    assert mean_loss(model, batch, Place()) == pytest.approx(total / count, rel=1e-5)


def test_every_epoch_shows_every_conversation_once(examples: list[Example]):
    packed = PackedExamples(examples, FineTune(lr=1, epochs=3, batch_examples=4), context=96, seed=1)
    assert packed.steps == 3 * 5
    seen = [set(), set(), set()]
    for step in range(packed.steps):
        kept = packed.batch(step).target_BT
        seen[step // 5].add(tuple(sorted(kept[kept != IGNORE].tolist())))
    assert all(len(steps) == 5 for steps in seen)
    assert len(set.union(*seen)) > 10  # shuffled anew


def test_what_remains_of_an_epoch_is_left_out_and_is_other_examples_every_time():
    packed = Shuffled(23, 4, epochs=6, seed=1)
    assert packed.steps == 6 * 5
    order = [np.concatenate([packed.drawn(5 * epoch + step) for step in range(5)]) for epoch in range(6)]
    assert all(len(set(one.tolist())) == 20 for one in order)
    assert set.union(*(set(range(23)) - set(one.tolist()) for one in order)) > set(range(23)) - set(
        order[0].tolist()
    )
    assert Shuffled(3, 4, epochs=2, seed=1).steps == 2, "fewer than a step are one"
    lengths = [2**k for k in range(23)]
    assert tokens_of_steps(lengths, 4, epochs=6, seed=1) == sum(
        lengths[i] for step in range(packed.steps) for i in packed.drawn(step).tolist()
    )
    assert tokens_of_steps([], 4, epochs=6, seed=1) == 0


def test_a_conversation_whose_answer_is_cut_off_is_dropped(tokenizer):
    long = chat("word " * 300, "yes")
    examples = tokenise([long, chat("a", "b")], tokenizer)
    assert len(within(examples, 64)) == 1
    with pytest.raises(UserError, match="raise `context`"):
        within(tokenise([long], tokenizer), 64)


def test_benchmark_train_files_become_conversations(data: Path):
    found = read(SftData(data=(ChatSource(benchmarks_train=("boolq", "winogrande"), limit=5),)), data, seed=0)
    assert len(found) == 10
    rows = [json.loads(line) for line in (data / "bench/boolq_train.jsonl").read_text().splitlines()]
    expected = {
        (f"{r['passage']}\nQuestion: {r['question']}?\nAnswer:", " yes" if r["label"] else " no")
        for r in rows
    }
    of_boolq = {(asked.content, said.content) for (asked, said), task, _ in found if task == "boolq"}
    assert {c.choices for c in found if c.task == "boolq"} == {("no", "yes")}
    assert len(of_boolq) == 5
    assert of_boolq <= expected
    every = read(SftData(data=(ChatSource(benchmarks_train="all"),)), data, seed=0)
    assert len(every) == sum(len(p.read_text().splitlines()) for p in (data / "bench").glob("*_train.jsonl"))


def test_a_malformed_conversation_file_is_named_by_line(tmp_path: Path):
    (tmp_path / "chat.jsonl").write_text('{"messages": [{"role": "user", "content": "x"}]}\n')
    with pytest.raises(UserError, match=r"chat\.jsonl, line 1: the conversation has no assistant message"):
        read(SftData(data=(ChatSource(path="chat.jsonl"),)), tmp_path, 0)
    with pytest.raises(UserError, match=r"no fine-tuning data at .*other\.jsonl"):
        read(SftData(data=(ChatSource(path="other.jsonl"),)), tmp_path, 0)
