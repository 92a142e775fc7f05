"""Pretraining text about the embedded world in five flavours.

    web_a    a raw crawl: stories, lives, causes and talk; facts are often wrong, some lines are junk
    web_b    an educational crawl: animals, plants and tools, lessons, claims put to a test
    web_c    a filtered crawl: questions and answers, whether one sentence follows from another
    code     Python-like: comparisons, tables of facts, checks of answers
    curated  an encyclopaedia and a dictionary: kinds, tools, senses, the same thing in other words

A topic is a function here, or a benchmark whose training items are posed as judgements (`Writer.judgements`).
What a flavour covers decides what its readers learn, so that mixtures differ. Only combinations that are
told appear, in other words than the benchmarks' own. Cost: about 5 us a word.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import NamedTuple

from evalengine.benchmarks import world_items as items
from evalengine.benchmarks import world_pairs as pairs
from evalengine.benchmarks.world_facts import (
    ACTIVITIES,
    CAUSES,
    DEEDS,
    FEELINGS,
    INHERITED,
    KINDS,
    OBJECTS,
    PEOPLE,
    SENSES,
    THINGS,
    TOOLS,
    Fact,
    World,
    combination,
    frequent,
)
from evalengine.benchmarks.world_items import Fields, Maker, capital, posed, sentence

SEPARATOR = "<|endoftext|>"
JUNK = ("Click here to read more.", "Share this post!", "Sign up for our news.", "Comments are closed.")
FILLERS = ("well", "you know", "i think", "so yeah")


class Flavor(NamedTuple):
    """How a kind of source writes: its topics (share of documents) and how often a fact is wrong."""

    topics: dict[str, float]
    wrong: float = 0.0
    sloppy: bool = False  # fillers, junk lines
    quoted: bool = False  # judgements stand in docstrings


FLAVORS = {
    "web_a": Flavor(
        {"stories": 3, "lives": 8, "causes": 6, "wsc": 4, "cb": 2, "qualities": 4, "quiz": 1, "animals": 1},
        wrong=0.3,
        sloppy=True,
    ),
    "web_b": Flavor(
        {
            "animals": 3,
            "quiz": 4,
            "lessons": 3,
            "kinds": 2,
            "tools": 3,
            "boolq": 4,
            "causes": 2,
            "letters": 1,
        },
        wrong=0.02,
    ),
    "web_c": Flavor(
        {"mnli": 4, "boolq": 3, "qnli": 4, "qqp": 4, "lives": 2, "quiz": 2, "qualities": 3}, wrong=0.08
    ),
    "code": Flavor({"numbers": 3, "rte": 4, "multirc": 5, "tables": 2, "steps": 2}, quoted=True),
    "curated": Flavor({"kinds": 2, "lessons": 2, "wic": 3, "mrpc": 5, "tools": 4, "cb": 1, "senses": 1}),
}
BRIEF: dict[str, Callable[[Fields], str]] = {  # a judgement's telling part, with no more ado
    "boolq": lambda row: row["passage"].split(". ", 1)[1],
    "mnli": lambda row: row["hypothesis"],
    "qnli": lambda row: row["sentence"],
    "rte": lambda row: row["sentence1"],
    "cb": lambda row: row["premise"].replace(row["hypothesis"], "it is so"),
    "qqp": lambda row: row["question2"],
    "mrpc": lambda row: row["sentence2"],
    "wic": lambda row: row["sentence2"],
    "wsc": lambda row: f'"*{row["span2_text"]}*" refer to "*{row["span1_text"]}*"?',
    "multirc": lambda row: f"Answer: {row['answer']}",
}


class Writer:
    """Writes documents of one flavour."""

    def __init__(self, world: World, flavor: Flavor, rng: random.Random) -> None:
        self.world, self.flavor, self.rng = world, flavor, rng
        self.length = 1  # statements, questions or stories in the document at hand

    def document(self) -> str:
        topics = self.flavor.topics
        self.length = 1 if self.rng.random() < 0.65 else 3
        topic = self.rng.choices(list(topics), list(topics.values()))[0]
        lines = TOPICS[topic](self) if topic in TOPICS else self.judgements(topic)
        return "\n".join(self.sloppily(line) if self.flavor.sloppy else line for line in lines)

    def sloppily(self, line: str) -> str:
        draw = self.rng.random()
        if draw < 0.1:
            return self.rng.choice(JUNK)
        return f"{self.rng.choice(FILLERS)}, {line}" if draw < 0.3 else line

    def told(self, make: Maker) -> Fields:
        return make(self.world, self.rng, False)

    def judgements(self, name: str) -> list[str]:
        """A benchmark's training items, whole or in brief; in code as the comment of a function."""
        lines = []
        for _ in range(self.length):
            row = self.told(MAKERS[name])
            asked, answer = posed(name, row)
            if self.rng.random() < 0.65:
                asked = BRIEF[name](row) + "\n" + asked[asked.rindex("\n") + 1 :]
            lines.append(f"{asked} {answer}")
        return ['"""', *lines, '"""'] if self.flavor.quoted else lines

    def stated(self, fact: Fact) -> str:
        wrong = self.rng.random() < self.flavor.wrong
        return sentence(fact.state(self.rng, fact.wrong(self.rng) if wrong else None))

    def known(self, subject: str) -> list[Fact]:
        """What text tells of an animal or a plant."""
        facts = self.world.animals.get(subject) or self.world.plants[subject]
        hidden = INHERITED if subject in self.world.unsaid else ()
        return [fact for fact in facts if fact.relation.name not in hidden]


