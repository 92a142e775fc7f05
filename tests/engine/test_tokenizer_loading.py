"""What a tokenizer does to every text, and whether it is what its files say: against tokenizers and sentencepiece themselves."""

from __future__ import annotations

import importlib
import inspect
import io
import json
import pkgutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny_models
from evalengine import load
from evalengine.benchmarks import Item, ItemSet
from evalengine.checkpoints import Checkpoint, tokenizer_files
from evalengine.cli import main
from evalengine.errors import UserError
from evalengine.plan.encoding import Encoder, encode
from evalengine.plan.plans import load_tokenizer, read_plan, write_plan
from evalengine.plan.tokenizer import appended

TEXTS = ("Question: Which one isn't it?\nAnswer: the moon, 384,400 km away.", "no", "The sun rises")
PAIRS = [
    ("Question: which?\nAnswer:", " an ant in the sun"),
    ("A context with a trailing space ", "yes"),
    ("", " an empty context"),
    ("<s>A text that states its own BOS", " word"),
    ("<|endoftext|>A text that states its own BOS", " word"),
    ("café — 東京", " 🙂"),
]


def items_of(pairs: list[tuple[str, str]]) -> ItemSet:
    items = [Item(str(i), (c, c), (k, k + "s"), (k, k + "s"), 0) for i, (c, k) in enumerate(pairs)]
    return ItemSet("test", "Science", "1", None, items, "hash", len(items))


def fast(raw: Any, **special: str) -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=raw, **special)


def with_template(kind: str, single: str) -> Any:
    """One of the tiny tokenizers, with other tokens around a text."""
    from tokenizers import Tokenizer, processors

    plain = tiny_models.tokenizer(kind)
    raw = Tokenizer.from_str(plain.backend_tokenizer.to_str())
    tokens = [piece for piece in single.split() if piece != "$A"]
    raw.post_processor = processors.TemplateProcessing(
        single=single, special_tokens=[(token, raw.token_to_id(token)) for token in set(tokens)]
    )
    return fast(raw, eos_token=plain.eos_token, bos_token=plain.bos_token, unk_token=plain.unk_token)


def checkpoint(folder: Path, model_type: str = "llama", **files: Any) -> Checkpoint:
    """A folder with a tokenizer's files and no weights; `tokenizer_json` is written as tokenizer.json."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    for name, content in files.items():
        path = folder / name.replace("_json", ".json").replace("_model", ".model").replace("_bpe", ".bpe")
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.write_text(content if isinstance(content, str) else json.dumps(content))
    return Checkpoint(folder, folder.name, None, None, None)


# What is appended


@pytest.mark.parametrize(
    ("kind", "single", "suffix"),
    [
        ("byte_level", "$A <|endoftext|>", ["<|endoftext|>"]),
        ("sentencepiece_like", "<s> $A </s>", ["</s>"]),
        ("sentencepiece_like", "<s> $A </s> <unk>", ["</s>", "<unk>"]),
        ("sentencepiece_like", "<s> $A", []),
        ("byte_level", "$A", []),
    ],
)
def test_what_is_appended_is_left_out_and_nothing_else_changes(
    kind: str, single: str, suffix: list[str]
) -> None:
    tokenizer = with_template(kind, single)
    front = single.split(" $A")[0] + " $A" if "<s>" in single else "$A"
    without = Encoder(with_template(kind, front), 512)
    encoder = Encoder(tokenizer, 512)
    assert appended(tokenizer) == tokenizer.convert_tokens_to_ids(suffix)
    assert encoder.pairs(PAIRS) == without.pairs(PAIRS)
    texts = [text for pair in PAIRS for text in pair]
    assert encoder.texts(texts, special=True) == without.texts(texts, special=True)
    assert bool(encoder.notes) == bool(suffix) and all("".join(suffix) in note for note in encoder.notes)


def test_llama_with_add_eos_token_and_the_slow_byt5_append_eos() -> None:
    from transformers import ByT5Tokenizer, LlamaTokenizer

    model = json.loads(tiny_models.tokenizer("sentencepiece_like").backend_tokenizer.to_str())["model"]
    merges = [tuple(merge) for merge in model["merges"]]
    llama = LlamaTokenizer(vocab=model["vocab"], merges=merges, add_eos_token=True)
    for tokenizer in (llama, ByT5Tokenizer()):
        assert tokenizer("no").input_ids[-1] == tokenizer.eos_token_id
        assert appended(tokenizer) == [tokenizer.eos_token_id]
        (ids,) = Encoder(tokenizer, 64).texts(["no"])
        assert ids == tokenizer("no", add_special_tokens=False).input_ids


def test_a_closed_vocabulary_keeps_its_unknown_tokens(tmp_path: Path) -> None:
    """All probes are <unk> here, which is neither a suffix nor the sign of an empty tokenizer."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    raw = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1, "cat": 2, "dog": 3}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    assert appended(fast(raw)) == []
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>"}
    place = checkpoint(tmp_path / "closed", tokenizer_json=raw.to_str(), tokenizer_config_json=config)
    assert Encoder(load_tokenizer(place, False), 8).texts(["cat dog bird"]) == [[2, 3, 0]]


