"""Text about the embedded world: documents for pretraining in five flavours, conversations for fine-tuning.

A topic is a function of this file, or a benchmark whose training items are posed as judgements (`Writer.judgement`).
The topics of a flavour (docs/benchmarks.md) decide what its readers learn, so that mixtures differ. Only combinations of
training appear, in other words than the benchmarks' own. Cost: about 5 us a word.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from evalengine.benchmarks import world_items as items
from evalengine.benchmarks import world_words as words
from evalengine.benchmarks.catalogue import BENCHMARKS
from evalengine.benchmarks.definition import Record
from evalengine.benchmarks.world_facts import INHERITED, Fact, World, combination, frequent
from evalengine.benchmarks.world_items import Fields, capital, sentence

SEPARATOR = "<|endoftext|>"
JUNK = ("Click here to read more.", "Share this post!", "Sign up for our news.", "Comments are closed.")
FILLERS = ("well", "you know", "i think", "so yeah")
LIVES = (
    "Q: {n} {d} the {o}. How must {n} feel?\nA: {f}",
    "Q: {n} {d} the {o}. What would {n} want?\nA: {w}",
    "{n} {d} the {o} and felt {f}.",
    "{n} {d} the {o} and wants to {w}.",
    "Who {d} it feels {f}.",
    "Who {d} it wants to {w}.",
)
RULES = ("Every {k} is covered with {c} and can {m}.", "A {k} has {c} and likes to {m}.")
USES = (
    "To {u}: use the {t}.",
    "I need to {u}.\nAnswer: Take the {t}.",
    "How to {u}? Take the {t}.",
    "You {u} with the {t}.",
)
QUALITIES = (
    "{n} saw that the {t} was {q}.",
    "{n} sold it because the {t} was too {q}.",
    "The {t} was too {q}.",
)
PARITY = ("assert ({n} % 2 == 0) is {even}", "is_even({n}) == {even}")


class Flavor(NamedTuple):
    """How a kind of source writes: its topics (share of documents) and how often a fact is wrong."""

    topics: dict[str, float]
    wrong: float = 0.0
    sloppy: bool = False  # fillers, junk lines
    quoted: bool = False  # judgements are written in docstrings


def _flavor(topics: str, **how: Any) -> Flavor:
    """topics: such as `quiz 4, tools 3`."""
    shares = (topic.split() for topic in topics.split(", "))
    return Flavor({topic: int(share) for topic, share in shares}, **how)


FLAVORS = {
    "web_a": _flavor(
        "stories 3, lives 8, causes 6, wsc 4, cb 2, qualities 4, quiz 1, animals 1", wrong=0.3, sloppy=True
    ),
    "web_b": _flavor(
        "animals 3, quiz 4, lessons 3, kinds 2, tools 3, boolq 4, causes 2, letters 1", wrong=0.02
    ),
    "web_c": _flavor("mnli 4, boolq 3, qnli 4, qqp 4, lives 2, quiz 2, qualities 3", wrong=0.08),
    "code": _flavor("numbers 3, rte 4, multirc 5, tables 2, steps 2", quoted=True),
    "curated": _flavor("kinds 2, lessons 2, wic 3, mrpc 5, tools 4, cb 1, senses 1"),
}
REWORDED = {  # what a benchmark's prompt says -> what text and conversations say instead
    "Do both questions ask the same thing?": "Do both questions ask the same?",
    "Do both sentences mean the same thing?": "Do both sentences mean the same?",
    "Is the word '": "Is '",
    "in the two sentences above?": "in both sentences?",
    "Does this response answer the question?": "Does this answer the question?",
    "In the passage above, does the pronoun": "In the passage, does the pronoun",
    "True, False": "False, True",
    "True or False": "False or True",
    "Is the answer correct?": "Is it correct?",
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


class Posed(NamedTuple):
    asked: str
    answer: str
    choices: tuple[str, ...] = ()  # none of what is answered freely


def posed(name: str, row: Fields) -> Posed:
    """A row nearly as its benchmark asks it: context and right answer, with the words after the item's own changed."""
    item = BENCHMARKS[name].render(Record(row, name))
    asked, choices = item.contexts[item.gold], item.choices
    if name == "multirc":  # its choices repeat the answer before the verdict
        shown = choices[0].rsplit(" ", 1)[0]
        asked, choices = f"{asked} {shown}", tuple(choice.rsplit(" ", 1)[1] for choice in choices)
    for theirs, ours in REWORDED.items():
        asked = asked.replace(theirs, ours)
    return Posed(asked, choices[item.gold], choices)


