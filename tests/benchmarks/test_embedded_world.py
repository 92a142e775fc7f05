"""The embedded world: deterministic, diverse, well-formed, told differently by its sources, and never told whole."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from pathlib import Path

import pytest

from evalengine.benchmarks import BENCHMARKS, load_items, resolve, world
from evalengine.benchmarks.world import SOURCES, TIMES, planted
from evalengine.benchmarks.world_facts import INHERITED, in_training, make_world
from evalengine.benchmarks.world_items import sentence
from evalengine.benchmarks.world_text import FLAVORS, SEPARATOR, Writer
from evalengine.training.data.contamination import overlap


@pytest.fixture(scope="module")
def full_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("full")
    world.write(folder)
    return folder


@pytest.fixture(scope="module")
def texts(full_world: Path) -> dict[str, list[str]]:
    """Documents of every source, and the conversations."""
    sources = {
        name: (full_world / "corpora" / f"{name}.txt").read_text().split(f"\n{SEPARATOR}\n")
        for name in FLAVORS
    }
    chats = [json.loads(line)["messages"] for line in (full_world / "sft.jsonl").read_text().splitlines()]
    return sources | {"conversations": [" ".join(turn["content"] for turn in chat) for chat in chats]}


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
    assert set(first) == set(other) and len(first) == 5 + 2 + 40
    assert not any(first[name] == other[name] for name in first)


def test_every_benchmark_has_different_items_for_evaluation_and_training(full_world: Path) -> None:
    for benchmark in resolve("all"):
        loaded = load_items(benchmark, full_world / "bench")
        assert loaded.total == 300, benchmark.name
        rows = {
            name: [
                {key: value for key, value in json.loads(line).items() if key != "idx"}
                for line in (full_world / "bench" / f"{name}.jsonl").read_text().splitlines()
            ]
            for name in (benchmark.name, f"{benchmark.name}_train")
        }
        found = [json.dumps(row, sort_keys=True) for part in rows.values() for row in part]
        assert len(found) == len(set(found)) == 600, benchmark.name
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


def test_no_text_holds_an_item(full_world: Path, texts: dict[str, list[str]]) -> None:
    """By the product's own rule, 13 words in a row, and for shorter items as a whole."""
    items = {
        benchmark.name: [
            item.contexts[item.gold] + item.continuations[item.gold]
            for item in load_items(benchmark, full_world / "bench").items
        ]
        for benchmark in resolve("all")
    }
    for name, found in overlap(items, texts).items():
        assert not any(found.seen.values()), (name, found)

    def words(text: str) -> str:
        return " " + " ".join(re.findall(r"[^\W_]+", text.lower())) + " "

    everything = "\n".join(words(text) for some in texts.values() for text in some)
    for name, some in items.items():
        short = [said for said in map(words, some) if len(said.split()) < 13]
        assert not any(said in everything for said in short), name


def test_every_topic_of_every_source_is_really_told(full_world: Path) -> None:
    """A topic that always came close to an item would be filtered out unseen, and its benchmark be unlearnable."""
    items = world.Filter(
        f"{item.contexts[item.gold]} {item.choices[item.gold]}"
        for benchmark in resolve("all")
        for item in load_items(benchmark, full_world / "bench").items
    )
    known = make_world(0)
    for name, flavor in FLAVORS.items():
        for topic in flavor.topics:
            writer = Writer(known, flavor._replace(topics={topic: 1}), random.Random(topic))
            kept = sum(not items.holds_item(writer.document()) for _ in range(60))
            assert kept >= 20, (name, topic, kept)


def test_a_text_that_holds_an_item_is_found() -> None:
    known = world.Filter(["The glass fell therefore the glass broke", " ".join(map(str, range(20)))])
    assert known.holds_item("Look: the GLASS fell, therefore the glass broke!")
    assert not known.holds_item("The glass fell therefore the glass")
    assert known.holds_item("x " + " ".join(map(str, range(5, 18))))
    assert not known.holds_item(" ".join(map(str, range(5, 17))) + " x")


def test_evaluation_asks_what_is_not_told(full_world: Path, texts: dict[str, list[str]]) -> None:
    """Neither a thing with its event, nor what an animal asked about inherits from its kind."""
    everything = " ".join(text.lower() for some in texts.values() for text in some)
    for line in (full_world / "bench/copa.jsonl").read_text().splitlines():
        row = json.loads(line)
        right = (row["choice1"], row["choice2"])[row["label"]]
        pair = [row["premise"], right] if row["question"] == "effect" else [right, row["premise"]]
        thing, event = re.fullmatch(r"The (\w+) (.+)\.", pair[0]).groups()  # type: ignore[union-attr]
        assert not in_training(thing, event)
        assert f"{pair[0][:-1]} therefore" not in everything and f"because {pair[0][:-1]}." not in everything
    known = make_world(0)
    for subject in known.unsaid:
        for fact in known.animals[subject]:
            if fact.relation.name in INHERITED:
                said = [s.format(s=subject, v=fact.value) for s in fact.relation.statements]
                assert not any(s in everything for s in said), subject