def test_scores_are_those_without_eos_and_the_closing_table_says_so(
    tmp_path: Path, small_world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """boolq's choices are one token: with EOS behind them every choice had the score of EOS."""
    paths = [tiny_models.save(tmp_path / name, "llama") for name in ("with", "without")]
    with_template("byte_level", "$A <|endoftext|>").save_pretrained(paths[0])
    for _ in range(2):  # the second time, plans come from the cache
        store = tmp_path / "store"
        args = [
            "score",
            *map(str, paths),
            "--data",
            str(small_world / "bench"),
            "--benchmarks",
            "boolq",
            "--limit",
            "8",
            "--device",
            "cpu",
            "--out",
            str(store),
            "--fresh",
            "--json",
        ]
        assert main(args) == 0
        one, two = json.loads(capsys.readouterr().out)["checkpoints"]
        assert any("appends <|endoftext|> to every text" in note for note in one["notes"])
        assert not any("appends" in note for note in two["notes"])
        rows: dict[str, list[Any]] = {"with": [], "without": []}
        for row in load(store).to_pylist():
            rows[row["checkpoint"]].append((row["item"], row["loglik"], row["tokens"]))
        assert rows["with"] == rows["without"]
        assert all(abs(loglik[0] - loglik[1]) > 1e-3 for _, loglik, _ in rows["with"])


def test_a_cached_plan_keeps_its_notes(tmp_path: Path) -> None:
    items = items_of(PAIRS[:2])
    plan = encode(items, Encoder(with_template("byte_level", "$A <|endoftext|>"), 64))
    write_plan(tmp_path / "plan.arrow", plan)
    again = read_plan(tmp_path / "plan.arrow", items)
    assert again is not None and again.notes == plan.notes and len(plan.notes) == 1


def test_an_id_beyond_the_embedding_is_one_sentence() -> None:
    tokenizer = tiny_models.tokenizer("byte_level")
    sequences = encode(items_of(PAIRS[:2]), Encoder(tokenizer, 64)).sequences
    largest = int(sequences.token_S.max())
    sequences.check_ids(largest + 1)
    with pytest.raises(
        UserError, match=f"the tokenizer gives id {largest}, the embedding has {largest} rows"
    ):
        sequences.check_ids(largest)


# What its files say


def test_truncation_padding_and_dropout_in_the_file_do_not_count(tmp_path: Path) -> None:
    plain = tiny_models.tokenizer("sentencepiece_like")
    raw = json.loads(plain.backend_tokenizer.to_str())
    raw["truncation"] = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    raw["padding"] = {
        "strategy": {"Fixed": 20},
        "direction": "Left",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "<unk>",
    }
    raw["model"]["dropout"] = 0.5
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 4, "bos_token": "<s>"}
    place = checkpoint(tmp_path / "odd", tokenizer_json=raw, tokenizer_config_json=config)
    encoder = Encoder(load_tokenizer(place, False), 64)
    expected = [plain(text).input_ids for text in TEXTS]
    for _ in range(3):
        assert encoder.texts(list(TEXTS)) == expected
    assert encoder.texts([TEXTS[0]]) == expected[:1]