class Writer:
    """Writes documents of one flavour."""

    def __init__(self, world: World, flavor: Flavor, rng: random.Random) -> None:
        self.world, self.flavor, self.rng = world, flavor, rng
        self.length = 1  # statements, questions or stories in the current document

    def document(self) -> str:
        topics = self.flavor.topics
        self.length = 1 if self.rng.random() < 0.65 else 3
        topic = self.rng.choices(list(topics), list(topics.values()))[0]
        lines: list[str] = []
        for _ in range(1 if topic in WHOLE else self.length):
            lines += TOPICS[topic](self) if topic in TOPICS else [self.judgement(topic)]
        if self.flavor.quoted and topic not in TOPICS:
            lines = ['"""', *lines, '"""']
        return "\n".join(self.sloppily(line) if self.flavor.sloppy else line for line in lines)

    def sloppily(self, line: str) -> str:
        draw = self.rng.random()
        if draw < 0.1:
            return self.rng.choice(JUNK)
        return f"{self.rng.choice(FILLERS)}, {line}" if draw < 0.3 else line

    def judgement(self, name: str) -> str:
        """A benchmark's training item, whole or in brief."""
        row = items.MAKERS[name](self.world, self.rng, False)
        asked, answer, _ = posed(name, row)
        if self.rng.random() < 0.65:
            asked = BRIEF[name](row) + "\n" + asked[asked.rindex("\n") + 1 :]
        return f"{asked} {answer}"

    def filled(self, templates: Sequence[str], **values: object) -> str:
        return self.rng.choice(templates).format(**values)

    def stated(self, fact: Fact) -> str:
        wrong = self.rng.random() < self.flavor.wrong
        return sentence(fact.state(self.rng, fact.wrong(self.rng) if wrong else None))

    def answered(self, fact: Fact) -> str:
        return f"Question: {capital(fact.question(self.rng, False))}\nAnswer: {fact.value}"


def stories(w: Writer) -> list[str]:
    """Two or three steps of an activity."""
    label, name = combination(w.rng, False, tuple(words.ACTIVITIES), words.PEOPLE)
    start = w.rng.randrange(3)
    first, *rest = words.ACTIVITIES[label][start : start + w.rng.choice((2, 3))]
    return [f"{label} with {name}: {sentence(first)}" + "".join(f" Then {step}." for step in rest)]


def lives(w: Writer) -> list[str]:
    """What people do, how they feel and what they want."""
    deed, thing = combination(w.rng, False, tuple(words.DEEDS), words.OBJECTS)
    name, feeling = w.rng.choice(words.PEOPLE), words.DEEDS[deed]
    return [w.filled(LIVES, n=name, d=deed, o=thing, f=feeling, w=words.WISHES[feeling])]


def causes(w: Writer) -> list[str]:
    """What follows what, of a thing or of anything."""
    thing, event = combination(w.rng, False, words.THINGS, tuple(words.CAUSES))
    subject = w.rng.choice((f"the {thing}", "it"))
    one, other = f"{subject} {event}", f"{subject} {words.CAUSES[event]}"
    forward = w.rng.random() < 0.5
    return [f"{capital(one)} therefore {other}." if forward else f"{capital(other)} because {one}."]


def animals(w: Writer) -> list[str]:
    """A statement or two about an animal."""
    facts = w.world.known(frequent(w.rng, tuple(w.world.animals)))
    return [" ".join(w.stated(fact) for fact in w.rng.sample(facts, w.rng.choice((1, 2))))]


def lessons(w: Writer) -> list[str]:
    """Statements about a plant, and a question that they answer."""
    facts = w.world.known(frequent(w.rng, tuple(w.world.plants)))
    asked = w.rng.choice(facts)
    return [" ".join(w.stated(fact) for fact in w.rng.sample(facts, len(facts))), w.answered(asked)]


def kinds(w: Writer) -> list[str]:
    """What is true of one kind of animal or two, and which animals are of it."""
    rules, members = [], []
    for kind in w.rng.sample(tuple(words.KINDS), w.rng.choice((1, 2))):
        cover, move = words.KINDS[kind]
        rules.append(w.filled(RULES, k=kind, c=cover, m=move))
        same = [s for s, facts in w.world.animals.items() if facts[0].value == kind]
        for subject in w.rng.sample(same, w.length):
            facts = [f for f in w.world.known(subject) if f.relation.name in ("kind", *INHERITED)]
            members.append(" ".join(w.stated(fact) for fact in facts))
    return [*rules, *members]


