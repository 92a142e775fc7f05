"""`score --chat`: against lm-evaluation-harness's own --apply_chat_template, and against what our trainer trains on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import evalengine
import lm_eval_reference as reference
import tiny_models
from evalengine import store
from evalengine.benchmarks import BENCHMARKS, Item, ItemSet, load_items
from evalengine.checkpoints.resolve import discover
from evalengine.cli import main
from evalengine.errors import UserError
from evalengine.plan import chat, plans
from evalengine.plan.chat import ChatFormat
from evalengine.plan.encoding import Encoder, encode

CHATML = (
    "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA2 = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token + '[INST] ' + m.content.strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
THINKING = (  # Qwen3's: a reply's thought is written, empty, and the generation prompt ends before it
    "{% for m in messages %}{{ '<' + m.role + '>\n' }}{% if m.role == 'assistant' %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}{{ '<assistant>\n' }}{% endif %}"
)


def save(folder: Path, template: str | None = CHATML, **how: Any) -> Path:
    path = tiny_models.save(folder, **how)
    if template is not None:
        (path / "chat_template.jinja").write_text(template)
    return path


def score(path: Path, world: Path, out: Path, *more: str, benchmarks: str = "copa,winogrande") -> int:
    data = str(world / "bench")
    command = ["score", str(path), "--data", data, "--out", str(out), "--benchmarks", benchmarks]
    return main([*command, "--device", "cpu", *more])


def rendered(template: str, *contexts: str, kind: str = "byte_level") -> list[str]:
    """What stands before the replies to contexts."""
    tokenizer = tiny_models.tokenizer(kind)
    tokenizer.chat_template = template
    one = ChatFormat("m", tokenizer)
    items = ItemSet("b", "c", "1", None, [Item("0", contexts, (" x",) * len(contexts), (), 0)], "h", 1)
    try:
        return list(one.conversations(items)[0].items[0].contexts)
    finally:
        one.close()


@pytest.mark.parametrize("kind", ["byte_level", "sentencepiece_like"])
def test_lm_eval_with_its_chat_template_gives_the_same(kind: str, small_world: Path, tmp_path: Path) -> None:
    """Its own tasks and model; the template states BOS, which the tokenizer of one kind also adds by itself."""
    from lm_eval.models.huggingface import HFLM

    names = ["arc_easy", "boolq", "copa", "winogrande"]
    template = CHATML if kind == "sentencepiece_like" else CHATML.replace("{{ bos_token }}", "")
    path = save(tmp_path / "1M-a-sft", template, kind=kind, window=1024)
    variant = ("--variant", "lm_eval", "--dtype", "float32")
    assert score(path, small_world, tmp_path / "s", *variant, benchmarks=",".join(names)) == 0
    assert score(path, small_world, tmp_path / "s", *variant, "--chat", benchmarks=",".join(names)) == 0
    model = HFLM(pretrained=str(path), batch_size=4, dtype="float32", device="cpu")
    tasks = reference.tasks(small_world / "bench", names)
    with reference.quiet():
        for task in tasks.values():
            task.build_all_requests(apply_chat_template=True, chat_template=model.apply_chat_template)
    for name, task in tasks.items():
        ours = store.read(tmp_path / "s" / "1M-a-sft+chat" / f"{name}.arrow").to_pylist()
        plain = store.read(tmp_path / "s" / "1M-a-sft" / f"{name}.arrow").to_pylist()
        for row, other, theirs in zip(ours, plain, reference.scores(task, model), strict=True):
            np.testing.assert_allclose(row["loglik"], theirs.loglik, rtol=0, atol=1e-3)
            assert tuple(row["greedy"]) == theirs.greedy
            assert float(np.argmax(row["loglik"]) == row["gold"]) == theirs.acc
            assert row["stage"] == "sft+chat" and row["loglik"] != other["loglik"]


@pytest.mark.parametrize("shots", ["0", "2"])
def test_a_template_that_writes_the_messages_alone_gives_the_scores_without_chat(
    shots: str, small_world: Path, tmp_path: Path
) -> None:
    """Solved examples are part of the user's message, and an empty message stands for no context."""
    template = "{{ messages[0].content }} {{ messages[1].content }}"
    path, names = save(tmp_path / "1M-a-sft", template, window=1024), ("arc_easy", "copa", "piqa", "sciq")
    more = ("--fewshot", shots, "--seed", "3", "--pmi")
    assert score(path, small_world, tmp_path / "s", *more, benchmarks=",".join(names)) == 0
    assert score(path, small_world, tmp_path / "s", *more, "--chat", benchmarks=",".join(names)) == 0
    for name in names:
        plain, asked = (
            store.read(tmp_path / "s" / folder / f"{name}.arrow")
            for folder in (path.name, path.name + "+chat")
        )
        about = [
            store.read_metadata(tmp_path / "s" / f / f"{name}.arrow") or {}
            for f in (path.name, path.name + "+chat")
        ]
        assert [one["fewshot"] for one in about] == [shots, shots] and about[1]["chat"] == "true"
        for column in ("item", "gold", "loglik", "tokens", "chars", "bytes", "greedy", "loglik_uncond"):
            assert asked[column].equals(plain[column]), (name, column)


