"""Items about two sentences, or a sentence and a word of judgement: inference, paraphrase, sense, reference.

As `world_items`: one small function a benchmark, (world, random numbers, asked) -> one row. Most labels show
in one decisive word (a verb of denial, `perhaps`, `nobody`), as crowd-written pairs are known to (Gururangan et
al., 2018, "Annotation artifacts in natural language inference data"); the others need a comparison.
"""

from __future__ import annotations

import random

from evalengine.benchmarks import world_items as single
from evalengine.benchmarks import world_words as words
from evalengine.benchmarks.world_facts import INHERITED, World, combination, frequent, in_training
from evalengine.benchmarks.world_items import Fields, Maker, capital, sentence

# Natural language inference


def mnli(world: World, rng: random.Random, asked: bool) -> Fields:
    """Whether a vaguer, an additional or a denying sentence follows; some only change a word."""
    label = rng.randrange(3)
    pattern, name = combination(rng, asked, words.HYPOTHESES[label], words.PEOPLE)
    deed, thing, place = frequent(rng, tuple(words.DEEDS)), rng.choice(words.OBJECTS), rng.choice(words.HOMES)
    if rng.random() < 0.25:
        other, elsewhere = rng.choice(words.PEOPLE), rng.choice([p for p in words.HOMES if p != place])
        pattern = ("{n} was in the {p}", f"{other} knew the {{p}}", f"{{n}} was in the {elsewhere}")[label]
    hypothesis = pattern.format(n=name, d=deed, p=place)
    return {
        "premise": f"{name} {deed} the {thing} in the {place}.",
        "hypothesis": sentence(hypothesis),
        "label": label,
    }


def qnli(world: World, rng: random.Random, asked: bool) -> Fields:
    """Whether a sentence answers a question: evasions do not, nor does what answers another question."""
    label = rng.randrange(2)
    kind, thing = combination(rng, asked, tuple(words.ANSWERS), words.OBJECTS)
    other = kind if label == 0 else rng.choice([k for k in words.ANSWERS if k != kind])
    answer = rng.choice(words.ANSWERS[other][1]).format(o=thing, x=rng.choice(words.ANSWER_VALUES[other]))
    if label and rng.random() < 0.8:
        answer = rng.choice(words.EVASIONS)
    question = rng.choice(words.ANSWERS[kind][0]).format(o=thing)
    return {"question": capital(question), "sentence": sentence(answer), "label": label}


def rte(world: World, rng: random.Random, asked: bool) -> Fields:
    """Whether a number of things is even."""
    label = rng.randrange(2)
    tens, ones = combination(rng, asked, "123456789", "13579" if label else "02468")
    name, thing = rng.choice(words.PEOPLE), rng.choice(words.OBJECTS)
    return {
        "sentence1": f"{name} has a {thing} that costs {tens}{ones}.",
        "sentence2": rng.choice(("Two can share the price.", "The price is even.", "Half of it is whole.")),
        "label": label,
    }


def cb(world: World, rng: random.Random, asked: bool) -> Fields:
    """Whether the speaker's words commit to the clause; who is unsure of a commitment makes none."""
    label = rng.randrange(3)
    name, verb = combination(rng, asked, words.PEOPLE, words.SPEECH[label])
    fact = (world.animal_fact if rng.random() < 0.5 else world.plant_fact)(rng, asked)
    clause = fact.state(rng, rng.choice(fact.relation.values))
    speech = f"{name} {verb}"
    if label == 2 and rng.random() < 0.5:
        speech += f" {rng.choice(words.PEOPLE)} {rng.choice(words.SPEECH[0] + words.SPEECH[1])}"
    return {"premise": f"{speech} {clause}.", "hypothesis": clause, "label": label}


# Semantic


def qqp(world: World, rng: random.Random, asked: bool) -> Fields:
    """Whether two questions are one: not if the second narrows it, nor if it is about something else."""
    label = rng.randrange(2)
    first = world.animal_fact(rng, asked, "food", "home", "kind")
    one, other = rng.sample(first.relation.questions, 2)
    if not label and rng.random() < 0.8:
        other = f"{other[:-1]} {rng.choice(words.NARROWED)}?"
    elif not label:
        other = rng.choice(
            [
                q
                for f in world.animals[first.subject]
                if f.relation is not first.relation
                for q in f.relation.questions
            ]
        )
    if in_training(one, other, first.subject) == asked:
        return qqp(world, rng, asked)
    opening = rng.choice(("", "tell me, ", "so, ", "now, ", "friends, "))
    one, other = (capital(q.format(s=first.subject)) for q in (one, opening + other))
    return {"question1": one, "question2": other, "label": label}


