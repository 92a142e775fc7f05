"""Fine-tuning data: conversations, tokenised with the mask of what the assistant says, packed into rows.

Dims: B rows, T positions.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np

from evalengine import records
from evalengine.errors import UserError
from evalengine.files import atomic
from evalengine.training.arms import Asked, parse_asked
from evalengine.training.chat import Conversation, Message, Rendered, render
from evalengine.training.rows import IGNORE, Batch
from evalengine.training.sources import hub_rows
from evalengine.training.study import ChatSource, SftData, SourceSpec
from evalengine.training.tokenizer import Tokenizer

if TYPE_CHECKING:
    from evalengine.benchmarks.definition import Benchmark, Item

T = TypeVar("T")


def read(sft: SftData, data: Path | None, seed: int) -> list[Asked]:
    """The conversations of the study's fine-tuning data, in the file's order, with what is known of their tasks."""
    found: list[Asked] = []
    for source in sft.data:
        if source.benchmarks_train:
            found += _of_benchmarks(source, data, seed)
            continue
        name = source.path or source.hub
        rows = rows_of(
            source, data, "fine-tuning data", "sft.data", "messages", optional=("benchmark", "choices")
        )
        some = [parse_asked(record, where, name) for where, record in rows]
        found += sample(some, source.limit, seed)
    if not found:
        raise UserError("the fine-tuning data holds no conversation: check sft.data")
    return found


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
    from evalengine.benchmarks import BENCHMARKS, resolve
    from evalengine.benchmarks.load import benchmarks_in, make_item, read_rows

    if source.benchmarks_train == "all":
        every = BENCHMARKS.values()
        chosen = list(every) if data is None else benchmarks_in(data, every, train=True)
        if not chosen:
            raise UserError(
                f"{data} has no <benchmark>_train file, nor has its bench/: `benchmarks_train: all` reads them (dpo.data is that "
                "where the study does not name it); check --data"
            )
    else:
        names = source.benchmarks_train
        chosen = resolve(names if isinstance(names, str) else ",".join(names))
    for benchmark in chosen:
        yield (
            benchmark,
            [make_item(row, benchmark.render) for row in read_rows(benchmark, data, train=True)],
        )


def _of_benchmarks(source: ChatSource, data: Path | None, seed: int) -> list[Asked]:
    """Train splits as conversations: the user says the context, the assistant the gold choice."""
    found = []
    for benchmark, items in train_items(source, data):
        some = [
            Asked(
                (
                    Message("user", item.contexts[item.gold]),
                    Message("assistant", item.continuations[item.gold]),
                ),
                benchmark.name,
                item.choices,
            )
            for item in items
        ]
        found += sample(some, source.limit, seed)
    return found


def sample(some: list[T], limit: int, seed: int) -> list[T]:
    """At most `limit` (0: all) of them, in their order."""
    if not limit or len(some) <= limit:
        return some
    kept = sorted(random.Random(seed).sample(range(len(some)), limit))
    return [some[i] for i in kept]


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


def encode(rendered: Sequence[Rendered], tokenizer: Tokenizer) -> list[Example]:
    examples = []
    for text, encoding in zip(rendered, tokenizer.encode_rendered([r.text for r in rendered]), strict=True):
        begins = np.array([start for start, _ in encoding.offsets], dtype=np.int64)
        learned = np.zeros(len(begins), dtype=bool)
        for start, end in text.learned:
            learned |= (begins >= start) & (begins < end)
        examples.append(Example(np.asarray(encoding.ids, dtype=np.uint32), learned))
    return examples


class PackedExamples:
    """The batches of a fine-tuning run: each step's conversations, packed into few rows by first fit."""

    def __init__(
        self, examples: list[Example], *, epochs: int, batch_examples: int, context: int, seed: int
    ) -> None:
        self.examples, self.batch_examples, self.context, self.seed = examples, batch_examples, context, seed
        self.steps_per_epoch = max(1, len(examples) // batch_examples)
        self.steps = epochs * self.steps_per_epoch

    def batch(self, step: int) -> Batch:
        epoch, within = divmod(step, self.steps_per_epoch)
        order = np.random.default_rng((self.seed, epoch)).permutation(len(self.examples))
        chosen = order[within * self.batch_examples : (within + 1) * self.batch_examples]
        shown = ", ".join(str(i) for i in sorted(chosen)[:8])
        return pack(
            [self.examples[i] for i in chosen],
            self.context,
            f"conversations {shown}{', ...' if len(chosen) > 8 else ''}",
        )


def pack(examples: Sequence[Example], context: int, contents: str) -> Batch:
    """Rows of at most `context` positions."""
    rows = first_fit([len(example.token_T) - 1 for example in examples], context)
    return lay_out([[examples[i] for i in row] for row in rows], contents)


def first_fit(needs: Sequence[int], room: int) -> list[list[int]]:
    """What each row holds: the longest first into the first row with room."""
    rows: list[list[int]] = []
    left: list[int] = []
    for i in sorted(range(len(needs)), key=lambda i: -needs[i]):
        place = next((r for r, free in enumerate(left) if free >= needs[i]), None)
        if place is None:
            rows.append([])
            left.append(room)
            place = len(rows) - 1
        rows[place].append(i)
        left[place] -= needs[i]
    return rows


def lay_out(rows: Sequence[Sequence[Example]], contents: str) -> Batch:
    """One example after another in each row; padding carries no loss."""
    width = max(sum(len(ids) - 1 for ids, _ in row) for row in rows)
    token = np.zeros((len(rows), width), np.int64)
    position = np.zeros((len(rows), width), np.int64)
    target = np.full((len(rows), width), IGNORE, np.int64)
    for r, row in enumerate(rows):
        at = 0
        for ids, learned in row:
            end = at + len(ids) - 1
            token[r, at:end], position[r, at:end] = ids[:-1], np.arange(len(ids) - 1)
            target[r, at:end] = np.where(learned[1:], ids[1:].astype(np.int64), IGNORE)
            at = end
        position[r, at:] = np.arange(width - at)
    return Batch(token, position, target, contents)
