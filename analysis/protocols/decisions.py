"""Decisions: a mixture is chosen before fine-tuning and judged after.

Of two mixtures: agreement (how often the better one before is the better one after) and the loss of choosing
so. Of all: top1 (whether the best before is the best after) and regret (the best after minus the one chosen).
The first two are means over pairs and are resampled over mixtures; `true_decisions` takes the item noise off
them. The best of a set is no such mean: a resample that lacks the winner says nothing about it, so top1 and
regret take the mixtures as they are and resample the items that could have made another one win.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from evalengine.analysis.estimates.groups import (
    NO_NOTE,
    Array,
    Data,
    Group,
    Label,
    Means,
    Note,
    group_of_means,
    mean_name,
)
from evalengine.analysis.estimates.item_bootstrap import item_data
from evalengine.analysis.estimates.tables import Row, rows_of
from evalengine.analysis.figure import File, Folded, Heading, Part, Table, blocks, pivot, with_benchmarks
from evalengine.analysis.protocols import true_decisions, true_regret
from evalengine.analysis.protocols.protocol import Protocol, StudyData
from evalengine.analysis.results import Results, in_its_unit, percent, share_with_interval
from evalengine.analysis.statistics.bootstrap import Basis
from evalengine.analysis.statistics.correlation import DECISION, Sample, pair_sums
from evalengine.analysis.statistics.ranges import POSITIVE, SHARE, Range

PAIR_MEASURES = ("pairwise agreement", "pairwise loss")
BEST_MEASURES = ("top1", "regret")
ITEM_RESAMPLES = 1000  # of items, for the choice of the best mixture
WORDS = {  # of the measures, and their unit
    "pairwise agreement": "right of two (%)",
    "pairwise loss": "lost by choosing of two",
    "top1": "best stays best (%)",
    "regret": "lost by choosing the best",
}


def pairwise(data: Data, quantity: str) -> Group:
    """Agreement and loss over pairs of mixtures, of each benchmark and as means over categories."""
    return _decide(data, quantity, PAIR_MEASURES, _pairwise, "all mixtures are tied")


def best_choice(data: Data, quantity: str) -> Group:
    """Top-1 agreement and regret; `data` resamples items, the mixtures are as they are."""
    return _decide(data, quantity, BEST_MEASURES, _best, f"all mixtures are tied at {data.panel.stages[1]}")


def _decide(
    data: Data, quantity: str, measures: tuple[str, str], measure: Callable[[Sample], Array], ties: str
) -> Group:
    """ties: why there is no decision of a benchmark that has the values."""
    panel = data.panel
    B, members = len(panel.benchmarks), panel.with_all()
    every = [[i] for i in range(2 * B)]  # of each benchmark and measure
    every += [[2 * b + m for b in index] for index in members.values() for m in range(2)]
    means = {}
    for scale in panel.scales:
        value_B2C, basis = _of_benchmarks(data.sample(quantity, scale), B, quantity == "loss", measure)
        means[scale] = Means(value_B2C.reshape(2 * B, -1), basis.chosen(np.repeat(np.arange(B), 2)), every)
    about = list(zip(panel.categories, panel.benchmarks, strict=True))
    first = [of.value_PC[::2] for of in means.values()]  # of the two measures, which exist together
    about += [(category, mean_name(first, index)) for category, index in members.items()]
    labels = [Label(category, name, measured) for category, name in about for measured in measures]

    def said(scale: str, label: Label, index: Sequence[int], lost: Sequence[int]) -> Note:
        why = ["fewer than 4 mixtures" if means[scale].basis.n_S[k] < 4 else ties for k in lost]
        if label.name in panel.benchmarks:
            return Note.undefined(why[0]) if lost else NO_NOTE
        return Note.without([f"{panel.benchmarks[k // 2]} ({of})" for k, of in zip(lost, why, strict=True)])

    return group_of_means("decision", quantity, labels, means, said, range_of=_range_of)


def _range_of(label: Label) -> Range:
    return SHARE if label.other in ("pairwise agreement", "top1") else POSITIVE


def _of_benchmarks(
    sample: Sample, B: int, lower_is_better: bool, measure: Callable[[Sample], Array]
) -> tuple[Array, Basis]:
    """(B, 2, C) values of a pair of measures, NaN with fewer than 4 mixtures, and what they rest on."""
    value_B2C = np.full((B, 2, sample.w_MC.shape[1]), np.nan)
    basis = Basis.of(np.isfinite(sample.x_VMC[:B, :, 0] + sample.x_VMC[B:, :, 0]))
    sign = -1.0 if lower_is_better else 1.0
    for b, (keep, n) in enumerate(zip(basis.used_SM, basis.n_S, strict=True)):
        if n >= 4:
            part = replace(sample, x_VMC=sample.x_VMC[[b, B + b]]).only(keep)
            x_VMC = np.round(sign * part.x_VMC, 12)  # equal accuracies stay tied
            w_MC = part.w_MC if keep.all() else np.nan_to_num(part.w_MC)
            value_B2C[b] = measure(replace(part, x_VMC=x_VMC, w_MC=w_MC))
    return value_B2C, basis


def _pairwise(sample: Sample) -> Array:
    """(2, C): share of pairs of different mixtures (of one block) ordered alike, and the mean loss of taking the one better
    before.

    A tie on one side counts one half. Pairs tied on both sides are left out, as they are of Kendall's tau-b: there is
    nothing to choose and nothing to be right about. With no other ties the share is (1 + tau-b) / 2.
    """
    sums_3PC = pair_sums(sample.x_VMC, np.array([[0, 1]]), sample.w_MC, DECISION, sample.block_M)
    pairs_C, wrong_C, loss_C = sums_3PC[:, 0]
    pairs_C[pairs_C == 0.0] = np.nan
    return np.stack([1.0 - wrong_C / pairs_C, loss_C / pairs_C])


def _best(sample: Sample) -> Array:
    """(2, C): chance that the best mixture before is the best after, and the best after minus the one chosen.

    Ties for the best before are broken at random, in expectation. NaN where all are tied after: there is no best to be right
    about. Weights play no part: see the top.
    """
    before_MC, after_MC = sample.x_VMC
    chosen_MC = before_MC == before_MC.max(axis=0)
    best_C, count_C = after_MC.max(axis=0), chosen_MC.sum(axis=0)
    hits_C = (chosen_MC & (after_MC == best_C)).sum(axis=0)
    with np.errstate(invalid="ignore"):  # no items without the only one
        lost_C = best_C - np.where(chosen_MC, after_MC, 0.0).sum(axis=0) / count_C
        return np.where(best_C > after_MC.min(axis=0), np.stack([hits_C / count_C, lost_C]), np.nan)


def rows(study: StudyData) -> list[Row]:
    """Of pairs for every quantity but confidence; of the best mixture for accuracy, where items are known."""
    panel, options = study.panel, study.options
    out: list[Row] = []
    for quantity in panel.quantities:
        if quantity == "confidence":
            continue
        out += study.rows(pairwise(study.data, quantity))
        known = true_decisions.known_noise(study, quantity)
        out += true_decisions.rows(study, quantity, known)
        out += true_regret.rows(study, quantity, known)
    if panel.items:
        data, plan = study.data, study.plan
        if options.resample != "items":
            data, plan = item_data(
                panel,
                ITEM_RESAMPLES,
                options.seed,
                options.statistic,
                mixtures=False,
                quantities=["accuracy"],
            )
        best = rows_of(best_choice(data, "accuracy"), plan, options._replace(interval="percentile"))
        how = "items resampled, percentile interval"
        out += [row._replace(note="; ".join(filter(None, [row.note, how]))) for row in best]
    return out


def shown(results: Results) -> Iterator[Part]:
    found = results.rows("decisions", protocol="decision")
    if not found:
        return
    before, after = results.method["stages"]
    drawn = results.method["resampled"]
    yield Heading("Decisions")
    said = f"Choosing mixtures at {before} and living with them at {after}. A coin is right of two 50% of the time"
    if any(row.other in BEST_MEASURES for row in found):
        yield (
            f"{said}, and finds the best of n one time in n. Intervals of the first two resample {drawn}; those of the last two "
            "resample items and take the mixtures as given (percentile)."
        )
    else:
        yield f"{said}. Intervals resample {drawn}."
    quantities = list(dict.fromkeys(row.quantity for row in found))
    for quantity in quantities:
        means, benchmarks = decision_tables(results, quantity)
        several = len(quantities) > 1
        of, suffix = (f" by {quantity}", f"_{quantity}") if several else ("", "")
        yield Folded(f"Means over categories{of}", [File(f"decisions{suffix}", means)], opened=True)
        yield Folded(f"Benchmarks{of}", [File(f"decisions_benchmarks{suffix}", benchmarks)])
    yield from _without_noise(results)


def decision_tables(results: Results, quantity: str) -> tuple[Table, Table]:
    """Of the means over categories, and of the benchmarks, where one chooses by a quantity."""
    found = results.rows("decisions", protocol="decision", quantity=quantity)
    kinds = list(dict.fromkeys(row.other for row in found))
    in_units = ("pairwise loss", "regret") if quantity == "loss" else ()
    unit = "" if in_units else " (points)"
    columns = [WORDS[kind] + ("" if "%" in WORDS[kind] else unit) for kind in kinds]
    lines: dict[bool, list[list[str]]] = {True: [], False: []}  # of single benchmarks, of means
    for (scale, category, name), measure in pivot(found, "scale category name", "other").items():
        single = name in results.method["benchmarks"]
        cells = [
            (in_its_unit if kind in in_units else share_with_interval)(measure.get(kind)) for kind in kinds
        ]
        title = name if single else f"{category} ({name})"
        lines[single].append([title, scale, *cells, str(next(iter(measure.values())).n)])
    head = ["benchmark", "scale", *columns, "n"]
    means = Table("decisions, means", head, blocks(lines[False], 1), texts=2)
    return means, Table("decisions", head, blocks(lines[True], 1), texts=2)


PAIRS = {  # columns of choices between two mixtures: a row's kind, whether benchmarks have it
    "right of two (%), as measured": ("pairwise agreement", True),
    "right, judged without noise": (true_decisions.AGREEMENT_JUDGED, False),
    "right without noise": (true_decisions.AGREEMENT, True),
    "lost by two (points), as measured": ("pairwise loss", False),
    "lost, judged without noise": (true_decisions.LOSS_JUDGED, False),
}
BEST = {  # and of the choice of the best
    "best stays best (%), as measured": ("top1", True),
    "best stays best, judged without noise": (true_regret.TOP1_JUDGED, True),
    "lost by the best (points), as measured": ("regret", True),
    "lost, judged without noise": (true_regret.REGRET_JUDGED, True),
    "lost without noise": (true_regret.REGRET, True),
}


def _without_noise(results: Results) -> Iterator[Part]:
    if not results.rows("decisions", protocol=true_decisions.TABLE):
        return
    title = "decisions without item noise"
    yield Heading("Without item noise", 3)
    yield (
        "With so many items, the better mixture may look the worse one after fine-tuning. Judged without "
        "noise: the choice as it was made, judged by what endless items would show. Without noise: chosen by endless items too. "
        "Under a normal model of the mixtures; jackknife intervals, of benchmarks profile likelihood."
    )
    yield from with_benchmarks("decisions_without_noise", *_true_tables(results, title, PAIRS))
    yield (
        "The best of the mixtures at hand: how probably the one chosen is the best, and what choosing it loses, given what was "
        f"measured ({percent(results.method['level'])} intervals of the posterior)."
    )
    yield from with_benchmarks("best_without_noise", *_true_tables(results, f"{title}, best of all", BEST))


def _true_tables(results: Results, title: str, kinds: Mapping[str, tuple[str, bool]]) -> tuple[Table, Table]:
    """Decisions as measured beside those without item noise: means over categories, and benchmarks."""
    clean = results.rows("decisions", protocol=true_decisions.TABLE)
    measured = results.rows("decisions", protocol="decision", quantity="accuracy")
    single = set(results.method["benchmarks"])
    at = {(r.scale, r.category, r.name if r.name in single else "", r.other): r for r in (*measured, *clean)}
    of_one = [column for column, (_, every) in kinds.items() if every]
    lines: dict[bool, list[list[str]]] = {True: [], False: []}  # of single benchmarks, of means
    for scale, category, name in dict.fromkeys(
        (r.scale, r.category, r.name if r.name in single else "") for r in clean
    ):
        found = {column: at.get((scale, category, name, kind)) for column, (kind, _) in kinds.items()}
        notes = dict.fromkeys(
            r.note for r in found.values() if r and r.protocol == true_decisions.TABLE and r.note
        )
        cells = [_cell(found[column]) for column in (of_one if name else kinds)]
        lines[bool(name)].append([name or category, scale, *cells, "; ".join(notes)])
    how: dict[str, Any] = {"texts": 2, "prose": True, "stacked": True}
    means = Table(title, ["mean over", "scale", *kinds, "note"], blocks(lines[False], 1), **how)
    head = ["benchmark", "scale", *of_one, "note"]
    return means, Table(f"{title}, benchmarks", head, blocks(lines[True], 1), **how)


def _cell(row: Row | None) -> str:
    if row and row.other == true_regret.TOP1_JUDGED:
        return f"{100.0 * row.estimate:.1f}"
    return share_with_interval(row)


PROTOCOL = Protocol("decisions", rows, shown)
