"""The metrics: how a choice is scored, and what the scores of an item's choices say.

A metric turns a choice's log-likelihood into its score. The choice with the highest score is the pick. The softmax over an
item's scores gives the confidence in it, p(gold), the margin and the entropy. Over which scores is a question of its own: a
softmax over the raw log-likelihoods is the model's distribution over the choices ("raw"), one over the score that picks, such
as the log-likelihood per character, is flatter the longer the choices are ("own"). The pick is the same in both.

The closing table of `evalengine score` and the analysis both go through this file: a metric is one entry of METRICS.

NumPy is imported where it is used, so that the command line knows the names without it.

Cost: some ten vectorised passes over the choices.
Dims: C choices of all items, I items.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from evalengine.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray


CONFIDENCES = ("raw", "own")  # softmax over the log-likelihoods, or over the score that picks


class Metric(NamedTuple):
    """How choices are scored.

    score: of the log-likelihoods (C,) and the values of `column` (C,), of one floating dtype. column: of
    the score store, "" where the log-likelihoods suffice.
    """

    score: Callable[[Any, Any], Any]
    column: str = ""


def _per_unit(loglik_C: Any, length_C: Any) -> Any:
    return loglik_C / length_C.clip(1)


METRICS = {
    "acc": Metric(lambda loglik_C, _: loglik_C),
    "acc_norm": Metric(_per_unit, "chars"),
    "acc_bytes": Metric(_per_unit, "bytes"),
    "acc_token": Metric(_per_unit, "tokens"),
    "acc_pmi": Metric(lambda loglik_C, uncond_C: loglik_C - uncond_C, "loglik_uncond"),
}


class Answers(NamedTuple):
    """What the scores say of each item; float32, (I,). NaN (pick: -1) where a score is not finite or there is no choice;
    p_gold, brier and nll also where the right choice is unknown."""

    pick: NDArray[np.int32]  # index within the item: of the highest score, the first on ties, or as given
    confidence: NDArray[np.float32]  # probability of the pick
    p_gold: NDArray[np.float32]  # probability of the right choice
    margin: NDArray[np.float32]  # largest minus second largest probability; 1 with a single choice
    entropy: NDArray[np.float32]  # nats
    brier: NDArray[np.float32]  # sum over choices of (probability - 1 if right)^2
    nll: NDArray[np.float32]  # -log(p_gold)


def answers(
    score_C: NDArray[np.floating],
    offset_I1: NDArray[np.integer],  # item i owns the choices offset[i] to offset[i + 1] - 1
    gold_I: NDArray[
        np.integer
    ],  # index of the right choice within its item; unknown where it is out of range
    pick_I: NDArray[np.integer] | None = None,  # where other scores pick; -1 where they could not
) -> Answers:
    """Reduces the scores of ragged choices to items, in float64. An item's bits do not depend on the other items."""
    import numpy as np

    start_I, count_I = offset_I1[:-1], np.diff(offset_I1)
    if not count_I.all():  # `reduceat` takes no empty item
        some_I = count_I > 0
        some_pick_I = None if pick_I is None else pick_I[some_I]
        found = answers(score_C, np.append(start_I[some_I], offset_I1[-1:]), gold_I[some_I], some_pick_I)
        all_pick_I = np.full(len(count_I), -1, np.int32)
        fields_FI = np.full((6, len(count_I)), np.nan, np.float32)
        all_pick_I[some_I], fields_FI[:, some_I] = found.pick, found[1:]
        return Answers(all_pick_I, *fields_FI)
    if not len(count_I):
        return Answers(np.empty(0, np.int32), *(np.empty(0, np.float32) for _ in Answers._fields[1:]))
    item_C = np.repeat(np.arange(len(count_I)), count_I)
    usable_I = np.logical_and.reduceat(np.isfinite(score_C), start_I)
    if not usable_I.all():
        score_C = np.where(usable_I[item_C], score_C, 0.0)
    logp_C = score_C.astype(np.float64) - np.maximum.reduceat(score_C, start_I)[item_C]
    best_C = np.flatnonzero(logp_C == 0.0)
    top_I = best_C[np.searchsorted(best_C, start_I)]  # the first at or behind the item's start is its own
    if pick_I is None:
        pick_I = top_I - start_I
    else:
        usable_I &= pick_I >= 0
    total_I = np.add.reduceat(np.exp(logp_C), start_I)
    logp_C -= np.log(total_I)[item_C]
    p_C = np.exp(logp_C)
    entropy_I = -np.add.reduceat(p_C * logp_C, start_I)
    known_I = (gold_I >= 0) & (gold_I < count_I)
    gold_C = start_I + np.where(known_I, gold_I, 0)
    p_gold_I, nll_I = p_C[gold_C], -logp_C[gold_C]
    miss_C = p_C.copy()
    miss_C[gold_C] -= 1.0
    brier_I = np.add.reduceat(miss_C * miss_C, start_I)
    confidence_I = p_C[start_I + np.maximum(pick_I, 0)]
    p_C[top_I] = 0.0
    margin_I = 1.0 / total_I - np.maximum.reduceat(p_C, start_I)
    p_gold_I, brier_I, nll_I = (np.where(known_I, x, np.nan) for x in (p_gold_I, brier_I, nll_I))
    return Answers(
        np.where(usable_I, pick_I, -1).astype(np.int32),
        *(
            np.where(usable_I, x, np.nan).astype(np.float32)
            for x in (confidence_I, p_gold_I, margin_I, entropy_I, brier_I, nll_I)
        ),
    )


