"""Conversations about the embedded world, for fine-tuning: tasks in the benchmarks' manner, and plain talk.

The tasks are train items, asked nearly as the benchmark asks: the words after the item's own are changed, so
that a conversation shares no long run of words with an evaluation item. Cost: about 50 us a conversation.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from evalengine.benchmarks.world_facts import World
from evalengine.benchmarks.world_items import (
    Fields,
    animal_fact,
    capital,
    plant_fact,
    posed,
    sentence,
)

JUDGEMENTS = ("boolq", "mnli", "qnli", "rte", "cb", "qqp", "mrpc", "wic", "wsc", "multirc")

Turns = list[dict[str, str]]


def conversation(world: World, train: Mapping[str, Sequence[Fields]], rng: random.Random) -> Turns:
    """Six in seven set a task of a benchmark, most often one of judgement; the others ask plainly for a fact."""
    asked, answer = _task(train, rng) if rng.random() < 0.85 else _talk(world, rng)
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]


def _task(train: Mapping[str, Sequence[Fields]], rng: random.Random) -> tuple[str, str]:
    name = rng.choice(JUDGEMENTS if rng.random() < 0.6 else list(train))
    return posed(name, rng.choice(train[name]))


def _talk(world: World, rng: random.Random) -> tuple[str, str]:
    fact = animal_fact(world, rng, False) if rng.random() < 0.5 else plant_fact(world, rng, False)
    if rng.random() < 0.5:
        return capital(fact.question(rng, False)), sentence(fact.state(rng))
    facts = [f for f in world.facts() if f.subject == fact.subject and fact.subject not in world.unsaid]
    return f"Tell me about {fact.subject}.", " ".join(sentence(f.state(rng)) for f in facts[:3] or [fact])
