"""Science: arc_easy, arc_challenge, sciq, openbookqa."""

from __future__ import annotations

from functools import partial

from evalengine.benchmarks.definition import Hub, Record, Rendered, define, shared

_define = partial(define, category="Science", default_score="acc_norm")


def _answer_key(row: Record, context: str) -> Rendered:
    texts, labels = row.texts("choices.text"), row.texts("choices.label")
    if len(texts) != len(labels):
        row.fail("choices", f"{len(texts)} texts but {len(labels)} labels")
    return shared(context, texts, row.position("answerKey", labels))


def arc(row: Record) -> Rendered:
    return _answer_key(row, f"Question: {row.text('question')}\nAnswer:")


def openbookqa(row: Record) -> Rendered:
    """The context is the bare stem, which a choice completes."""
    return _answer_key(row, row.text("question_stem"))


def sciq(row: Record) -> Rendered:
    """The right answer is always the last choice; a support may be empty."""
    choices = [row.text(f"distractor{k}") for k in (1, 2, 3)] + [row.text("correct_answer")]
    return shared(f"{row.text('support').lstrip()}\nQuestion: {row.text('question')}\nAnswer:", choices, 3)


BENCHMARKS = (
    _define(arc, Hub("allenai/ai2_arc", "ARC-Easy", "test"), name="arc_easy", choices="3 to 5"),
    _define(arc, Hub("allenai/ai2_arc", "ARC-Challenge", "test"), name="arc_challenge", choices="3 to 5"),
    _define(sciq, Hub("allenai/sciq", split="test"), choices="4"),
    _define(openbookqa, Hub("allenai/openbookqa", "main", "test"), choices="4"),
)