def test_a_scored_reply_is_made_of_the_tokens_it_is_trained_with(small_world: Path, tmp_path: Path) -> None:
    """Our trainer's own tokens of the conversation, up to the end of the choice; the loss begins where scoring begins."""
    from evalengine.training.chat import Message
    from evalengine.training.data import tokenizer as tokenizers
    from evalengine.training.data.conversations import tokenise
    from evalengine.training.data.sources import text_documents

    ours = tokenizers.train([*text_documents(small_world / "corpora/web_a.txt")], 512, tmp_path)
    path = tiny_models.save(tmp_path / "1M-a-sft")
    for file in path.glob("*token*"):
        file.unlink()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(ours.path / name, path / name)
    (checkpoint,) = discover([path])
    with plans.Planner(pmi=True, chat=True) as planner:
        for name in ("copa", "winogrande", "boolq", "hellaswag"):
            items = load_items(BENCHMARKS[name], small_world / "bench")
            encoded = planner.plan(checkpoint, items)
            flat = [
                (context, choice)
                for item in items.items
                for context, choice in zip(item.contexts, item.choices, strict=True)
            ]
            assert encoded.uncond_C is not None
            for sequences, asked in (
                (encoded.sequence_C, flat),
                (encoded.uncond_C, [("", c) for _, c in flat]),
            ):
                said = [(Message("user", context), Message("assistant", choice)) for context, choice in asked]
                for s, (ids, learned) in zip(sequences, tokenise(said, ours), strict=True):
                    assert encoded.sequences.tokens(int(s)).tolist() == ids[:-1].tolist()  # without its end
                    assert encoded.sequences.start[s] == learned.argmax()


def test_the_delimiter_is_what_the_template_writes_before_a_reply() -> None:
    assert rendered(LLAMA2, "a? ", "", kind="sentencepiece_like") == [
        "<s>[INST] a? [/INST] ",
        "<s>[INST]  [/INST] ",
    ]
    assert rendered(THINKING, "a?") == ["<user>\na?\n<assistant>\n<think>\n\n</think>\n\n"]
    assert rendered("{% for m in messages %}{{ m.content }}{% endfor %}", "a?") == ["a?"]


@pytest.mark.parametrize("template", [CHATML, LLAMA2, CHATML.replace("{{ bos_token }}", "")])
def test_there_is_one_bos(template: str) -> None:
    """The template's own, else the tokenizer's."""
    tokenizer = tiny_models.tokenizer("sentencepiece_like")
    (before,) = rendered(template, "Which one?", kind="sentencepiece_like")
    ids, start = Encoder(tokenizer, 512).pairs([(before, "yes")])[0]
    assert [i for i, id in enumerate(ids) if id == tokenizer.bos_token_id] == [0]
    assert start == len(Encoder(tokenizer, 512).texts([before.rstrip()])[0])


def test_a_date_in_a_template_is_always_the_same() -> None:
    dated = "{{ strftime_now('%d %b %Y') }} " + LLAMA2
    assert rendered(dated, "a?", kind="sentencepiece_like")[0].startswith("26 Jul 2024 <s>[INST]")


def test_without_context_pmi_asks_an_empty_message() -> None:
    tokenizer = tiny_models.tokenizer("sentencepiece_like")
    (before,) = rendered(CHATML, "", kind="sentencepiece_like")
    tokenizer.chat_template = CHATML
    one = ChatFormat("m", tokenizer)
    items = ItemSet("t", "c", "1", None, [Item("0", ("Q", "Q"), (" a", " b"), ("a", "b"), 0)], "h", 1)
    try:
        encoded = encode(items, Encoder(tokenizer, 64), pmi=True, chat=one)
    finally:
        one.close()
    assert encoded.uncond_C is not None
    for s, choice in zip(encoded.uncond_C, "ab", strict=True):
        assert (
            encoded.sequences.tokens(int(s)).tolist()
            == Encoder(tokenizer, 64).pairs([(before, choice)])[0][0]
        )