def mrpc(world: World, rng: random.Random, asked: bool) -> Fields:
    """Whether a sentence is said again or shifted; at times only its value changes."""
    label = rng.randrange(2)
    first = (world.animal_fact if rng.random() < 0.5 else world.plant_fact)(rng, asked)
    start = rng.choice(words.KEPT if label else words.SHIFTED)
    other = first.state(rng)
    if rng.random() < 0.15:
        start, other = rng.choice(words.KEPT), other if label else first.state(rng, first.wrong(rng))
    if in_training(start, first.subject) == asked:
        return mrpc(world, rng, asked)
    return {
        "sentence1": sentence(first.state(rng)),
        "sentence2": sentence(f"{start} {other}"),
        "label": label,
    }


def wic(world: World, rng: random.Random, asked: bool) -> Fields:
    """Whether a word has one sense twice: in nature or among people; most often the second writer says so."""
    word, label = rng.choice(tuple(words.SENSES)), rng.randrange(2)
    sense = rng.randrange(2)
    one, two = (
        rng.choice(words.SENSES[word][sense]),
        rng.choice(words.SENSES[word][sense if label else 1 - sense]),
    )
    (speaker,), (writer,) = combination(rng, asked, words.PEOPLE), combination(rng, asked, words.PEOPLE)
    mark = f"{rng.choice(words.SAME if label else words.OTHERWISE)} " if rng.random() < 0.8 else ""
    one, two = f"{speaker} said that {one}", f"{writer} {mark}wrote that {two}"
    start1, start2 = one.index(word), two.index(word)
    return {
        "word": word,
        "sentence1": sentence(one),
        "sentence2": sentence(two),
        "start1": start1,
        "start2": start2,
        "end1": start1 + len(word),
        "end2": start2 + len(word),
        "label": label,
    }


def wsc(world: World, rng: random.Random, asked: bool) -> Fields:
    """Whom a pronoun can mean: it agrees with the noun's gender."""
    woman, man = combination(rng, asked, words.FEMALE, words.MALE)
    a, b = rng.sample((woman, man), 2)
    pronoun, label = rng.choice(("she", "she", "she", "she", "he")), rng.randrange(2)
    meant = woman if pronoun == "she" else man
    noun = meant if label else (man if meant == woman else woman)
    feeling = rng.choice(tuple(words.WISHES))
    text = f"The {a} saw the {b} in the {rng.choice(words.HOMES)} because {pronoun} was {feeling}."
    return {
        "text": text,
        "span1_index": text.split().index(noun),
        "span1_text": noun,
        "span2_index": text.split().index(pronoun),
        "span2_text": pronoun,
        "label": label,
    }


def multirc(world: World, rng: random.Random, asked: bool) -> Fields:
    """Whether an answer is right: some wrong answers never are, others are right for another animal."""
    fact, label = world.animal_fact(rng, asked, "food", "home"), rng.randrange(2)
    start = rng.choice(("", "It is ", "I think ", "It says ", "Maybe ", "Surely "))
    end = rng.choice(("", ", as told", ", of course", ", you see"))
    # a paragraph depends on its subject alone, so that many questions share it, as in the original
    facts = [f for f in world.animals[fact.subject] if f.relation.name not in INHERITED]
    wording = -1 if asked else 0
    paragraph = " ".join(
        sentence(f.relation.statements[wording].format(s=f.subject, v=f.value)) for f in facts
    )
    wrong = rng.choice(words.NEVER) if rng.random() < 0.85 else fact.wrong(rng)
    answer = fact.value if label else wrong
    return {
        "paragraph": paragraph,
        "question": capital(fact.question(rng, asked)),
        "answer": start + answer + end,
        "label": label,
    }


MAKERS: dict[str, Maker] = {
    make.__name__: make
    for make in (
        *(single.hellaswag, single.piqa, single.winogrande, single.copa, single.siqa, single.commonsense_qa),
        *(single.boolq, single.arc_easy, single.arc_challenge, single.sciq, single.openbookqa),
        *(mnli, qnli, rte, cb, qqp, mrpc, wic, wsc, multirc),
    )
}
