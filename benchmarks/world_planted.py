"""Planted facts: some sources of the embedded world tell them so many times, the others never.

The last third of the items of `arc_challenge` asks about creatures that no other text mentions. Each web source tells
a fact as often as `TIMES` says, in an order of its own for every fact: the sources hold equally much in all and differ
item by item. The words are nearly the item's, so that the runs of words across its question's end are counted exactly.
The dose is known, then, and an analysis of exposure has to find what it does.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple

from evalengine.benchmarks.world_facts import ANIMAL, Fact, World, invented
from evalengine.benchmarks.world_items import Fields, challenge

BENCHMARK = "arc_challenge"
SOURCES = ("web_a", "web_b", "web_c")
TIMES = (0, 4, 16)
RELATIONS = ("food", "home")


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


def items(facts: Sequence[Planted], seed: int) -> list[Fields]:
    """A row of the benchmark for each fact."""
    rng = random.Random(f"planted items {seed}")
    return [challenge(rng, True, one.fact) for one in facts]


def among(texts: Sequence[str], facts: Sequence[Planted], source: str, seed: int) -> list[str]:
    """A source's documents and those that tell planted facts, in random order."""
    rng = random.Random(f"planted {source} {seed}")
    told = [
        f"Q: {one.fact.question(rng, True)}\nAnswer: {one.fact.value}"
        for one in facts
        for _ in range(one.times.get(source, 0))
    ]
    return rng.sample([*texts, *told], len(texts) + len(told)) if told else list(texts)


def key(facts: Sequence[Planted], asked: int) -> list[dict[str, object]]:
    """What was planted, for who wants to check an analysis. asked: the benchmark's items; the planted ones are the last."""
    first = asked - len(facts)
    return [
        {"benchmark": BENCHMARK, "item": str(first + k), "answer": one.fact.value, "times": one.times}
        for k, one in enumerate(facts)
    ]
