"""Items -> token sequences: what to run for a tokenizer, whatever runs it.

Done once per (tokenizer, window, benchmark, options) and shared by every checkpoint and every backend: a backend gets token
ids, never text. The rule is lm-evaluation-harness's: trailing white space of the context moves to the continuation; the
targets are encode(context + continuation)[len(encode(context)):], and the model is fed encode(context) and the targets; the
tokenizer's own default decides about BOS; an empty context is BOS (else EOS), and one of white space alone is what the tokenizer
puts before every text (else the same); contexts are truncated from the left to what the window leaves them, and a continuation
that is longer than the window itself is refused. Where a merge across the border would leave no target, the last token of the
whole is the target.

Of a conversation (chat.py) all that the template writes before the reply is the context.

One exception: what a tokenizer appends to every text, such as EOS, is left out. It would end each context before the
choice, and the choice's last target would be EOS.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np

from evalengine.errors import UserError
from evalengine.plan.tokenizer import appended, ids_of

if TYPE_CHECKING:
    from evalengine.benchmarks import ItemSet
    from evalengine.plan.chat import ChatFormat

T = TypeVar("T")
OnProgress = Callable[[float], None]  # called with numbers of sequences that are scored
DEFAULT_WINDOW = 2048  # tokens, where neither the model nor its tokenizer states one
CHUNK = 20_000  # texts per call of the tokenizer: bounds the memory of its Encoding objects


class SequenceTooLarge(UserError):
    """One sequence alone is more than the memory holds; `sequence` is its number."""

    sequence: int = 0


class Sequences(NamedTuple):
    """Distinct sequences to score, ragged: sequence s is token_S[offset[s]:offset[s+1]], its targets start at `start[s]`.

    A model is fed all but the last token; the target at index i of a sequence is predicted from its row i - 1.
    """

    token_S: np.ndarray  # int32, flat
    offset: np.ndarray  # int64, (n + 1)
    start: np.ndarray  # int32, (n), >= 1

    @classmethod
    def of(cls, tokens: Sequence[np.ndarray], starts: Sequence[int] | np.ndarray) -> Sequences:
        """A sequence for each array of token ids, whose targets begin at its start."""
        offset = np.concatenate([[0], np.cumsum([len(ids) for ids in tokens])]).astype(np.int64)
        flat = np.concatenate([np.zeros(0, np.int32), *tokens])
        return cls(flat, offset, np.asarray(starts, dtype=np.int32))

    def __len__(self) -> int:  # type: ignore[override]
        return len(self.start)

    def tokens(self, s: int) -> np.ndarray:
        return self.token_S[self.offset[s] : self.offset[s + 1]]

    def take(self, index: np.ndarray) -> Sequences:
        """Some of the sequences, as sequences of their own."""
        return Sequences.of([self.tokens(s) for s in index], self.start[index])

    def check_ids(self, rows: int) -> None:
        """Raises UserError where a token has no row in an embedding of `rows` rows."""
        largest = int(self.token_S.max(initial=-1))
        if largest >= rows:
            raise UserError(
                f"the tokenizer gives id {largest}, the embedding has {rows} rows (0 to {rows - 1}): they do not belong"
                " together; copy the tokenizer that the model was trained with, or resize the model's embedding"
            )


class Scores(NamedTuple):
    """Per sequence: summed log-likelihood of its targets in nats (float64), and whether each was the argmax."""

    loglik: np.ndarray
    greedy: np.ndarray


class Encoded(NamedTuple):
    """A benchmark, encoded. Choices are flat; item i owns choices choice_offset[i]:choice_offset[i+1]."""

    sequences: Sequences
    sequence_C: np.ndarray  # int32: the sequence that scores each choice
    uncond_C: np.ndarray | None  # int32: the same without context (--pmi)
    choice_offset: np.ndarray  # int64, (items + 1)
    tokens_C: np.ndarray  # int32: length of the continuation in tokens
    chars_C: np.ndarray  # int32: in characters, without the delimiter
    bytes_C: np.ndarray  # int32: in UTF-8 bytes, without the delimiter
    item: list[str]
    gold: np.ndarray  # int16
    truncated: int  # items with a context that was cut to the window
    notes: tuple[str, ...] = ()  # what the user should know of the tokenizer


def same_tokens(one: Encoded, other: Encoded) -> bool:
    """Whether two tokenizers made the same sequences of the same items."""

    def arrays(made: Encoded) -> list[np.ndarray]:
        return [*made.sequences, made.sequence_C, *([] if made.uncond_C is None else [made.uncond_C])]

    return one.truncated == other.truncated and all(map(np.array_equal, arrays(one), arrays(other)))


class Encoder:
    """A tokenizer with the encoding rule. `window` is the model's, in tokens fed at once; 0: the tokenizer's, else 2048."""

    def __init__(self, tokenizer: Any, window: int) -> None:
        limit = getattr(tokenizer, "model_max_length", None)
        own = int(limit) if isinstance(limit, int) and 0 < limit < 10**9 else DEFAULT_WINDOW
        self.tokenizer, self.window = tokenizer, window or own
        prefix = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        self.prefix: int | None = prefix
        self._prefix_text: str | None = tokenizer.decode([prefix]) if prefix is not None else None
        self.suffix = appended(tokenizer)

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know of the tokenizer, in sentences."""
        if not self.suffix:
            return ()
        shown = "".join(self.tokenizer.convert_ids_to_tokens(self.suffix))
        return (f"its tokenizer appends {shown} to every text: left out, since it would end each context",)

    def texts(self, texts: list[str], special: bool | None = None) -> list[list[int]]:
        """Token ids of each text, without what the tokenizer appends.

        `special` None leaves BOS to the tokenizer, but never doubles one that the text states.
        """
        if special is None and self._prefix_text:
            states = [text.startswith(self._prefix_text) for text in texts]
            if any(states):
                bare = iter(
                    self.texts([text for text, s in zip(texts, states, strict=True) if s], special=False)
                )
                rest = iter(self.texts([text for text, s in zip(texts, states, strict=True) if not s]))
                return [next(bare if s else rest) for s in states]
        out: list[list[int]] = []
        for at in range(0, len(texts), CHUNK):
            out.extend(ids_of(self.tokenizer, texts[at : at + CHUNK], special))
        if special is not False and self.suffix:
            n = len(self.suffix)
            out = [ids[:-n] if ids[-n:] == self.suffix else ids for ids in out]
        return out

    def pairs(self, pairs: list[tuple[str, str]]) -> list[tuple[list[int], int]]:
        """(context, continuation) -> (tokens, index of the first target), before truncation."""
        moved = [(context != "", *move_space(context, continuation)) for context, continuation in pairs]
        texts = sorted(
            {text for given, context, rest in moved if given for text in (context, context + rest)}
        )
        bare = sorted({rest for given, _, rest in moved if not given})
        ids_of_text = dict(zip(texts, self.texts(texts), strict=True))
        bare_ids = dict(zip(bare, self.texts(bare, special=False), strict=True))
        out = []
        for given, context, continuation in moved:
            if not given:
                ids, start = bare_ids[continuation], 0
            else:  # if of white space alone, by what the tokenizer puts before every text
                ids, above = ids_of_text[context + continuation], ids_of_text[context]
                start = len(above)
                if start < len(ids):
                    ids = above + ids[start:]  # not the whole: its border may have merged differently
                elif context:
                    start = len(ids) - 1
                else:
                    ids = []
            if not context and not start and len(ids) > 1 and ids[0] == self.prefix:
                start = 1
            if not ids:
                raise UserError(
                    f"the tokenizer turns {continuation[:40]!r} into no tokens: it cannot score this benchmark"
                )
            if start < 1:
                ids, start = [self.required_prefix(), *ids], 1
            out.append((ids, start))
        return out

    def required_prefix(self) -> int:
        """BOS, else EOS: what stands before a text without context. Raises UserError where the tokenizer has neither."""
        if self.prefix is None:
            raise UserError(
                "an empty context needs a BOS or EOS token, and the tokenizer has neither: add one to its config"
            )
        return self.prefix


