"""Fine-tuning data: conversations, tokenised with the mask of what the assistant says, packed into rows.

Dims: B rows, T positions.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from evalengine import records
from evalengine.errors import UserError
from evalengine.files import atomic
from evalengine.training.chat import Conversation, Message, render
from evalengine.training.loss import IGNORE
from evalengine.training.rows import Batch
from evalengine.training.sources import hub_rows
from evalengine.training.study import ChatSource, SftData, SourceSpec
from evalengine.training.tokenizer import Tokenizer


def read(sft: SftData, data: Path | None, seed: int) -> list[Conversation]:
    """The conversations of the study's fine-tuning data, in the file's order, their instructions changed as it says."""
    found: list[Conversation] = []
    for source in sft.data:
        if source.benchmarks_train:
            found += _of_benchmarks(source, data, seed)
            continue
        some = [Conversation.parse(record, where) for where, record in _records(source, data)]
        found += _sample(some, source.limit, seed)
    if not found:
        raise UserError("the fine-tuning data holds no conversation: check sft.data")
    return change_instructions(found, sft.instructions, seed)


def _records(source: ChatSource, data: Path | None) -> Iterator[tuple[str, object]]:
    if source.hub:
        spec = SourceSpec(hub=source.hub, config=source.config, split=source.split)
        yield from ((f"{source.hub}, row {number}", row) for number, row in enumerate(hub_rows(spec), 1))
        return
    if data is None:
        raise UserError(
            f"the fine-tuning data reads {source.path}: give the folder that holds it with --data DIR"
        )
    file = data / source.path
    if not file.is_file():
        raise UserError(f"there is no fine-tuning data at {file}: check sft.data and --data")
    yield from records.parquet(file, "messages") if file.suffix == ".parquet" else records.jsonl(file)


def bench_folder(data: Path | None) -> Path | None:
    """Where a data folder keeps its benchmark files: in bench/, or in itself."""
    return data if data is None or not (data / "bench").is_dir() else data / "bench"


def _of_benchmarks(source: ChatSource, data: Path | None, seed: int) -> list[Conversation]:
    """Train splits as conversations: the user says the context, the assistant the gold choice."""
    from evalengine.benchmarks import BENCHMARKS, resolve
    from evalengine.benchmarks.load import data_file, make_item, read_rows

    folder = bench_folder(data)
    if source.benchmarks_train == "all":
        chosen = [b for b in BENCHMARKS.values() if folder is None or data_file(b, folder, train=True)]
        if not chosen:
            raise UserError(f"{folder} has no <benchmark>_train file to make conversations of: check --data")
    else:
        names = source.benchmarks_train
        chosen = resolve(names if isinstance(names, str) else ",".join(names))
    found = []
    for benchmark in chosen:
        items = [make_item(row, benchmark.render) for row in read_rows(benchmark, folder, train=True)]
        pairs = [(item.contexts[item.gold], item.continuations[item.gold]) for item in items]
        some = [Conversation((Message("user", asked), Message("assistant", gold))) for asked, gold in pairs]
        found += _sample(some, source.limit, seed)
    return found


def _sample(conversations: list[Conversation], limit: int, seed: int) -> list[Conversation]:
    if not limit or len(conversations) <= limit:
        return conversations
    kept = sorted(random.Random(seed).sample(range(len(conversations)), limit))
    return [conversations[i] for i in kept]


def change_instructions(conversations: list[Conversation], how: str, seed: int) -> list[Conversation]:
    """`kept`; `emptied`: every user and system message is empty; `shuffled`: each conversation gets another's."""
    if how == "kept":
        return conversations
    if how == "emptied":
        donors: Sequence[Conversation | None] = [None] * len(conversations)
    else:
        order = list(range(len(conversations)))
        random.Random(seed).shuffle(order)
        # one cycle: never its own
        taken = {place: order[(i + 1) % len(order)] for i, place in enumerate(order)}
        donors = [conversations[taken[i]] for i in range(len(conversations))]
    return [_with_instructions(own, donor) for own, donor in zip(conversations, donors, strict=True)]


