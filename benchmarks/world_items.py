"""Items of all twenty benchmarks about the embedded world, under the hub's field names.

One small function a benchmark: world, random numbers -> one row. `distinct_rows` draws until it has enough
different ones, so evaluation and train files never share an item. Cost: about 20 us an item.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from typing import Any

from evalengine.benchmarks.world_facts import (
    ACTIVITIES,
    CAUSES,
    EVENTS,
    FEELINGS,
    ROLES,
    SENSES,
    VERDICTS,
    World,
)
from evalengine.benchmarks.world_grammar import Fact

Fields = dict[str, Any]
LETTERS = "ABCDE"


def distinct_rows(
    make: Callable[[World, random.Random], Fields], world: World, seed: str, count: int
) -> list[Fields]:
    """`count` different rows; fewer if the world does not hold so many."""
    rng = random.Random(seed)
    rows: dict[str, Fields] = {}
    for _ in range(20 * count):
        row = make(world, rng)
        rows.setdefault(json.dumps(row, sort_keys=True), row)
        if len(rows) == count:
            break
    return list(rows.values())


def sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "."


def question(text: str) -> str:
    return text[0].upper() + text[1:]


def _fact(world: World, rng: random.Random, topics: Sequence[str] = ()) -> Fact:
    fact = rng.choice(world.facts)
    return fact if not topics or fact.relation.topic in topics else _fact(world, rng, topics)


def _other(world: World, rng: random.Random, fact: Fact) -> Fact:
    """Another fact about the same subject."""
    other = rng.choice(world.about(fact.subject))
    return other if other is not fact else _other(world, rng, fact)


def _choices(rng: random.Random, right: str, pool: Sequence[str], count: int) -> tuple[list[str], int]:
    """`right` among `count` - 1 others from `pool`, shuffled; and where it is."""
    others = rng.sample(sorted(set(pool) - {right}), count - 1)
    texts = rng.sample([right, *others], count)
    return texts, texts.index(right)


def _two(rng: random.Random, right: str, wrong: str) -> tuple[str, str, int]:
    gold = rng.randrange(2)
    return (right, wrong, gold) if gold == 0 else (wrong, right, gold)


# Commonsense


def hellaswag(world: World, rng: random.Random) -> Fields:
    activity = rng.choice(ACTIVITIES)
    name, cut = rng.choice(world.people), rng.randrange(1, len(activity.steps))
    done = activity.steps[:cut]
    ctx_a = f"{name} {done[0]}." + "".join(f" Then she {step}." for step in done[1:])
    pool = [step for other in ACTIVITIES if other is not activity for step in other.steps]
    texts, gold = _choices(rng, activity.steps[cut], pool, 4)
    return {
        "activity_label": activity.label,
        "ctx_a": ctx_a,
        "ctx_b": "then she",
        "ctx": f"{ctx_a} then she",
        "endings": [f"{text}." for text in texts],
        "label": str(gold),
    }


def piqa(world: World, rng: random.Random) -> Fields:
    fact, other = _fact(world, rng, ("object",)), _fact(world, rng, ("object",))
    while fact.relation.name != "use":
        fact = _fact(world, rng, ("object",))
    while other.subject == fact.subject:
        other = _fact(world, rng, ("object",))
    goal = rng.choice(("How do you {}?", "I want to {}.", "To {},", "You need to {}.")).format(fact.value)
    manner = rng.choice(("Use {}.", "Take {}.", "You can do it with {}."))
    sol1, sol2, label = _two(rng, manner.format(fact.subject), manner.format(other.subject))
    return {"goal": goal, "sol1": sol1, "sol2": sol2, "label": label}


def winogrande(world: World, rng: random.Random) -> Fields:
    role = rng.choice(ROLES)
    a, b = rng.sample(world.people, 2)
    option1, option2, gold = _two(rng, a if role.who == "a" else b, b if role.who == "a" else a)
    start = role.start.format(a=a, b=b)
    return {
        "sentence": f"{start} _ {role.reason}.",
        "option1": option1,
        "option2": option2,
        "answer": str(gold + 1),
    }


def copa(world: World, rng: random.Random) -> Fields:
    (cause, effect), other = rng.sample(CAUSES, 2)
    asked = rng.choice(("cause", "effect"))
    premise, right = (effect, cause) if asked == "cause" else (cause, effect)
    choice1, choice2, label = _two(rng, sentence(right), sentence(rng.choice(other)))
    return {
        "premise": sentence(premise),
        "choice1": choice1,
        "choice2": choice2,
        "question": asked,
        "label": label,
    }


def siqa(world: World, rng: random.Random) -> Fields:
    event, name = rng.choice(EVENTS), rng.choice(world.people)
    if rng.random() < 0.5:
        asked = rng.choice((f"How would {name} feel?", f"How does {name} feel?"))
        texts, gold = _choices(rng, event.feeling, FEELINGS, 3)
    else:
        asked = rng.choice((f"What will {name} want now?", f"What does {name} want now?"))
        texts, gold = _choices(rng, event.wish, [e.wish for e in EVENTS if e.feeling != event.feeling], 3)
    answers = {f"answer{letter}": text for letter, text in zip("ABC", texts, strict=True)}
    return {"context": f"{name} {event.deed}.", "question": asked, **answers, "label": str(gold + 1)}


def commonsense_qa(world: World, rng: random.Random) -> Fields:
    fact = _fact(world, rng, ("object", "material", "animal"))
    while len(fact.relation.values) < 5:
        fact = _fact(world, rng, ("object", "material", "animal"))
    texts, gold = _choices(rng, fact.value, fact.relation.values, 5)
    return {
        "question": question(fact.ask(rng)),
        "question_concept": fact.subject,
        "choices": {"label": list(LETTERS), "text": texts},
        "answerKey": LETTERS[gold],
    }


def boolq(world: World, rng: random.Random) -> Fields:
    fact = _fact(world, rng)
    label = rng.randrange(2)
    asked = fact.doubt(fact.value if label else fact.wrong(rng))
    return {"question": asked, "passage": _passage(world, rng, fact), "label": label}


def _passage(world: World, rng: random.Random, fact: Fact, length: int = 3) -> str:
    """A few true sentences about the subject of `fact`, that fact among them."""
    others = [other for other in world.about(fact.subject) if other is not fact]
    facts = [fact, *rng.sample(others, min(length - 1, len(others)))]
    return " ".join(sentence(f.state(rng)) for f in rng.sample(facts, len(facts)))


# Science


def _arc(world: World, rng: random.Random, pool_of: Callable[[Fact], Sequence[str]]) -> Fields:
    fact = _fact(world, rng, ("animal", "material", "object"))
    pool = set(pool_of(fact)) - {fact.value}
    count = min(rng.choice((4, 4, 4, 4, 3, 5)), len(pool) + 1)
    texts, gold = _choices(rng, fact.value, sorted(pool), count)
    labels = list(LETTERS[:count]) if rng.random() < 0.9 else [str(k + 1) for k in range(count)]
    return {
        "question": question(fact.ask(rng)),
        "choices": {"text": texts, "label": labels},
        "answerKey": labels[gold],
    }


def arc_easy(world: World, rng: random.Random) -> Fields:
    """The wrong choices are of other kinds than the right one."""

    def others(fact: Fact) -> list[str]:
        return [f.value for f in world.facts if not set(f.relation.values) & set(fact.relation.values)]

    return _arc(world, rng, others)


def arc_challenge(world: World, rng: random.Random) -> Fields:
    """The wrong choices are of the same kind as the right one."""
    return _arc(world, rng, lambda fact: fact.relation.values)


def sciq(world: World, rng: random.Random) -> Fields:
    fact = _fact(world, rng, ("animal", "material", "town"))
    wrong = rng.sample(sorted(set(fact.relation.values) - {fact.value}), 3)
    support = _passage(world, rng, fact) if rng.random() < 0.8 else ""
    distractors = {f"distractor{k}": text for k, text in enumerate(wrong, 1)}
    return {
        "question": question(fact.ask(rng)),
        **distractors,
        "correct_answer": fact.value,
        "support": support,
    }


def openbookqa(world: World, rng: random.Random) -> Fields:
    fact = _fact(world, rng)
    texts, gold = _choices(rng, fact.value, fact.relation.values, 4)
    stem = fact.relation.statements[0].format(s=fact.subject, v="").strip()
    return {
        "question_stem": question(stem),
        "choices": {"text": texts, "label": list(LETTERS[:4])},
        "answerKey": LETTERS[gold],
    }


# Natural language inference


def _hypothesis(world: World, rng: random.Random, fact: Fact, relation: str) -> str:
    """A statement that `fact` entails, contradicts, or says nothing of."""
    if relation == "entailment":
        return fact.state(rng)
    if relation == "contradiction":
        return fact.state(rng, fact.wrong(rng))
    other = _other(world, rng, fact)
    return other.state(rng, rng.choice((other.value, other.wrong(rng))))


def mnli(world: World, rng: random.Random) -> Fields:
    fact, label = _fact(world, rng), rng.randrange(3)
    hypothesis = _hypothesis(world, rng, fact, ("entailment", "neutral", "contradiction")[label])
    return {"premise": sentence(fact.state(rng)), "hypothesis": sentence(hypothesis), "label": label}


def qnli(world: World, rng: random.Random) -> Fields:
    fact, label = _fact(world, rng), rng.randrange(2)
    answer = fact if label == 0 else _other(world, rng, fact)
    return {"question": question(fact.ask(rng)), "sentence": sentence(answer.state(rng)), "label": label}


def rte(world: World, rng: random.Random) -> Fields:
    fact, label = _fact(world, rng), rng.randrange(2)
    kind = "entailment" if label == 0 else rng.choice(("neutral", "contradiction"))
    premise = f"{sentence(fact.state(rng))} {sentence(_fact(world, rng).state(rng))}"
    return {"sentence1": premise, "sentence2": sentence(_hypothesis(world, rng, fact, kind)), "label": label}


def cb(world: World, rng: random.Random) -> Fields:
    """Whether the speaker's words commit to the clause."""
    name, fact, label = rng.choice(world.people), _fact(world, rng), rng.randrange(3)
    verb = rng.choice(tuple(VERDICTS.values())[label])
    clause = fact.state(rng, fact.wrong(rng) if label == 1 else None)
    return {"premise": f"{name} {verb} {clause}.", "hypothesis": clause, "label": label}


