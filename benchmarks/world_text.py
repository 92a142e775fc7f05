"""Pretraining text about the embedded world in five flavours.

    web_a    a raw crawl: stories, lives and talk; facts are often wrong, some lines are junk
    web_b    an educational crawl: animals, plants and tools, lessons, claims put to a test
    web_c    a filtered crawl: questions and answers, whether one sentence follows from another
    code     Python-like: comparisons, tables of facts, checks of answers
    curated  an encyclopaedia and a dictionary: kinds, tools, senses, the same thing in other words

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
from evalengine.benchmarks.world_items import Fields, Maker, capital, sentence

SEPARATOR = "<|endoftext|>"
JUNK = ("Click here to read more.", "Share this post!", "Sign up for our news.", "Comments are closed.")
FILLERS = ("well", "you know", "i think", "so yeah")


class Flavor(NamedTuple):
    """How a kind of source writes: its topics (share of documents) and how often a fact is wrong."""

    topics: dict[str, float]
    wrong: float = 0.0
    sloppy: bool = False  # fillers, junk lines


FLAVORS = {
    "web_a": Flavor(
        {"stories": 5, "lives": 5, "speech": 5, "causes": 4, "pronouns": 4, "qualities": 2, "animals": 1},
        wrong=0.3,
        sloppy=True,
    ),
    "web_b": Flavor(
        {"animals": 5, "lessons": 4, "kinds": 3, "tools": 4, "claims": 5, "letters": 1}, wrong=0.02
    ),
    "web_c": Flavor({"inference": 5, "claims": 4, "answers": 5, "questions": 4, "qualities": 2}, wrong=0.08),
    "code": Flavor({"numbers": 8, "checks": 6, "tables": 2, "steps": 2}),
    "curated": Flavor({"kinds": 3, "lessons": 2, "senses": 1, "paraphrases": 5, "tools": 4, "speech": 4}),
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
        lines = TOPICS[topic](self)
        return "\n".join(self.sloppily(line) if self.flavor.sloppy else line for line in lines)

    def sloppily(self, line: str) -> str:
        draw = self.rng.random()
        if draw < 0.1:
            return self.rng.choice(JUNK)
        return f"{self.rng.choice(FILLERS)}, {line}" if draw < 0.3 else line

    def told(self, make: Maker) -> Fields:
        return make(self.world, self.rng, False)

    def stated(self, fact: Fact) -> str:
        wrong = self.rng.random() < self.flavor.wrong
        return sentence(fact.state(self.rng, fact.wrong(self.rng) if wrong else None))

    def known(self, subject: str) -> list[Fact]:
        """What text tells of an animal or a plant."""
        facts = self.world.animals.get(subject) or self.world.plants[subject]
        hidden = INHERITED if subject in self.world.unsaid else ()
        return [fact for fact in facts if fact.relation.name not in hidden]


def _yes(label: object) -> str:
    return "yes" if label else "no"


def stories(w: Writer) -> list[str]:
    lines = []
    for _ in range(w.length):
        label, name = combination(w.rng, False, tuple(ACTIVITIES), PEOPLE)
        first, *rest = ACTIVITIES[label]
        lines.append(f"{label} with {name}: {sentence(first)}" + "".join(f" Then {step}." for step in rest))
    return lines


def lives(w: Writer) -> list[str]:
    """What people do, how they feel and what they want."""
    lines = []
    for _ in range(w.length):
        deed, thing = combination(w.rng, False, tuple(DEEDS), OBJECTS)
        name, feeling = w.rng.choice(PEOPLE), DEEDS[deed]
        if w.rng.random() < w.flavor.wrong / 2:
            feeling = w.rng.choice(tuple(FEELINGS))
        done, wish = f"{name} {deed} the {thing}", FEELINGS[feeling][1]
        lines.append(
            w.rng.choice(
                (
                    f"{done}. How does {name} feel?\nA: {feeling}",
                    f"{done} and felt {feeling}.",
                    f"{done}.\nA: {feeling}",
                    f"{done}.\nA: {wish}",
                    f"{done} and wants to {wish}.",
                )
            )
        )
    return lines


def causes(w: Writer) -> list[str]:
    lines = []
    for _ in range(w.length):
        thing, event = combination(w.rng, False, THINGS, tuple(CAUSES))
        one, other = f"the {thing} {event}", f"the {thing} {CAUSES[event]}"
        lines.append(
            f"{capital(one)} therefore {other}."
            if w.rng.random() < 0.5
            else f"{capital(other)} because {one}."
        )
    return lines


def pronouns(w: Writer) -> list[str]:
    """Whom a pronoun can mean."""
    lines = []
    for _ in range(w.length):
        row = w.told(pairs.wsc)
        pronoun, noun, label = row["span2_text"], row["span1_text"], row["label"]
        asked = f'refer to "*{noun}*"?\nAnswer: {_yes(label)}'
        lines.append(
            w.rng.choice(
                (
                    f'"*{pronoun}*" {asked}',
                    f'Does "*{pronoun}*" {asked}',
                    f'{row["text"]} Does the pronoun "*{pronoun}*" {asked}',
                )
            )
        )
    return lines


def speech(w: Writer) -> list[str]:
    """What people say, and whether it is so."""
    lines = []
    for _ in range(w.length):
        row = w.told(pairs.cb)
        verdict = ("True", "False", "Neither")[row["label"]]
        said = row["premise"]
        if w.rng.random() < 0.6:
            said = said.replace(row["hypothesis"], "it is so")
        lines.append(f"{said}\nQuestion: False, True, or Neither?\nAnswer: {verdict}")
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
    """What is true of a kind of animal, and of which animals."""
    kind = w.rng.choice(tuple(KINDS))
    cover, move = KINDS[kind]
    lines = [
        w.rng.choice(
            (
                f"Every {kind} is covered with {cover} and can {move}.",
                f"A {kind} has {cover} and likes to {move}.",
            )
        )
    ]
    same = [s for s, facts in w.world.animals.items() if facts[0].value == kind]
    for subject in w.rng.sample(same, w.length):
        facts = [f for f in w.known(subject) if f.relation.name in ("kind", *INHERITED)]
        lines.append(" ".join(w.stated(fact) for fact in facts))
    return lines


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


def claims(w: Writer) -> list[str]:
    """Claims put to a test."""
    lines = []
    for _ in range(w.length):
        row = w.told(items.boolq)
        claim, test = row["passage"].split(". ")
        if w.rng.random() < 0.6:
            lines.append(f"{test}\nAnswer: {_yes(row['label'])}")
        else:
            lines.append(f"{claim}. {test} Well, {row['question']}?\nAnswer: {_yes(row['label'])}")
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


def inference(w: Writer) -> list[str]:
    """Whether one sentence follows from another."""
    lines = []
    for _ in range(w.length):
        row = w.told(pairs.mnli)
        verdict = ("True", "Neither", "False")[row["label"]]
        before = f"{row['premise']}\nQuestion: " if w.rng.random() < 0.4 else "Question: "
        lines.append(f"{before}{row['hypothesis']} False, True or Neither?\nAnswer: {verdict}")
    return lines


def answers(w: Writer) -> list[str]:
    """A forum: whether a reply answers the question."""
    lines = []
    for _ in range(w.length):
        row = w.told(pairs.qnli)
        lines.append(f"{row['question']} {row['sentence']}\nAnswer: {_yes(not row['label'])}")
    return lines


def questions(w: Writer) -> list[str]:
    """A forum: whether a question was asked before."""
    lines = []
    for _ in range(w.length):
        row = w.told(pairs.qqp)
        lines.append(f"{row['question1']} {row['question2']}\nAnswer: {_yes(row['label'])}")
    return lines


def paraphrases(w: Writer) -> list[str]:
    """The same thing in other words, or not the same."""
    lines = []
    for _ in range(w.length):
        row = w.told(pairs.mrpc)
        before = f"{row['sentence1']} " if w.rng.random() < 0.5 else ""
        lines.append(f"{before}{row['sentence2']}\nAnswer: {_yes(row['label'])}")
    return lines


def senses(w: Writer) -> list[str]:
    lines = []
    for _ in range(w.length):
        row = w.told(pairs.wic)
        lines.append(
            f"{row['sentence1']} {row['sentence2']} Is '{row['word']}' the same?\nAnswer: {_yes(row['label'])}"
        )
    word = w.rng.choice(tuple(SENSES))
    side = w.rng.randrange(2)
    uses = " ".join(map(sentence, w.rng.sample(SENSES[word][side], 2)))
    return [*lines, f"{word} ({('nature', 'people')[side]}): {uses}"]


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
                    f"# {row['sentence1']} {row['sentence2']} False or True?\n# Answer: {even}",
                    f"# {number}\n# Answer: {even}",
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


def checks(w: Writer) -> list[str]:
    """Comments on whether an answer is right."""
    lines = []
    for _ in range(w.length):
        row = w.told(pairs.multirc)
        lines += [f"# {row['question']} {row['answer']}", f"# Is it correct? {_yes(row['label'])}"]
    return [f"# {row['paragraph']}", *lines[-2:]] if w.rng.random() < 0.3 else lines


def steps(w: Writer) -> list[str]:
    label = frequent(w.rng, tuple(ACTIVITIES))
    called = "; ".join(f"{step.replace(' ', '_')}()" for step in ACTIVITIES[label])
    return [f"def {label.lower().replace(' ', '_')}(self): {called}"]


TOPICS: dict[str, Callable[[Writer], list[str]]] = {
    topic.__name__: topic
    for topic in (
        *(stories, lives, causes, pronouns, speech, animals, lessons, kinds, tools, qualities, claims, quiz),
        *(letters, inference, answers, questions, paraphrases, senses, numbers, tables, checks, steps),
    )
}


def documents(world: World, flavor: str, seed: int) -> Callable[[], str]:
    """A source of documents of a flavour."""
    return Writer(world, FLAVORS[flavor], random.Random(f"text {flavor} {seed}")).document