def move_space(context: str, continuation: str) -> tuple[str, str]:
    bare = context.rstrip()
    return bare, context[len(bare) :] + continuation


def encode(items: ItemSet, encoder: Encoder, *, pmi: bool = False, chat: ChatFormat | None = None) -> Encoded:
    """Encodes every choice of every item; equal (tokens, targets) become one sequence. chat: as replies in conversations.

    pmi: also every continuation behind an empty context, whose log-likelihood acc_pmi subtracts (Holtzman et al. 2021,
    arXiv 2104.08315), as the reference's acc_mutual_info does. Where the contexts and not the continuations differ
    (winogrande) the difference cancels. In a conversation the empty context is an empty message of the user.

    Raises UserError for a continuation longer than the window, where the reference stops, too: its score would be that of its end
    alone.
    """
    nothing = ""
    if chat is not None:
        items, nothing = chat.conversations(items)
    pairs: dict[tuple[str, str], int] = {}
    pair_C, uncond_C = [], []
    for item in items.items:
        for context, continuation in zip(item.contexts, item.continuations, strict=True):
            pair_C.append(pairs.setdefault((context, continuation), len(pairs)))
            if pmi:
                uncond_C.append(pairs.setdefault((nothing, continuation), len(pairs)))
    encoded = encoder.pairs(list(pairs))
    per_item = np.asarray([len(item.choices) for item in items.items], dtype=np.int64)
    offset = np.concatenate([[0], np.cumsum(per_item)]).astype(np.int64)
    pair = np.asarray(pair_C, dtype=np.int64)
    length_P = np.asarray([len(ids) - start for ids, start in encoded], dtype=np.int32)
    for of_choices in (pair, np.asarray(uncond_C, dtype=np.int64)):
        beyond = np.flatnonzero(length_P[of_choices] > encoder.window)
        if len(beyond):
            item = items.items[int(np.searchsorted(offset, beyond[0], side="right")) - 1]
            raise UserError(
                f"item {item.id} of {items.benchmark} has a choice of {length_P[of_choices[beyond[0]]]} tokens, and the model's"
                f" window is {encoder.window}: its score would be that of its end alone; leave the item out of the data, or the"
                " benchmark out of --benchmarks"
            )
    distinct = merge(encoded, encoder.window)
    cut_C = distinct.truncated_P[pair]
    choices = [choice for item in items.items for choice in item.choices]
    return Encoded(
        sequences=distinct.sequences,
        sequence_C=distinct.sequence_P[pair],
        uncond_C=distinct.sequence_P[np.asarray(uncond_C)] if pmi else None,
        choice_offset=offset,
        tokens_C=length_P[pair],
        chars_C=np.asarray([len(c) for c in choices], dtype=np.int32),
        bytes_C=np.asarray([len(c.encode("utf-8", "surrogatepass")) for c in choices], dtype=np.int32),
        item=[item.id for item in items.items],
        gold=np.asarray([item.gold for item in items.items], dtype=np.int16),
        truncated=int(np.logical_or.reduceat(cut_C, offset[:-1]).sum()) if len(per_item) else 0,
        notes=encoder.notes,
    )