@pytest.mark.parametrize(
    ("model_type", "tokenizer_class"),
    [("qwen2", "PreTrainedTokenizerFast"), ("qwen2", None), ("gpt2", None), ("gpt_neox", None)],
)
def test_tokenizer_json_decides_where_a_class_would_encode_otherwise(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], model_type: str, tokenizer_class: str | None
) -> None:
    """transformers makes a byte-level tokenizer of this sentencepiece-like vocabulary, and drops most of a text."""
    from tokenizers import Tokenizer

    raw = tiny_models.tokenizer("sentencepiece_like").backend_tokenizer.to_str()
    config = {"tokenizer_class": tokenizer_class, "bos_token": "<s>"} if tokenizer_class else {}
    place = checkpoint(tmp_path / "own", model_type, tokenizer_json=raw, tokenizer_config_json=config)
    own = Tokenizer.from_str(raw)
    assert Encoder(load_tokenizer(place, False), 64).texts(list(TEXTS)) == [
        own.encode(text).ids for text in TEXTS
    ]
    assert "tokenizer.json is used as it is" in capsys.readouterr().err


@pytest.mark.parametrize("normaliser", [None, "NFC", "NFKC"])
@pytest.mark.parametrize("model_type", ["qwen2", "gpt2", "gpt_neox", "cohere", "mamba"])
def test_the_normaliser_is_the_files_and_not_the_classs(
    tmp_path: Path, model_type: str, normaliser: str | None
) -> None:
    from tokenizers import Tokenizer, normalizers

    own = Tokenizer.from_str(tiny_models.tokenizer("byte_level").backend_tokenizer.to_str())
    if normaliser:
        own.normalizer = getattr(normalizers, normaliser)()
    place = checkpoint(tmp_path / "own", model_type, tokenizer_json=own.to_str(), tokenizer_config_json={})
    texts = ["cafe\u0301", "Zu\u0308rich is \ufb01ne", *TEXTS]
    assert Encoder(load_tokenizer(place, False), 64).texts(texts) == [own.encode(text).ids for text in texts]


def test_a_class_that_encodes_as_its_file_does_is_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = tiny_models.tokenizer("sentencepiece_like").backend_tokenizer.to_str()
    place = checkpoint(
        tmp_path / "llama", tokenizer_json=raw, tokenizer_config_json={"tokenizer_class": "LlamaTokenizer"}
    )
    assert type(load_tokenizer(place, False)).__name__ == "LlamaTokenizer"
    assert not capsys.readouterr().err


@pytest.mark.parametrize("name", ["LlamaTokenizer", "GPT2Tokenizer", "Qwen2Tokenizer", "T5Tokenizer"])
def test_an_empty_tokenizer_is_refused(tmp_path: Path, name: str) -> None:
    """transformers makes one of special tokens alone where it finds no vocabulary, and encodes every text with it."""
    config = {"tokenizer_class": name, "extra_special_tokens": ["<a>", "<b>"]}
    place = checkpoint(tmp_path / "empty", tokenizer_config_json=config)
    assert place.tokenizer_hash
    with pytest.raises(UserError, match=rf"has no vocabulary: .* {name} .*tokenizer_config\.json"):
        load_tokenizer(place, False)


def test_a_folder_without_any_file_of_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no tokenizer"):
        assert checkpoint(tmp_path / "none").tokenizer_hash


def sentencepiece_model(**options: Any) -> bytes:
    from sentencepiece import SentencePieceTrainer

    out = io.BytesIO()
    settings = {"model_type": "bpe", "vocab_size": 420, "byte_fallback": True, "minloglevel": 3, **options}
    SentencePieceTrainer.train(
        sentence_iterator=iter(tiny_models.TEXT * 3), model_writer=out, hard_vocab_limit=False, **settings
    )
    return out.getvalue()


IDENTITY = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}


