"""Plans: a benchmark encoded for a tokenizer, made once and shared by every checkpoint that uses it.

Kept in memory for the run, and on disk for the next one, under the hash of everything that decides the tokens: the tokenizer's
files and library, the model's window, the benchmark's version, variant and data, and the options. The cache folder is
plans/ in EVALENGINE_CACHE, else in ~/.cache/evalengine; a damaged or unwritable cache only costs time.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import json
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from evalengine import console
from evalengine.arrow import array_of, numbers
from evalengine.checkpoints import Checkpoint
from evalengine.errors import UserError
from evalengine.files import cache_root
from evalengine.plan.chat import ChatFormat
from evalengine.plan.encoding import Encoded, Encoder, Sequences, encode, window_of
from evalengine.plan.tokenizer import load_tokenizer
from evalengine.store import sealed
from evalengine.untrusted import reason

if TYPE_CHECKING:
    from evalengine.benchmarks import ItemSet

PLAN_VERSION = "7"
NOT_ARRAYS = ("sequences", "item", "truncated", "notes")  # fields of Encoded that are kept otherwise
version = functools.cache(importlib.metadata.version)


class Planner:
    """Encodes item sets for checkpoints, each once per tokenizer and window. A context: what was begun ends with it."""

    def __init__(self, trust_remote_code: bool = False, pmi: bool = False, chat: bool = False) -> None:
        self._trust, self._pmi, self._chat = trust_remote_code, pmi, chat
        self._windows: dict[Path, int] = {}  # by checkpoint
        self._encoders: dict[tuple[str, int], Encoder] = {}  # by tokenizer and window
        self._formats: dict[tuple[str, str], ChatFormat] = {}  # by tokenizer and chat template
        self._plans: dict[str, Encoded] = {}
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="tokenising")
        self._begun: dict[str, Future[Encoded]] = {}

    def __enter__(self) -> Planner:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
        for chat in self._formats.values():
            chat.close()

    def key(self, checkpoint: Checkpoint, items: ItemSet) -> str:
        """What decides the tokens, as one hash. Raises UserError where config.json or the tokenizer cannot be used."""
        ids = hashlib.sha256("\0".join(item.id for item in items.items).encode()).hexdigest()
        software = PLAN_VERSION, version("transformers"), version("tokenizers"), self._trust
        model = checkpoint.tokenizer_hash, self.window(checkpoint)
        asked = items.benchmark, items.version, items.variant, items.data_hash, self._pmi, ids
        chat = [checkpoint.chat_template_hash] if self._chat else []
        text = "\0".join(map(str, (*software, *model, *asked, *chat)))
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def begin(self, checkpoint: Checkpoint, item_sets: Iterable[ItemSet]) -> None:
        """Encodes in the background what is not there yet, in this order: the tokenizer's own work leaves Python to others.

        The tokenizer is loaded here and now, since two threads that import parts of transformers can meet half-made modules.
        What fails is raised where the plan is asked for.
        """
        with contextlib.suppress(UserError):
            for items in item_sets:
                key = self.key(checkpoint, items)
                if key not in self._begun and not self._known(key, items):
                    self._begun[key] = self._pool.submit(self._encoding(checkpoint), items)

    def plan(self, checkpoint: Checkpoint, items: ItemSet) -> Encoded:
        """The encoded benchmark. Raises UserError where the tokenizer or its chat template cannot be used."""
        key = self.key(checkpoint, items)
        begun = self._begun.pop(key, None)
        if begun is not None or not self._known(key, items):
            made = self._encoding(checkpoint)(items) if begun is None else begun.result()
            with contextlib.suppress(OSError):
                write_plan(cached(key), made)
            self._plans[key] = made
        return self._plans[key]

    def _encoding(self, checkpoint: Checkpoint) -> Callable[[ItemSet], Encoded]:
        """`encode` with what a checkpoint brings, loaded here and now."""
        chat = self._format(checkpoint)
        return functools.partial(encode, encoder=self._encoder(checkpoint), pmi=self._pmi, chat=chat)

    def tokens(self, checkpoint: Checkpoint) -> dict[str, int]:
        """The tokenizer's vocabulary: ids by token."""
        vocabulary: dict[str, int] = self._encoder(checkpoint).tokenizer.get_vocab()
        return vocabulary

    def vocabulary(self, checkpoint: Checkpoint) -> int:
        """How many ids the tokenizer has; a model may have more logits than these."""
        return max(self.tokens(checkpoint).values()) + 1

    def _known(self, key: str, items: ItemSet) -> bool:
        """Whether a plan is in memory, where it is put if the cache holds it."""
        if key not in self._plans and (found := read_plan(cached(key), items)) is not None:
            self._plans[key] = found
        return key in self._plans

    def _encoder(self, checkpoint: Checkpoint) -> Encoder:
        key = (checkpoint.tokenizer_hash, self.window(checkpoint))
        if key not in self._encoders:
            self._encoders[key] = Encoder(load_tokenizer(checkpoint, self._trust), key[1])
        return self._encoders[key]

    def _format(self, checkpoint: Checkpoint) -> ChatFormat | None:
        if not self._chat:
            return None
        key = (checkpoint.tokenizer_hash, checkpoint.chat_template_hash)
        if key not in self._formats:
            self._formats[key] = ChatFormat(checkpoint.name, self._encoder(checkpoint).tokenizer)
        return self._formats[key]

    def window(self, checkpoint: Checkpoint) -> int:
        """Tokens that its model takes at once, 0 where its configuration states no limit. Raises UserError."""
        if checkpoint.path not in self._windows:
            self._windows[checkpoint.path] = window(checkpoint, self._trust)
        return self._windows[checkpoint.path]


