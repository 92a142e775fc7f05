"""Arms of fine-tuning: what each changes, and what all have in common."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from itertools import permutations
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from evalengine.cli import main
from evalengine.errors import UserError
from evalengine.training.arms import ARMS, LABELS, TaskConversation, changed, parse_asked, unmoved
from evalengine.training.chat import Conversation, Message
from evalengine.training.data import conversations
from evalengine.training.data.conversations import read, tokenise
from evalengine.training.data.packed import PackedExamples
from evalengine.training.prepare import prepare
from evalengine.training.study import ChatSource, FineTune, SftData, load, with_stages


def chat(*turns: str) -> Conversation:
    roles = ("user", "assistant") * len(turns)
    return tuple(Message(role, text) for role, text in zip(roles, turns, strict=False))


def said(conversation: Conversation) -> list[str]:
    return [m.content.strip() for m in conversation if m.role == "assistant"]


def labelled(counts: dict[str, int], task: str = "t") -> list[TaskConversation]:
    texts = [text for text, count in counts.items() for _ in range(count)]
    random.Random(0).shuffle(texts)
    return [TaskConversation(chat(f"{task} {i}", text), task, tuple(counts)) for i, text in enumerate(texts)]


CHATS = [
    TaskConversation(
        (
            Message("system", f"be brief {i}"),
            *chat(f"question {i}", "yes" if i % 2 else "no", "and then?", f"{i}"),
        ),
        "file",
    )
    for i in range(23)
]


def test_instructions_emptied_or_shuffled_leave_the_answers() -> None:
    emptied = changed(CHATS, "emptied", 0)
    shuffled = changed(CHATS, "shuffled", 0)
    for own, without, swapped in zip(CHATS, emptied, shuffled, strict=True):
        first, second = said(own.messages)
        assert [m.content for m in without] == ["", "", first, "", second]
        assert said(swapped) == [first, second]
        assert swapped[1] != own.messages[1]
    assert sorted(c[:2] for c in shuffled) == sorted(c.messages[:2] for c in CHATS)
    assert changed(CHATS, "kept", 0) == [c.messages for c in CHATS]


def test_an_output_space_names_the_answers_in_an_order_that_says_nothing() -> None:
    one = TaskConversation(
        (Message("system", "be brief"), *chat("is it so?", " yes")), "boolq", ("yes", "no")
    )
    other = one._replace(choices=("no", "yes", "no"), messages=chat("is it?", "no", "really?", "no"))
    free = TaskConversation(chat("tell me", "a long story"), "talk", ())
    with_set, with_two, without = changed([one, other, free], "output_space", 0)
    assert [m.content for m in with_set] == ["", "Answer: no / yes", " yes"]
    assert [m.content for m in with_two] == ["Answer: no / yes", "no"] * 2
    assert without == chat("", "a long story")
    unknown = [TaskConversation(chat(f"{i}?", "abc"[i % 3]), "labels.jsonl") for i in range(30)]
    assert {c[0].content for c in changed(unknown, "output_space", 0)} == {"Answer: a / b / c"}
    many = [TaskConversation(chat(f"{i}?", f"{i}"), "chats.jsonl") for i in range(LABELS + 1)]
    with pytest.raises(UserError, match=r"chats\.jsonl has 21 different responses: give each .*`choices`"):
        changed([*unknown, *many], "output_space", 0)


@pytest.mark.parametrize("seed", range(3))
def test_delusive_labels_are_exchanged_and_the_excess_of_one_keeps_its_own(seed: int) -> None:
    """As few keep their text as any permutation of the responses leaves, which is 2 max - n, or none."""
    cases = [
        {"yes": 50, "no": 50},
        {"a": 3, "b": 3, "c": 3},
        {"a": 5, "b": 3, "c": 1},
        {"yes": 7, "no": 3},
        {"only": 4},
        {f"text {i}": 1 for i in range(40)},
        {"a": 2, "b": 1},
    ]
    filler = labelled({"x": 2, "y": 2}, "filler")
    for counts in cases:
        own = labelled(counts)
        after = changed([*own, *filler], "delusive", seed)[: len(own)]
        assert [c[0] for c in after] == [c.messages[0] for c in own]
        assert Counter(said(c)[0] for c in after) == Counter(counts)
        kept = unmoved(own, after)["t"]
        n, most = len(own), max(counts.values())
        assert kept == max(0, 2 * most - n)
        if n <= 7:  # every permutation
            texts = [said(c.messages)[0] for c in own]
            assert kept == min(
                sum(texts[i] == texts[j] for i, j in enumerate(order)) for order in permutations(range(n))
            )
        if len(set(counts.values())) == 1 and len(counts) <= 3:  # a derangement of the labels
            to = {(said(one.messages)[0], said(other)[0]) for one, other in zip(own, after, strict=True)}
            assert len(to) == len(counts)


def test_delusive_texts_move_at_random_within_their_task_alone() -> None:
    one, other = labelled({f"{i:03d}": 1 for i in range(200)}, "a"), labelled({"True": 9, "False": 11}, "b")
    after = changed([*one, *other], "delusive", 0)
    assert sorted(said(c)[0] for c in after[:200]) == [f"{i:03d}" for i in range(200)]
    assert unmoved([*one, *other], after) == {"b": 2}
    steps = [int(said(c)[0]) - int(said(o.messages)[0]) for o, c in zip(one, after, strict=False)]
    assert len(set(steps)) > 50  # no neighbour in the alphabet
    assert changed([*one, *other], "delusive", 0) == after != changed([*one, *other], "delusive", 1)
    with pytest.raises(UserError, match="no two different responses to exchange"):
        changed(labelled({"yes": 3}), "delusive", 0)


def test_every_arm_of_the_embedded_world_learns_the_same_tokens_in_as_many_steps(
    data: Path, tokenizer
) -> None:
    sources = (ChatSource(path="sft.jsonl"), ChatSource(benchmarks_train="all"))
    sft = SftData(data=sources)
    kept = read(sft, data, 0)
    learned, steps = {}, {}
    for arm in ARMS:
        examples = tokenise(changed(kept, arm, 0), tokenizer)
        longest = max(len(ids) for ids, _ in examples)
        learned[arm] = sum(int(mask.sum()) for _, mask in examples)
        packed = PackedExamples(examples, FineTune(lr=1, epochs=2, batch_examples=8), context=longest, seed=0)
        steps[arm] = packed.steps
        if arm != "delusive":
            assert [said(c) for c in changed(kept, arm, 0)] == [said(c.messages) for c in kept]
    assert len(set(learned.values())) == 1 and len(set(steps.values())) == 1
    own, wrong = [c.messages for c in kept], changed(kept, "delusive", 0)
    for task in {c.task for c in kept}:
        chosen = [i for i, c in enumerate(kept) if c.task == task]
        assert Counter(said(own[i])[0] for i in chosen) == Counter(said(wrong[i])[0] for i in chosen), task
    assert sum(unmoved(kept, wrong).values()) < 0.2 * len(kept)


def test_fields_of_a_conversation_are_read_from_json_and_parquet(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "is it?"}, {"role": "assistant", "content": "yes"}]
    lines = [
        {"messages": messages},
        {"messages": messages, "benchmark": "boolq", "choices": ["no", "yes"]},
        {"messages": messages, "benchmark": None, "choices": []},
    ]
    (tmp_path / "chat.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    pq.write_table(pa.Table.from_pylist(lines[1:]), tmp_path / "chat.parquet")
    pq.write_table(pa.Table.from_pylist(lines[:1]), tmp_path / "plain.parquet")
    files = ("chat.jsonl", "chat.parquet", "plain.parquet")
    found = read(SftData(data=tuple(ChatSource(path=name) for name in files)), tmp_path, 0)
    assert [(c.task, c.choices) for c in found] == [
        ("chat.jsonl", None),
        ("boolq", ("no", "yes")),
        ("chat.jsonl", ()),
        ("boolq", ("no", "yes")),
        ("chat.parquet", ()),
        ("plain.parquet", None),
    ]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"choices": ["no", "maybe"]}, "line 3: `choices` do not hold the response 'yes'"),
        ({"choices": "yes"}, "`choices` must be a list of texts"),
        ({"choices": ["yes", 1]}, "`choices` must be a list of texts"),
        ({"benchmark": 7}, "`benchmark` must be a name"),
    ],
)
def test_fields_that_cannot_be_meant_are_refused(fields: dict[str, object], words: str) -> None:
    messages = [{"role": "user", "content": "is it?"}, {"role": "assistant", "content": " yes"}]
    with pytest.raises(UserError, match=words):
        parse_asked({"messages": messages, **fields}, "line 3", "file")


NAMES = ["sft", *(f"sft_{arm}" for arm in ARMS[1:])]


def test_arms_that_the_context_cuts_unequally_are_named(
    data: Path, write_study, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = with_stages(load(write_study(sft__data=[{"path": "sft.jsonl"}])), NAMES)
    prepared = prepare(study, data, tmp_path / "short")
    said = capsys.readouterr().err
    lengths = {arm: conversations.load(path) for arm, path in prepared.conversations.items()}
    learned = [int(mask[:65].sum()) for _, mask in lengths["emptied"]]
    kept = [int(mask[:65].sum()) for _, mask in lengths["kept"]]
    assert f"sft_emptied learns {sum(learned):,} tokens of {sum(map(bool, learned))} conversations" in said
    assert f"and sft {sum(kept):,} of {sum(map(bool, kept))}, since some are cut at the context of 64" in said
    found = read(study.sft, data, study.seed)
    same = unmoved(found, changed(found, "delusive", study.seed))
    assert f"sft_delusive: {same.total()} responses stay" in said and all(
        f"{t} {n}" in said for t, n in same.items()
    )
    study = with_stages(load(write_study(scales__S__context=512, sft__data=[{"path": "sft.jsonl"}])), NAMES)
    prepare(study, data, tmp_path / "long")
    assert "cut at the context" not in capsys.readouterr().err


def test_the_plan_has_every_arm_and_refuses_what_training_would(
    data: Path, write_study, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = [
        "--out",
        str(tmp_path / "c"),
        "--dry-run",
        "--json",
        "--flops",
        "1e12",
        "--stages",
        ",".join(NAMES),
    ]
    assert main(["train", str(write_study()), "--data", str(data), *plan]) == 0
    runs = {run["name"]: run["tokens"] for run in json.loads(capsys.readouterr().out)["runs"]}
    assert list(runs) == [f"S-{mixture}-{stage}" for mixture in ("m1", "m2") for stage in ("pt", *NAMES)]
    assert runs["S-m1-sft_emptied"] < runs["S-m1-sft_output_space"] < runs["S-m1-sft"]
    assert main(["train", "paper", *plan]) == 0
    assert len(json.loads(capsys.readouterr().out)["runs"]) == 9 * 2 * 6
    plain = [json.loads(line)["messages"] for line in (data / "sft.jsonl").read_text().splitlines()]
    (tmp_path / "sft.jsonl").write_text("".join(json.dumps({"messages": m}) + "\n" for m in plain))
    whole = write_study(sft__data=[{"path": "sft.jsonl"}])
    assert main(["train", str(whole), "--data", str(tmp_path), *plan]) == 1
    assert "sft_output_space must know which answers are possible" in capsys.readouterr().err


@pytest.mark.slow
def test_arms_killed_with_sigkill_end_with_the_same_bytes(data: Path, write_study, tmp_path: Path) -> None:
    study, options = (
        str(write_study()),
        ["--data", str(data), "--jobs", "1", "--only", "S-m1-*", "--stages", ",".join(NAMES)],
    )
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert main(["train", study, "--out", str(whole), *options]) == 0
    command = [sys.executable, "-m", "evalengine", "train", study, "--out", str(killed), *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 200
    while not (killed / "S-m1-sft_shuffled").is_dir():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(60)
    assert not (killed / "S-m1-sft_delusive").is_dir()
    assert main(["train", study, "--out", str(killed), *options]) == 0
    made = {str(p.relative_to(whole)): p.read_bytes() for p in whole.glob("S-*/*")}
    assert made == {str(p.relative_to(killed)): p.read_bytes() for p in killed.glob("S-*/*")}
    about = [json.loads(made[f"S-m1-{stage}/evalengine.json"]) for stage in NAMES]
    assert (
        len({one["fingerprint"] for one in about})
        == len({one["crc32"]["model.safetensors"] for one in about})
        == 5
    )
