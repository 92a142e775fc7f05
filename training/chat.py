"""One chat format: how a conversation becomes text, and which part of it carries the loss.

    <|endoftext|><|user|>What is it?<|assistant|> A house.<|endoftext|>

A response begins with a space because that is how a choice continues a context when it is scored: the token
the model learns to answer with is the token that scoring asks for. The Jinja template saved with the
tokenizer and `render` are two writings of the same rule; a test holds them together.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from evalengine.errors import UserError
from evalengine.untrusted import is_text

END = "<|endoftext|>"  # begins every document and ends every response
ROLES = ("system", "user", "assistant")
SPECIAL = (END, *(f"<|{role}|>" for role in ROLES))

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ ' ' + message['content'] | trim + eos_token }}{% endgeneration %}"
    "{% else %}{{ message['content'] | trim }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


class Message(NamedTuple):
    role: str
    content: str


Conversation = tuple[Message, ...]


def parse(record: Any, where: str) -> Conversation:
    """From `{"messages": [{"role": ..., "content": ...}, ...]}`; `where` names file and line in an error."""
    turns = record.get("messages") if isinstance(record, dict) else None
    if not isinstance(turns, list) or not turns:
        raise UserError(f'{where}: expected {{"messages": [{{"role": ..., "content": ...}}, ...]}}')
    messages = messages_of(turns, where)
    if not any(message.role == "assistant" and message.content.strip() for message in messages):
        raise UserError(f"{where}: the conversation has no assistant message to learn from; remove the line")
    return messages


def messages_of(turns: list[Any], where: str) -> Conversation:
    """From `[{"role": ..., "content": ...}, ...]`."""
    messages = []
    for turn in turns:
        known = turn if isinstance(turn, dict) else {}
        role, content = known.get("role"), known.get("content")
        if role not in ROLES or not isinstance(content, str):
            raise UserError(
                f"{where}: a message needs a role ({', '.join(ROLES)}) and text content, not {turn!r:.60}"
            )
        if not is_text(content):
            raise UserError(
                f"{where}: a message holds a lone surrogate, which is not a character; fix the line"
            )
        messages.append(Message(role, content))
    return tuple(messages)


class RenderedChat(NamedTuple):
    text: str
    learned: tuple[tuple[int, int], ...]  # [start, end) character spans that carry the loss


def render(messages: Conversation) -> RenderedChat:
    """The text of a conversation and the spans of it that the assistant says (with its closing token)."""
    text, learned = END, []
    for message in messages:
        text += f"<|{message.role}|>"
        if message.role == "assistant":
            start = len(text)
            text += f" {message.content.strip()}{END}"
            learned.append((start, len(text)))
        else:
            text += message.content.strip()
    return RenderedChat(text, tuple(learned))