def cached(key: str) -> Path:
    """Where the cache keeps a plan."""
    return cache_root() / "plans" / f"{key}.arrow"


def window(checkpoint: Checkpoint, trust_remote_code: bool) -> int:
    """Tokens that a checkpoint's model takes at once, 0 where its configuration states no limit. Raises UserError."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(checkpoint.model_folder, trust_remote_code=trust_remote_code)
    except Exception as error:
        raise UserError(f"{checkpoint.name}: its config.json cannot be used: {reason(error)}") from None
    return window_of(config)


def write_plan(path: Path, plan: Encoded) -> None:
    """Ragged columns of different lengths become one row of lists."""
    import pyarrow as pa

    def list_of(values: np.ndarray | None) -> pa.Array:
        if values is None:
            return pa.nulls(1)
        ends = array_of(np.array([0, len(values)], np.int64))
        return pa.LargeListArray.from_arrays(ends, array_of(values))

    arrays = plan.sequences._asdict() | plan._asdict()
    table = pa.table({name: list_of(values) for name, values in arrays.items() if name not in NOT_ARRAYS})
    sealed.write(path, table, {"truncated": str(plan.truncated), "notes": json.dumps(plan.notes)})


def read_plan(path: Path, items: ItemSet) -> Encoded | None:
    """A cached plan, None where there is none or it is damaged."""
    try:
        table = sealed.read(path)
        metadata = table.schema.metadata or {}
        column = {name: table[name].chunk(0) for name in table.column_names}
        array: dict[str, Any] = {
            name: None if c.null_count else numbers(c.values) for name, c in column.items()
        }
        sequences = Sequences(array.pop("token_S"), array.pop("offset"), array.pop("start"))
        return Encoded(
            sequences=sequences,
            item=[item.id for item in items.items],
            truncated=int(metadata[b"truncated"]),
            notes=tuple(json.loads(metadata[b"notes"])),
            **array,
        )
    except sealed.Damaged:
        console.warn(f"the cached plan {path} was damaged: made again")
        return None
    except (OSError, KeyError, ValueError, TypeError, IndexError):
        return None
