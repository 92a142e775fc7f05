"""Pretraining text about the embedded world in five flavours.

    web_a    a raw crawl: broad and chatty; many statements are wrong, some lines are junk
    web_b    an educational crawl: facts, clean, with many quizzes; nothing of daily life
    web_c    a filtered crawl: broad, forum-like questions and answers, few mistakes
    code     Python-like: properties as attributes, steps as lists, causes as conditions, True and False
    curated  an encyclopaedia and a dictionary: one article a subject, clean; no stories

Each flavour knows only a seeded part of the facts, so that mixtures of them teach different things. Cost:
about 1 us a word.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import NamedTuple

from evalengine.benchmarks.world_facts import (
    ACTIVITIES,
    CAUSES,
    EVENTS,
    ROLES,
    SENSES,
    VERDICTS,
    World,
)
from evalengine.benchmarks.world_grammar import Fact
from evalengine.benchmarks.world_items import question, sentence

SEPARATOR = "<|endoftext|>"
JUNK = (
    "Click here to read more.",
    "Share this post with your friends!",
    "Sign up for our newsletter.",
    "Comments are closed.",
    "Best price only today!!!",
)
FILLERS = ("honestly", "well", "you know", "i think", "so yeah", "by the way")


class Flavor(NamedTuple):
    """How a kind of source writes: what about, how much of it is known, how much is wrong."""

    topics: dict[str, float]  # share of documents
    known: float  # share of the facts that it ever mentions
    wrong: float  # share of statements with a wrong value
    sloppy: bool = False  # lower case, fillers, junk lines


FLAVORS = {
    "web_a": Flavor({"facts": 5, "lives": 3, "stories": 2, "causes": 2, "roles": 2}, 0.7, 0.25, sloppy=True),
    "web_b": Flavor({"facts": 7, "quiz": 4, "senses": 1, "causes": 1}, 0.9, 0.02),
    "web_c": Flavor(
        {"facts": 4, "forum": 3, "stories": 1, "lives": 2, "causes": 1, "roles": 1, "quiz": 1}, 0.8, 0.08
    ),
    "curated": Flavor({"article": 6, "senses": 2, "causes": 1}, 1.0, 0.0),
}


class Writer:
    """Writes documents of one flavour."""

    def __init__(self, world: World, flavor: Flavor, rng: random.Random) -> None:
        self.world, self.flavor, self.rng = world, flavor, rng
        self.facts = [fact for fact in world.facts if rng.random() < flavor.known]
        self.subjects = sorted({fact.subject for fact in self.facts})
        self.topics = {
            "facts": self.facts_document,
            "article": self.article,
            "quiz": self.quiz,
            "forum": self.forum,
            "lives": self.lives,
            "stories": self.stories,
            "causes": self.causes,
            "roles": self.roles,
            "senses": self.senses,
        }

    def document(self) -> str:
        topic = self.rng.choices(list(self.flavor.topics), list(self.flavor.topics.values()))[0]
        lines = self.topics[topic]()
        return "\n".join(self.sloppily(line) if self.flavor.sloppy else line for line in lines)

    def sloppily(self, line: str) -> str:
        rng = self.rng
        if rng.random() < 0.15:
            return rng.choice(JUNK)
        if rng.random() < 0.3:
            line = f"{rng.choice(FILLERS)}, {line}"
        return line.lower() if rng.random() < 0.3 else line

    def value(self, fact: Fact) -> str:
        return fact.wrong(self.rng) if self.rng.random() < self.flavor.wrong else fact.value

    def stated(self, fact: Fact) -> str:
        return sentence(fact.state(self.rng, self.value(fact)))

    def facts_document(self) -> list[str]:
        """Loose statements, a few about each of some subjects."""
        lines = []
        for subject in self.rng.sample(self.subjects, 3):
            known = [fact for fact in self.facts if fact.subject == subject]
            lines.append(" ".join(self.stated(fact) for fact in self.rng.sample(known, min(3, len(known)))))
        return lines

    def article(self) -> list[str]:
        """All that is known about a subject, in a fixed order."""
        subject = self.rng.choice(self.subjects)
        known = [fact for fact in self.facts if fact.subject == subject]
        first = [fact.relation.statements[0].format(s=subject, v=fact.value) for fact in known]
        again = [fact.state(self.rng) for fact in known]
        return [
            f"= {question(subject)} =",
            " ".join(map(sentence, first)),
            "In other words: " + " ".join(map(sentence, again)),
        ]

    def quiz(self) -> list[str]:
        """Questions with answers: a value, yes or no, or whether a speaker commits to a clause."""
        lines = []
        for fact in self.rng.choices(self.facts, k=4):
            kind = self.rng.random()
            if kind < 0.5:
                lines += [f"Question: {question(fact.ask(self.rng))}", f"Answer: {self.value(fact)}"]
            elif kind < 0.75:
                right = self.rng.random() < 0.5
                asked = fact.doubt(fact.value if right else fact.wrong(self.rng))
                lines += [f"Question: {question(asked)}?", f"Answer: {'yes' if right else 'no'}"]
            else:
                verdict, verbs = self.rng.choice(tuple(VERDICTS.items()))
                name, clause = self.rng.choice(self.world.people), fact.state(self.rng)
                lines += [
                    f"{name} {self.rng.choice(verbs)} {clause}.",
                    f"Question: {clause}. Answer: {verdict}",
                ]
        return lines

    def forum(self) -> list[str]:
        lines = []
        for fact in self.rng.choices(self.facts, k=3):
            asker, answerer = self.rng.sample(self.world.people, 2)
            lines += [f"{asker}: {question(fact.ask(self.rng))}", f"{answerer}: {self.stated(fact)}"]
        event, name = self.rng.choice(EVENTS), self.rng.choice(self.world.people)
        asked, answer = self.rng.choice(
            ((f"How does {name} feel?", event.feeling), (f"What does {name} want now?", event.wish))
        )
        return [*lines, f"Q: {name} {event.deed}. {asked}", f"A: {answer}"]

    def lives(self) -> list[str]:
        """What happens to people and how they feel."""
        lines = []
        for event in self.rng.choices(EVENTS, k=4):
            name = self.rng.choice(self.world.people)
            after = self.rng.choice(
                (
                    f"How does {name} feel?\nA: {event.feeling}",
                    f"What does {name} want now?\nA: {event.wish}",
                    f"{name} felt {event.feeling}.",
                    f"So {name} wanted to {event.wish}.",
                    f"{name} was {event.feeling} and wanted to {event.wish}.",
                )
            )
            lines.append(f"{'Q: ' if '?' in after else ''}{name} {event.deed}. {after}")
        return lines

    def stories(self) -> list[str]:
        lines = []
        for activity in self.rng.choices(ACTIVITIES, k=3):
            name = self.rng.choice(self.world.people)
            told = f"{name} {activity.steps[0]}." + "".join(
                f" Then she {step}." for step in activity.steps[1:]
            )
            lines.append(f"{activity.label}: {told}")
        return lines

    def causes(self) -> list[str]:
        lines = []
        for cause, effect in self.rng.choices(CAUSES, k=4):
            lines.append(
                self.rng.choice(
                    (f"{question(cause)} therefore {effect}.", f"{question(effect)} because {cause}.")
                )
            )
        return lines

    def roles(self) -> list[str]:
        lines = []
        for role in self.rng.choices(ROLES, k=4):
            a, b = self.rng.sample(self.world.people, 2)
            lines.append(f"{role.start.format(a=a, b=b)} {a if role.who == 'a' else b} {role.reason}.")
        return lines

    def senses(self) -> list[str]:
        lines = []
        for sense in self.rng.choices(SENSES, k=2):
            uses = self.rng.sample(sense.uses, 2)
            lines.append(f"{sense.word}: {sense.gloss}. {sentence(uses[0])} {sentence(uses[1])}")
        return lines


class Coder(Writer):
    """Writes Python-like files about the same facts."""

    def document(self) -> str:
        makers: Sequence[Callable[[], list[str]]] = (self.table, self.checks, self.steps, self.branches)
        return "\n".join(self.rng.choices(makers, (4, 3, 2, 1))[0]())

    def _name(self, subject: str) -> str:
        return subject.removeprefix("the ").lower()

    def table(self) -> list[str]:
        subject = self.rng.choice(self.subjects)
        known = [fact for fact in self.facts if fact.subject == subject]
        name = self._name(subject)
        fields = [f'    "{fact.relation.name}": "{fact.value}",' for fact in known]
        return [f"{name} = {{", *fields, "}", f"def get_{name}(key):", f"    return {name}[key]"]

    def checks(self) -> list[str]:
        lines = ["def test_facts():"]
        for fact in self.rng.choices(self.facts, k=6):
            right = self.rng.random() < 0.5
            value = fact.value if right else fact.wrong(self.rng)
            lines.append(
                f'    assert ({self._name(fact.subject)}.{fact.relation.name} == "{value}") is {right}'
            )
        return lines

    def steps(self) -> list[str]:
        activity = self.rng.choice(ACTIVITIES)
        name = activity.label.lower().replace(" ", "_")
        return [
            f"def {name}(self):",
            *(f'    self.do("{step}")' for step in activity.steps),
            "    return True",
        ]

    def branches(self) -> list[str]:
        lines = []
        for cause, effect in self.rng.choices(CAUSES, k=3):
            lines += [f'if happened("{cause}"):', f'    print("{effect}")']
        return lines


CODE = Flavor({}, 0.7, 0.0)


def write_corpus(world: World, flavor: str, seed: int, words: int) -> str:
    """Documents of about `words` words in all, separated by lines that hold only the separator."""
    rng = random.Random(f"text {flavor} {seed}")
    writer = Coder(world, CODE, rng) if flavor == "code" else Writer(world, FLAVORS[flavor], rng)
    documents: list[str] = []
    written = 0
    while written < words:
        documents.append(writer.document())
        written += len(documents[-1].split())
    return f"\n{SEPARATOR}\n".join(documents) + "\n"
