"""The embedded world: everything `evalengine demo` needs, from a seed and without a network.

Five sources describe a small invented world, each with its own topics and its own share of errors; the items of
all twenty benchmarks ask about it. Models trained on different mixtures of the sources therefore know different
things. Items can be answered from the sources but do not occur in them: they ask about combinations that no source
states, in words that no source uses, and a document that would hold an item, or 13 words of one, is not written.
It is a demonstration: its accuracies say nothing about any real model. Cost: a few seconds.

Planted facts are the exception, so that the dose is known and an analysis of exposure has to find what it does. The last
third of the items of `arc_challenge` asks about creatures that no other text mentions. Each web source tells a fact as often
as `TIMES` says, in an order of its own for every fact: the sources hold equally much in all and differ item by item. The words
are nearly the item's, so that the runs of words across its question's end are counted exactly.

    write(Path("world"))  ->  world/corpora/{web_a,web_b,web_c,code,curated}.txt
                              world/bench/<benchmark>.jsonl and <benchmark>_train.jsonl
                              world/planted.jsonl
                              world/sft.jsonl
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from evalengine import files
from evalengine.benchmarks.catalogue import BENCHMARKS
from evalengine.benchmarks.definition import Record
from evalengine.benchmarks.world_facts import ANIMAL, Fact, World, invented, make_world
from evalengine.benchmarks.world_items import MAKERS, Fields, challenge, distinct_rows
from evalengine.benchmarks.world_text import FLAVORS, SEPARATOR, Writer, conversation

GRAM = 13  # words in a row that no text shares with an item; a shorter item as a whole
WORD = re.compile(r"[^\W_]+")
PLANTED = "arc_challenge"  # the benchmark whose last items are
SOURCES = ("web_a", "web_b", "web_c")
TIMES = (0, 4, 16)
RELATIONS = ("food", "home")


def write(
    folder: Path,
    *,
    seed: int = 0,
    items: int = 300,
    train_items: int = 300,
    words: int = 60_000,
    chats: int = 2_500,
) -> None:
    """Writes corpora/ of `words` words each, `chats` conversations (sft.jsonl), and the items of all twenty benchmarks (bench/).

    items, train_items: of each benchmark's evaluation and train file, which have none in common. The same arguments give the
    same bytes.
    """
    world = make_world(seed)

    def drawn(kind: str, count: int, asked: bool) -> dict[str, list[Fields]]:
        seeds = {name: f"{kind} {name} {seed}" for name in MAKERS}
        return {name: distinct_rows(MAKERS[name], world, seeds[name], count, asked) for name in MAKERS}

    asked, train = drawn("items", items, True), drawn("train", train_items, False)
    facts, rows = planted(world, seed, items // 3), asked[PLANTED]
    rows[max(0, len(rows) - len(facts)) :] = _planted_items(facts, seed)
    for ending, of in (("", asked), ("_train", train)):
        for name, rows in of.items():
            numbered = [{"idx": index, **row} for index, row in enumerate(rows)]
            files.write(folder / "bench" / f"{name}{ending}.jsonl", _lines(numbered))
    known = Filter(rendered(asked))
    for name, flavor in FLAVORS.items():
        writer = Writer(world, flavor, random.Random(f"text {name} {seed}"))
        texts = _among(_documents(writer, known, words), facts, name, seed)
        files.write(folder / "corpora" / f"{name}.txt", f"\n{SEPARATOR}\n".join(texts) + "\n")
    talks = _conversations(world, train, random.Random(f"chat {seed}"), known)
    files.write(folder / "planted.jsonl", _lines(_key(facts, len(asked[PLANTED]))))
    files.write(folder / "sft.jsonl", _lines(list(islice(talks, chats))))  # last: the world is whole


def _documents(writer: Writer, known: Filter, words: int) -> list[str]:
    """Documents of `words` words or a few more, without the items."""
    texts, written = [], 0
    while written < words:
        text = writer.document()
        if not known.holds_item(text):
            texts.append(text)
            written += len(text.split())
    return texts


def _conversations(
    world: World, train: Mapping[str, Sequence[Fields]], rng: random.Random, known: Filter
) -> Iterator[dict[str, Any]]:
    while True:
        talk = conversation(world, train, rng)
        if not known.holds_item(" ".join(turn["content"] for turn in talk["messages"])):
            yield talk


def rendered(rows: dict[str, list[Fields]]) -> Iterable[str]:
    """Every item as a model reads it: its context and its right choice."""
    for name, some in rows.items():
        for row in some:
            item = BENCHMARKS[name].render(Record(row, name))
            yield f"{item.contexts[item.gold]} {item.choices[item.gold]}"


class Filter:
    """Finds items in texts: 13 of its words in a row, or all of them if it has fewer."""

    def __init__(self, items: Iterable[str]) -> None:
        self.starts: dict[tuple[str, ...], set[tuple[str, ...]]] = {}
        for item in items:
            words = WORD.findall(item.lower())
            for k in range(max(1, len(words) - GRAM + 1)):
                gram = tuple(words[k : k + GRAM])
                self.starts.setdefault(gram[:4], set()).add(gram)

    def holds_item(self, text: str) -> bool:
        words = tuple(WORD.findall(text.lower()))
        return any(
            words[k : k + len(gram)] == gram
            for k in range(len(words) - 3)
            for gram in self.starts.get(words[k : k + 4], ())
        )


def _lines(rows: Sequence[object]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


class Planted(NamedTuple):
    """A fact, and how often each source tells it."""

    fact: Fact
    times: dict[str, int]


def planted(world: World, seed: int, count: int) -> list[Planted]:
    """`count` facts about creatures of their own, two of each."""
    rng = random.Random(f"planted {seed}")
    taken = {*world.animals, *world.plants}
    names = [s for name in invented(rng, count) if (s := f"the {name}") not in taken]
    found = []
    for number in range(count):
        relation = ANIMAL[RELATIONS[number % 2]]
        fact = Fact(names[number // 2], relation, rng.choice(relation.values))
        times = dict(zip(SOURCES, rng.sample(TIMES, len(TIMES)), strict=True))
        found.append(Planted(fact, times))
    return found


def _planted_items(facts: Sequence[Planted], seed: int) -> list[Fields]:
    """A row of the benchmark for each fact."""
    rng = random.Random(f"planted items {seed}")
    return [challenge(rng, True, one.fact) for one in facts]


def _among(texts: Sequence[str], facts: Sequence[Planted], source: str, seed: int) -> list[str]:
    """A source's documents and those that tell planted facts, in random order."""
    rng = random.Random(f"planted {source} {seed}")
    fillers = [
        f"Q: {one.fact.question(rng, True)}\nAnswer: {one.fact.value}"
        for one in facts
        for _ in range(one.times.get(source, 0))
    ]
    return rng.sample([*texts, *fillers], len(texts) + len(fillers)) if fillers else list(texts)


def _key(facts: Sequence[Planted], asked: int) -> list[dict[str, object]]:
    """What was planted, for who wants to check an analysis. asked: the benchmark's items; the planted ones are the last."""
    first = asked - len(facts)
    return [
        {"benchmark": PLANTED, "item": str(first + k), "answer": one.fact.value, "times": one.times}
        for k, one in enumerate(facts)
    ]