# Semantic


def qqp(world: World, rng: random.Random) -> Fields:
    first, second, label = _pair(world, rng)
    one, two = first.ask(rng), second.ask(rng)
    while one == two:
        two = second.ask(rng)
    return {"question1": question(one), "question2": question(two), "label": label}


def mrpc(world: World, rng: random.Random) -> Fields:
    first, second, label = _pair(world, rng)
    one, two = first.state(rng), second.state(rng)
    while one == two:
        two = second.state(rng)
    return {"sentence1": sentence(one), "sentence2": sentence(two), "label": label}


def _pair(world: World, rng: random.Random) -> tuple[Fact, Fact, int]:
    """A fact and itself (1), or another one about its subject or of its relation (0)."""
    fact, label = _fact(world, rng), rng.randrange(2)
    if label:
        return fact, fact, 1
    if rng.random() < 0.5:
        return fact, _other(world, rng, fact), 0
    same = [f for f in world.facts if f.relation is fact.relation and f.subject != fact.subject]
    return fact, rng.choice(same), 0


def wic(world: World, rng: random.Random) -> Fields:
    sense, label = rng.choice(SENSES), rng.randrange(2)
    one, two = rng.sample(sense.uses, 2)
    if not label:
        two = rng.choice(next(s for s in SENSES if s.word == sense.word and s is not sense).uses)
    if rng.random() < 0.5:
        one, two = two, one
    name = rng.choice(world.people)
    one, two = rng.choice((f"{name} said that {one}", one)), rng.choice((f"{name} wrote that {two}", two))
    start1, start2 = one.index(sense.word), two.index(sense.word)
    return {
        "word": sense.word,
        "sentence1": sentence(one),
        "sentence2": sentence(two),
        "start1": start1,
        "start2": start2,
        "end1": start1 + len(sense.word),
        "end2": start2 + len(sense.word),
        "label": label,
    }