def overlapping(encoded: Encoded) -> list[str]:
    """The items of which one choice's tokens begin another's, or equal them: its probability then holds the other's."""
    tokens = [encoded.sequences.tokens(s).astype(">u4").tobytes() for s in range(len(encoded.sequences))]
    found = []
    for item, (first, end) in zip(encoded.item, itertools.pairwise(encoded.choice_offset), strict=True):
        mine = sorted(tokens[s] for s in encoded.sequence_C[first:end])
        if any(longer.startswith(begin) for begin, longer in itertools.pairwise(mine)):
            found.append(item)
    return found


class Distinct(NamedTuple):
    """Pairs as distinct sequences: pair p is scored by sequence_P[p]."""

    sequences: Sequences
    sequence_P: np.ndarray  # int32
    truncated_P: np.ndarray  # bool: longer than the window


def merge(encoded: list[tuple[list[int], int]], window: int) -> Distinct:
    """Cuts (tokens, index of the first target) to the window from the left, and merges equal ones."""
    known: dict[tuple[bytes, int], int] = {}
    tokens: list[np.ndarray] = []
    starts: list[int] = []
    sequence_P, truncated_P = [], []
    for ids, start in encoded:
        cut = max(0, len(ids) - window - 1)
        array = np.asarray(ids[cut:], dtype=np.int32)
        first = max(1, start - cut)
        key = (array.tobytes(), first)
        if key not in known:
            known[key] = len(tokens)
            tokens.append(array)
            starts.append(first)
        sequence_P.append(known[key])
        truncated_P.append(cut > 0)
    return Distinct(
        Sequences.of(tokens, starts),
        np.asarray(sequence_P, dtype=np.int32),
        np.asarray(truncated_P, dtype=bool),
    )


def window_of(config: Any) -> int:
    """Tokens that a model takes at once by its configuration; 0 where that states no limit."""
    inner = getattr(config, "text_config", None) or config
    for name in ("n_positions", "max_position_embeddings", "n_ctx"):
        value = getattr(inner, name, None)
        if isinstance(value, int) and value > 0:
            return value
    return 0


def scores_of(
    score: Callable[[Sequences, OnProgress | None], T],
    encoded: Encoded,
    benchmark: str,
    progress: OnProgress | None = None,
) -> T:
    """What `score` makes of a benchmark's sequences. Raises UserError, with the item's name where one alone is too large."""
    try:
        return score(encoded.sequences, progress)
    except SequenceTooLarge as error:
        choices = np.flatnonzero(encoded.sequence_C == error.sequence)
        if not len(choices):
            raise
        item = encoded.item[int(np.searchsorted(encoded.choice_offset, choices[0], side="right")) - 1]
        raise UserError(f"item {item} of {benchmark}: {error}") from None
