"""Natural language inference: mnli, qnli, rte, cb."""

from __future__ import annotations

from functools import partial

from evalengine.benchmarks.definition import Hub, Record, Rendered, define, shared

_define = partial(define, category="NLI")


def mnli(row: Record) -> Rendered:
    hypothesis = row.text("hypothesis").strip()
    hypothesis += "" if hypothesis.endswith(".") else "."
    context = f"{row.text('premise')}\nQuestion: {hypothesis} True, False or Neither?\nAnswer:"
    gold = row.index("label", 3, names=("entailment", "neutral", "contradiction"))
    return shared(context, ("True", "Neither", "False"), gold)


def qnli(row: Record) -> Rendered:
    context = (
        f"{row.text('question')}\n{row.text('sentence')}\n"
        "Question: Does this response answer the question?\nAnswer:"
    )
    return shared(context, ("yes", "no"), row.index("label", 2, names=("entailment", "not_entailment")))


def rte(row: Record) -> Rendered:
    context = f"{row.text('sentence1')}\nQuestion: {row.text('sentence2')} True or False?\nAnswer:"
    return shared(context, ("True", "False"), row.index("label", 2, names=("entailment", "not_entailment")))


def cb(row: Record) -> Rendered:
    context = f"{row.text('premise')}\nQuestion: {row.text('hypothesis')}. True, False, or Neither?\nAnswer:"
    gold = row.index("label", 3, names=("entailment", "contradiction", "neutral"))
    return shared(context, ("True", "False", "Neither"), gold)


BENCHMARKS = (
    _define(mnli, Hub("nyu-mll/glue", "mnli", "validation_matched"), choices="3"),
    _define(qnli, Hub("nyu-mll/glue", "qnli"), choices="2"),
    _define(rte, Hub("nyu-mll/glue", "rte"), choices="2"),
    _define(cb, Hub("aps/super_glue", "cb"), choices="3"),
)
