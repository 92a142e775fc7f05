"""Semantic similarity and reference: qqp, mrpc, wic, wsc, multirc."""

from __future__ import annotations

import re
from functools import partial

from evalengine.benchmarks.definition import Hub, Record, Rendered, define, shared

_define = partial(define, category="Semantic")
NO_YES = ("no", "yes")
TRUTH = ("false", "true")


def qqp(row: Record) -> Rendered:
    context = (
        f"Question 1: {row.text('question1')}\nQuestion 2: {row.text('question2')}\n"
        "Question: Do both questions ask the same thing?\nAnswer:"
    )
    return shared(context, NO_YES, row.index("label", 2, names=("not_duplicate", "duplicate")))


def mrpc(row: Record) -> Rendered:
    context = (
        f"Sentence 1: {row.text('sentence1')}\nSentence 2: {row.text('sentence2')}\n"
        "Question: Do both sentences mean the same thing?\nAnswer:"
    )
    return shared(context, NO_YES, row.index("label", 2, names=("not_equivalent", "equivalent")))


def wic(row: Record) -> Rendered:
    sentence = row.text("sentence1")
    start = row.integer("start1", 0, len(sentence) - 1)
    word = sentence[start : row.integer("end1", start + 1, len(sentence))]
    context = (
        f"Sentence 1: {sentence}\nSentence 2: {row.text('sentence2')}\n"
        f"Question: Is the word '{word}' used in the same way in the two sentences above?\nAnswer:"
    )
    return shared(context, NO_YES, row.index("label", 2, names=TRUTH))


def detokenise(text: str) -> str:
    """Undoes the tokenised spacing of WSC's passages, in the reference's order."""
    for spaced, joined in ((" n't", "n't"), (" )", ")"), ("( ", "("), ('" ', '"'), (' "', '"')):
        text = text.replace(spaced, joined)
    return re.sub(r" (['.,])", r"\1", text)


def wsc(row: Record) -> Rendered:
    """Marks the pronoun in the passage; `span2_index` counts words."""
    passage, pronoun, noun = row.text("text"), row.text("span2_text"), row.text("span1_text")
    words = passage.split()
    before = " ".join(words[: row.integer("span2_index", 0, len(words) - 1)])
    after = passage[len(before) + len(pronoun) + 1 :]
    marked = detokenise(f"{before} *{pronoun}*{after}")
    context = (
        f"Passage: {marked}\n"
        f'Question: In the passage above, does the pronoun "*{pronoun}*" refer to "*{noun}*"?\nAnswer:'
    )
    return shared(context, NO_YES, row.index("label", 2, names=TRUTH))


def multirc(row: Record) -> Rendered:
    choices = [f"{row.text('answer')}\nIs the answer correct? {verdict}" for verdict in ("yes", "no")]
    correct = row.index("label", 2, names=TRUTH)
    return shared(f"{row.text('paragraph')}\nQuestion: {row.text('question')}\nAnswer:", choices, 1 - correct)


def multirc_lm_eval(row: Record) -> Rendered:
    """The reference takes the label for the index of the choice, so that label 1, correct, means "no"."""
    right = multirc(row)
    return right._replace(gold=1 - right.gold)


BENCHMARKS = (
    _define(qqp, Hub("nyu-mll/glue", "qqp"), choices="2"),
    _define(mrpc, Hub("nyu-mll/glue", "mrpc"), choices="2"),
    _define(wic, Hub("aps/super_glue", "wic"), choices="2"),
    _define(wsc, Hub("aps/super_glue", "wsc.fixed"), choices="2"),
    _define(multirc, Hub("aps/super_glue", "multirc"), choices="2", render_lm_eval=multirc_lm_eval),
)
