"""The embedded world: everything `evalengine demo` needs, from a seed and without a network.

An invented little encyclopaedia is told five times, by sources that differ in what they cover and how
cleanly, and asked about in the forms of all twenty benchmarks. Models trained on different mixtures of the
sources therefore know different things. It is a demonstration: its accuracies say nothing of any real model.
Cost: about a second.

    write(Path("world"))  ->  world/corpora/{web_a,web_b,web_c,code,curated}.txt
                              world/sft.jsonl
                              world/bench/<benchmark>.jsonl and <benchmark>_train.jsonl
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Sequence
from pathlib import Path

from evalengine.benchmarks.catalogue import BENCHMARKS
from evalengine.benchmarks.definition import Row
from evalengine.benchmarks.world_facts import World, make_world
from evalengine.benchmarks.world_items import MAKERS, Fields, distinct_rows, question, sentence
from evalengine.benchmarks.world_text import write_corpus

CORPORA = ("web_a", "web_b", "web_c", "code", "curated")


def write(
    folder: Path,
    *,
    seed: int = 0,
    items: int = 150,
    train_items: int = 150,
    words: int = 80_000,
    chats: int = 1_500,
) -> None:
    """Writes corpora of `words` words each, `chats` conversations, and the items of all twenty benchmarks.

    The same arguments give the same bytes. Items of the evaluation and the train files are all different.
    """
    world = make_world(seed)
    (folder / "corpora").mkdir(parents=True, exist_ok=True)
    (folder / "bench").mkdir(exist_ok=True)
    for flavor in CORPORA:
        _replace(folder / "corpora" / f"{flavor}.txt", write_corpus(world, flavor, seed, words))
    train: dict[str, list[Fields]] = {}
    for name, make in MAKERS.items():
        rows = distinct_rows(make, world, f"items {name} {seed}", items + train_items)
        cut = round(len(rows) * items / (items + train_items))
        train[name] = rows[cut:]
        for ending, part in (("", rows[:cut]), ("_train", rows[cut:])):
            numbered = [{"idx": index, **row} for index, row in enumerate(part)]
            _replace(folder / "bench" / f"{name}{ending}.jsonl", _lines(numbered))
    _replace(folder / "sft.jsonl", _lines(_conversations(world, train, random.Random(f"chat {seed}"), chats)))


def _conversations(
    world: World, train: dict[str, list[Fields]], rng: random.Random, count: int
) -> list[dict[str, list[dict[str, str]]]]:
    """Two in three ask a train item as its benchmark does; the others ask plainly for half of the facts."""
    taught = world._replace(facts=tuple(rng.sample(world.facts, len(world.facts) // 2)))
    chats = []
    for _ in range(count):
        if rng.random() < 0.67:
            name = rng.choice(list(train))
            rendered = BENCHMARKS[name].render(Row(rng.choice(train[name]), name))
            turns = (rendered.contexts[rendered.gold], rendered.choices[rendered.gold])
        else:
            turns = _plain(taught, rng)
        roles = ("user", "assistant")
        chats.append(
            {"messages": [{"role": r, "content": text} for r, text in zip(roles, turns, strict=True)]}
        )
    return chats


def _plain(world: World, rng: random.Random) -> tuple[str, str]:
    fact = rng.choice(world.facts)
    form = rng.randrange(4)
    if form == 0:
        return question(fact.ask(rng)), sentence(fact.state(rng))
    if form == 1:
        return question(fact.ask(rng)), fact.value
    if form == 2:
        right = rng.random() < 0.5
        return question(fact.doubt(fact.value if right else fact.wrong(rng))) + "?", "yes" if right else "no"
    known = world.about(fact.subject)
    told = " ".join(sentence(f.state(rng)) for f in rng.sample(known, min(3, len(known))))
    return f"Tell me about {fact.subject}.", told


def _lines(rows: Sequence[object]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _replace(path: Path, text: str) -> None:
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8", newline="\n")
    os.replace(part, path)
