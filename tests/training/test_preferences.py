"""Preferences: where they come from, what of them is learned, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from evalengine.benchmarks.definition import Item
from evalengine.errors import UserError
from evalengine.training.chat import Conversation, Message
from evalengine.training.data import preferences
from evalengine.training.data.preferences import (
    Question,
    load,
    of_item,
    of_pairs,
    parse,
    save,
    tokenise,
    within,
)
from evalengine.training.study import ChatSource, DpoData

ASKED, RIGHT, WRONG = (
    Message("user", "How many?"),
    Message("assistant", "Four."),
    Message("assistant", "Five."),
)


def as_json(*messages: Message) -> list[dict[str, str]]:
    return [message._asdict() for message in messages]


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": "How many?", "chosen": "Four.", "rejected": "Five."},
        {"prompt": as_json(ASKED), "chosen": as_json(RIGHT), "rejected": as_json(WRONG)},
        {"messages": as_json(ASKED), "chosen": "Four.", "rejected": "Five."},
        {"chosen": as_json(ASKED, RIGHT), "rejected": as_json(ASKED, WRONG)},
        {"prompt": "not read", "chosen": as_json(ASKED, RIGHT), "rejected": as_json(ASKED, WRONG)},
    ],
    ids=["text", "messages", "called messages", "conversations", "conversations beside a prompt"],
)
def test_the_usual_ways_to_write_a_preference_mean_the_same(record: dict[str, object]):
    assert parse(record, "a line") == Question((ASKED,), ((RIGHT,), (WRONG,)))


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ([], "a line, 'chosen': expected text or a list of messages, not None"),
        ({"chosen": "a", "rejected": "b"}, "a line, 'prompt': expected text or a list of messages, not None"),
        (
            {"prompt": "x", "chosen": "a", "rejected": "a"},
            "the chosen and the rejected response are the same",
        ),
        (
            {"prompt": "x", "chosen": "a", "rejected": " a\n"},
            "the chosen and the rejected response are the same",
        ),
        (
            {"prompt": "x", "chosen": "a", "rejected": " "},
            "both responses must begin with what the assistant says",
        ),
        ({"chosen": as_json(ASKED), "rejected": as_json(ASKED, WRONG)}, "both responses must begin with"),
        (
            {"prompt": "x", "chosen": [{"role": "bot", "content": "a"}], "rejected": "b"},
            "a message needs a role",
        ),
    ],
    ids=str,
)
def test_a_preference_that_says_nothing_is_named(record: object, reason: str):
    with pytest.raises(UserError) as error:
        parse(record, "a line")
    assert reason in str(error.value)


def test_an_item_is_a_question_with_the_gold_choice_first():
    item = Item("1", ("Is it?",) * 3, (" no", " yes", " no "), ("no", "yes", "no "), 1)
    assert of_item(item) == Question((Message("user", "Is it?"),), answers("yes", "no"))


def test_choices_that_stand_in_the_context_become_part_of_the_response():
    contexts = ("Bob thanked Sam, since Sam", "Bob thanked Sam, since Sandra")
    item = Item("1", contexts, (" had helped.",) * 2, ("had helped.",) * 2, 1)
    assert of_item(item) == Question(
        (Message("user", "Bob thanked Sam, since "),), answers("Sandra had helped.", "Sam had helped.")
    )


def answers(*texts: str) -> tuple[Conversation, ...]:
    return tuple((Message("assistant", text),) for text in texts)


def test_train_files_and_preference_files_are_read_in_order(data: Path, tmp_path: Path):
    found = preferences.read(
        DpoData((ChatSource(benchmarks_train=("boolq", "winogrande"), limit=5),)), data, 0
    )
    assert len(found) == 10
    assert all(len(question.responses) == 2 for question in found)
    rows = [json.loads(line) for line in (data / "bench/boolq_train.jsonl").read_text().splitlines()]
    gold = {
        f"{r['passage']}\nQuestion: {r['question']}?\nAnswer:": "yes" if r["label"] else "no" for r in rows
    }
    of_boolq = [question for question in found if question.prompt[0].content in gold]
    assert len(of_boolq) == 5
    for question in of_boolq:
        assert question.responses[0][0].content == gold[question.prompt[0].content]
    lines = [{"prompt": f"p{i}", "chosen": "a", "rejected": "b"} for i in range(3)]
    (tmp_path / "likes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = preferences.read(DpoData((ChatSource(path="likes.jsonl"),)), tmp_path, 0)
    assert [question.prompt[0].content for question in found] == ["p0", "p1", "p2"]
    with pytest.raises(
        UserError, match=r"there is no preference data at .*no\.jsonl: check dpo\.data and --data"
    ):
        preferences.read(DpoData((ChatSource(path="no.jsonl"),)), tmp_path, 0)
    with pytest.raises(UserError, match=r"dpo\.data reads likes\.jsonl: give the folder"):
        preferences.read(DpoData((ChatSource(path="likes.jsonl"),)), None, 0)


QUESTIONS = [
    Question((ASKED,), answers("four of them", "five", "six or so")),
    Question((ASKED, RIGHT, Message("user", "Sure?")), answers("no", "yes")),
    Question((Message("user", "word " * 100),), answers("yes", "no")),
    Question((ASKED,), answers("yes", "no " * 100, "maybe")),
]


def test_only_the_responses_are_learned_and_what_does_not_fit_is_left_out(tokenizer, tmp_path: Path):
    candidates = tokenise(QUESTIONS, tokenizer)
    assert list(map(len, candidates)) == [3, 2, 2, 3]
    for group, question in zip(candidates, QUESTIONS, strict=True):
        for (token_T, learned_T), response in zip(group, question.responses, strict=True):
            assert (
                tokenizer.decode(token_T[learned_T]).removesuffix("<|endoftext|>").strip()
                == response[0].content.strip()
            )
    kept = within(candidates, 64)
    # the third question is too long, and so is "no no no ..."
    expected = [*candidates[:2], [candidates[3][0], candidates[3][2]]]
    assert [list(map(id, group)) for group in kept] == [list(map(id, group)) for group in expected]
    with pytest.raises(UserError, match="no pair of preferences fits the context of 4 tokens"):
        within(candidates, 4)
    save(tmp_path / "saved.npz", candidates)
    again = load(tmp_path / "saved.npz")
    assert preferences.digest(again) == preferences.digest(candidates) != preferences.digest(kept)
    assert list(map(len, again)) == [3, 2, 2, 3]
    assert all(map(np.array_equal, again[3][2], candidates[3][2]))
    (tmp_path / "saved.npz").write_bytes(b"cut")
    with pytest.raises(UserError, match="is damaged"):
        load(tmp_path / "saved.npz")


def test_sizes_count_one_of_the_others():
    assert of_pairs([[10, 20, 30], [5, 5]]) == [10 + 25, 5 + 5]