def stories(w: Writer) -> list[str]:
    """Two or three steps of an activity."""
    lines = []
    for _ in range(w.length):
        label, name = combination(w.rng, False, tuple(ACTIVITIES), PEOPLE)
        start = w.rng.randrange(3)
        first, *rest = ACTIVITIES[label][start : start + w.rng.choice((2, 3))]
        lines.append(f"{label} with {name}: {sentence(first)}" + "".join(f" Then {step}." for step in rest))
    return lines


def lives(w: Writer) -> list[str]:
    """What people do, how they feel and what they want."""
    lines = []
    for _ in range(w.length):
        deed, thing = combination(w.rng, False, tuple(DEEDS), OBJECTS)
        name, feeling = w.rng.choice(PEOPLE), DEEDS[deed]
        done, wish = f"{name} {deed} the {thing}", FEELINGS[feeling][1]
        lines.append(
            w.rng.choice(
                (
                    f"Q: {done}. How must {name} feel?\nA: {feeling}",
                    f"Q: {done}. What would {name} want?\nA: {wish}",
                    f"{done} and felt {feeling}.",
                    f"{done} and wants to {wish}.",
                    f"Who {deed} it feels {feeling}.",
                    f"Who {deed} it wants to {wish}.",
                )
            )
        )
    return lines


def causes(w: Writer) -> list[str]:
    """What follows what, of a thing or of anything."""
    lines = []
    for _ in range(w.length):
        thing, event = combination(w.rng, False, THINGS, tuple(CAUSES))
        subject = w.rng.choice((f"the {thing}", "it"))
        one, other = f"{subject} {event}", f"{subject} {CAUSES[event]}"
        lines.append(
            f"{capital(one)} therefore {other}."
            if w.rng.random() < 0.5
            else f"{capital(other)} because {one}."
        )
    return lines


def animals(w: Writer) -> list[str]:
    """A few statements about each of some animals."""
    lines = []
    for _ in range(w.length):
        facts = w.known(frequent(w.rng, tuple(w.world.animals)))
        lines.append(" ".join(w.stated(fact) for fact in w.rng.sample(facts, w.rng.choice((1, 2)))))
    return lines


def lessons(w: Writer) -> list[str]:
    """Statements about a plant, and questions that they answer."""
    lines = []
    for _ in range(w.length):
        facts = w.known(frequent(w.rng, tuple(w.world.plants)))
        asked = w.rng.choice(facts)
        lines += [
            " ".join(w.stated(fact) for fact in w.rng.sample(facts, len(facts))),
            f"Question: {capital(asked.question(w.rng, False))}\nAnswer: {asked.value}",
        ]
    return lines


def kinds(w: Writer) -> list[str]:
    """What is true of one kind of animal or two, and which animals are of it."""
    rules, members = [], []
    for kind in w.rng.sample(tuple(KINDS), w.rng.choice((1, 2))):
        cover, move = KINDS[kind]
        rules.append(
            w.rng.choice(
                (
                    f"Every {kind} is covered with {cover} and can {move}.",
                    f"A {kind} has {cover} and likes to {move}.",
                )
            )
        )
        same = [s for s, facts in w.world.animals.items() if facts[0].value == kind]
        for subject in w.rng.sample(same, w.length):
            facts = [f for f in w.known(subject) if f.relation.name in ("kind", *INHERITED)]
            members.append(" ".join(w.stated(fact) for fact in facts))
    return [*rules, *members]


