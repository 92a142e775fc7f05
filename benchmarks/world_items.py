"""Items of all twenty benchmarks about the embedded world, under the hub's field names.

One small function a benchmark: (world, random numbers, asked) -> one row. With `asked` a row is about the
combinations kept for evaluation, else about those that text and training items hold. What an item takes is
stated at each function; they range from knowing a fact to weighing one decisive word to comparing two
sentences, which is as hard for a small model as real ones are. Most labels of pairs of sentences show in one
decisive word (a verb of denial, `perhaps`, `nobody`), as crowd-written pairs are known to (Gururangan et al.,
2018, "Annotation artifacts in natural language inference data"). Cost: about 20 us an item.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from typing import Any

from evalengine.benchmarks import world_words as words
from evalengine.benchmarks.world_facts import INHERITED, Fact, World, combination, frequent, in_training

Fields = dict[str, Any]
Maker = Callable[[World, random.Random, bool], Fields]
LETTERS = "ABCDE"


def distinct_rows(make: Maker, world: World, seed: str, count: int, asked: bool) -> list[Fields]:
    """`count` different rows; fewer if the world does not hold so many."""
    rng = random.Random(seed)
    rows: dict[str, Fields] = {}
    for _ in range(40 * count):
        row = make(world, rng, asked)
        rows.setdefault(json.dumps(row, sort_keys=True), row)
        if len(rows) == count:
            break
    return list(rows.values())


def capital(text: str) -> str:
    return text[0].upper() + text[1:]


def sentence(text: str) -> str:
    return capital(text) + "."


def _shuffled(rng: random.Random, right: str, wrong: Sequence[str]) -> tuple[list[str], int]:
    """All choices in a random order, and where the right one is."""
    texts = rng.sample([right, *wrong], len(wrong) + 1)
    return texts, texts.index(right)


# Commonsense


def hellaswag(world: World, rng: random.Random, asked: bool) -> Fields:
    """The order of an activity's steps; often a wrong ending is another of its steps. Text tells two or three."""
    label, name = combination(rng, asked, tuple(words.ACTIVITIES), words.PEOPLE)
    steps, cut = words.ACTIVITIES[label], rng.randrange(1, 4)
    first, *rest = steps[:cut] if asked else steps[:cut][-2:]
    ctx_a = sentence(first) + "".join(f" Then {step}." for step in rest)
    others = [step for other, some in words.ACTIVITIES.items() if other != label for step in some]
    wrong = rng.sample(others, 3)
    if rng.random() < 0.6:
        wrong[0] = rng.choice([step for step in steps if step != steps[cut]])
    texts, gold = _shuffled(rng, steps[cut], wrong)
    return {
        "activity_label": f"{label} with {name}",
        "ctx_a": ctx_a,
        "ctx_b": "then",
        "ctx": f"{ctx_a} then",
        "endings": [f"{text}." for text in texts],
        "label": str(gold),
    }


def piqa(world: World, rng: random.Random, asked: bool) -> Fields:
    """What a tool is for."""
    tool, other = _two_tools(rng, asked, lambda tool: tool)
    goals = ("To {},", "I want to {}.", "How do I {}?") if asked else ("I need to {}.", "How does one {}?")
    goal = rng.choice(goals).format(words.TOOLS[tool][0])
    manner = rng.choice(("Use the {}.", "Take the {}."))
    (sol1, sol2), gold = _shuffled(rng, manner.format(tool), [manner.format(other)])
    return {"goal": goal, "sol1": sol1, "sol2": sol2, "label": gold}


def _two_tools(rng: random.Random, asked: bool, what: Callable[[str], str]) -> tuple[str, ...]:
    """Two tools that differ in `what`."""
    while True:
        one, other = combination(rng, asked, tuple(words.TOOLS), tuple(words.TOOLS))
        if what(one) != what(other):
            return one, other


