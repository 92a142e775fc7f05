"""The twenty definitions against lm-evaluation-harness 0.4.13's own, run on the same files."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

import lm_eval_reference as reference
from evalengine.benchmarks import BENCHMARKS, load_items, resolve

# What has tripped templates before: brackets, quotes, braces, doubled spaces, no ASCII, other line ends.
AWKWARD = (
    " [title] ",
    " [step]",
    "  ",
    ' "',
    '" ',
    " n't",
    " ( ",
    " ).",
    "{{x}}",
    "é",
    "日本",
    " Ünï ",
    "%s",
    " . ",
    "\n",
)
LABEL_LIKE = {
    "label",
    "answer",
    "answerKey",
    "idx",
    "id",
    "question",
    "word",
    "span1_text",
    "span2_text",
    "ctx",
}


@pytest.fixture(scope="module")
def awkward_world(small_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small world's items with awkward pieces inserted into their texts."""
    folder = tmp_path_factory.mktemp("awkward")
    rng = random.Random(0)

    def spoil(value: Any) -> Any:
        if isinstance(value, list):
            return [spoil(inner) for inner in value]
        if not isinstance(value, str):
            return value
        at = rng.randrange(1, len(value) + 1) if value else 0
        return value[:at] + rng.choice(AWKWARD) + value[at:]

    for path in (small_world / "bench").glob("*.jsonl"):
        name = path.stem.removesuffix("_train")
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        for row in rows:
            for field, value in row.items():
                if field == "choices":
                    row[field] = {"text": spoil(value["text"]), "label": value["label"]}
                elif field not in LABEL_LIKE or (
                    field == "question" and name not in ("copa", "commonsense_qa")
                ):
                    row[field] = spoil(value)
        (folder / path.name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def agree(data: Path, fewshot: int = 0, limit: int | None = None) -> None:
    present = [b for b in resolve("all") if fewshot == 0 or (data / f"{b.name}_train.jsonl").is_file()]
    tasks = reference.tasks(data, [b.name for b in present], fewshot=fewshot, limit=limit)
    for benchmark in present:
        ours = load_items(benchmark, data, variant="lm_eval", fewshot=fewshot, seed=reference.SEED).items
        theirs = reference.requests(tasks[benchmark.name])
        assert len(theirs) == len(ours) or limit is not None
        for mine, request in zip(ours, theirs, strict=limit is None):
            assert (mine.contexts, mine.continuations, mine.gold) == request, (benchmark.name, mine.id)


def test_embedded_items_render_as_in_the_reference(small_world: Path) -> None:
    agree(small_world / "bench")


def test_awkward_texts_render_as_in_the_reference(awkward_world: Path) -> None:
    agree(awkward_world)


@pytest.mark.slow
def test_real_items_render_as_in_the_reference(real_data: Path) -> None:
    agree(real_data / "bench")


def test_fewshot_prefix_is_the_reference_s_for_the_same_draw(small_world: Path) -> None:
    """The reference draws anew for every item; its first draw from a seed is ours for all of them."""
    agree(small_world / "bench", fewshot=3, limit=1)


def test_default_variant_differs_from_the_reference_only_where_it_should(small_world: Path) -> None:
    for benchmark in resolve("all"):
        default = load_items(benchmark, small_world / "bench").items
        variant = load_items(benchmark, small_world / "bench", variant="lm_eval").items
        assert [item.id for item in default] == [item.id for item in variant]
        if benchmark.name == "copa":
            for mine, theirs in zip(default, variant, strict=True):
                assert theirs == mine._replace(
                    continuations=tuple(f" {text}" for text in mine.continuations), choices=mine.continuations
                )
        elif benchmark.name == "multirc":
            assert [item._replace(gold=1 - item.gold) for item in default] == variant
        else:
            assert default == variant


def test_multirc_label_one_is_yes(small_world: Path) -> None:
    rows = [json.loads(line) for line in (small_world / "bench/multirc.jsonl").read_text().splitlines()]
    items = load_items(BENCHMARKS["multirc"], small_world / "bench").items
    assert {row["label"] for row in rows} == {0, 1}
    for row, item in zip(rows, items, strict=True):
        assert item.choices[item.gold].endswith("yes" if row["label"] == 1 else "no")


def test_hub_addresses_are_the_reference_s(small_world: Path) -> None:
    for name, task in reference.tasks(small_world / "bench", limit=1).items():
        benchmark = BENCHMARKS[name]
        split = task.config.test_split or task.config.validation_split
        assert benchmark.hub == (task.DATASET_PATH, task.DATASET_NAME, split)
        norm = any(metric["metric"] == "acc_norm" for metric in task.config.metric_list)
        assert benchmark.default_score == ("acc_norm" if norm else "acc")