def _with_instructions(own: Conversation, donor: Conversation | None) -> Conversation:
    said = iter([m.content for m in donor.messages if m.role != "assistant"] if donor else [])
    messages = (m if m.role == "assistant" else Message(m.role, next(said, "")) for m in own.messages)
    return Conversation(tuple(messages))


@dataclass(frozen=True)
class Examples:
    """Tokenised conversations end to end: example i is tokens[start_M[i] : start_M[i + 1]]."""

    token_N: np.ndarray  # uint32
    learned_N: np.ndarray  # bool: the token carries loss when it is predicted
    start_M: np.ndarray  # int64, one more than examples

    def __len__(self) -> int:
        return len(self.start_M) - 1

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        cut = slice(self.start_M[index], self.start_M[index + 1])
        return self.token_N[cut], self.learned_N[cut]

    def keep(self, indices: Iterable[int]) -> Examples:
        return _joined([self[i] for i in indices])

    def within(self, context: int) -> Examples:
        """Every example cut at `context` + 1 tokens; one that then has nothing to learn is dropped."""
        pairs = (self[i] for i in range(len(self)))
        cut = [(ids[: context + 1], learned[: context + 1]) for ids, learned in pairs]
        cut = [(ids, learned) for ids, learned in cut if learned.any()]
        if not cut:
            raise UserError(
                f"no conversation has a response within the context of {context} tokens: raise `context`"
            )
        return _joined(cut)

    def digest(self) -> str:
        return f"{zlib.crc32(self.learned_N.tobytes(), zlib.crc32(self.token_N.tobytes())):08x}"

    def save(self, path: Path) -> None:
        with atomic(path) as temporary, temporary.open("wb") as handle:
            np.savez(handle, token=self.token_N, learned=self.learned_N, start=self.start_M)

    @staticmethod
    def load(path: Path) -> Examples:
        try:
            with np.load(path) as saved:
                return Examples(saved["token"], saved["learned"], saved["start"])
        except Exception:  # zip, NumPy's headers and zlib each raise their own
            raise UserError(f"{path} is damaged: delete it and run again to rebuild it") from None


def tokenise(conversations: Sequence[Conversation], tokenizer: Tokenizer) -> Examples:
    """Encodes conversations and marks the tokens that begin inside what the assistant says."""
    rendered = [render(conversation.messages) for conversation in conversations]
    kept = []
    for text, encoding in zip(rendered, tokenizer.encode_rendered([r.text for r in rendered]), strict=True):
        begins = np.array([start for start, _ in encoding.offsets], dtype=np.int64)
        learned = np.zeros(len(begins), dtype=bool)
        for start, end in text.learned:
            learned |= (begins >= start) & (begins < end)
        kept.append((np.asarray(encoding.ids, dtype=np.uint32), learned))
    return _joined(kept)


def _joined(pairs: list[tuple[np.ndarray, np.ndarray]]) -> Examples:
    start = np.concatenate(([0], np.cumsum([len(ids) for ids, _ in pairs]))).astype(np.int64)
    return Examples(
        np.concatenate([ids for ids, _ in pairs]), np.concatenate([mask for _, mask in pairs]), start
    )


class PackedExamples:
    """The batches of a fine-tuning run: each step's conversations, packed into few rows by first fit."""

    def __init__(
        self, examples: Examples, *, epochs: int, batch_examples: int, context: int, seed: int
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


def pack(examples: Sequence[tuple[np.ndarray, np.ndarray]], context: int, contents: str) -> Batch:
    """Rows of `context` positions, longest example first into the first row with room; padding carries no loss."""
    rows: list[list[tuple[np.ndarray, np.ndarray]]] = []
    room: list[int] = []
    for ids, learned in sorted(examples, key=lambda e: -len(e[0])):
        need = len(ids) - 1
        place = next((i for i, free in enumerate(room) if free >= need), None)
        if place is None:
            rows.append([])
            room.append(context)
            place = len(rows) - 1
        rows[place].append((ids, learned))
        room[place] -= need
    width = context - min(room)
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
