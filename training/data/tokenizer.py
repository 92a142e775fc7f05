"""The study's tokenizer: byte-level BPE trained on its own sources, or one that exists.

One tokenizer serves every checkpoint of a study, so that scoring plans once. It adds `<|endoftext|>` in front
of every text by default: a document begins so in training too, and an empty context has a meaning.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from evalengine import files
from evalengine.errors import UserError
from evalengine.training.chat import END, SPECIAL, TEMPLATE

if TYPE_CHECKING:
    from tokenizers import Encoding
    from tokenizers import Tokenizer as RustTokenizer


class Tokenizer:
    """A fast tokenizer with the chat format's special tokens; `path` is its directory."""

    def __init__(self, path: Path) -> None:
        file = path / "tokenizer.json"
        if not file.is_file():
            raise UserError(f"{path} has no tokenizer.json: name the directory of a fast tokenizer")
        self.rust = _read(file)
        self.rust.no_truncation()
        self.rust.no_padding()
        self.path = path
        self.hash = hashlib.sha256(file.read_bytes()).hexdigest()[:16]
        missing = [token for token in SPECIAL if self.rust.token_to_id(token) is None]
        if missing:
            raise UserError(f"{path}: the tokenizer lacks {', '.join(missing)}; add them as special tokens")
        self.end: int = self.rust.token_to_id(END) or 0
        self.size = 1 + max(self.rust.get_vocab(with_added_tokens=True).values())  # ids may have gaps

    def encode_documents(self, texts: list[str]) -> list[np.ndarray]:
        """Token ids of plain texts, without the leading `<|endoftext|>`; special tokens inside a text stay text."""
        self.rust.encode_special_tokens = True
        return [
            np.asarray(e.ids, dtype=np.uint32)
            for e in self.rust.encode_batch_fast(texts, add_special_tokens=False)
        ]

    def encode_rendered(self, texts: list[str]) -> list[Encoding]:
        """Encodings (ids and offsets) of rendered conversations; here special tokens are what they say."""
        self.rust.encode_special_tokens = False
        return self.rust.encode_batch(texts, add_special_tokens=False)

    def decode(self, ids: Iterable[int]) -> str:
        return self.rust.decode(list(ids), skip_special_tokens=False)


def _read(file: Path) -> RustTokenizer:
    from tokenizers import Tokenizer as RustTokenizer

    try:
        return RustTokenizer.from_file(str(file))
    except Exception as error:  # the Rust library raises bare Exception
        raise UserError(f"{file} is not a tokenizer ({error}): write it again") from None


def train(texts: Iterable[str], vocab: int, path: Path) -> Tokenizer:
    """Trains byte-level BPE of `vocab` entries, special tokens and the 256 bytes included, and saves it in `path`."""
    from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, trainers
    from tokenizers import Tokenizer as RustTokenizer

    least = 256 + len(SPECIAL)
    if vocab < least:
        raise UserError(f"tokenizer.vocab is {vocab}: byte-level BPE needs at least {least}")
    rust = RustTokenizer(models.BPE())
    # Words keep their leading space; digits stand alone, so that numbers share tokens.
    split = Regex(r" ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")
    rust.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(split, "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    rust.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        min_frequency=2,
        show_progress=False,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    rust.train_from_iterator(texts, trainer)
    return _saved(rust, path)


def _saved(rust: RustTokenizer, path: Path) -> Tokenizer:
    """Writes tokenizer.json and tokenizer_config.json; `AutoTokenizer` reads the same tokenizer back."""
    from tokenizers import processors

    end = [(END, rust.token_to_id(END))]
    rust.post_processor = processors.TemplateProcessing(
        single=f"{END} $A", pair=f"{END} $A $B", special_tokens=end
    )
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END,
        "eos_token": END,
        "pad_token": END,
        "additional_special_tokens": list(SPECIAL[1:]),
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1_000_000_000,
        "chat_template": TEMPLATE,
    }
    files.write(path / "tokenizer_config.json", json.dumps(config, indent=2) + "\n")
    files.write(path / "tokenizer.json", rust.to_str(pretty=False))
    return Tokenizer(path)


def adopt(source: Path, path: Path) -> Tokenizer:
    """Copies an existing fast tokenizer to `path` and adds those of the chat format's special tokens that it lacks."""
    from tokenizers import AddedToken

    file = file_of(source)
    if not file.is_file():
        raise UserError(f"there is no tokenizer at {source}: name a directory with a tokenizer.json")
    rust = _read(file)
    rust.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    return _saved(rust, path)


def file_of(source: Path) -> Path:
    """Where a tokenizer lies that is adopted from a directory, or from its file."""
    return source / "tokenizer.json" if source.is_dir() else source