def test_planted_facts_are_told_as_often_as_the_key_says(
    full_world: Path, texts: dict[str, list[str]]
) -> None:
    """Counted in the text by the words across the end of the item's question; nothing else names these creatures."""
    items = load_items(BENCHMARKS["arc_challenge"], full_world / "bench").items
    known = {item.id: item for item in items}
    lines = (full_world / "planted.jsonl").read_text().splitlines()
    everything = {name: "\n".join(some).lower() for name, some in texts.items()}
    sums: Counter[str] = Counter()
    for row in map(json.loads, lines):
        item = known[row["item"]]
        assert item.choices[item.gold] == row["answer"]
        asked = item.contexts[item.gold].removeprefix("Question: ").lower()
        for name, text in everything.items():
            assert text.count(f"{asked} {row['answer']}") == row["times"].get(name, 0)
            assert text.count(asked) == row["times"].get(name, 0)  # never with another answer
        assert sorted(row["times"].values()) == sorted(TIMES) and set(row["times"]) == set(SOURCES)
        sums.update(row["times"])
    assert len(lines) == 100
    # 100 facts of 0, 4 or 16 times each: a source's sum is 667 with a standard deviation of 68
    assert all(460 < total < 870 for total in sums.values())


def test_right_answers_are_facts_of_the_world(full_world: Path) -> None:
    known = make_world(0)
    told = [*known.facts(), *(one.fact for one in planted(known, 0, 100))]
    facts = {(fact.subject, fact.value) for fact in told}
    for name in ("arc_challenge", "openbookqa", "sciq", "multirc"):
        lines = (full_world / "bench" / f"{name}.jsonl").read_text().splitlines()
        loaded = load_items(BENCHMARKS[name], full_world / "bench").items
        for row, item in zip(map(json.loads, lines), loaded, strict=True):
            asked = row.get("question") or row["question_stem"]
            known = {value for subject, value in facts if re.search(rf"\b{subject}\b", asked, re.IGNORECASE)}
            answer = row["answer"] if name == "multirc" else item.choices[item.gold]
            right = any(re.search(rf"\b{value}\b", answer) for value in known)
            assert right or (name == "multirc" and row["label"] == 0), row


def test_corpora_are_documents_and_differ_in_cleanliness(texts: dict[str, list[str]]) -> None:
    facts = make_world(0).facts()
    true = {sentence(s.format(s=f.subject, v=f.value)) for f in facts for s in f.relation.statements}
    said = {
        sentence(s.format(s=f.subject, v=value))
        for f in facts
        for s in f.relation.statements
        for value in f.relation.values
    }
    truth = {}
    for name in ("web_a", "web_b", "curated"):
        documents = texts[name]
        assert sum(len(document.split()) for document in documents) >= 60_000
        assert len(documents) > 1_000 and all(document.strip() for document in documents)
        lines = [line for document in documents for line in document.split("\n") if "Answer" not in line]
        stated = [s for line in lines for s in re.findall(r"[A-Z][^.\n]*\.", line) if s in said]
        truth[name] = sum(s in true for s in stated) / len(stated)
    assert truth["curated"] == 1.0
    assert 0.6 < truth["web_a"] < 0.8 and truth["web_b"] > 0.95


def test_conversations_alternate_and_speak_nearly_in_the_benchmarks_forms(full_world: Path) -> None:
    talks = [json.loads(line) for line in (full_world / "sft.jsonl").read_text().splitlines()]
    assert all(talk["messages"][-1]["content"] in talk["choices"] for talk in talks if "benchmark" in talk)
    assert {talk.get("benchmark") for talk in talks} == {None, *(b.name for b in resolve("all"))}
    chats = [talk["messages"] for talk in talks]
    assert all([turn["role"] for turn in chat] == ["user", "assistant"] for chat in chats)
    assert all(turn["content"].strip() for chat in chats for turn in chat)
    asked = {chat[0]["content"] for chat in chats}
    said = {tuple(turn["content"] for turn in chat) for chat in chats}
    evaluation = {
        (item.contexts[item.gold], item.choices[item.gold])
        for benchmark in resolve("all")
        for item in load_items(benchmark, full_world / "bench").items
    }
    assert sum(text.endswith("Answer:") for text in asked) > len(asked) / 2
    assert not said & evaluation
