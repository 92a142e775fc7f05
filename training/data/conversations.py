"""Fine-tuning data: conversations, read, and tokenised with the mask of what the assistant says.

Dims: T tokens.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from evalengine import records
from evalengine.benchmarks import Benchmark, Item, held, resolve
from evalengine.benchmarks.load import make_item, read_rows, sample
from evalengine.errors import UserError
from evalengine.files import atomic
from evalengine.training.arms import TaskConversation, parse_asked
from evalengine.training.chat import Conversation, Message, RenderedChat, render
from evalengine.training.data.sources import hub_rows
from evalengine.training.data.tokenizer import Tokenizer
from evalengine.training.study import ChatSource, SftData, SourceSpec


def read(sft: SftData, data: Path | None, seed: int) -> list[TaskConversation]:
    """The conversations of the study's fine-tuning data, in the file's order, with what is known of their tasks."""
    found = [
        one for source in sft.data for some in _of(source, data) for one in sample(some, source.limit, seed)
    ]
    if not found:
        raise UserError("the fine-tuning data holds no conversation: check sft.data")
    return found


def _of(source: ChatSource, data: Path | None) -> Iterator[list[TaskConversation]]:
    """Those of each benchmark, where the user says an item's context and the assistant its gold choice, or of the source."""
    if source.benchmarks_train:
        for benchmark, items in train_items(source, data):
            yield [TaskConversation(_solved(item), benchmark.name, item.choices) for item in items]
    else:
        columns = ("benchmark", "choices")
        rows = rows_of(source, data, "fine-tuning data", "sft.data", "messages", optional=columns)
        yield [parse_asked(record, where, source.path or source.hub) for where, record in rows]


def _solved(item: Item) -> Conversation:
    asked, answer = item.contexts[item.gold], item.continuations[item.gold]
    return Message("user", asked), Message("assistant", answer)


def rows_of(
    source: ChatSource, data: Path | None, what: str, key: str, *columns: str, optional: Sequence[str] = ()
) -> Iterator[tuple[str, Any]]:
    """(where, record) of every row of a file or a hub data set; `what` it holds and `key` of the study are for errors.

    Of Parquet these columns, and the optional ones that are there, alone.
    """
    if source.hub:
        spec = SourceSpec(hub=source.hub, config=source.config, split=source.split)
        yield from ((f"{source.hub}, row {number}", row) for number, row in enumerate(hub_rows(spec), 1))
        return
    if data is None:
        raise UserError(f"{key} reads {source.path}: give the folder that holds it with --data DIR")
    file = data / source.path
    if not file.is_file():
        raise UserError(f"there is no {what} at {file}: check {key} and --data")
    if file.suffix == ".parquet":
        yield from records.parquet(file, *columns, optional=optional)
    else:
        yield from records.jsonl(file)


def train_items(source: ChatSource, data: Path | None) -> Iterator[tuple[Benchmark, list[Item]]]:
    """The train split of each benchmark that the source names."""
    names = source.benchmarks_train
    chosen = resolve(names if isinstance(names, str) else ",".join(names))
    if names == "all" and data is not None:
        why = " (`benchmarks_train: all` reads them; dpo.data is that where the study does not name it)"
        chosen = held(data, chosen, train=True, why=why)
    for benchmark in chosen:
        rows = read_rows(benchmark, data, train=True)
        yield benchmark, [make_item(row, benchmark.render) for row in rows]


class Example(NamedTuple):
    """A tokenised conversation."""

    token_T: np.ndarray  # uint32
    learned_T: np.ndarray  # bool: the token carries loss when it is predicted


def cut(examples: Sequence[Example], context: int) -> list[Example]:
    """Every example cut at `context` + 1 tokens: the last one is predicted, not fed."""
    return [Example(ids[: context + 1], learned[: context + 1]) for ids, learned in examples]


def within(examples: Sequence[Example], context: int) -> list[Example]:
    """Every example cut at `context` + 1 tokens; one that then has nothing to learn is dropped."""
    kept = [example for example in cut(examples, context) if example.learned_T.any()]
    if not kept:
        raise UserError(
            f"no conversation has a response within the context of {context} tokens: raise `context`"
        )
    return kept


def learned_within(examples: Sequence[Example], context: int) -> tuple[int, int]:
    """How many conversations have something to learn within the context, and how many tokens of them are learned."""
    learned = [int(mask[: context + 1].sum()) for _, mask in examples]
    return sum(map(bool, learned)), sum(learned)


def save(path: Path, examples: Sequence[Example], **more: Any) -> None:
    """The examples end to end: example i is token[start[i] : start[i + 1]]."""
    token, learned = (np.concatenate(part) for part in zip(*examples, strict=True))
    start = np.cumsum([0, *(len(ids) for ids, _ in examples)])
    with atomic(path) as temporary, temporary.open("wb") as handle:
        np.savez(handle, token=token, learned=learned, start=start, **more)


def load(path: Path) -> list[Example]:
    """Raises UserError where the file is damaged."""
    return load_with(path)[0]


def load_with(path: Path, *more: str) -> tuple[list[Example], list[np.ndarray]]:
    """The examples, and further arrays of the file."""
    try:
        with np.load(path) as saved:
            token, learned, start = saved["token"], saved["learned"], saved["start"].tolist()
            arrays = [saved[name] for name in more]
        return [Example(token[a:b], learned[a:b]) for a, b in pairwise(start)], arrays
    except Exception:  # zip, NumPy's headers and zlib each raise their own
        raise UserError(f"{path} is damaged: delete it and run again to rebuild it") from None


def digest(examples: Sequence[Example]) -> str:
    """CRC-32 of all tokens, then of what is learned."""
    total = 0
    for part in zip(*examples, strict=True):
        for array in part:
            total = zlib.crc32(array.tobytes(), total)
    return f"{total:08x}"


def tokenise(conversations: Sequence[Conversation], tokenizer: Tokenizer) -> list[Example]:
    """Encodes conversations and marks the tokens that begin inside what the assistant says."""
    return encode([render(conversation) for conversation in conversations], tokenizer)


def encode(rendered: Sequence[RenderedChat], tokenizer: Tokenizer) -> list[Example]:
    examples = []
    for text, encoding in zip(rendered, tokenizer.encode_rendered([r.text for r in rendered]), strict=True):
        begins = np.array([start for start, _ in encoding.offsets], dtype=np.int64)
        learned = np.zeros(len(begins), dtype=bool)
        for start, end in text.learned:
            learned |= (begins >= start) & (begins < end)
        examples.append(Example(np.asarray(encoding.ids, dtype=np.uint32), learned))
    return examples