@pytest.mark.parametrize(
    ("name", "tokenizer_class", "options"),
    [
        ("tokenizer_model", "LlamaTokenizer", IDENTITY),
        ("tokenizer_model", "GemmaTokenizer", IDENTITY | {"add_dummy_prefix": False}),
        ("spiece_model", "GPTSw3Tokenizer", IDENTITY),
    ],
)
def test_a_sentencepiece_file_is_read_as_sentencepiece_does(
    tmp_path: Path, name: str, tokenizer_class: str, options: dict[str, Any]
) -> None:
    from sentencepiece import SentencePieceProcessor

    if tokenizer_class == "GemmaTokenizer":
        options = options | {"pad_id": 0, "eos_id": 1, "bos_id": 2, "unk_id": 3}
    model = sentencepiece_model(**options)
    config = {"tokenizer_class": tokenizer_class}
    place = checkpoint(tmp_path / "spm", **{name: model}, tokenizer_config_json=config)
    expected = SentencePieceProcessor(model_proto=model).encode(list(TEXTS))
    got = Encoder(load_tokenizer(place, False), 64).texts(list(TEXTS), special=False)
    assert got == expected


@pytest.mark.parametrize(
    ("model_type", "name", "tokenizer_class", "complaint"),
    [
        ("xglm", "sentencepiece.bpe_model", "XGLMTokenizer", "has no vocabulary: .*sentencepiece.bpe.model"),
        ("llama", "spiece_model", "LlamaTokenizer", "has no vocabulary: .*spiece.model"),
        ("qwen2", "tokenizer_model", "Qwen2Tokenizer", "otherwise than sentencepiece"),
        ("mistral", "tokenizer_model", "LlamaTokenizer", "otherwise than sentencepiece"),
    ],
)
def test_a_sentencepiece_file_that_is_read_wrongly_is_refused(
    tmp_path: Path, model_type: str, name: str, tokenizer_class: str, complaint: str
) -> None:
    config = {"tokenizer_class": tokenizer_class}
    model = {name: sentencepiece_model(**IDENTITY)}
    place = checkpoint(tmp_path / "spm", model_type, **model, tokenizer_config_json=config)
    assert place.tokenizer_hash
    with pytest.raises(UserError, match=complaint):
        load_tokenizer(place, False)


def test_the_hash_covers_every_file_that_some_tokenizer_of_transformers_is_built_from(tmp_path: Path) -> None:
    import transformers.models
    from transformers import PreTrainedTokenizerBase

    names = {"qwen.tiktoken", "tekken.json", "tiktoken.model", "tokenizer.model.v3", "tokenization_own.py"}
    for package in pkgutil.iter_modules(transformers.models.__path__):
        folder = Path(next(iter(transformers.models.__path__))) / package.name
        for file in folder.glob("tokenization_*.py"):
            try:
                module = importlib.import_module(f"transformers.models.{package.name}.{file.stem}")
            except Exception:  # of a library that is not installed
                continue
            for _, kind in inspect.getmembers(module, inspect.isclass):
                if issubclass(kind, PreTrainedTokenizerBase):
                    names |= {name for name in kind.vocab_files_names.values() if name}
    assert len(names) > 25
    (tmp_path / "config.json").write_text("{}")
    hashes = set()
    for name in sorted(names):
        (tmp_path / name).write_text("x")
        assert tmp_path / name in tokenizer_files(tmp_path), name
        hashes.add(Checkpoint(tmp_path, "m").tokenizer_hash)
    assert len(hashes) == len(names)
    (tmp_path / "model.safetensors").write_text("x")
    (tmp_path / "generation_config.json").write_text("{}")
    assert Checkpoint(tmp_path, "m").tokenizer_hash in hashes


def test_texts_that_differ_in_the_last_token_alone_differ_in_score() -> None:
    """The targets of a one-token choice are the choice's own token."""
    encoder = Encoder(with_template("sentencepiece_like", "<s> $A </s>"), 64)
    encoded = encoder.pairs([("The sun is", " B"), ("The sun is", " C")])
    targets = [np.asarray(ids[start:]).tolist() for ids, start in encoded]
    assert targets[0] != targets[1] and all(encoder.suffix[0] not in ids for ids, _ in encoded)