def table_answers(table: pa.Table, metric: str, name: str = "") -> tuple[Answers, NDArray[np.int16]]:
    """A score table's items by one metric (own confidence), and their right choices. Raises UserError where the table lacks
    a column that the metric needs; `name` is the benchmark's."""
    from evalengine.arrow import numbers

    score, column = known_metric(metric)
    lists = table["loglik"].combine_chunks()
    loglik_C, offset_I1 = _ragged(lists)
    needed_C = None
    if column:
        needed = table[column].combine_chunks()
        if needed.null_count or not needed.offsets.equals(lists.offsets):
            raise UserError(
                f"{name} was scored without --pmi, so it has no acc_pmi: score again with --pmi"
                if column == "loglik_uncond"
                else f"{name}: the store has no {column} lengths, so no {metric}: use --metric acc"
            )
        needed_C = numbers(needed.flatten()).astype(loglik_C.dtype)
    gold_I = numbers(table["gold"].combine_chunks())
    return answers(score(loglik_C, needed_C), offset_I1, gold_I), gold_I


def raw_answers(table: pa.Table, metric: str, own: Answers, gold_I: NDArray[np.integer]) -> Answers:
    """The picks that `table_answers` found by `metric`, judged by the softmax over the raw log-likelihoods."""
    if metric == "acc":
        return own
    return answers(*_ragged(table["loglik"].combine_chunks()), gold_I, own.pick)


def _ragged(lists: pa.ListArray) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """The values of all lists, and where each begins among them."""
    import numpy as np

    from evalengine.arrow import numbers

    offset_I1 = numbers(lists.offsets).astype(np.int64)
    return numbers(lists.flatten()), offset_I1 - offset_I1[:1]


def accuracy(table: pa.Table) -> float:
    """Share of items answered right by the benchmark's own score, which the table's metadata names (else acc)."""
    if not len(table):
        return float("nan")
    metric = (table.schema.metadata or {}).get(b"default_score", b"").decode() or "acc"
    found, gold_I = table_answers(table, metric)
    return float((found.pick == gold_I).mean())


def known_metric(name: str) -> Metric:
    """The metric of this name. Raises UserError where there is none."""
    if name not in METRICS:
        raise UserError(f"no metric '{name}': choose from {', '.join(METRICS)}")
    return METRICS[name]
