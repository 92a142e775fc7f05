"""Commonsense: hellaswag, piqa, winogrande, copa, siqa, commonsense_qa, boolq."""

from __future__ import annotations

import re
import string
from functools import partial

from evalengine.benchmarks.definition import Hub, Record, Rendered, define, shared

_define = partial(define, category="Commonsense")


def clean_wikihow(text: str) -> str:
    """Drops the [title]-like tags that WikiHow left in HellaSwag."""
    text = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")


def hellaswag(row: Record) -> Rendered:
    if row.has("ctx_a") and isinstance(row.fields.get("ctx_b"), str):
        start = f"{row.text('ctx_a')} {row.text('ctx_b').capitalize()}"
    else:
        start = row.text("ctx")
    endings = [clean_wikihow(ending) for ending in row.texts("endings")]
    context = clean_wikihow(f"{row.text('activity_label')}: {start}")
    return shared(context, endings, row.index("label", len(endings)))


def piqa(row: Record) -> Rendered:
    choices = (row.text("sol1"), row.text("sol2"))
    return shared(f"Question: {row.text('goal')}\nAnswer:", choices, row.index("label", 2))


def winogrande(row: Record) -> Rendered:
    """Each option fills the gap of the context; what follows the gap is scored (partial evaluation)."""
    before, gap, after = row.text("sentence").partition("_")
    if not gap:
        row.fail("sentence", "has no gap '_'")
    contexts = (before + row.text("option1"), before + row.text("option2"))
    return Rendered(contexts, (after.strip(),) * 2, row.index("answer", 2, first=1))


def copa(row: Record) -> Rendered:
    links = {"cause": "because", "effect": "therefore"}
    asked = row.text("question")
    if asked not in links:
        row.fail("question", f"expected 'cause' or 'effect', got {asked!r}")
    choices = [text[:1].lower() + text[1:] for text in (row.text("choice1"), row.text("choice2"))]
    context = f"{row.text('premise').strip()[:-1]} {links[asked]}"
    return shared(context, choices, row.index("label", 2, names=("choice1", "choice2")))


def copa_lm_eval(row: Record) -> Rendered:
    """The reference scores two spaces before a choice, and takes the first of two equal choices as gold."""
    right = copa(row)
    choices = [f" {choice}" for choice in right.choices]
    return shared(right.contexts[0], choices, choices.index(choices[right.gold]))


def siqa(row: Record) -> Rendered:
    choices = (row.text("answerA"), row.text("answerB"), row.text("answerC"))
    return shared(
        f"Q: {row.text('context')} {row.text('question')}\nA:", choices, row.index("label", 3, first=1)
    )


def commonsense_qa(row: Record) -> Rendered:
    """The letter is scored, after a prompt that lists the choices."""
    texts = row.texts("choices.text")
    letters = string.ascii_uppercase[: len(texts)]
    listed = "\n".join(f"{letter}. {text}" for letter, text in zip(letters, texts, strict=True))
    context = f"Question: {row.text('question').strip()}\n{listed}\nAnswer:"
    return shared(context, letters, row.position("answerKey", letters))


def boolq(row: Record) -> Rendered:
    label = "answer" if row.has("answer") and not row.has("label") else "label"
    context = f"{row.text('passage')}\nQuestion: {row.text('question')}?\nAnswer:"
    return shared(context, ("no", "yes"), row.index(label, 2, names=("false", "true")))


BENCHMARKS = (
    _define(hellaswag, Hub("Rowan/hellaswag"), choices="4", default_score="acc_norm"),
    _define(piqa, Hub("baber/piqa"), choices="2", default_score="acc_norm"),
    _define(winogrande, Hub("allenai/winogrande", "winogrande_xl"), choices="2"),
    _define(copa, Hub("aps/super_glue", "copa"), choices="2", render_lm_eval=copa_lm_eval),
    _define(siqa, Hub("lighteval/siqa"), choices="3", aliases=("social_iqa",)),
    _define(commonsense_qa, Hub("tau/commonsense_qa"), choices="5"),
    _define(boolq, Hub("aps/super_glue", "boolq"), choices="2"),
)
