"""Natural language inference: mnli, qnli, rte, cb."""

from __future__ import annotations

from functools import partial

from evalengine.benchmarks.definition import Benchmark, Hub, Rendered, Row, shared

_define = partial(Benchmark, category="NLI")


def mnli(row: Row) -> Rendered:
    hypothesis = row.text("hypothesis").strip()
    hypothesis += "" if hypothesis.endswith(".") else "."
    context = f"{row.text('premise')}\nQuestion: {hypothesis} True, False or Neither?\nAnswer:"
    gold = row.index("label", 3, names=("entailment", "neutral", "contradiction"))
    return shared(context, ("True", "Neither", "False"), gold)


def qnli(row: Row) -> Rendered:
    context = (
        f"{row.text('question')}\n{row.text('sentence')}\n"
        "Question: Does this response answer the question?\nAnswer:"
    )
    return shared(context, ("yes", "no"), row.index("label", 2, names=("entailment", "not_entailment")))


def rte(row: Row) -> Rendered:
    context = f"{row.text('sentence1')}\nQuestion: {row.text('sentence2')} True or False?\nAnswer:"
    return shared(context, ("True", "False"), row.index("label", 2, names=("entailment", "not_entailment")))


def cb(row: Row) -> Rendered:
    context = f"{row.text('premise')}\nQuestion: {row.text('hypothesis')}. True, False, or Neither?\nAnswer:"
    gold = row.index("label", 3, names=("entailment", "contradiction", "neutral"))
    return shared(context, ("True", "False", "Neither"), gold)


BENCHMARKS = (
    _define(
        name="mnli", choices="3", hub=Hub("nyu-mll/glue", "mnli", split="validation_matched"), render=mnli
    ),
    _define(name="qnli", choices="2", hub=Hub("nyu-mll/glue", "qnli"), render=qnli),
    _define(name="rte", choices="2", hub=Hub("nyu-mll/glue", "rte"), render=rte),
    _define(name="cb", choices="3", hub=Hub("aps/super_glue", "cb"), render=cb),
)
