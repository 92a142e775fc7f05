"""Fine-tuning data: conversations, read, and tokenised with the mask of what the assistant says.

Dims: T tokens.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

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

T = TypeVar("T")


class DataKind(NamedTuple):
    """What errors call it, the key of the study that names it, and the columns of its rows."""

    what: str
    key: str
    columns: tuple[str, ...]
    optional: tuple[str, ...]


SFT = DataKind("fine-tuning data", "sft.data", ("messages",), ("benchmark", "choices"))


def read(sft: SftData, data: Path | None, seed: int) -> list[TaskConversation]:
    """The conversations of the study's fine-tuning data, and their tasks: with an item the user says the context and the
    assistant the gold choice."""

    def solved(benchmark: Benchmark, item: Item) -> TaskConversation:
        asked, answer = item.contexts[item.gold], item.continuations[item.gold]
        messages = Message("user", asked), Message("assistant", answer)
        return TaskConversation(messages, benchmark.name, item.choices)

    return read_sources(sft.data, data, seed, SFT, solved, parse_asked)


def read_sources(
    sources: Sequence[ChatSource],
    data: Path | None,
    seed: int,
    kind: DataKind,
    of_item: Callable[[Benchmark, Item], T | None],
    parse: Callable[[Any, str, str], T],
) -> list[T]:
    """What the sources hold, in their order; at most `limit` of each benchmark, or of the file or hub data set.

    of_item: makes it of a train item, None where it cannot. parse: of a row, its file and line, and the source's name. Raises
    UserError naming file and line, or where there is nothing.
    """
    found: list[T] = []
    for source in sources:
        if source.benchmarks_train:
            for benchmark, items in train_items(source, data):
                made = [one for item in items if (one := of_item(benchmark, item)) is not None]
                found += sample(made, source.limit, seed)
        else:
            rows, name = rows_of(source, data, kind), source.path or source.hub
            found += sample([parse(record, where, name) for where, record in rows], source.limit, seed)
    if not found:
        raise UserError(f"the {kind.what} holds nothing to learn from: check {kind.key}")
    return found


def rows_of(source: ChatSource, data: Path | None, kind: DataKind) -> Iterator[tuple[str, Any]]:
    """(where, record) of every row of a file or a hub data set; of Parquet the kind's columns alone."""
    if source.hub:
        spec = SourceSpec(hub=source.hub, config=source.config, split=source.split)
        yield from ((f"{source.hub}, row {number}", row) for number, row in enumerate(hub_rows(spec), 1))
        return
    if data is None:
        raise UserError(f"{kind.key} reads {source.path}: give the folder that holds it with --data DIR")
    file = data / source.path
    if not file.is_file():
        raise UserError(f"there is no {kind.what} at {file}: check {kind.key} and --data")
    if file.suffix == ".parquet":
        yield from records.parquet(file, *kind.columns, optional=kind.optional)
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