def winogrande(world: World, rng: random.Random, asked: bool) -> Fields:
    """What a thing is like: which of two is sharp, or at times which is not."""
    one, other = _two_tools(rng, asked, lambda tool: words.TOOLS[tool][1])
    quality = f"too {words.TOOLS[one][1]}"
    if rng.random() < 0.15:
        quality = f"never {words.TOOLS[other][1]}"
    (option1, option2), gold = _shuffled(rng, one, [other])
    return {
        "sentence": f"{rng.choice(words.PEOPLE)} left the {option1} beside the {option2} because the _ was {quality}.",
        "option1": option1,
        "option2": option2,
        "answer": str(gold + 1),
    }


def copa(world: World, rng: random.Random, asked: bool) -> Fields:
    """Which event goes with which effect; both choices are about the same thing."""
    thing, event = combination(rng, asked, words.THINGS, tuple(words.CAUSES))
    other = rng.choice([e for e in words.CAUSES if e != event])
    forward = rng.random() < 0.5
    premise, right, wrong = (
        (event, words.CAUSES[event], words.CAUSES[other]) if forward else (words.CAUSES[event], event, other)
    )
    (choice1, choice2), gold = _shuffled(rng, f"The {thing} {right}.", [f"The {thing} {wrong}."])
    return {
        "premise": f"The {thing} {premise}.",
        "choice1": choice1,
        "choice2": choice2,
        "question": "effect" if forward else "cause",
        "label": gold,
    }


def siqa(world: World, rng: random.Random, asked: bool) -> Fields:
    """How people feel after a deed and what they want then; the object does not matter."""
    deed, thing = combination(rng, asked, tuple(words.DEEDS), words.OBJECTS)
    name, feeling = rng.choice(words.PEOPLE), words.DEEDS[deed]
    others = rng.sample([f for f in words.WISHES if f != feeling], 2)
    if rng.random() < 0.6:
        question = rng.choice((f"How would {name} feel?", f"How does {name} feel?"))
        texts, gold = _shuffled(rng, feeling, others)
    else:
        question = rng.choice((f"What will {name} want now?", f"What does {name} want now?"))
        texts, gold = _shuffled(rng, words.WISHES[feeling], [words.WISHES[f] for f in others])
    answers = {f"answer{letter}": text for letter, text in zip("ABC", texts, strict=True)}
    return {"context": f"{name} {deed} the {thing}.", "question": question, **answers, "label": str(gold + 1)}


def commonsense_qa(world: World, rng: random.Random, asked: bool) -> Fields:
    """A fact, answered by the letter of its choice: the model has to bind the letter to its choice."""
    fact = world.animal_fact(rng, asked, "food")
    texts, gold = _shuffled(rng, fact.value, rng.sample(words.NEVER, 4))
    return {
        "question": capital(fact.question(rng, asked)),
        "question_concept": fact.subject,
        "choices": {"label": list(LETTERS), "text": texts},
        "answerKey": LETTERS[gold],
    }


def boolq(world: World, rng: random.Random, asked: bool) -> Fields:
    """Whether a source confirmed a claim or rejected it; at times another claim met the opposite."""
    label = rng.random() < 0.5
    source, verb = combination(rng, asked, words.SOURCES, words.VERDICTS[label])
    fact = world.animal_fact(rng, asked, "food", "home")
    claim = fact.state(rng, rng.choice(fact.relation.values))
    lure = f" Later {rng.choice(words.SOURCES)} {rng.choice(words.VERDICTS[not label])} something else."
    return {
        "question": rng.choice(("is this claim right", "is it so", "is what they say right")),
        "passage": f"Some people say that {claim}. Then {source} {verb} it."
        + (lure if rng.random() < 0.3 else ""),
        "label": int(label),
    }


# Science


def _arc(rng: random.Random, asked: bool, fact: Fact, wrong: Sequence[str]) -> Fields:
    texts, gold = _shuffled(rng, fact.value, wrong)
    labels = list(LETTERS[: len(texts)]) if rng.random() < 0.9 else [str(k + 1) for k in range(len(texts))]
    return {"question": capital(fact.question(rng, asked)), **_labelled(texts, labels, gold)}


def _labelled(texts: Sequence[str], labels: Sequence[str], gold: int) -> Fields:
    return {"choices": {"text": texts, "label": labels}, "answerKey": labels[gold]}


