"""Users' own benchmarks from YAML files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from evalengine.benchmarks import load_items, resolve
from evalengine.benchmarks.custom import read_benchmark
from evalengine.errors import UserError

CAPITALS = """
name: capitals
category: Geography
context: "Question: What is the capital of {country}? {{hint}}\\nAnswer:"
choices: options
gold: answer
file: capitals.jsonl
"""
ROW = {"country": "France {x}", "options": ["Rome", "Paris"], "answer": 1}


def define(folder: Path, text: str, row: dict[str, object] | None = None, name: str = "capitals") -> Path:
    (folder / f"{name}.jsonl").write_text(json.dumps(row or ROW) + "\n")
    path = folder / f"{name}.yaml"
    path.write_text(text)
    return path


def test_a_definition_with_its_own_file_is_scored_like_any_other(tmp_path: Path) -> None:
    path = define(tmp_path, CAPITALS)
    [benchmark] = resolve("geography", custom=[path])
    [item] = load_items(benchmark, None).items
    assert item.contexts == ("Question: What is the capital of France {x}? {hint}\nAnswer:",) * 2
    assert (item.continuations, item.choices, item.gold) == ((" Rome", " Paris"), ("Rome", "Paris"), 1)
    assert (benchmark.category, benchmark.default_score) == ("Geography", "acc")
    assert [b.name for b in resolve("all", custom=[path])][-1] == "capitals"


@pytest.mark.parametrize(
    ("gold_is", "answer", "gold"),
    [("index", "0", 0), ("number", 2, 1), ("letter", "B", 1), ("text", "Paris", 1)],
)
def test_gold_may_be_an_index_a_number_a_letter_or_the_text(
    tmp_path: Path, gold_is: str, answer: object, gold: int
) -> None:
    path = define(tmp_path, CAPITALS + f"gold_is: {gold_is}\n", {**ROW, "answer": answer})
    assert load_items(read_benchmark(path), None).items[0].gold == gold


@pytest.mark.parametrize(
    ("gold_is", "answer", "complaint"),
    [
        ("letter", "AB", "'AB' is none of the labels A, B;"),
        ("letter", "C", "'C' is none of the labels A, B;"),
        ("number", True, "expected 1 to 2, got True"),
    ],
)
def test_a_gold_that_names_no_choice_is_refused(
    tmp_path: Path, gold_is: str, answer: object, complaint: str
) -> None:
    path = define(tmp_path, CAPITALS + f"gold_is: {gold_is}\n", {**ROW, "answer": answer})
    with pytest.raises(UserError, match=complaint):
        load_items(read_benchmark(path), None)


def test_a_key_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the key 'gold' appears twice, again in line 8"):
        read_benchmark(define(tmp_path, CAPITALS + "gold: other\n"))


def test_a_definition_without_files_says_which_key_to_add(tmp_path: Path) -> None:
    path = define(tmp_path, CAPITALS)
    (tmp_path / "capitals_train.jsonl").write_text(json.dumps(ROW))  # which only --data finds
    with pytest.raises(
        UserError, match=r"does not say where its train items are.*add `train_file: FILE\.jsonl`"
    ):
        load_items(read_benchmark(path), None, fewshot=1)
    path = define(tmp_path, CAPITALS.replace("file: capitals.jsonl\n", ""))
    with pytest.raises(UserError, match=r"does not say where its items are: add `file: FILE\.jsonl`"):
        load_items(read_benchmark(path), None)


def test_choices_may_be_templates_and_nested_lists(tmp_path: Path) -> None:
    text = CAPITALS.replace("choices: options", 'choices: ["{a}!", "{n}"]')
    path = define(tmp_path, text, {**ROW, "a": "x", "n": 2.5, "answer": 0})
    assert load_items(read_benchmark(path), None).items[0].choices == ("x!", "2.5")
    nested = CAPITALS.replace("choices: options", "choices: options.text")
    path = define(tmp_path, nested, {**ROW, "options": {"text": ["p", "q", "r"]}})
    assert load_items(read_benchmark(path), None).items[0].choices == ("p", "q", "r")


def test_a_folder_given_by_the_user_comes_before_the_definition_s_file(tmp_path: Path) -> None:
    path = define(tmp_path, CAPITALS)
    data = tmp_path / "data"
    data.mkdir()
    (data / "capitals.jsonl").write_text(json.dumps({**ROW, "answer": 0}) + "\n")
    assert load_items(read_benchmark(path), data).items[0].gold == 0
    assert load_items(read_benchmark(path), tmp_path).items[0].gold == 1


def test_the_version_follows_what_is_rendered(tmp_path: Path) -> None:
    first = read_benchmark(define(tmp_path, CAPITALS))
    other = read_benchmark(define(tmp_path, CAPITALS.replace("Answer:", "A:")))
    renamed = read_benchmark(define(tmp_path, CAPITALS.replace("Geography", "World")))
    numbered = read_benchmark(define(tmp_path, CAPITALS + "id: country\n"))
    assert first.version == renamed.version
    assert len({first.version, other.version, numbered.version}) == 3


@pytest.mark.parametrize(
    "template", ["{country.__class__}", "{options[0]}", "{country!r}", "{0}", "{}", "{country", "}"]
)
def test_a_template_is_no_code(tmp_path: Path, template: str) -> None:
    text = CAPITALS.replace("{country}", template).replace("{{hint}}", "")
    with pytest.raises(UserError, match="'context' has a brace that is no"):
        read_benchmark(define(tmp_path, text))


@pytest.mark.parametrize(
    ("before", "after", "complaint"),
    [
        ("gold:", "glod:", "no key 'glod': did you mean 'gold'"),
        ("gold: answer", "", "the key 'gold' is missing"),
        ("choices: options", "choices: [one]", "'choices' must be"),
        ("choices: options", "choices: 3", "'choices' must be"),
        ("name: capitals", "name: ../x", "names a file too"),
        ("name: capitals", "name: 7", "'name' must be text"),
        ("file: capitals.jsonl", "file: none.jsonl", "no file"),
        ("file: capitals.jsonl", "file: capitals.csv", "must be a .jsonl or .parquet"),
        ("file: capitals.jsonl", "file: capitals.jsonl\nhub: {path: a/b}", "keep one"),
        ("file: capitals.jsonl", "hub: {path: a/b, splitt: x}", "'hub' must be"),
        ("file: capitals.jsonl", "default_score: accnorm", "did you mean 'acc_norm'"),
        ("file: capitals.jsonl", "gold_is: lettre", "did you mean 'letter'"),
        (CAPITALS, "- a\n- b", "expected keys and values"),
        (CAPITALS, "a: [", "not valid YAML"),
    ],
)
def test_a_wrong_key_is_named(tmp_path: Path, before: str, after: str, complaint: str) -> None:
    with pytest.raises(UserError) as error:
        read_benchmark(define(tmp_path, CAPITALS.replace(before, after)))
    assert complaint in str(error.value) and "capitals.yaml" in str(error.value)


def test_names_must_be_new_and_files_must_exist(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the name 'copa' is taken"):
        resolve("all", custom=[define(tmp_path, CAPITALS.replace("name: capitals", "name: copa"))])
    with pytest.raises(UserError, match="there is no file"):
        resolve("all", custom=[tmp_path / "none.yaml"])


def test_a_row_without_a_field_of_the_template_is_named(tmp_path: Path) -> None:
    path = define(tmp_path, CAPITALS, {"options": ["a", "b"], "answer": 0})
    with pytest.raises(UserError, match=r"capitals\.jsonl, line 1, field 'country': is missing"):
        load_items(read_benchmark(path), None)


def test_hub_and_train_file(tmp_path: Path) -> None:
    hub = "hub: {path: owner/capitals, config: big, split: test}\nid: key\n"
    benchmark = read_benchmark(
        define(tmp_path, CAPITALS.replace("file: capitals.jsonl\n", hub), {**ROW, "key": "k"})
    )
    assert benchmark.hub == ("owner/capitals", "big", "test")
    assert load_items(benchmark, tmp_path).items[0].id == "k"
    (tmp_path / "shots.jsonl").write_text(json.dumps({**ROW, "country": "Peru", "answer": 0}) + "\n")
    trained = read_benchmark(define(tmp_path, CAPITALS + "train_file: shots.jsonl\n"))
    asked = "Question: What is the capital of"
    context = load_items(trained, None, fewshot=1).items[0].contexts[0]
    assert context == f"{asked} Peru? {{hint}}\nAnswer: Rome\n\n{asked} France {{x}}? {{hint}}\nAnswer:"


def test_numbers_in_templates_are_written_by_their_type_in_the_file(tmp_path: Path) -> None:
    """Integers that pandas turned into floats are floats, in Parquet as in JSON; numbers of fewer bits are short decimals."""
    import pandas as pd

    pandas = pd.DataFrame({"whole": [3, 4], "float": [3.0, 0.1], "year": [1984, None]})
    pandas["kept"] = pandas["year"].convert_dtypes()
    pandas["narrow"], pandas["half"] = (pd.Series([0.1, 3.0], dtype=f"float{bits}") for bits in (32, 16))
    rows, found = pandas.assign(answer=0)[:1], []
    rows.to_parquet(tmp_path / "numbers.parquet")
    (tmp_path / "numbers.jsonl").write_text(
        rows.astype({"narrow": str, "half": str}).to_json(orient="records", lines=True)
    )
    for kind in ("parquet", "jsonl"):
        path = tmp_path / f"{kind}.yaml"
        path.write_text(
            "name: numbers\ncontext: '{whole} {float} {year} {kept} {narrow} {half}'\nchoices: ['a', 'b']\ngold: answer\n"
            f"file: numbers.{kind}\n"
        )
        found += load_items(read_benchmark(path), None).items[0].contexts[:1]
    assert found == ["3 3.0 1984.0 1984 0.1 0.1"] * 2


def test_a_template_with_no_number_is_refused(tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    row = {"country": float("nan"), "options": ["Rome", "Paris"], "answer": 1}
    parquet.write_table(pa.Table.from_pylist([row]), tmp_path / "capitals.parquet")
    path = define(tmp_path, CAPITALS.replace("jsonl", "parquet"))
    with pytest.raises(
        UserError, match=r"capitals\.parquet, row 1, field 'country': holds no number \(nan\)"
    ):
        load_items(read_benchmark(path), None)
