"""Decisions: a mixture is chosen before fine-tuning and judged after.

Of two mixtures: agreement (how often the better one before is the better one after) and the loss of choosing
so. Of all: top1 (whether the best before is the best after) and regret (the best after minus the one chosen).
The first two are means over pairs and are resampled over mixtures. The best of a set is not: a resample that
lacks the winner says nothing about it, so top1 and regret take the mixtures as they are and resample the
items that could have made another one win.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from html import escape

import numpy as np

from evalengine.analysis import page
from evalengine.analysis.correlation import DECISION, Sample, members_of, pair_sums
from evalengine.analysis.groups import ALL, PARTIAL, Array, Data, Group, Label, Note, difference_of_means
from evalengine.analysis.item_bootstrap import item_data
from evalengine.analysis.protocol import Protocol, Study
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
    members = [*panel.category_members().items(), (ALL, list(range(B)))]
    labels = [Label(panel.categories[b], panel.benchmarks[b], name) for b in range(B) for name in measures]
    labels += [
        Label(category, f"mean of {len(index)}", name) for category, index in members for name in measures
    ]
    every = [[i] for i in range(2 * B)]  # of each benchmark and measure
    every += [[2 * b + m for b in index] for _, index in members for m in range(len(measures))]
    single, single_n, values, n, notes = {}, {}, {}, {}, {}
    for scale in panel.scales:
        sample = data.sample(quantity, scale)
        found = np.full((B, 2, sample.w_MC.shape[1]), np.nan)
        counts = np.zeros(B, dtype=np.int64)
        for b in range(B):
            chosen = sample.x_VMC[[b, B + b]]
            keep = np.asarray(np.isfinite(chosen[:, :, 0]).all(axis=0))
            counts[b] = keep.sum()
            if counts[b] < 4:
                continue
            part = replace(sample, x_VMC=chosen).only(keep)
            x_VMC = np.round(sign * part.x_VMC, 12)  # equal accuracies stay tied
            found[b] = measure(replace(part, x_VMC=x_VMC, w_MC=np.nan_to_num(part.w_MC)))
        means, said = [], [Note()] * (B * len(measures))
        for _, index in members:
            defined = [b for b in index if counts[b] >= 4]
            lost = [panel.benchmarks[b] for b in index if counts[b] < 4]
            why = Note(PARTIAL, f"without {', '.join(lost)} (fewer than 4 mixtures)")
            said += [why if lost else Note()] * len(measures)
            means.append(found[defined].mean(axis=0) if defined else np.full(found.shape[1:], np.nan))
        values[scale] = np.concatenate([found, np.array(means)]).reshape(-1, found.shape[2])
        smallest = [min((int(counts[b]) for b in index if counts[b] >= 4), default=0) for _, index in members]
        n[scale] = np.repeat(np.concatenate([counts, smallest]), 2)
        notes[scale] = said
        single[scale], single_n[scale] = found.reshape(2 * B, -1), np.repeat(counts, 2)
    difference = difference_of_means(single, every, single_n)
    return Group("decision", quantity, labels, values, n, notes, difference=difference)


def _pairwise(sample: Sample) -> Array:
    """(2, C): share of pairs of different mixtures (of one block) ordered alike, and the mean loss of taking the one better
    before.

    A tie on one side counts one half, on both sides as agreement.
    """
    w_MC, block_M = sample.w_MC, sample.block_M
    every_C = 1.0 if block_M is None else sum(w_MC[m].sum(axis=0) ** 2 for m in members_of(block_M))
    pairs_C = 0.5 * (every_C - (w_MC**2).sum(axis=0))  # weight of all pairs
    pairs_C[pairs_C < 1e-12] = np.nan
    wrong_C, loss_C = pair_sums(sample.x_VMC, np.array([[0, 1]]), w_MC, DECISION, block_M)[:, 0]
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
    out = [
        row
        for quantity in panel.quantities
        if quantity != "confidence"
        for row in study.rows(pairwise(study.data, quantity))
    ]
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
        out += [row._replace(note="items resampled, percentile interval") for row in best]
    return out


def section(results: Results) -> str:
    found = results.rows("decisions")
    if not found:
        return ""
    kinds = list(dict.fromkeys(r.other for r in found))
    losses = any(r.quantity == "loss" for r in found)
    in_units = ("pairwise loss", "regret") if losses else ()
    unit = "" if losses else " (points)"
    columns = [WORDS[kind] + ("" if "%" in WORDS[kind] else unit) for kind in kinds]
    of_means: list[list[str]] = []
    of_benchmarks: list[list[str]] = []
    for scale in results.scales:
        by_name: dict[tuple[str, str], dict[str, Row]] = {}
        for r in results.rows("decisions", scale=scale):
            by_name.setdefault((r.category, r.name), {})[r.other] = r
        for (category, name), measure in by_name.items():
            cells = [share_with_interval(measure.get(kind), percent=kind not in in_units) for kind in kinds]
            n = str(next(iter(measure.values())).n)
            if name in results.method["benchmarks"]:
                of_benchmarks.append([name, scale, *cells, n])
            else:
                of_means.append([f"{category} ({name})", scale, *cells, n])
    before, after = results.method["stages"]
    head = ["benchmark", "scale", *columns, "n"]
    return (
        "<h2>Decisions</h2>"
        f'<p class="hint">Choosing mixtures at {escape(before)} and living with them at {escape(after)}. A coin is right of two '
        f"50% of the time, and finds the best of n one time in n. Intervals of the first two resample mixtures; those of the "
        "last two resample items and take the mixtures as given (percentile).</p>"
        f"<details open><summary>Means over categories</summary>{page.table(head, of_means)}</details>"
        f"<details><summary>Benchmarks</summary>{page.table(head, of_benchmarks)}</details>"
    )


PROTOCOL = Protocol("decisions", rows, section)
