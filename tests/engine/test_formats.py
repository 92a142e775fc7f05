"""`score --formats`: probabilities of a plain transformers model, what may stand in a formats file, and a store apart."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

import evalengine
import tiny_models
from evalengine import store
from evalengine.benchmarks import BENCHMARKS, Item, ItemSet, formats, load_items
from evalengine.cli import main
from evalengine.errors import UserError
from evalengine.plan.encoding import Encoder, encode, overlapping

FORMATS = {
    "plain": " {choice}",
    "answer": " Answer: {choice}",
    "letter": " ({letter})",
    "line": "\n{choice}\n",
}


def written(folder: Path, text: str) -> Path:
    path = folder / "formats.yaml"
    path.write_text(text)
    return path


def score(path: Path, world: Path, out: Path, *more: str, names: str = "copa,rte") -> int:
    data = str(world / "bench")
    command = ["score", str(path), "--data", data, "--out", str(out), "--benchmarks", names]
    return main([*command, "--device", "cpu", *more])


def test_masses_are_those_of_a_transformers_model(small_world: Path, tmp_path: Path) -> None:
    """Every rendering in a forward of its own, its log-softmax summed by hand."""
    import torch
    from transformers import AutoModelForCausalLM

    path = tiny_models.save(tmp_path / "1M-a-pt")
    file = written(tmp_path, json.dumps(FORMATS))
    assert score(path, small_world, tmp_path / "s", "--dtype", "float32", "--formats", str(file)) == 0
    model, tok = (
        AutoModelForCausalLM.from_pretrained(path).double().eval(),
        tiny_models.tokenizer("byte_level"),
    )
    for name in ("copa", "rte"):
        table = store.read(tmp_path / "s" / "formats" / "1M-a-pt" / f"{name}.arrow")
        items = load_items(BENCHMARKS[name], small_world / "bench").items
        for item, row in list(zip(items, table.to_pylist(), strict=True))[:6]:
            context = tok(item.contexts[0])["input_ids"]
            expected = []
            for template in FORMATS.values():
                for j, choice in enumerate(item.choices):
                    text = template.replace("{choice}", choice).replace("{letter}", "ABCD"[j])
                    ids = context + tok(item.contexts[0] + text)["input_ids"][len(context) :]
                    with torch.no_grad():
                        logp = model(torch.tensor([ids])).logits[0].log_softmax(-1)
                    rows = range(len(context) - 1, len(ids) - 1)
                    expected.append(sum(float(logp[t, ids[t + 1]]) for t in rows))
            np.testing.assert_allclose(row["loglik"], expected, rtol=0, atol=1e-4)
            assert row["gold"] == item.gold and len(row["loglik"]) == 4 * len(item.choices)


def test_they_are_stored_apart_and_a_run_goes_on_where_it_ended(
    small_world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = tiny_models.save(tmp_path / "1M-a-pt"), tmp_path / "s"
    assert score(path, small_world, out) == 0
    before = {file: file.read_bytes() for file in out.glob("*/*.arrow")}
    file = written(tmp_path, json.dumps(FORMATS))
    found = []
    for _ in range(2):
        capsys.readouterr()
        assert score(path, small_world, out, "--formats", str(file), "--json") == 0
        said = json.loads(capsys.readouterr().out)
        found.append([(one["scored"], one["kept"], one["mean_acc"]) for one in said["checkpoints"]])
    assert found == [[(2, 0, None)], [(0, 2, None)]] and said["store"] == str(out / "formats")
    assert {file: file.read_bytes() for file in out.glob("*/*.arrow")} == before
    assert {row["stage"] for row in evalengine.load(out).to_pylist()} == {"pt"}
    assert all(len(row["loglik"]) == 2 for row in evalengine.load(out).to_pylist())
    first = {p.name: p.read_bytes() for p in (out / "formats").glob("*/*.arrow")}
    assert score(path, small_world, out, "--formats", str(file), "--fresh") == 0
    assert {p.name: p.read_bytes() for p in (out / "formats").glob("*/*.arrow")} == first
    other = written(tmp_path, json.dumps({**FORMATS, "line": "\n{choice};"}))
    capsys.readouterr()
    assert score(path, small_world, out, "--formats", str(other)) == 1
    assert "was scored with --formats {" in " ".join(capsys.readouterr().out.split())
    assert score(path, small_world, out / "formats") == 1  # ordinary scores do not go there
    assert main(["correlate", str(out / "formats"), "--out", str(tmp_path / "a")]) == 1
    assert "was scored with --formats: give the store" in capsys.readouterr().err


def test_new_labels_do_not_lose_what_overlaps(small_world: Path, tmp_path: Path) -> None:
    path, out = tiny_models.save(tmp_path / "1M-a-pt"), tmp_path / "s"
    stored = out / "formats" / "1M-a-pt" / "copa.arrow"
    assert score(path, small_world, out, "--formats", names="copa") == 0
    manifest = tmp_path / "m.yaml"
    manifest.write_text("1M-a-pt: {scale: 1M, mixture: a, stage: pt, seed: 3}")
    assert score(path, small_world, out, "--formats", "--manifest", str(manifest), names="copa") == 0
    metadata = store.read_metadata(stored) or {}
    assert metadata["checkpoint_seed"] == "3" and json.loads(metadata["overlapping"]) == []


def test_contexts_of_their_own_are_left_out(
    small_world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tiny_models.save(tmp_path / "1M-a-pt")
    assert score(path, small_world, tmp_path / "s", "--formats", names="winogrande,copa") == 0
    assert [p.name for p in (tmp_path / "s" / "formats").glob("*/*.arrow")] == ["copa.arrow"]
    capsys.readouterr()
    assert score(path, small_world, tmp_path / "t", "--formats", names="winogrande") == 1
    assert "no benchmark is left to score in formats" in capsys.readouterr().err


def test_what_overlaps_is_what_holds_the_tokens_of_another() -> None:
    """Against every pair of answers; a word that begins another shares no tokens with it where those are whole words."""
    choices = (("a", "a dog"), ("a cat", "a dog"), ("yes", "no"), ("same", "same"), ("True", "yes"))
    items = ItemSet(
        "t", "c", "1", None,
        [Item(str(i), ("Q:",) * 2, tuple(" " + c for c in each), each, 0) for i, each in enumerate(choices)],
        "h", 5,
    )  # fmt: skip
    seen = set()
    templates = (
        " {choice}",
        ' "{choice}"',
        " {letter}",
        " a dog: {letter}",
        "\nA: {choice}!",
        " {choice}; {letter}",
    )
    for kind, pair in itertools.product(
        ("byte_level", "sentencepiece_like"), itertools.permutations(templates, 2)
    ):
        encoder = Encoder(tiny_models.tokenizer(kind), 64)
        made = formats.in_formats(items, [formats.Format(t, formats.Template(t)) for t in pair])
        expected = []
        for item in made.items:
            tokens = [ids for ids, _ in encoder.pairs([("Q:", text) for text in item.continuations])]
            if any(b[: len(a)] == a for a, b in itertools.permutations(tokens, 2)):
                expected.append(item.id)
        assert overlapping(encode(made, encoder)) == expected
        seen.add(tuple(expected))
    assert ("3",) in seen and ("0", "3") in seen and ("0", "1", "3") in seen


def test_items_in_formats() -> None:
    item = Item("i", ("Q",) * 3, (" x", " yy", " z"), ("x", "yy", "z"), 2)
    known = tuple(formats.Format(name, formats.Template(t)) for name, t in FORMATS.items())
    found = formats.in_formats(ItemSet("b", "c", "1", None, [item], "h", 1), known)
    (made,) = found.items
    assert made.contexts == ("Q",) * 12 and made.gold == 2
    assert made.continuations[3:9] == (" Answer: x", " Answer: yy", " Answer: z", " (A)", " (B)", " (C)")
    assert made.choices[3:9] == ("x", "yy", "z", "A", "B", "C")
    assert json.loads(found.formats) == {"cue": "", "formats": FORMATS} and found.version.startswith(
        "1+formats-"
    )
    other = formats.in_formats(ItemSet("b", "c", "1", None, [item], "h", 1), known[:2])
    assert other.version != found.version  # plans are kept by it
    many = item._replace(contexts=("Q",) * 27, continuations=(" x",) * 27, choices=("x",) * 27)
    with pytest.raises(UserError, match="item i of b has 27 choices, and there are 26 letters"):
        formats.in_formats(ItemSet("b", "c", "1", None, [many], "h", 1), known)


def test_a_cue_is_left_out_of_the_contexts_that_end_in_it(small_world: Path, tmp_path: Path) -> None:
    """What follows is then the same text: a format that says the cue has the log-likelihood of cue and choice together."""
    assert [formats.without("Answer:", c) for c in ("Q?\nAnswer:", "Q?\nAnswer: ", "Answer: x\n", "")] == [
        "Q?", "Q?", "Answer: x\n", "",
    ]  # fmt: skip
    assert formats.without("", "Q? ") == "Q? "
    path = tiny_models.save(tmp_path / "1M-a-pt")
    file = written(tmp_path, json.dumps({"plain": " {choice}", "line": "\nAnswer: {choice}"}))
    more = ("--formats", str(file), "--cue", "Answer:")
    assert score(path, small_world, tmp_path / "s", *more, names="rte") == 0
    # other contexts
    assert score(path, small_world, tmp_path / "s", "--formats", str(file), names="rte") == 1
    tok = tiny_models.tokenizer("byte_level")
    stored = store.read(tmp_path / "s" / "formats" / "1M-a-pt" / "rte.arrow").to_pylist()
    for item, row in zip(load_items(BENCHMARKS["rte"], small_world / "bench").items, stored, strict=True):
        context = item.contexts[0].removesuffix("\nAnswer:")
        assert context != item.contexts[0]
        known = len(tok(context)["input_ids"])
        whole = [len(tok(f"{item.contexts[0]} {choice}")["input_ids"]) for choice in item.choices]
        assert row["tokens"][2:] == [n - known for n in whole]
    assert score(path, small_world, tmp_path / "t", "--cue", "Answer:") == 1


def test_the_formats_that_ship_are_read_as_any_file(tmp_path: Path) -> None:
    text = json.dumps({one.name: one.template.text for one in formats.SHIPPED})
    assert formats.read_formats(written(tmp_path, text)) == formats.SHIPPED


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: ' {choice}'", "must name two formats or more"),
        ("- a", "must name two formats or more"),
        ("a: ' {choice}'\nb: 3", "'b' must be text with {choice} or {letter}"),
        ("a: ' {choice}'\nb: ' yes'", "the fields of 'b' must be {choice} or {letter}, not none"),
        ("a: ' {choice}'\nb: ' {gold}'", "the fields of 'b' must be {choice} or {letter}, not gold"),
        ("a: ' {choice}'\nb: ' {choice'", "'b' has a brace that is not part of a {field}"),
        ("a: ' {choice}.'\nb: ' {choice}'", "every answer of 'a' begins with the same answer of 'b'"),
        ("a: ' {letter}'\nb: ' {letter}'", "every answer of 'b' begins with the same answer of 'a'"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_in_one_sentence(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(UserError) as error:
        formats.read_formats(written(tmp_path, text))
    assert words in str(error.value) and "formats.yaml" in str(error.value)


def test_formats_are_counted_in_text() -> None:
    known = [
        formats.Format(n, formats.Template(t))
        for n, t in (*FORMATS.items(), ("is", " It is {choice}."), ("b", "\n{{{choice}}}"))
    ]
    text = "Answer: yes\nAnswer: on a line of its own\nQ? Answer: no. It is red. (B) f(B) x\nAnswer:\n{a} {b}\n  {c}\nIt is\nred."
    assert formats.count([text, "(A) (b)"], known) == [None, 2, 2, None, 1, 2]


def test_the_command_keeps_the_formats_that_a_study_has(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.txt").write_text("Q: it? (A) yes\n<|endoftext|>\nsaid (B) no\n")
    (tmp_path / "b.jsonl").write_text(json.dumps({"text": "Say. Answer: no"}) + "\n")
    sources = {"a": {"path": "a.txt"}, "b": {"path": "b.jsonl"}}
    study = {
        "sources": sources, "mixtures": {"m": {"a": 0.5, "b": 0.5}}, "tokenizer": {"vocab": 300},
        "scales": {"1M": {
            "d_model": 32, "layers": 1, "heads": 1, "head_dim": 32, "ffn": 32, "context": 16,
            "pretrain": {"tokens": 1000, "lr": 0.1}, "sft": {"epochs": 1, "lr": 0.1},
        }},
        "sft": {"data": [{"path": "sft.jsonl"}]},
    }  # fmt: skip
    (tmp_path / "study.yaml").write_text(json.dumps(study))
    known, out = written(tmp_path, json.dumps({**FORMATS, "is": " It is {choice}."})), tmp_path / "kept.yaml"
    command = ["benchmarks", "formats", str(tmp_path / "study.yaml"), "--data", str(tmp_path)]
    assert main([*command, "--formats", str(known), "--out", str(out), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["counts"] == {
        "plain": {"a": None, "b": None}, "answer": {"a": 0, "b": 1}, "letter": {"a": 2, "b": 0},
        "line": {"a": None, "b": None}, "is": {"a": 0, "b": 0},
    }  # fmt: skip
    assert (
        [one.name for one in formats.read_formats(out)]
        == said["kept"]
        == ["plain", "answer", "letter", "line"]
    )
    assert main([*command, "--formats", str(known), "--documents", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["counts"]["letter"] == {"a": 1, "b": 0}
    few = written(tmp_path, json.dumps({"x": " xx{choice}", "y": " yy{choice}"}))
    assert main([*command, "--formats", str(few), "--out", str(tmp_path / "no.yaml")]) == 1
    assert (
        "fewer than two formats were found" in capsys.readouterr().err and not (tmp_path / "no.yaml").exists()
    )