def wsc(world: World, rng: random.Random) -> Fields:
    role, label = rng.choice(ROLES), rng.randrange(2)
    a, b = rng.sample(world.people, 2)
    text = f"{role.start.format(a=a, b=b)} she {role.reason}."
    right, wrong = (a, b) if role.who == "a" else (b, a)
    noun = right if label else wrong
    words = text.split()
    return {
        "text": text,
        "span1_index": words.index(noun),
        "span1_text": noun,
        "span2_index": words.index("she"),
        "span2_text": "she",
        "label": label,
    }


def multirc(world: World, rng: random.Random) -> Fields:
    fact, label = _fact(world, rng, ("animal",)), rng.randrange(2)
    # a paragraph depends on its subject alone, so that many questions share it, as in the original
    told = [f.relation.statements[0].format(s=f.subject, v=f.value) for f in world.about(fact.subject)]
    paragraph = " ".join(map(sentence, told))
    answer = fact.value if label else fact.wrong(rng)
    return {"paragraph": paragraph, "question": question(fact.ask(rng)), "answer": answer, "label": label}


MAKERS: dict[str, Callable[[World, random.Random], Fields]] = {
    make.__name__: make
    for make in (
        hellaswag,
        piqa,
        winogrande,
        copa,
        siqa,
        commonsense_qa,
        boolq,
        arc_easy,
        arc_challenge,
        sciq,
        openbookqa,
        mnli,
        qnli,
        rte,
        cb,
        qqp,
        mrpc,
        wic,
        wsc,
        multirc,
    )
}
