"""Rows to items: what is tolerated, what is refused and how, ids, samples, few-shot prefixes, hashes."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from evalengine.benchmarks import BENCHMARKS, Item, benchmarks_in, held, load_items, resolve
from evalengine.benchmarks.load import check_files, read_rows
from evalengine.errors import UserError

COPA = {
    "premise": "It rained.",
    "choice1": "The sun shone.",
    "choice2": "The street got wet.",
    "question": "effect",
}
ARC = {"id": "a", "question": "Which is a star?", "choices": {"text": ["Sun", "Moon"], "label": ["A", "B"]}}


def write(folder: Path, name: str, *rows: Any, raw: bytes | None = None) -> Path:
    path = folder / f"{name}.jsonl"
    path.write_bytes(raw if raw is not None else "".join(json.dumps(row) + "\n" for row in rows).encode())
    return folder


def only(folder: Path, name: str, row: dict[str, Any], **options: Any) -> Item:
    [item] = load_items(BENCHMARKS[name], write(folder, name, row), **options).items
    return item


# What is tolerated


@pytest.mark.parametrize("label", [1, "1", True, "choice2", " 1 ", 1.0, "1.0", "1."])
def test_a_label_may_be_a_number_digits_a_boolean_or_a_class_name(tmp_path: Path, label: Any) -> None:
    assert only(tmp_path, "copa", {**COPA, "label": label}).gold == 1


@pytest.mark.parametrize(
    ("fields", "gold"), [({"label": 0}, 0), ({"answer": True}, 1), ({"answer": False}, 0)]
)
def test_boolq_takes_answer_or_label(tmp_path: Path, fields: dict[str, Any], gold: int) -> None:
    item = only(tmp_path, "boolq", {"passage": "P.", "question": "is it", **fields})
    assert item.gold == gold and item.continuations == (" no", " yes")


def test_hellaswag_without_ctx_a_and_ctx_b_reads_ctx(tmp_path: Path) -> None:
    row = {
        "activity_label": "Baking",
        "ctx": "A man kneads. the dough",
        "endings": ["a.", "b."],
        "label": "1",
    }
    assert set(only(tmp_path, "hellaswag", row).contexts) == {"Baking: A man kneads. the dough"}
    both = {**row, "ctx_a": "A man kneads.", "ctx_b": "THE dough"}
    assert set(only(tmp_path, "hellaswag", both).contexts) == {"Baking: A man kneads. The dough"}


def test_social_iqa_is_read_as_siqa(tmp_path: Path) -> None:
    row = {"context": "C.", "question": "Q?", "answerA": "a", "answerB": "b", "answerC": "c", "label": "3"}
    items = load_items(BENCHMARKS["siqa"], write(tmp_path, "social_iqa", row)).items
    assert items[0].gold == 2


def test_blank_lines_a_byte_order_mark_and_carriage_returns_do_not_matter(tmp_path: Path) -> None:
    line = json.dumps({**COPA, "label": 1}, ensure_ascii=False).encode()
    data = write(
        tmp_path, "copa", raw=b"\xef\xbb\xbf" + line + b"\r\n\r\n" + line.replace(b"rained", b"snowed")
    )
    assert len(load_items(BENCHMARKS["copa"], data).items) == 2


def test_a_line_separator_inside_a_text_ends_no_line(tmp_path: Path) -> None:
    line = json.dumps({**COPA, "premise": "It\u2028rained.", "label": 1}, ensure_ascii=False)
    data = write(tmp_path, "copa", raw=line.encode())
    assert load_items(BENCHMARKS["copa"], data).items[0].contexts[0] == "It\u2028rained therefore"


def test_parquet_and_json_lines_give_the_same_items_and_hash(small_world: Path, tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    for benchmark in resolve("all"):
        source = small_world / "bench" / f"{benchmark.name}.jsonl"
        rows = [json.loads(line) for line in source.read_text().splitlines()]
        if benchmark.name == "boolq":
            rows[0]["extra"] = "only here"  # which Parquet stores as nulls elsewhere
            write(tmp_path, "boolq", *rows)
            source = tmp_path / "boolq.jsonl"
        folder = tmp_path / benchmark.name
        folder.mkdir()
        parquet.write_table(
            pa.Table.from_pylist(rows, _schema(pa, rows)), folder / f"{benchmark.name}.parquet"
        )
        assert load_items(benchmark, folder) == load_items(benchmark, source.parent)


def _schema(pa: Any, rows: list[dict[str, Any]]) -> Any:
    fields = {key: value for row in reversed(rows) for key, value in row.items()}
    return pa.schema([(key, pa.infer_type([value])) for key, value in fields.items()])


# What is refused


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({**COPA, "label": 2}, "line 1, field 'label': expected 0 to 1, got 2"),
        ({**COPA, "label": "two"}, "line 1, field 'label': expected 0 to 1, got 'two'"),
        ({**COPA, "label": 0.5}, "line 1, field 'label': expected 0 to 1, got 0.5"),
        ({**COPA, "label": 2.0}, "line 1, field 'label': expected 0 to 1, got 2.0"),
        ({**COPA, "label": "0.5"}, "line 1, field 'label': expected 0 to 1, got '0.5'"),
        ({**COPA, "label": -1.0}, "line 1, field 'label' is -1.0: the row has no gold label"),
        ({**COPA, "label": -1}, "line 1, field 'label' is -1: the row has no gold label"),
        ({**COPA, "label": ""}, "line 1, field 'label' is '': the row has no gold label"),
        (COPA, "line 1, field 'label': is missing (the row has premise, choice1, choice2, question)"),
        ({**COPA, "label": None}, "line 1, field 'label': is missing"),
        ({**COPA, "label": 1, "premise": 7}, "line 1, field 'premise': expected text, got a number (7)"),
        ({**COPA, "label": 1, "question": "why"}, "line 1, field 'question': expected 'cause' or 'effect'"),
        ({**COPA, "label": 1, "premise": "\ud800"}, "line 1, field 'premise': holds a lone surrogate"),
    ],
)
def test_a_malformed_row_is_named_by_file_line_and_field(tmp_path: Path, row: Any, complaint: str) -> None:
    with pytest.raises(UserError) as error:
        load_items(BENCHMARKS["copa"], write(tmp_path, "copa", row))
    assert str(error.value).startswith(f"{tmp_path / 'copa.jsonl'}, {complaint}")


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"answerKey": "C"}, "'C' is none of the labels A, B"),
        ({"answerKey": ""}, "no gold label"),
        (
            {"answerKey": "A", "choices": {"text": ["Sun"], "label": ["A"]}},
            "needs two choices or more, not 1",
        ),
        ({"answerKey": "A", "choices": {"text": ["Sun", "Moon"], "label": ["A"]}}, "2 texts but 1 labels"),
        ({"answerKey": "A", "choices": {"text": ["Sun", ""], "label": ["A", "B"]}}, "choice 2 is empty"),
        ({"answerKey": "A", "choices": {"text": [" \t", "Sun"], "label": ["A", "B"]}}, "choice 1 is empty"),
        (
            {"answerKey": "A", "choices": {"text": "Sun", "label": ["A"]}},
            "expected a list of texts, got text",
        ),
        ({"answerKey": "A", "choices": ["Sun", "Moon"]}, "field 'choices.text': is missing"),
    ],
)
def test_choices_that_are_none_are_refused(tmp_path: Path, change: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UserError) as error:
        load_items(
            BENCHMARKS["arc_easy"], write(tmp_path, "arc_easy", {**ARC, "answerKey": "A"}, {**ARC, **change})
        )
    assert "arc_easy.jsonl, line 2" in str(error.value) and complaint in str(error.value)


@pytest.mark.parametrize(
    ("name", "change", "complaint"),
    [
        ("wic", {"start1": -5}, "line 1, field 'start1': expected 0 to 14, got -5"),
        ("wic", {"start1": 40, "end1": 44}, "line 1, field 'start1': expected 0 to 14, got 40"),
        ("wic", {"end1": 2}, "line 1, field 'end1': expected 3 to 15, got 2"),
        ("wsc", {"span2_index": 5}, "line 1, field 'span2_index': expected 0 to 4, got 5"),
        ("wsc", {"span2_index": -1}, "line 1, field 'span2_index': expected 0 to 4, got -1"),
    ],
)
def test_a_place_outside_its_text_is_refused(tmp_path: Path, name: str, change: Any, complaint: str) -> None:
    row = {
        "wic": {
            "sentence1": "A bat flew off.",
            "sentence2": "He had a bat.",
            "start1": 2,
            "end1": 5,
            "label": 0,
        },
        "wsc": {
            "text": "Ann said she was ill.",
            "span1_text": "Ann",
            "span2_text": "she",
            "span2_index": 2,
            "label": 1,
        },
    }[name]
    (item,) = load_items(BENCHMARKS[name], write(tmp_path, name, row)).items
    assert {"wic": "'bat'", "wsc": "Ann said *she* was ill."}[name] in item.contexts[0]
    with pytest.raises(UserError) as error:
        load_items(BENCHMARKS[name], write(tmp_path, name, {**row, **change}))
    assert complaint in str(error.value)


@pytest.mark.parametrize(
    ("raw", "complaint"),
    [
        (b'{"premise": NaN}', "line 1: not valid JSON (NaN is not JSON)"),
        (b'\n{"premise": ', "line 2: not valid JSON"),
        (b'{"premise": "\xff"}', "line 1: not valid UTF-8 (byte 14)"),
        (
            b'{"premise": "x", "id": {"a": 1, "b": 2, "a": 3}}',
            "line 1: not valid JSON (the key 'a' appears twice in one object)",
        ),
        (b"[1, 2]", "line 1: expected a JSON object, got list"),
        (b"[" * 100_000, "line 1: not valid JSON (nested too deeply)"),
        (b"\n\n", "has no rows"),
    ],
)
def test_a_malformed_file_is_named(tmp_path: Path, raw: bytes, complaint: str) -> None:
    with pytest.raises(UserError) as error:
        load_items(BENCHMARKS["copa"], write(tmp_path, "copa", raw=raw))
    assert str(tmp_path / "copa.jsonl") in str(error.value) and complaint in str(error.value)


def test_a_bad_row_is_found_although_the_limit_leaves_it_out(tmp_path: Path) -> None:
    rows = [{**COPA, "premise": f"It rained {i}.", "label": 1} for i in range(50)]
    kept = {
        item.contexts
        for item in load_items(BENCHMARKS["copa"], write(tmp_path, "copa", *rows), limit=1).items
    }
    bad = next(i for i in range(50) if f"It rained {i} therefore" not in {c for cs in kept for c in cs})
    rows[bad]["label"] = 9
    with pytest.raises(UserError, match=f"line {bad + 1},"):
        load_items(BENCHMARKS["copa"], write(tmp_path, "copa", *rows), limit=1)


def test_a_parquet_file_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "copa.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(UserError, match="not a readable Parquet file"):
        load_items(BENCHMARKS["copa"], tmp_path)


def test_missing_data_says_what_to_add(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no copa\.jsonl or copa\.parquet"):
        load_items(BENCHMARKS["copa"], tmp_path)
    with pytest.raises(UserError, match=r"has no copa_train\.jsonl .*few-shot"):
        load_items(BENCHMARKS["copa"], write(tmp_path, "copa", {**COPA, "label": 1}), fewshot=1)
    with pytest.raises(UserError, match="is not a folder"):
        load_items(BENCHMARKS["copa"], tmp_path / "nowhere")


def test_a_data_folder_holds_the_files_itself_or_in_bench(tmp_path: Path) -> None:
    above, within, copa = tmp_path / "data", tmp_path / "data/bench", BENCHMARKS["copa"]
    within.mkdir(parents=True)
    write(within, "copa", {**COPA, "label": 1})
    write(within, "copa_train", {**COPA, "premise": "It was sunny.", "label": 0})
    assert load_items(copa, above, fewshot=1) == load_items(copa, within, fewshot=1)
    assert benchmarks_in(above, BENCHMARKS.values()) == benchmarks_in(within, BENCHMARKS.values()) == [copa]
    assert check_files([copa], above) == check_files([copa], within)
    with pytest.raises(UserError, match=r"data has no cb\.jsonl or cb\.parquet, nor has its bench/: add it"):
        load_items(BENCHMARKS["cb"], above)
    write(above, "copa", {**COPA, "label": 0})
    with pytest.raises(
        UserError, match=r"data/copa\.jsonl and .*data/bench/copa\.jsonl both claim to be copa"
    ):
        load_items(copa, above)


def test_a_data_folder_without_files_is_refused_in_one_wording(tmp_path: Path) -> None:
    write(tmp_path, "copa", {**COPA, "label": 1})
    cb, copa, rte, wic = (BENCHMARKS[name] for name in ("cb", "copa", "rte", "wic"))
    assert held(tmp_path, [cb, copa]) == [copa]
    for wanted, train, reason in (
        (
            [cb],
            False,
            "holds no file of cb, nor does its bench/: check --data, or name the files <benchmark>.jsonl",
        ),
        (
            [copa, cb, rte, wic],
            True,
            "holds no train file of copa, cb, rte, ..., nor does .* <benchmark>_train.jsonl",
        ),
    ):
        with pytest.raises(UserError, match=reason):
            held(tmp_path, wanted, train=train)
    with pytest.raises(UserError, match="nowhere is not a folder: --data takes a folder of"):
        held(tmp_path / "nowhere", [copa])


def test_two_files_for_one_benchmark_are_refused(tmp_path: Path) -> None:
    write(tmp_path, "siqa", {})
    with pytest.raises(UserError, match="both claim to be siqa"):
        load_items(BENCHMARKS["siqa"], write(tmp_path, "social_iqa", {}))


@pytest.mark.parametrize("options", [{"limit": 0}, {"fewshot": -1}, {"variant": "other"}, {"seed": -1}])
def test_options_out_of_range_are_refused(tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        load_items(BENCHMARKS["copa"], write(tmp_path, "copa", {**COPA, "label": 1}), **options)


# Ids, samples, few-shot


def test_ids_are_the_items_own_else_of_their_content_and_always_unique(tmp_path: Path) -> None:
    row = {**COPA, "label": 1}
    rows = [{**row, "idx": 7}, {**row, "idx": 7}, row, row, {**row, "premise": "It snowed."}]
    rows += [{**row, "idx": {"paragraph": 1, "question": 2, "answer": 0}}, {**row, "idx": "7#2"}]
    ids = [item.id for item in load_items(BENCHMARKS["copa"], write(tmp_path, "copa", *rows)).items]
    assert len(set(ids)) == len(rows)
    assert ids[:2] == ["7", "7#2"] and ids[5] == "1-2-0"
    alone = load_items(BENCHMARKS["copa"], write(tmp_path, "copa", rows[4])).items
    assert alone[0].id == ids[4], "an id of content depends on nothing but the content"


def test_a_limit_is_a_seeded_sample_in_the_data_s_order(small_world: Path) -> None:
    benchmark, data = BENCHMARKS["piqa"], small_world / "bench"
    every = load_items(benchmark, data)
    some = load_items(benchmark, data, limit=9, seed=5)
    assert (some.total, len(some.items), some.data_hash) == (every.total, 9, every.data_hash)
    places = [every.items.index(item) for item in some.items]
    assert places == sorted(places)
    assert some == load_items(benchmark, data, limit=9, seed=5)
    assert some.items != load_items(benchmark, data, limit=9, seed=6).items
    assert load_items(benchmark, data, limit=10_000).items == every.items
    assert places == sorted(random.Random(5).sample(range(every.total), 9))


def test_fewshot_puts_the_same_solved_train_items_before_every_context(small_world: Path) -> None:
    data = small_world / "bench"
    for name in ("copa", "winogrande", "sciq"):
        plain, shots = (
            load_items(BENCHMARKS[name], data),
            load_items(BENCHMARKS[name], data, fewshot=2, seed=1),
        )
        [prefix] = {
            shot.contexts[k].removesuffix(item.contexts[k])
            for item, shot in zip(plain.items, shots.items, strict=True)
            for k in range(len(item.contexts))
        }
        assert len(prefix.split("\n\n")) == 3 and prefix.endswith("\n\n")
        train = list(read_rows(BENCHMARKS[name], data, train=True))
        solved = [BENCHMARKS[name].render(row) for row in train]
        texts = [f"{r.contexts[r.gold]} {r.choices[r.gold]}\n\n" for r in solved]
        assert prefix in {one + two for one in texts for two in texts if one != two}
        assert [item.id for item in plain.items] == [item.id for item in shots.items]
        assert plain.data_hash != shots.data_hash and shots.rows_hash == plain.rows_hash == plain.data_hash
        assert load_items(BENCHMARKS[name], data, fewshot=2, seed=1) == shots


def copas(*numbers: int, **more: Any) -> list[dict[str, Any]]:
    return [{**COPA, "premise": f"It rained {i} days.", "label": i % 2, **more} for i in numbers]


def shots(prefix: str) -> set[int]:
    """The numbers of the examples in a prefix of `copas`."""
    return {int(text.split()[2]) for text in prefix.split("\n\n")[:-1]}


@pytest.mark.parametrize("limit", [None, 2])
def test_an_example_is_never_an_item_whatever_file_it_comes_from(tmp_path: Path, limit: int | None) -> None:
    """Train rows 0 to 5 are items too, one with another id, one in other letters and spaces, one with its choices swapped."""
    swapped = {"choice1": COPA["choice2"], "choice2": COPA["choice1"]}
    write(tmp_path, "copa", *copas(*range(8)))
    train = copas(*range(4), 10, 11, 12) + copas(4, idx=99) + copas(5, **swapped)
    # item 5's right answer is its second choice
    train[7]["premise"], train[8]["label"] = (
        "it  RAINED 4 days.",
        0,
    )
    write(tmp_path, "copa_train", *train)
    for seed in range(12):
        for count in (1, 3):
            loaded = load_items(BENCHMARKS["copa"], tmp_path, fewshot=count, seed=seed, limit=limit)
            [prefix] = {
                context.rpartition("\n\n")[0] + "\n\n" for i in loaded.items for context in i.contexts
            }
            assert len(shots(prefix)) == count and shots(prefix) <= {10, 11, 12}
            whole = load_items(BENCHMARKS["copa"], tmp_path, fewshot=count, seed=seed)
            assert whole.items[0].contexts[0].startswith(prefix), "the examples do not depend on the limit"
            assert (loaded.fewshot, loaded.data_hash) == (count, whole.data_hash)


def test_examples_that_are_all_items_are_refused(tmp_path: Path) -> None:
    write(tmp_path, "copa", *copas(*range(5)))
    write(tmp_path, "copa_train", *copas(*range(5), 10))
    with pytest.raises(
        UserError, match=r"copa has 1 train items that are not evaluation items too, .* asks for 2"
    ):
        load_items(BENCHMARKS["copa"], tmp_path, fewshot=2)


def test_a_question_with_another_answer_is_another_item(tmp_path: Path) -> None:
    """multirc asks one question once per answer: an example with another answer gives nothing away."""
    row = {"paragraph": "P.", "question": "Q?", "label": 1}
    write(tmp_path, "multirc", {**row, "answer": "a"})
    write(tmp_path, "multirc_train", {**row, "answer": "b"})
    [item] = load_items(BENCHMARKS["multirc"], tmp_path, fewshot=1).items
    assert item.contexts[0].startswith("P.\nQuestion: Q?\nAnswer: b\nIs the answer correct? yes\n\nP.")


def test_whole_floats_of_pandas_are_numbers_in_json_lines_and_parquet(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    words = {"word": "bank", "sentence1": "The bank is old.", "sentence2": "A bank of sand."}
    row = {**words, "start1": 4, "end1": 8, "start2": 2, "end2": 6, "label": 1, "idx": 7}
    floats = {key: float(value) if isinstance(value, int) else value for key, value in row.items()}
    expected = only(tmp_path, "wic", row)
    assert only(tmp_path, "wic", floats) == expected
    (tmp_path / "wic.jsonl").unlink()
    parquet.write_table(pa.Table.from_pylist([floats, {**floats, "idx": None}]), tmp_path / "wic.parquet")
    items = load_items(BENCHMARKS["wic"], tmp_path).items
    assert items[0] == expected and items[1][1:] == expected[1:]
    parquet.write_table(pa.Table.from_pylist([{**floats, "label": float("nan")}]), tmp_path / "wic.parquet")
    with pytest.raises(UserError, match="field 'label' is nan: the row has no gold label"):
        load_items(BENCHMARKS["wic"], tmp_path)


def test_more_examples_than_train_items_are_refused(small_world: Path) -> None:
    with pytest.raises(UserError, match="has 12 train items but --fewshot asks for 13"):
        load_items(BENCHMARKS["copa"], small_world / "bench", fewshot=13)


def test_the_data_hash_knows_content_and_order(tmp_path: Path) -> None:
    one, two = {**COPA, "label": 1}, {**COPA, "label": 0}
    hashes = [
        load_items(BENCHMARKS["copa"], write(tmp_path, "copa", *rows)).data_hash
        for rows in ([one, two], [two, one], [one, one], [dict(reversed(one.items())), two])
    ]
    assert len(set(hashes)) == 3 and hashes[0] == hashes[3]


# The hub


def test_the_hub_is_asked_for_path_config_and_split(
    small_world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets")
    asked = []

    def load_dataset(path: str, config: str | None, *, split: str) -> Any:
        asked.append((path, config, split))
        ending = "_train" if split == "train" else ""
        return datasets.Dataset.from_json(str(small_world / "bench" / f"copa{ending}.jsonl"))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    from_hub = load_items(BENCHMARKS["copa"], None, fewshot=2)
    assert from_hub == load_items(BENCHMARKS["copa"], small_world / "bench", fewshot=2)
    assert set(asked) == {("aps/super_glue", "copa", "validation"), ("aps/super_glue", "copa", "train")}


def test_an_unlabelled_hub_row_names_the_split(small_world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_list([{**COPA, "label": -1}])
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **options: rows)
    with pytest.raises(
        UserError, match="aps/super_glue copa validation on the hub, row 1, field 'label' is -1"
    ):
        load_items(BENCHMARKS["copa"], None)


def test_a_hub_that_cannot_be_reached_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")

    def load_dataset(*args: Any, **options: Any) -> Any:
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(UserError) as error:
        load_items(BENCHMARKS["copa"], None)
    assert (
        "no route" in str(error.value) and "--data DIR" in str(error.value) and "\n" not in str(error.value)
    )


def test_without_the_datasets_package_the_sentence_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(UserError, match=r"pip install 'evalengine\[hub\]'"):
        load_items(BENCHMARKS["copa"], None)


# Names


def test_names_resolve_in_the_catalogue_s_order() -> None:
    assert [b.name for b in resolve("all")] == list(BENCHMARKS) and len(BENCHMARKS) == 20
    assert [b.name for b in resolve("science, copa")] == [
        "copa",
        "arc_easy",
        "arc_challenge",
        "sciq",
        "openbookqa",
    ]
    assert [len(resolve(category)) for category in ("Commonsense", "Science", "NLI", "Semantic")] == [
        7,
        4,
        4,
        5,
    ]


@pytest.mark.parametrize(
    ("names", "complaint"),
    [("helaswag", "did you mean 'hellaswag'"), ("", "no benchmark was named"), ("zzz", "choose")],
)
def test_an_unknown_name_is_refused(names: str, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        resolve(names)