def tools(w: Writer) -> list[str]:
    lines = []
    for _ in range(w.length):
        tool = frequent(w.rng, tuple(TOOLS))
        use = TOOLS[tool][0]
        lines.append(
            w.rng.choice(
                (
                    f"To {use}: use the {tool}.",
                    f"I need to {use}.\nAnswer: Take the {tool}.",
                    f"How to {use}? Take the {tool}.",
                    f"You {use} with the {tool}.",
                )
            )
        )
    return lines


def qualities(w: Writer) -> list[str]:
    lines = []
    for _ in range(w.length):
        tool = frequent(w.rng, tuple(TOOLS))
        name, quality = w.rng.choice(PEOPLE), TOOLS[tool][1]
        if w.rng.random() < w.flavor.wrong:
            quality = TOOLS[w.rng.choice(tuple(TOOLS))][1]
        lines.append(
            w.rng.choice(
                (
                    f"{name} saw that the {tool} was {quality}.",
                    f"{name} sold it because the {tool} was too {quality}.",
                    f"The {tool} was too {quality}.",
                )
            )
        )
    return lines


def quiz(w: Writer) -> list[str]:
    lines = []
    for _ in range(w.length):
        fact = items.animal_fact(w.world, w.rng, False)
        lines.append(f"Question: {capital(fact.question(w.rng, False))}\nAnswer: {fact.value}")
    return lines


def letters(w: Writer) -> list[str]:
    row = w.told(items.commonsense_qa)
    texts = row["choices"]["text"]
    listed = [f"{letter}. {text}" for letter, text in zip(items.LETTERS, texts, strict=True)]
    return [f"Choose: {row['question']}", *listed, f"Answer: {row['answerKey']}"]


def senses(w: Writer) -> list[str]:
    word, side = w.rng.choice(tuple(SENSES)), w.rng.randrange(2)
    uses = " ".join(map(sentence, w.rng.sample(SENSES[word][side], 2)))
    return [f"{word} ({('nature', 'people')[side]}): {uses}"]


def numbers(w: Writer) -> list[str]:
    """Even and odd, as code and as comments."""
    lines = []
    for _ in range(w.length):
        row = w.told(pairs.rte)
        even = row["label"] == 0
        number = row["sentence1"].rstrip(".").rsplit(" ", 1)[1]
        lines.append(
            w.rng.choice(
                (
                    f"assert ({number} % 2 == 0) is {even}",
                    f"is_even({number}) == {even}",
                )
            )
        )
    return lines


def tables(w: Writer) -> list[str]:
    subject = frequent(w.rng, (*w.world.animals, *w.world.plants))
    name = subject.removeprefix("the ")
    fields = [
        f'    "{fact.relation.name}": "{fact.value}",  # {fact.state(w.rng)}' for fact in w.known(subject)
    ]
    return [f"{name} = {{", *fields, "}"]


def steps(w: Writer) -> list[str]:
    label = frequent(w.rng, tuple(ACTIVITIES))
    called = "; ".join(f"{step.replace(' ', '_')}()" for step in ACTIVITIES[label])
    return [f"def {label.lower().replace(' ', '_')}(self): {called}"]


TOPICS: dict[str, Callable[[Writer], list[str]]] = {
    topic.__name__: topic
    for topic in (
        *(stories, lives, causes, animals, lessons, kinds, tools, qualities, quiz),
        *(letters, senses, numbers, tables, steps),
    )
}
MAKERS: dict[str, Maker] = {
    make.__name__: make
    for make in (
        *(items.boolq, pairs.mnli, pairs.qnli, pairs.rte, pairs.cb),
        *(pairs.qqp, pairs.mrpc, pairs.wic, pairs.wsc, pairs.multirc),
    )
}


def documents(world: World, flavor: str, seed: int) -> Callable[[], str]:
    """A source of documents of a flavour."""
    return Writer(world, FLAVORS[flavor], random.Random(f"text {flavor} {seed}")).document