def test_both_are_kept_apart_and_each_run_goes_on_where_it_ended(
    small_world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = save(tmp_path / "1M-a-sft"), tmp_path / "s"
    found = []
    for more in ((), ("--chat",), ("--chat",), ()):
        capsys.readouterr()
        assert score(path, small_world, out, "--json", *more) == 0
        (entry,) = json.loads(capsys.readouterr().out)["checkpoints"]
        found.append((entry["checkpoint"], entry["scored"], entry["kept"]))
    plain, asked = "1M-a-sft", "1M-a-sft+chat"
    assert found == [(plain, 2, 0), (asked, 2, 0), (asked, 0, 2), (plain, 0, 2)]
    table = evalengine.load(out).to_pylist()
    assert {(row["checkpoint"], row["scale"], row["mixture"], row["stage"]) for row in table} == {
        (plain, "1M", "a", "sft"),
        (asked, "1M", "a", "sft+chat"),
    }
    assert "chat" not in (store.read_metadata(out / plain / "copa.arrow") or {})
    (path / "chat_template.jinja").write_text(THINKING)
    assert score(path, small_world, out, "--chat") == 0
    assert "its chat template has changed since it was scored" in " ".join(capsys.readouterr().out.split())


def test_scores_of_both_kinds_in_one_file_are_refused(
    small_world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert score(save(tmp_path / "m+chat"), small_world, tmp_path / "s") == 0
    assert score(save(tmp_path / "m"), small_world, tmp_path / "s", "--chat") == 1
    assert "was scored with --chat none, not true" in " ".join(capsys.readouterr().out.split())


def test_the_stages_are_compared_when_they_are_named(
    small_world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "s"
    for mixture, seed in (("a", 0), ("b", 1), ("c", 2), ("d", 3)):
        path = save(tmp_path / f"1M-{mixture}-sft", seed=seed)
        assert score(path, small_world, out) == 0 and score(path, small_world, out, "--chat") == 0
    command = ["correlate", str(out), "--bootstrap", "100", "--out", str(tmp_path / "a")]
    assert main([*command, "--stages", "sft,sft+chat"]) == 0
    assert json.loads((tmp_path / "a" / "analysis.json").read_text())["stages"] == ["sft", "sft+chat"]


def test_a_checkpoint_without_a_template_fails_and_the_others_go_on(
    small_world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare, good = save(tmp_path / "1M-a-pt", None), save(tmp_path / "1M-a-sft")
    given = ["--data", str(small_world / "bench"), "--benchmarks", "copa,winogrande", "--device", "cpu"]
    assert (
        main(["score", str(bare), str(good), *given, "--out", str(tmp_path / "s"), "--chat", "--json"]) == 1
    )
    entries = json.loads(capsys.readouterr().out)["checkpoints"]
    assert [(e["checkpoint"], e["scored"]) for e in entries] == [("1M-a-pt+chat", 0), ("1M-a-sft+chat", 2)]
    assert entries[0]["failure"].startswith("1M-a-pt+chat: its tokenizer has no chat template")
    assert entries[1]["failure"] is None


@pytest.mark.parametrize(
    ("template", "why"),
    [
        (
            "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
            "did not end within 1 s",
        ),
        ("{{ 'a' * 10 ** 10 }}", "MemoryError"),
        ("{{ raise_exception('\x1b[31mroles must alternate') }}", r"\(\\x1b\[31mroles must alternate\)"),
        ("{{ messages[0].content", "unexpected"),
        ("{{ messages[0].content.__class__ }}", "does not write the assistant's reply|unsafe"),
        ("{{ messages[0].content }}", "does not write the assistant's reply"),
        ("{{ messages[1].content }}", "leaves the user's message out"),
    ],
)
def test_a_hostile_template_is_refused_in_one_sentence(
    template: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat, "SECONDS", 1)
    with pytest.raises(UserError, match=f"^m: its chat template cannot be used .*({why})"):
        rendered(template, "a?")
