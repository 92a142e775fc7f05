"""Loading a checkpoint's tokenizer, and seeing what it does to a text before anything is scored with it.

transformers 5 builds many tokenizers anew from their vocabulary, by the class that config.json names, and says nothing where
that class encodes texts otherwise than the file, or finds no file at all. Each such case is noticed here on a few probes.
Keys that its JSON files repeat are refused: the tokenizers library takes the last value without a word.
Cost: some milliseconds, and two more readings of tokenizer.json (0.1 to 0.5 s, and 0.3 s for 10 MB), once per tokenizer whose
plans are made.
"""

from __future__ import annotations

import contextlib
import itertools
from pathlib import Path
from typing import Any

from evalengine import console
from evalengine.checkpoints import Checkpoint, tokenizer_files
from evalengine.errors import UserError
from evalengine.untrusted import check_keys, reason

WORDS = ("no", "B", "42", "yes")
PROBES = (*WORDS, "The sun is up", "Question: Which one isn't it?\nAnswer: the moon, 384,400 km away.")
# On which normalisers and the rules that cut a text into words differ.
UNUSUAL = ("cafe\u0301 \ufb01ne", "He said: \"I'LL (not) go, 'so'.\"\n\n1. x-ray\t$5  #tag_a; 2024:\r\n  end")


def load_tokenizer(checkpoint: Checkpoint, trust_remote_code: bool) -> Any:
    """The tokenizer, without randomness. Raises UserError where it cannot be loaded, or not as its files say."""
    from transformers import AutoConfig, AutoTokenizer

    folder = checkpoint.tokenizer_folder
    files = tokenizer_files(folder)
    there = ", ".join(file.name for file in files)
    remote: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    try:
        for file in files:
            if file.suffix == ".json":
                check_keys(file)
        # An adapter's folder has no config.json, by which a tokenizer without tokenizer_class is known.
        if checkpoint.base is not None:
            remote["config"] = AutoConfig.from_pretrained(checkpoint.base, **remote)
        tokenizer = AutoTokenizer.from_pretrained(folder, **remote)
        tokenizer = as_the_file_says(tokenizer, checkpoint)
        model: Any = getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None)
        if getattr(model, "dropout", None):  # BPE dropout is for training: every call would give other tokens
            model.dropout = None
        known = knows_text(tokenizer)
        same = known and encodes_like_sentencepiece(tokenizer)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"{checkpoint.name} has no tokenizer that can be loaded ({reason(error)}); the folder has {there}: copy the"
            " tokenizer's files again, tokenizer.json above all"
        ) from None
    kind = type(tokenizer).__name__
    if not known:
        wanted = " or ".join(sorted(set(tokenizer.vocab_files_names.values())))
        raise UserError(
            f"{checkpoint.name}: its tokenizer has no vocabulary: transformers builds a {kind} from {wanted}, and the"
            f" folder has {there}; {MAKE_JSON}"
        )
    if not same:
        raise UserError(
            f"{checkpoint.name}: transformers makes a {kind} of {Path(tokenizer.vocab_file).name} that encodes texts"
            f" otherwise than sentencepiece does with this file; {MAKE_JSON}"
        )
    return tokenizer


MAKE_JSON = (
    "put the tokenizer's tokenizer.json into the folder, or make one: AutoTokenizer.from_pretrained(FOLDER)"
    ".save_pretrained(FOLDER) with transformers 4"
)


def ids_of(tokenizer: Any, texts: list[str], special: bool | None = None) -> list[list[int]]:
    """Token ids of each text as the tokenizer gives them; `special` None leaves special tokens to its default."""
    kwargs = {} if special is None else {"add_special_tokens": special}
    ids: list[list[int]] = tokenizer(texts, return_attention_mask=False, verbose=False, **kwargs)["input_ids"]
    return ids


def appended(tokenizer: Any) -> list[int]:
    """What a tokenizer appends to every text: the last ids that all probes share and none has without special tokens."""
    own = {id for ids in ids_of(tokenizer, list(PROBES), special=False) for id in ids}
    suffix: list[int] = []
    for last in zip(*(reversed(ids) for ids in ids_of(tokenizer, list(PROBES))), strict=False):
        if len(set(last)) > 1 or last[0] in own:
            break
        suffix.insert(0, last[0])
    return suffix


def as_the_file_says(tokenizer: Any, checkpoint: Checkpoint) -> Any:
    """The tokenizer, or tokenizer.json's own where transformers' class makes other tokens of its vocabulary."""
    from transformers import PreTrainedTokenizerFast

    kind = type(tokenizer)
    rebuilt = issubclass(kind, PreTrainedTokenizerFast) and kind is not PreTrainedTokenizerFast
    if not rebuilt or not kind.__module__.startswith("transformers."):
        return tokenizer
    if not (checkpoint.tokenizer_folder / "tokenizer.json").is_file():
        return tokenizer
    own, probes = PreTrainedTokenizerFast.from_pretrained(checkpoint.tokenizer_folder), [*PROBES, *UNUSUAL]
    expected = ids_of(own, probes, special=False)
    with contextlib.suppress(Exception):  # such as an <unk> that the vocabulary does not have
        if ids_of(tokenizer, probes, special=False) == expected:
            return tokenizer
    console.warn(
        f"{checkpoint.name}: transformers' {type(tokenizer).__name__} encodes texts otherwise than its tokenizer.json:"
        " tokenizer.json is used as it is"
    )
    return own


def knows_text(tokenizer: Any) -> bool:
    """Whether it tells words apart: where its files are missing, transformers makes a tokenizer of special tokens alone."""

    def encodings(texts: list[str]) -> set[tuple[int, ...]]:
        return {tuple(ids) for ids in ids_of(tokenizer, texts, special=False)}

    if len(encodings(list(WORDS))) > 1:
        return True
    own = (tokenizer.decode([id]).strip() for id in sorted(tokenizer.get_vocab().values()))
    words = list(itertools.islice(filter(str.isalnum, own), 100))  # it may know no English
    return len(words) > 1 and len(encodings(words)) > 1


def encodes_like_sentencepiece(tokenizer: Any) -> bool:
    """Whether a tokenizer that was made of a sentencepiece file cuts the probes into the pieces that sentencepiece does.

    Pieces and not ids, which some families shift. True where there is no such file, or tokenizer.json is there too.
    """
    file = Path(getattr(tokenizer, "vocab_file", None) or "")
    if file.suffix not in (".model", ".spm") or file.with_name("tokenizer.json").is_file():
        return True
    from sentencepiece import SentencePieceProcessor

    processor = SentencePieceProcessor()
    try:
        processor.load(str(file))
    except RuntimeError:
        return True  # a tiktoken file by a name that sentencepiece uses, too
    unknown = {processor.id_to_piece(processor.unk_id()), tokenizer.unk_token}
    for probe, ids in zip(PROBES, ids_of(tokenizer, list(PROBES), special=False), strict=True):
        theirs = [processor.id_to_piece(id) for id in processor.encode(probe)]
        if [t for t in tokenizer.convert_ids_to_tokens(ids) if t not in unknown] != [
            t for t in theirs if t not in unknown
        ]:
            return False
    return True
