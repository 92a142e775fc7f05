"""Preferences: to a prompt a response that is right, and others of which the model's best one is to become less likely.

From a preference file there is one other response. From train items the right response is the gold choice and the others are
the wrong ones; which of them a run learns from is for its fine-tuned model to say (dpo.py).
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from evalengine.benchmarks import Benchmark, Item
from evalengine.errors import UserError
from evalengine.training.chat import Conversation, Message, RenderedChat, messages_of, render
from evalengine.training.data import conversations
from evalengine.training.data.conversations import DataKind, Example, encode, read_sources
from evalengine.training.data.tokenizer import Tokenizer
from evalengine.training.study import DpoData

Candidates = list[list[Example]]  # of each question, tokenised: the right response, then its others


class Question(NamedTuple):
    prompt: Conversation
    responses: tuple[Conversation, ...]  # the right one first


DPO = DataKind("preference data", "dpo.data", ("chosen", "rejected"), ("prompt", "messages"))


def read(dpo: DpoData, data: Path | None, seed: int) -> list[Question]:
    """The questions of the study's preferences; items whose choices all read like the right one are left out."""

    def asked(_: Benchmark, item: Item) -> Question | None:
        question = of_item(item)
        return question if len(question.responses) > 1 else None

    return read_sources(dpo.data, data, seed, DPO, asked, lambda record, where, _: parse(record, where))


def of_item(item: Item) -> Question:
    """The user says what all choices have before them, the assistant a choice and what else is before that one alone.

    Choices that read like the right one are left out.
    """
    start = item.contexts[0][: shared(item.contexts)]
    if len(set(item.contexts)) > 1:  # not in the middle of a word
        start = start[: len(start) - len(start.split(" ")[-1])]
    said = [
        context[len(start) :] + rest for context, rest in zip(item.contexts, item.continuations, strict=True)
    ]
    said = [text.strip() for text in (said[item.gold], *said[: item.gold], *said[item.gold + 1 :])]
    different = dict.fromkeys(said)
    return Question((Message("user", start),), tuple((Message("assistant", text),) for text in different))


def parse(record: Any, where: str) -> Question:
    """From `{"prompt": ..., "chosen": ..., "rejected": ...}`; `where` names file and line in an error.

    A prompt is text or a list of messages (then also called `messages`), a response text or a list of messages. Where
    `chosen` and `rejected` are whole conversations, the prompt is what they have in common, and none other is read.
    """
    record = record if isinstance(record, dict) else {}
    answers = [
        _messages(record.get(name), "assistant", f"{where}, {name!r}") for name in ("chosen", "rejected")
    ]
    if any(answer[0].role != "assistant" for answer in answers):
        prompt = answers[0][: shared(answers)]
        answers = [answer[len(prompt) :] for answer in answers]
    else:
        given = record.get("prompt", record.get("messages"))
        prompt = _messages(given, "user", f"{where}, 'prompt'")
    chosen, rejected = ([(m.role, m.content.strip()) for m in answer] for answer in answers)
    if chosen == rejected:  # as they are trained on
        raise UserError(f"{where}: the chosen and the rejected response are the same; remove the line")
    for answer in answers:
        if not answer or answer[0].role != "assistant" or not any(m.content.strip() for m in answer):
            raise UserError(
                f"{where}: after the prompt both responses must begin with what the assistant says"
            )
    return Question(prompt, tuple(answers))


def _messages(given: Any, role: str, where: str) -> Conversation:
    turns = [{"role": role, "content": given}] if isinstance(given, str) else given
    if not isinstance(turns, list) or not turns:
        raise UserError(f"{where}: expected text or a list of messages, not {given!r:.60}")
    return messages_of(turns, where)


def shared(sequences: Sequence[Sequence[Any]]) -> int:
    """How many elements they have in common before the first that differs."""
    columns = enumerate(zip(*sequences, strict=False))
    return next((k for k, column in columns if len(set(column)) > 1), min(map(len, sequences)))


def tokenise(questions: Sequence[Question], tokenizer: Tokenizer) -> Candidates:
    """The responses carry the loss, prompts do not."""
    rendered: list[RenderedChat] = []
    for prompt, responses in questions:
        in_prompt = sum(message.role == "assistant" for message in prompt)
        for response in responses:
            whole = render((*prompt, *response))
            rendered.append(whole._replace(learned=whole.learned[in_prompt:]))
    return _grouped(encode(rendered, tokenizer), [len(question.responses) for question in questions])


def _grouped(examples: Iterable[Example], sizes: Iterable[int]) -> Candidates:
    left = iter(examples)
    return [list(islice(left, size)) for size in sizes]


def within(candidates: Candidates, context: int) -> Candidates:
    """What fits a context whole: a response that was cut off would be compared by a part of it."""
    kept = []
    for group in candidates:
        fitting = [example for example in group if len(example.token_T) <= context + 1]
        if len(fitting) > 1 and fitting[0] is group[0]:
            kept.append(fitting)
    if not kept:
        raise UserError(f"no pair of preferences fits the context of {context} tokens: raise `context`")
    return kept


def save(path: Path, candidates: Candidates) -> None:
    conversations.save(path, list(chain(*candidates)), first=_first(candidates))


def load(path: Path) -> Candidates:
    """Raises UserError where the file is damaged."""
    examples, (first_Q,) = conversations.load_with(path, "first")
    return _grouped(examples, np.diff(first_Q, append=len(examples)))


def _first(candidates: Candidates) -> np.ndarray:
    """Which of all candidates is each question's right response."""
    return np.cumsum([0, *map(len, candidates)], dtype=np.int64)[:-1]


def of_pairs(lengths: Sequence[Sequence[int]]) -> list[float]:
    """Tokens of each question's pair: the right response, which is the first, and the others' mean, with their prompts."""
    return [first + sum(others) / len(others) for first, *others in lengths]


def lengths_of(candidates: Candidates) -> list[list[int]]:
    return [[len(example.token_T) for example in group] for group in candidates]


def digest(candidates: Candidates) -> str:
    examples = conversations.digest(list(chain(*candidates)))
    return f"{examples}-{zlib.crc32(_first(candidates).tobytes()):08x}"
