"""The encoding rule, against lm-evaluation-harness's own `_encode_pair` and truncation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from lm_eval.api.model import TemplateLM

import tiny_models
from evalengine.benchmarks import Item, ItemSet
from evalengine.errors import UserError
from evalengine.plan.encoding import Encoder, encode, move_space, window_of

KINDS = ("byte_level", "sentencepiece_like")
PAIRS = [
    ("Question: which?\nAnswer:", " an ant in the sun"),
    ("A context with a trailing space ", "yes"),
    ("Tabs and newlines \n\t ", " no"),
    ("", " an empty context"),
    ("", "<|endoftext|> text"),
    ("café naïve — 東京", " 🙂 Zürich"),
    ("x", "q"),
    ("The glass broke because", "  it fell"),
    ("<s>A text that states its own BOS", " word"),
    ("<|endoftext|>A text that states its own BOS", " word"),
]


def reference(tokenizer: Any) -> Any:
    """An lm-eval HFLM that has a tokenizer and no model: only its encoding is used."""
    from lm_eval.models.huggingface import HFLM

    lm = HFLM.__new__(HFLM)
    lm.tokenizer, lm.backend, lm.add_bos_token, lm.custom_prefix_token_id = tokenizer, "causal", None, None
    return lm


def doubling(tokenizer: Any) -> Any:
    """The tokenizer, with two BOS before every text."""
    from tokenizers.processors import TemplateProcessing

    bos = tokenizer.bos_token
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{bos} {bos} $A", special_tokens=[(bos, tokenizer.bos_token_id)]
    )
    assert tokenizer.encode("") == [tokenizer.bos_token_id] * 2
    return tokenizer


def test_a_test_may_change_the_tokenizer_that_it_is_given() -> None:
    doubling(tiny_models.tokenizer("sentencepiece_like")).chat_template = "{{ bos_token }}"
    other = tiny_models.tokenizer("sentencepiece_like")
    assert other.chat_template is None
    assert other.encode("") == [other.bos_token_id]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pair", PAIRS)
def test_pairs_are_encoded_as_the_reference_does(kind: str, pair: tuple[str, str]) -> None:
    check_against_reference(tiny_models.tokenizer(kind), pair)


@pytest.mark.parametrize("twice", [False, True])
@pytest.mark.parametrize("pair", [*PAIRS, (" ", "yes"), ("\n\t ", " no"), (" ", "<s> no")])
def test_the_tokenizers_own_bos_stands_before_white_space_alone(twice: bool, pair: tuple[str, str]) -> None:
    tokenizer = tiny_models.tokenizer("sentencepiece_like")
    check_against_reference(doubling(tokenizer) if twice else tokenizer, pair)


def test_white_space_alone_is_an_empty_context_where_the_tokenizer_adds_nothing() -> None:
    """There the reference stops: its model would be fed nothing."""
    encoder = Encoder(tiny_models.tokenizer("byte_level"), 512)
    assert encoder.pairs([(" ", "yes")]) == encoder.pairs([("", " yes")])


def check_against_reference(tokenizer: Any, pair: tuple[str, str]) -> None:
    lm = reference(tokenizer)
    seen: list[tuple[list[int], list[int]]] = []
    lm._loglikelihood_tokens = lambda requests, **_: seen.extend((c, k) for _, c, k in requests)

    class Request:
        args = pair

    TemplateLM.loglikelihood(lm, [Request()], disable_tqdm=True)
    ((context, continuation),) = seen
    ids, start = Encoder(tokenizer, 512).pairs([pair])[0]
    assert ids == context + continuation
    assert start == len(context)


def items_of(pairs: list[tuple[str, str]]) -> ItemSet:
    items = [Item(str(i), (c, c), (k, k + "s"), (k[1:], k[1:] + "s"), 0) for i, (c, k) in enumerate(pairs)]
    return ItemSet("test", "Science", "1", None, items, "hash", len(items))


def test_a_long_item_keeps_its_end() -> None:
    tokenizer = tiny_models.tokenizer("byte_level")
    encoder = Encoder(tokenizer, 16)
    context, continuation = "word " * 40 + "Answer:", " the elephant"
    plan = encode(items_of([(context, continuation)]), encoder)
    whole, start = encoder.pairs([(context, continuation)])[0]
    s = int(plan.sequence_C[0])
    assert plan.sequences.tokens(s).tolist() == whole[-17:]
    assert len(whole) - start == len(plan.sequences.tokens(s)) - plan.sequences.start[s]
    assert plan.truncated == 1


def test_a_continuation_as_long_as_the_window_keeps_one_token_of_context_and_a_longer_one_is_refused() -> (
    None
):
    context, continuation = "Answer:", " an elephant with a very long trunk"
    tokenizer = tiny_models.tokenizer("byte_level")
    whole, start = Encoder(tokenizer, 512).pairs([(context, continuation + "s")])[0]
    window = len(whole) - start
    plan = encode(items_of([(context, continuation)]), Encoder(tokenizer, window))
    s = int(plan.sequence_C[1])
    assert len(plan.sequences.tokens(s)) == window + 1 and plan.sequences.start[s] == 1
    said = rf"item 0 of test has a choice of {window} tokens, and the model's window is {window - 1}"
    with pytest.raises(UserError, match=said):
        encode(items_of([(context, continuation)]), Encoder(tokenizer, window - 1))


def test_equal_choices_share_a_sequence_and_lengths_are_of_the_bare_choice() -> None:
    items = [Item("a", ("Q:", "Q:", "Q:"), (" é", " é", " no"), ("é", "é", "no"), 2)]
    plan = encode(
        ItemSet("t", "c", "1", None, items, "h", 1), Encoder(tiny_models.tokenizer("byte_level"), 64)
    )
    assert plan.sequence_C[0] == plan.sequence_C[1] != plan.sequence_C[2]
    assert plan.chars_C.tolist() == [1, 1, 2] and plan.bytes_C.tolist() == [2, 2, 2]


def test_a_merge_over_the_border_still_leaves_a_target() -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<s>": 0, "a": 1, "b": 2, "ab": 3}
    raw = Tokenizer(models.BPE(vocab=vocabulary, merges=[("a", "b")]))
    raw.pre_tokenizer = pre_tokenizers.Split("\n", "isolated")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>")
    # encode("ba") = b a, encode("bab") = b ab: as many tokens, so no target would be left
    ids, start = Encoder(tokenizer, 64).pairs([("ba", "b")])[0]
    assert ids == [2, 3] and start == 1


def test_trailing_white_space_moves() -> None:
    assert move_space("a \n", " b") == ("a", " \n b")


def test_pmi_scores_each_choice_after_an_empty_context() -> None:
    tokenizer = tiny_models.tokenizer("sentencepiece_like")
    plan = encode(items_of(PAIRS[:2]), Encoder(tokenizer, 64), pmi=True)
    assert plan.uncond_C is not None
    for c, s in enumerate(plan.uncond_C):
        assert plan.sequences.tokens(int(s))[0] == tokenizer.bos_token_id
        assert plan.sequences.start[s] == 1, c
    assert np.all(np.diff(plan.choice_offset) == 2)


def test_the_window_comes_from_the_configuration_first() -> None:
    config = tiny_models.config("gpt2", 100, window=77)
    tokenizer = tiny_models.tokenizer("byte_level")
    assert Encoder(tokenizer, window_of(config)).window == 77
    assert window_of(tiny_models.config("mamba", 100)) == 0
    assert Encoder(tokenizer, 0).window == 2048
    tokenizer.model_max_length = 99
    assert Encoder(tokenizer, 0).window == 99
