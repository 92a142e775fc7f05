"""Science: arc_easy, arc_challenge, sciq, openbookqa."""

from __future__ import annotations

from functools import partial

from evalengine.benchmarks.definition import Benchmark, Hub, Rendered, Row, shared

_define = partial(Benchmark, category="Science", default_score="acc_norm")


def _answer_key(row: Row, context: str) -> Rendered:
    texts, labels = row.texts("choices.text"), row.texts("choices.label")
    if len(texts) != len(labels):
        row.fail("choices", f"{len(texts)} texts but {len(labels)} labels")
    return shared(context, texts, row.position("answerKey", labels))


def arc(row: Row) -> Rendered:
    return _answer_key(row, f"Question: {row.text('question')}\nAnswer:")


def openbookqa(row: Row) -> Rendered:
    """The context is the bare stem, which a choice completes."""
    return _answer_key(row, row.text("question_stem"))


def sciq(row: Row) -> Rendered:
    """The right answer is always the last choice; a support may be empty."""
    choices = [row.text(f"distractor{k}") for k in (1, 2, 3)] + [row.text("correct_answer")]
    return shared(f"{row.text('support').lstrip()}\nQuestion: {row.text('question')}\nAnswer:", choices, 3)


BENCHMARKS = (
    _define(name="arc_easy", choices="3 to 5", hub=Hub("allenai/ai2_arc", "ARC-Easy", "test"), render=arc),
    _define(
        name="arc_challenge",
        choices="3 to 5",
        hub=Hub("allenai/ai2_arc", "ARC-Challenge", "test"),
        render=arc,
    ),
    _define(name="sciq", choices="4", hub=Hub("allenai/sciq", split="test"), render=sciq),
    _define(name="openbookqa", choices="4", hub=Hub("allenai/openbookqa", "main", "test"), render=openbookqa),
)