def arc_easy(world: World, rng: random.Random, asked: bool) -> Fields:
    """A fact about an animal; one wrong choice is of its kind, the others are of another."""
    fact = world.animal_fact(rng, asked)
    foreign = rng.choice([r for f in world.facts() if (r := f.relation).name != fact.relation.name])
    wrong = [*rng.sample(fact.others(), 1), *rng.sample(foreign.values, rng.choice((1, 2, 2, 3)))]
    return _arc(rng, asked, fact, wrong)


def arc_challenge(world: World, rng: random.Random, asked: bool) -> Fields:
    """A fact about an animal; all choices are of its kind."""
    return challenge(rng, asked, world.animal_fact(rng, asked, "food", "home"))


def challenge(rng: random.Random, asked: bool, fact: Fact) -> Fields:
    return _arc(rng, asked, fact, rng.sample(fact.others(), rng.choice((2, 3, 3, 3, 4))))


def sciq(world: World, rng: random.Random, asked: bool) -> Fields:
    """A fact about a plant; the support most often states it, and the same kind of fact about another plant."""
    fact = world.plant_fact(rng, asked)
    other = rng.choice([f for f in world.facts() if f.relation is fact.relation and f.value != fact.value])
    support = " ".join(sentence(f.state(rng)) for f in rng.sample([fact, other], 2))
    return {
        "question": capital(fact.question(rng, asked)),
        **{f"distractor{k}": text for k, text in enumerate(rng.sample(fact.others(), 3), 1)},
        "correct_answer": fact.value,
        "support": support if rng.random() < 0.8 else "",
    }


def openbookqa(world: World, rng: random.Random, asked: bool) -> Fields:
    """What follows from an animal's kind; of the animals asked about no text says it."""
    some = [
        fact for animal, facts in world.animals.items() if (animal in world.unsaid) == asked for fact in facts
    ]
    fact = rng.choice([fact for fact in some if fact.relation.name in INHERITED])
    texts, gold = _shuffled(rng, fact.value, rng.sample(fact.others(), 3))
    stem = rng.choice(fact.relation.statements).format(s=fact.subject, v="").strip()
    start = rng.choice(("", "people know that ", "in our book ", "everywhere "))
    return {"question_stem": capital(start + stem), **_labelled(texts, list(LETTERS[:4]), gold)}


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
    fact = world.fact(rng, asked)
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
        relations = [f.relation for f in world.animals[first.subject] if f.relation is not first.relation]
        other = rng.choice([question for relation in relations for question in relation.questions])
    if in_training(one, other, first.subject) == asked:
        return qqp(world, rng, asked)
    opening = rng.choice(("", "tell me, ", "so, ", "now, ", "friends, "))
    one, other = (capital(q.format(s=first.subject)) for q in (one, opening + other))
    return {"question1": one, "question2": other, "label": label}


def mrpc(world: World, rng: random.Random, asked: bool) -> Fields:
    """Whether a sentence is said again or shifted; at times only its value changes."""
    label = rng.randrange(2)
    first = world.fact(rng, asked)
    start = rng.choice(words.KEPT if label else words.SHIFTED)
    other = first.state(rng)
    if rng.random() < 0.15:
        start, other = rng.choice(words.KEPT), other if label else first.state(rng, first.wrong(rng))
    if in_training(start, first.subject) == asked:
        return mrpc(world, rng, asked)
    said = sentence(first.state(rng))
    return {"sentence1": said, "sentence2": sentence(f"{start} {other}"), "label": label}


def wic(world: World, rng: random.Random, asked: bool) -> Fields:
    """Whether a word has one sense twice: in nature or among people; most often the second writer says so."""
    word, label = rng.choice(tuple(words.SENSES)), rng.randrange(2)
    sense = rng.randrange(2)
    one, two = (rng.choice(words.SENSES[word][s]) for s in (sense, sense if label else 1 - sense))
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
        *(hellaswag, piqa, winogrande, copa, siqa, commonsense_qa, boolq),
        *(arc_easy, arc_challenge, sciq, openbookqa),
        *(mnli, qnli, rte, cb, qqp, mrpc, wic, wsc, multirc),
    )
}