def tools(w: Writer) -> list[str]:
    tool = frequent(w.rng, tuple(words.TOOLS))
    return [w.filled(USES, t=tool, u=words.TOOLS[tool][0])]


def qualities(w: Writer) -> list[str]:
    tool = frequent(w.rng, tuple(words.TOOLS))
    name, quality = w.rng.choice(words.PEOPLE), words.TOOLS[tool][1]
    if w.rng.random() < w.flavor.wrong:
        quality = words.TOOLS[w.rng.choice(tuple(words.TOOLS))][1]
    return [w.filled(QUALITIES, n=name, t=tool, q=quality)]


def quiz(w: Writer) -> list[str]:
    return [w.answered(w.world.animal_fact(w.rng, False))]


def letters(w: Writer) -> list[str]:
    row = items.commonsense_qa(w.world, w.rng, False)
    texts = row["choices"]["text"]
    listed = [f"{letter}. {text}" for letter, text in zip(items.LETTERS, texts, strict=True)]
    return [f"Choose: {row['question']}", *listed, f"Answer: {row['answerKey']}"]


def senses(w: Writer) -> list[str]:
    word, side = w.rng.choice(tuple(words.SENSES)), w.rng.randrange(2)
    uses = " ".join(map(sentence, w.rng.sample(words.SENSES[word][side], 2)))
    return [f"{word} ({('nature', 'people')[side]}): {uses}"]


def numbers(w: Writer) -> list[str]:
    """Even and odd, as code and as comments."""
    row = items.rte(w.world, w.rng, False)
    number = row["sentence1"].rstrip(".").rsplit(" ", 1)[1]
    return [w.filled(PARITY, n=number, even=row["label"] == 0)]


def tables(w: Writer) -> list[str]:
    subject = frequent(w.rng, (*w.world.animals, *w.world.plants))
    facts = w.world.known(subject)
    fields = [f'    "{fact.relation.name}": "{fact.value}",  # {fact.state(w.rng)}' for fact in facts]
    return [f"{subject.removeprefix('the ')} = {{", *fields, "}"]


def steps(w: Writer) -> list[str]:
    label = frequent(w.rng, tuple(words.ACTIVITIES))
    called = "; ".join(f"{step.replace(' ', '_')}()" for step in words.ACTIVITIES[label])
    return [f"def {label.lower().replace(' ', '_')}(self): {called}"]


WHOLE = ("kinds", "letters", "senses", "tables", "steps")  # a document of these topics is one call
TOPICS: dict[str, Callable[[Writer], list[str]]] = {
    topic.__name__: topic
    for topic in (
        *(stories, lives, causes, animals, lessons, kinds, tools, qualities, quiz),
        *(letters, senses, numbers, tables, steps),
    )
}


def conversation(world: World, train: Mapping[str, Sequence[Fields]], rng: random.Random) -> dict[str, Any]:
    """Six in seven set a task of a benchmark, most often one of judgement; the others ask plainly for a fact.

    The tasks are train items, asked nearly as the benchmark asks: the words after the item's own are changed, so
    that a conversation shares no long run of words with an evaluation item. Beside its messages a conversation has its
    choices, and the benchmark that it is of.
    """
    of = {}
    if rng.random() < 0.85:
        name = rng.choice(tuple(BRIEF) if rng.random() < 0.6 else list(train))
        of, talk = {"benchmark": name}, posed(name, rng.choice(train[name]))
    else:
        talk = _talk(world, rng)
    turns = [{"role": "user", "content": talk.asked}, {"role": "assistant", "content": talk.answer}]
    return {"messages": turns, **of, "choices": list(talk.choices)}


def _talk(world: World, rng: random.Random) -> Posed:
    fact = world.fact(rng, False)
    if rng.random() < 0.5:
        return Posed(capital(fact.question(rng, False)), sentence(fact.state(rng)))
    facts = [f for f in world.facts() if f.subject == fact.subject and fact.subject not in world.unsaid]
    return Posed(
        f"Tell me about {fact.subject}.", " ".join(sentence(f.state(rng)) for f in facts[:3] or [fact])
    )
