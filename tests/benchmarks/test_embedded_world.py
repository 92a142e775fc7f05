"""The embedded world: deterministic, diverse, well-formed, and told differently by its sources."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest

from evalengine.benchmarks import BENCHMARKS, load_items, resolve, world
from evalengine.benchmarks.world_facts import make_world
from evalengine.benchmarks.world_items import sentence
from evalengine.benchmarks.world_text import SEPARATOR


@pytest.fixture(scope="module")
def full_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("full")
    world.write(folder)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_the_same_seed_writes_the_same_bytes_and_another_seed_another_world(
    small_world: Path, tmp_path: Path
) -> None:
    sizes = {"items": 24, "train_items": 12, "words": 4_000, "chats": 120}
    world.write(tmp_path / "same", seed=3, **sizes)
    world.write(tmp_path / "other", seed=4, **sizes)
    first, same, other = contents(small_world), contents(tmp_path / "same"), contents(tmp_path / "other")
    assert first == same
    assert set(first) == set(other) and len(first) == 5 + 1 + 40
    assert not any(first[name] == other[name] for name in first)


def test_every_benchmark_has_different_items_for_evaluation_and_training(full_world: Path) -> None:
    for benchmark in resolve("all"):
        loaded = load_items(benchmark, full_world / "bench")
        assert loaded.total == 150, benchmark.name
        rows = {
            name: [
                {key: value for key, value in json.loads(line).items() if key != "idx"}
                for line in (full_world / "bench" / f"{name}.jsonl").read_text().splitlines()
            ]
            for name in (benchmark.name, f"{benchmark.name}_train")
        }
        texts = [json.dumps(row, sort_keys=True) for part in rows.values() for row in part]
        assert len(texts) == len(set(texts)) == 300, benchmark.name
        scored = {(item.contexts, item.choices) for item in loaded.items}
        assert len(scored) >= 0.95 * len(loaded.items), benchmark.name


def test_no_position_of_the_gold_choice_wins(full_world: Path) -> None:
    for benchmark in resolve("all"):
        if benchmark.name == "sciq":  # whose right answer is the last by definition
            continue
        items = load_items(benchmark, full_world / "bench").items
        share = Counter(item.gold for item in items).most_common(1)[0][1] / len(items)
        chance = sum(1 / len(item.choices) for item in items) / len(items)
        assert share < chance + 0.15, (benchmark.name, share)


def test_right_answers_are_facts_of_the_world(full_world: Path) -> None:
    facts = {(fact.subject, fact.value) for fact in make_world(0).facts}
    for name in ("arc_challenge", "openbookqa", "multirc"):
        lines = (full_world / "bench" / f"{name}.jsonl").read_text().splitlines()
        for row, item in zip(
            map(json.loads, lines), load_items(BENCHMARKS[name], full_world / "bench").items, strict=True
        ):
            if name == "multirc":
                answer, wanted = row["answer"], row["label"] == 1
            else:
                answer, wanted = item.choices[item.gold], True
            asked = row.get("question") or row["question_stem"]
            known = {value for subject, value in facts if re.search(rf"\b{subject}\b", asked, re.IGNORECASE)}
            assert (answer in known) or not wanted, row


def test_corpora_are_documents_and_differ_in_cleanliness(full_world: Path) -> None:
    known = make_world(0)
    true = {sentence(s.format(s=f.subject, v=f.value)) for f in known.facts for s in f.relation.statements}
    said = {
        sentence(s.format(s=f.subject, v=value))
        for f in known.facts
        for s in f.relation.statements
        for value in f.relation.values
    }
    truth = {}
    for name in world.CORPORA:
        text = (full_world / "corpora" / f"{name}.txt").read_text()
        assert text.endswith("\n") and len(text.split()) >= 80_000
        documents = text.split(f"\n{SEPARATOR}\n")
        assert len(documents) > 1_000 and all(document.strip() for document in documents)
        stated = [s for s in re.findall(r"[A-Z][^.\n]*\.", text) if s in said]
        truth[name] = (sum(s in true for s in stated) / len(stated)) if stated else 1.0
    assert truth["curated"] == 1.0
    assert 0.65 < truth["web_a"] < 0.85 and 0.85 < truth["web_c"] < 0.96 and truth["web_b"] > 0.95


def test_conversations_alternate_and_speak_the_benchmarks_forms(full_world: Path) -> None:
    chats = [json.loads(line)["messages"] for line in (full_world / "sft.jsonl").read_text().splitlines()]
    assert len(chats) == 1_500
    assert all([turn["role"] for turn in chat] == ["user", "assistant"] for chat in chats)
    assert all(turn["content"].strip() for chat in chats for turn in chat)
    asked = {chat[0]["content"] for chat in chats}
    evaluation = {
        item.contexts[item.gold]
        for benchmark in resolve("arc_easy,boolq,mnli,qqp,wic")
        for item in load_items(benchmark, full_world / "bench").items
    }
    assert sum(text.endswith("Answer:") for text in asked) > 500
    train = {
        item.contexts[item.gold]
        for benchmark in resolve("all")
        for item in load_items(benchmark, full_world / "bench", fewshot=0).items
    }
    assert len(asked & (evaluation | train)) < 0.2 * len(asked)
