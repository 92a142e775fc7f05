"""The facts of the embedded world, and which combinations are for training and which for evaluation.

Animals and plants are invented and their properties drawn by the seed; the other words are plain common sense
(world_words.py). Text, items and conversations combine these parts, and a combination occurs either in text and
training items or, `asked`, in evaluation items: `in_training` decides. Cost: under a millisecond.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeVar

from evalengine.benchmarks import world_words as words

Some = TypeVar("Some")
ANIMALS, PLANTS = 20, 18  # how many the world has


class Relation(NamedTuple):
    """One kind of fact: `{s}` is the subject, `{v}` the value, which ends the first statement."""

    name: str
    statements: tuple[str, ...]
    questions: tuple[str, ...]
    values: tuple[str, ...]


class Fact(NamedTuple):
    subject: str
    relation: Relation
    value: str

    def state(self, rng: random.Random, value: str | None = None) -> str:
        return rng.choice(self.relation.statements).format(s=self.subject, v=value or self.value)

    def question(self, rng: random.Random, asked: bool) -> str:
        """Each fact keeps one wording of its question for evaluation; text uses the others."""
        wordings = self.relation.questions
        kept = zlib.crc32(f"{self.subject} {self.relation.name}".encode()) % len(wordings)
        pool = [kept] if asked else [k for k in range(len(wordings)) if k != kept]
        return wordings[rng.choice(pool)].format(s=self.subject)

    def wrong(self, rng: random.Random) -> str:
        """Another value of the same kind."""
        return rng.choice(self.others())

    def others(self) -> list[str]:
        return [value for value in self.relation.values if value != self.value]


class World(NamedTuple):
    animals: Mapping[str, tuple[Fact, ...]]  # subject -> its facts
    plants: Mapping[str, tuple[Fact, ...]]
    unsaid: frozenset[str]  # animals of which no text states what follows from their kind

    def facts(self) -> list[Fact]:
        return [fact for group in (self.animals, self.plants) for some in group.values() for fact in some]

    def known(self, subject: str) -> list[Fact]:
        """What text states of an animal or a plant."""
        facts = self.animals.get(subject) or self.plants[subject]
        hidden = INHERITED if subject in self.unsaid else ()
        return [fact for fact in facts if fact.relation.name not in hidden]

    def animal_fact(self, rng: random.Random, asked: bool, *relations: str) -> Fact:
        """A fact about an animal that text states; of the relations named, if any."""
        facts = [f for animal in self.animals for f in self.known(animal)]
        return _one(rng, asked, [f for f in facts if not relations or f.relation.name in relations])

    def plant_fact(self, rng: random.Random, asked: bool) -> Fact:
        return _one(rng, asked, [fact for some in self.plants.values() for fact in some])

    def fact(self, rng: random.Random, asked: bool) -> Fact:
        """Of an animal or of a plant."""
        return self.animal_fact(rng, asked) if rng.random() < 0.5 else self.plant_fact(rng, asked)


def in_training(*parts: str) -> bool:
    """Two in three combinations occur in text and training items; the others in evaluation items."""
    return zlib.crc32("|".join(parts).encode()) % 3 != 0


def combination(rng: random.Random, asked: bool, *pools: Sequence[str]) -> tuple[str, ...]:
    """One of each pool, together a combination that is `asked` or not; those of training are frequent or rare (Zipf)."""
    while True:
        parts = tuple(rng.choice(pool) if asked else frequent(rng, pool) for pool in pools)
        if in_training(*parts) != asked:
            return parts


def _one(rng: random.Random, asked: bool, facts: Sequence[Fact]) -> Fact:
    return rng.choice(facts) if asked else frequent(rng, facts)


def frequent(rng: random.Random, pool: Sequence[Some]) -> Some:
    """An element, the earlier ones more often: the k-th with weight 1 / sqrt(k + 2)."""
    return rng.choices(pool, [(k + 2) ** -0.5 for k in range(len(pool))])[0]


INHERITED = ("cover", "move")  # relations that follow from an animal's kind
ANIMAL = {name: Relation(name, *parts) for name, parts in words.ANIMAL.items()}
PLANT = {name: Relation(name, *parts) for name, parts in words.PLANT.items()}


def make_world(seed: int = 0) -> World:
    """Draws the world: which animals and plants there are and what is true of them."""
    rng = random.Random(f"world {seed}")
    names = [f"the {name}" for name in invented(rng, ANIMALS + PLANTS)]
    beasts: dict[str, tuple[Fact, ...]] = {}
    for number, subject in enumerate(names[:ANIMALS]):
        kind = tuple(words.KINDS)[number % len(words.KINDS)]
        values = {name: rng.choice(relation.values) for name, relation in ANIMAL.items()}
        values |= {"kind": kind, **dict(zip(INHERITED, words.KINDS[kind], strict=True))}
        beasts[subject] = tuple(Fact(subject, ANIMAL[name], value) for name, value in values.items())
    herbs = {
        subject: tuple(Fact(subject, relation, rng.choice(relation.values)) for relation in PLANT.values())
        for subject in names[ANIMALS:]
    }
    return World(beasts, herbs, frozenset(names[ANIMALS // 2 : ANIMALS]))


def invented(rng: random.Random, count: int) -> list[str]:
    """Distinct pronounceable names that are not English words."""
    names: dict[str, None] = {}
    while len(names) < count:
        first = rng.choice("bdfgklmnprtvz") + rng.choice("aeiou") + rng.choice("lmnr")
        names[first + rng.choice("bdgkpvz") + rng.choice(("ax", "ek", "il", "on", "um"))] = None
    return list(names)
