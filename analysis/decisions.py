"""Decisions: a mixture is chosen before fine-tuning and judged after.

Of two mixtures: agreement (how often the better one before is the better one after) and the loss of choosing
so. Of all: top1 (whether the best before is the best after) and regret (the best after minus the one chosen).
The first two are means over pairs and are resampled over mixtures; `true_decisions` takes the item noise off
them. The best of a set is no such mean: a resample that lacks the winner says nothing about it, so top1 and
regret take the mixtures as they are and resample the items that could have made another one win.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import numpy as np

from evalengine.analysis import true_decisions, true_regret
from evalengine.analysis.correlation import DECISION, Sample, pair_sums
from evalengine.analysis.figure import File, Folded, Heading, Part, Table, with_benchmarks
from evalengine.analysis.groups import (
    PARTIAL,
    UNDEFINED,
    Array,
    Data,
    Group,
    Label,
    Means,
    Note,
    mean_of_known,
    with_all,
)
from evalengine.analysis.item_bootstrap import item_data
from evalengine.analysis.protocol import Protocol, Study
from evalengine.analysis.ranges import POSITIVE, SHARE, Range
from evalengine.analysis.results import Results, share_with_interval
from evalengine.analysis.tables import Row, rows_of

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
    return _decide(data, quantity, PAIR_MEASURES, _pairwise)


def best_choice(data: Data, quantity: str) -> Group:
    """Top-1 agreement and regret; `data` resamples items, the mixtures are as they are."""
    return _decide(data, quantity, BEST_MEASURES, _best)


def _decide(
    data: Data, quantity: str, measures: tuple[str, str], measure: Callable[[Sample], Array]
) -> Group:
    panel = data.panel
    B = len(panel.benchmarks)
    sign = -1.0 if quantity == "loss" else 1.0
    members = list(with_all(panel).items())
    labels = [Label(panel.categories[b], panel.benchmarks[b], name) for b in range(B) for name in measures]
    labels += [
        Label(category, f"mean of {len(index)}", name) for category, index in members for name in measures
    ]
    every = [[i] for i in range(2 * B)]  # of each benchmark and measure
    every += [[2 * b + m for b in index] for _, index in members for m in range(len(measures))]
    of_means, values, n, notes, used = {}, {}, {}, {}, {}
    for scale in panel.scales:
        sample = data.sample(quantity, scale)
        found = np.full((B, 2, sample.w_MC.shape[1]), np.nan)
        known_BM = np.isfinite(sample.x_VMC[:B, :, 0] + sample.x_VMC[B:, :, 0])
        counts = known_BM.sum(axis=1)
        for b in range(B):
            chosen = sample.x_VMC[[b, B + b]]
            keep = known_BM[b]
            if counts[b] < 4:
                continue
            part = replace(sample, x_VMC=chosen).only(keep)
            x_VMC = np.round(sign * part.x_VMC, 12)  # equal accuracies stay tied
            w_MC = part.w_MC if keep.all() else np.nan_to_num(part.w_MC)
            found[b] = measure(replace(part, x_VMC=x_VMC, w_MC=w_MC))
        known_B = np.isfinite(found[:, 0, 0])
        few, tied = (Note(UNDEFINED, why) for why in ("fewer than 4 mixtures", "all mixtures are tied"))
        why_B = [Note() if known_B[b] else few if counts[b] < 4 else tied for b in range(B)]
        means, said, of_mean_M = [], [why for why in why_B for _ in measures], []
        for _, index in members:
            lost = [f"{panel.benchmarks[b]} ({why_B[b].text})" for b in index if not known_B[b]]
            why = Note(PARTIAL, f"without {', '.join(lost)}")
            said += [why if lost else Note()] * len(measures)
            defined = [b for b in index if known_B[b]]
            of_mean_M.append(known_BM[defined].any(axis=0))
            means.append([mean_of_known(found[defined, m]) for m in range(len(measures))])
        values[scale] = np.concatenate([found, np.array(means)]).reshape(-1, found.shape[2])
        smallest = [min((int(counts[b]) for b in index if known_B[b]), default=0) for _, index in members]
        n[scale] = np.repeat(np.concatenate([counts, smallest]), 2)
        notes[scale] = said
        used[scale] = np.repeat(np.concatenate([known_BM, np.array(of_mean_M)]), 2, axis=0)
        of_means[scale] = Means(found.reshape(2 * B, -1), np.repeat(known_BM, 2, axis=0), every)
    return Group(
        "decision", quantity, labels, values, n, notes, means=of_means, used=used, range_of=_range_of
    )


def _range_of(label: Label) -> Range:
    return SHARE if label.other in ("pairwise agreement", "top1") else POSITIVE


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

    Ties for the best before are broken at random, in expectation. Weights play no part: see the top.
    """
    before_MC, after_MC = sample.x_VMC
    chosen_MC = before_MC == before_MC.max(axis=0)
    best_C, count_C = after_MC.max(axis=0), chosen_MC.sum(axis=0)
    hits_C = (chosen_MC & (after_MC == best_C)).sum(axis=0)
    return np.stack([hits_C / count_C, best_C - np.where(chosen_MC, after_MC, 0.0).sum(axis=0) / count_C])


