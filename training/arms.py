"""Arms of fine-tuning: the same conversations, with other instructions or with wrong responses.

    kept          as the data says
    emptied       every user and system message is empty
    shuffled      every conversation has the instructions of another one
    output_space  every user message names the possible answers and nothing else ("Answer: no / yes"); system messages are empty
    delusive      responses change places within a task, so that hardly any stands behind its own instruction

Each arm holds as many conversations as `kept`, in the same order, and the same responses over all of them. Learned tokens and
steps are therefore the same, as long as no conversation is cut at a scale's context; the tokens of the prompts differ.

References: Kung & Peng (2023), "Do models really learn to follow instructions?", for output_space ("simplified") and delusive;
Hewitt et al. (2024), "Instruction following without instruction tuning", for emptied.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

from evalengine.errors import UserError
from evalengine.training.chat import Conversation, Message, parse
from evalengine.untrusted import is_text

ARMS = ("kept", "emptied", "shuffled", "output_space", "delusive")
LABELS = 20  # different responses up to which a task without `choices` is taken to have a fixed set of them


class TaskConversation(NamedTuple):
    """A conversation and the task that it sets.

    task: a benchmark, or the file of conversations that name none. choices: the answers it could have, () for free text,
    None where the data does not say.
    """

    messages: Conversation
    task: str
    choices: tuple[str, ...] | None = None


def parse_asked(record: Any, where: str, source: str) -> TaskConversation:
    """From `{"messages": [...]}` with `benchmark` (text) and `choices` (texts) where it has them. Raises UserError."""
    messages = parse(record, where)
    task, choices = record.get("benchmark"), record.get("choices")
    if task is not None and not (isinstance(task, str) and is_text(task)):
        raise UserError(f"{where}: `benchmark` must be a name, not {task!r:.60}")
    if choices is None:
        return TaskConversation(messages, task or source)
    if not isinstance(choices, list) or not all(isinstance(c, str) and is_text(c) for c in choices):
        raise UserError(f"{where}: `choices` must be a list of texts, not {choices!r:.60}")
    said = [m.content.strip() for m in messages if m.role == "assistant"]
    if choices and said[-1] not in {choice.strip() for choice in choices}:
        raise UserError(f"{where}: `choices` do not hold the response {said[-1]!r:.60}; add it")
    return TaskConversation(messages, task or source, tuple(choices))


def changed(conversations: Sequence[TaskConversation], arm: str, seed: int) -> list[Conversation]:
    """The conversations of an arm. Raises UserError where the data does not allow it."""
    own = [one.messages for one in conversations]
    if arm == "kept":
        return own
    if arm == "delusive":
        return _delusive(conversations, seed)
    # instructions, in order; those that are missing are empty
    said: Sequence[Sequence[str]] = [()] * len(own)
    if arm == "shuffled":
        said = _shuffled(own, seed)
    elif arm == "output_space":
        said = _output_space(conversations)
    return [_with_instructions(*pair) for pair in zip(own, said, strict=True)]


def _with_instructions(own: Conversation, said: Sequence[str]) -> Conversation:
    left = iter(said)
    return tuple(m if m.role == "assistant" else Message(m.role, next(left, "")) for m in own)


def _shuffled(own: Sequence[Conversation], seed: int) -> list[list[str]]:
    """Another conversation's instructions for each."""
    order = list(range(len(own)))
    random.Random(seed).shuffle(order)
    said: list[list[str]] = [[] for _ in own]
    for place, other in zip(order, order[1:] + order[:1], strict=True):  # one cycle: never its own
        said[place] = [m.content for m in own[other] if m.role != "assistant"]
    return said


def _output_space(conversations: Sequence[TaskConversation]) -> list[list[str]]:
    """What names the possible answers, for every user message; sorted, so that their order says nothing."""
    known: dict[str, set[str]] = defaultdict(set)
    for one in conversations:
        if one.choices is None:
            known[one.task].update(m.content.strip() for m in one.messages if m.role == "assistant")
    for task, answers in known.items():
        if len(answers) > LABELS:
            raise UserError(
                f"sft_output_space must know which answers are possible, and {task} has {len(answers):,} different "
                "responses: give each of its conversations `choices` ([] for free text), or leave the stage out"
            )
    said = []
    for one in conversations:
        answers = known[one.task] if one.choices is None else {choice.strip() for choice in one.choices}
        named = f"Answer: {' / '.join(sorted(answers))}" if answers else ""
        said.append([named if m.role == "user" else "" for m in one.messages if m.role != "assistant"])
    return said


def _delusive(conversations: Sequence[TaskConversation], seed: int) -> list[Conversation]:
    """Responses permuted within each task, as few as possible left with their own text.

    Sorted by text and shifted by the count of the commonest one, all texts move if that is at most half of them; else it
    keeps what it has in excess of the others. Of a fixed set of equally frequent labels, each becomes one other label.
    """
    turns: dict[str, list[tuple[int, int]]] = defaultdict(list)  # conversation, message
    for number, one in enumerate(conversations):
        turns[one.task] += [(number, k) for k, m in enumerate(one.messages) if m.role == "assistant"]
    new = [list(one.messages) for one in conversations]
    for task, places in turns.items():
        rng = random.Random(f"{seed} {task}")
        texts = [conversations[number].messages[k].content.strip() for number, k in places]
        different = sorted(set(texts))
        rng.shuffle(different)
        rank = {text: r for r, text in enumerate(different)}
        order = sorted(range(len(texts)), key=lambda i: (rank[texts[i]], rng.random()))
        shift = max(Counter(texts).values())
        for i, giver in zip(order, order[shift:] + order[:shift], strict=True):
            number, k = places[i]
            new[number][k] = Message("assistant", texts[giver])
    found = [tuple(messages) for messages in new]
    unchanged = unmoved(conversations, found)
    if sum(unchanged.values()) == sum(map(len, turns.values())):
        raise UserError(
            "sft_delusive has no two different responses to exchange within a task: leave the stage out, or give the "
            "conversations of one task one `benchmark`"
        )
    return found


def unmoved(conversations: Sequence[TaskConversation], after: Sequence[Conversation]) -> Counter[str]:
    """How many responses of each task are the same as before."""
    return Counter(
        one.task
        for one, other in zip(conversations, after, strict=True)
        for m, n in zip(one.messages, other, strict=True)
        if m.role == "assistant" and m.content.strip() == n.content.strip()
    )
