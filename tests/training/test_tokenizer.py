"""The tokenizer in transformers, and the chat format in its two writings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from evalengine.errors import UserError
from evalengine.training.chat import END, Message, parse, render
from evalengine.training.data import tokenizer as tokenizers
from evalengine.training.data.conversations import tokenise
from evalengine.training.data.shards import build

CHATS = [
    [("user", "Where is the cat?"), ("assistant", "In the house.")],
    [
        ("system", "Be kind."),
        ("user", "Hi"),
        ("assistant", "Hello"),
        ("user", "2 + 2?"),
        ("assistant", "4 <|user|>"),
    ],
    [("user", ""), ("assistant", "héllo\nwörld 漢字 🙂")],
    [("user", "  spaces  "), ("assistant", " yes ")],
]


@pytest.fixture(scope="module")
def theirs(tokenizer):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tokenizer.path)


@pytest.mark.parametrize("text", ["The cat sat.", "  two  spaces\n\nx = 12345\t", "naïve 漢字 🙂", ""])
def test_transformers_reads_the_same_tokenizer(text: str, tokenizer, theirs):
    ids = tokenizer.encode_documents([text])[0].tolist()
    assert theirs(text)["input_ids"] == [tokenizer.end, *ids]
    assert theirs.decode(ids) == text


def test_special_tokens_inside_a_document_stay_text(tokenizer):
    ids = tokenizer.encode_documents([f"a {END} b"])[0]
    assert tokenizer.end not in ids
    assert tokenizer.decode(ids) == f"a {END} b"


def test_special_tokens_of_the_exported_tokenizer(tokenizer, theirs):
    assert theirs.bos_token == theirs.eos_token == END
    assert theirs.bos_token_id == theirs.eos_token_id == tokenizer.end
    assert theirs.convert_tokens_to_ids("<|assistant|>") == tokenizer.rust.token_to_id("<|assistant|>")


@pytest.mark.parametrize("chat", CHATS)
def test_the_template_renders_what_training_renders(chat: list[tuple[str, str]], theirs):
    messages = [{"role": role, "content": content} for role, content in chat]
    assert (
        theirs.apply_chat_template(messages, tokenize=False)
        == render(tuple(Message(*turn) for turn in chat)).text
    )


@pytest.mark.parametrize("chat", CHATS)
def test_assistant_mask_is_transformers_own(chat: list[tuple[str, str]], tokenizer, theirs):
    messages = [{"role": role, "content": content} for role, content in chat]
    reference = theirs.apply_chat_template(
        messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    ids, learned = tokenise([tuple(Message(*turn) for turn in chat)], tokenizer)[0]
    assert ids.tolist() == reference["input_ids"]
    assert learned.astype(int).tolist() == reference["assistant_masks"]


def test_loss_falls_on_the_assistants_tokens_alone_token_by_token(tokenizer):
    chat = (Message("user", "the cat?"), Message("assistant", "the house"))
    ids, learned = tokenise([chat], tokenizer)[0]
    said = [tokenizer.rust.id_to_token(int(i)) for i in ids]
    split = said.index("<|assistant|>") + 1
    assert said[:2] == [END, "<|user|>"]
    assert tokenizer.decode(ids[split:-1]) == " the house"
    assert said[-1] == END
    assert learned.tolist() == [False] * split + [True] * (len(ids) - split)


def test_a_scored_choice_is_made_of_the_tokens_the_answer_was_learned_with(tokenizer):
    chat = (Message("user", "Is it so?\nAnswer:"), Message("assistant", "yes"))
    ids, learned = tokenise([chat], tokenizer)[0]
    context, whole = tokenizer.encode_documents(["Is it so?\nAnswer:", "Is it so?\nAnswer: yes"])
    assert ids[learned].tolist() == [*whole[len(context) :].tolist(), tokenizer.end]


def test_training_twice_gives_the_same_tokenizer(tokenizer, data: Path, tmp_path: Path):
    from evalengine.training.data.sources import text_documents

    texts = [*text_documents(data / "corpora/web_a.txt"), *text_documents(data / "corpora/code.txt")]
    assert tokenizers.train(texts, 512, tmp_path).hash == tokenizer.hash


def test_a_vocabulary_too_small_for_bytes_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="at least 260"):
        tokenizers.train(["text"], 100, tmp_path)


def test_an_adopted_tokenizer_keeps_its_ids_and_gains_the_chat_tokens(tmp_path: Path):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    own = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    own.pre_tokenizer, own.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    (tmp_path / "own").mkdir()
    own.save(str(tmp_path / "own/tokenizer.json"))
    adopted = tokenizers.adopt(tmp_path / "own", tmp_path / "adopted")
    assert adopted.encode_documents(["Hello you"])[0].tolist() == own.encode("Hello you").ids
    assert adopted.size == len(alphabet) + 4
    ids, learned = tokenise([(Message("user", "a"), Message("assistant", "b"))], adopted)[0]
    assert adopted.decode(ids[learned]) == f" b{END}"


def test_a_vocabulary_whose_ids_have_gaps_is_as_large_as_its_largest_id(tmp_path: Path):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    own = Tokenizer(models.BPE({c: 70_000 + i for i, c in enumerate(alphabet)}, []))
    own.pre_tokenizer, own.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    own.save(str(tmp_path / "tokenizer.json"))
    adopted = tokenizers.adopt(tmp_path / "tokenizer.json", tmp_path / "adopted")
    source = build(tmp_path / "tokens", lambda: iter(["Hello you"]), adopted)
    assert source.document(0).tolist() == own.encode("Hello you").ids
    assert adopted.size > max(adopted.rust.get_vocab(with_added_tokens=True).values())


def test_a_conversation_without_an_answer_is_refused_by_line():
    with pytest.raises(UserError, match=r"f\.jsonl:3: the conversation has no assistant message"):
        parse({"messages": [{"role": "user", "content": "x"}]}, "f.jsonl:3")
    with pytest.raises(UserError, match=r"f\.jsonl:4: a message needs a role"):
        parse({"messages": [{"role": "robot", "content": "x"}]}, "f.jsonl:4")


def test_documents_are_encoded_in_the_narrow_range_of_the_vocabulary(tokenizer):
    assert np.concatenate(tokenizer.encode_documents(["any text at all", "漢"])).max() < tokenizer.size <= 512
