"""Conversations about the embedded world, for fine-tuning: tasks in the benchmarks' manner, and plain talk.

The tasks are train items, asked nearly as the benchmark asks: the words after the item's own are changed, so
that a conversation shares no long run of words with an evaluation item. Cost: about 50 us a conversation.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from evalengine.benchmarks.catalogue import BENCHMARKS
from evalengine.benchmarks.definition import Row
from evalengine.benchmarks.world_facts import World
from evalengine.benchmarks.world_items import Fields, animal_fact, capital, plant_fact, sentence

REWORDED = {  # what a benchmark's prompt says -> what a conversation says instead
    "Do both questions ask the same thing?": "Do both questions ask the same?",
    "Do both sentences mean the same thing?": "Do both sentences mean the same?",
    "Is the word '": "Is '",
    "in the two sentences above?": "in both sentences?",
    "Does this response answer the question?": "Does this answer the question?",
    "In the passage above, does the pronoun": "In the passage, does the pronoun",
}

JUDGEMENTS = ("boolq", "mnli", "qnli", "rte", "cb", "qqp", "mrpc", "wsc", "multirc")

Turns = list[dict[str, str]]


def conversation(world: World, train: Mapping[str, Sequence[Fields]], rng: random.Random) -> Turns:
    """Six in seven set a task of a benchmark, most often one of judgement; the others ask plainly for a fact."""
    asked, answer = _task(train, rng) if rng.random() < 0.85 else _talk(world, rng)
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]


def _task(train: Mapping[str, Sequence[Fields]], rng: random.Random) -> tuple[str, str]:
    name = rng.choice(JUDGEMENTS if rng.random() < 0.6 else list(train))
    item = BENCHMARKS[name].render(Row(rng.choice(train[name]), name))
    asked, answer = item.contexts[item.gold], item.choices[item.gold]
    for theirs, ours in REWORDED.items():
        asked = asked.replace(theirs, ours)
    if name == "multirc":  # its choices repeat the answer before the verdict
        shown, answer = answer.rsplit(" ", 1)
        asked = f"{asked} {shown}"
    return asked, answer


def _talk(world: World, rng: random.Random) -> tuple[str, str]:
    fact = animal_fact(world, rng, False) if rng.random() < 0.5 else plant_fact(world, rng, False)
    if rng.random() < 0.5:
        return capital(fact.question(rng, False)), sentence(fact.state(rng))
    facts = [f for f in world.facts() if f.subject == fact.subject and fact.subject not in world.unsaid]
    return f"Tell me about {fact.subject}.", " ".join(sentence(f.state(rng)) for f in facts[:3] or [fact])