def rows(study: Study) -> list[Row]:
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
    means, benchmarks = decision_tables(results)
    before, after = results.method["stages"]
    drawn = results.method["resampled"]
    yield Heading("Decisions")
    yield (
        f"Choosing mixtures at {before} and living with them at {after}. A coin is right of two "
        f"50% of the time, and finds the best of n one time in n. Intervals of the first two resample {drawn}; those of the "
        "last two resample items and take the mixtures as given (percentile)."
    )
    yield Folded("Means over categories", [File("decisions", means)], opened=True)
    yield Folded("Benchmarks", [File("decisions_benchmarks", benchmarks)])
    yield from _without_noise(results)


def decision_tables(results: Results) -> tuple[Table, Table]:
    """Of the means over categories, and of the benchmarks."""
    found = results.rows("decisions", protocol="decision")
    kinds = list(dict.fromkeys(r.other for r in found))
    losses = any(r.quantity == "loss" for r in found)
    in_units = ("pairwise loss", "regret") if losses else ()
    unit = "" if losses else " (points)"
    columns = [WORDS[kind] + ("" if "%" in WORDS[kind] else unit) for kind in kinds]
    of_means: list[list[list[str]]] = []
    of_benchmarks: list[list[list[str]]] = []
    for scale in results.scales:
        by_name: dict[tuple[str, str], dict[str, Row]] = {}
        for r in results.rows("decisions", protocol="decision", scale=scale):
            by_name.setdefault((r.category, r.name), {})[r.other] = r
        of_means.append([])
        of_benchmarks.append([])
        for (category, name), measure in by_name.items():
            single = name in results.method["benchmarks"]
            cells = [share_with_interval(measure.get(kind), percent=kind not in in_units) for kind in kinds]
            title = name if single else f"{category} ({name})"
            rows = of_benchmarks if single else of_means
            rows[-1].append([title, scale, *cells, str(next(iter(measure.values())).n)])
    head = ["benchmark", "scale", *columns, "n"]
    return Table("decisions, means", head, of_means, texts=2), Table(
        "decisions", head, of_benchmarks, texts=2
    )


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
        f"measured ({results.method['level']:.0%} intervals of the posterior)."
    )
    yield from with_benchmarks("best_without_noise", *_true_tables(results, f"{title}, best of all", BEST))


def _true_tables(results: Results, title: str, kinds: Mapping[str, tuple[str, bool]]) -> tuple[Table, Table]:
    """Decisions as measured beside those without item noise: means over categories, and benchmarks."""
    clean = results.rows("decisions", protocol=true_decisions.TABLE)
    measured = results.rows("decisions", protocol="decision", quantity="accuracy")
    single = set(results.method["benchmarks"])
    at = {(r.scale, r.category, r.name if r.name in single else "", r.other): r for r in (*measured, *clean)}
    of_one = [column for column, (_, every) in kinds.items() if every]
    blocks: dict[bool, dict[str, list[list[str]]]] = {True: {}, False: {}}
    for scale, category, name in dict.fromkeys(
        (r.scale, r.category, r.name if r.name in single else "") for r in clean
    ):
        found = {column: at.get((scale, category, name, kind)) for column, (kind, _) in kinds.items()}
        notes = dict.fromkeys(
            r.note for r in found.values() if r and r.protocol == true_decisions.TABLE and r.note
        )
        cells = [_cell(found[column]) for column in (of_one if name else kinds)]
        line = [name or category, scale, *cells, "; ".join(notes)]
        blocks[bool(name)].setdefault(scale, []).append(line)
    head = ["mean over", "scale", *kinds, "note"]
    means = Table(title, head, list(blocks[False].values()), texts=2, prose=True, stacked=True)
    head = ["benchmark", "scale", *of_one, "note"]
    return means, Table(
        f"{title}, benchmarks", head, list(blocks[True].values()), texts=2, prose=True, stacked=True
    )


def _cell(row: Row | None) -> str:
    if row and row.other == true_regret.TOP1_JUDGED:
        return f"{100.0 * row.estimate:.1f}"
    return share_with_interval(row)


PROTOCOL = Protocol("decisions", rows, shown)
