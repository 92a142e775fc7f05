"""What a researcher does with transfer: pick a mixture before fine-tuning, and live with it after.

Of two mixtures: agreement (how often the better one before is the better one after) and the loss of choosing
so. Of all: top1 (whether the best before is the best after) and regret (the best after minus the one chosen).
The first two are means over pairs and are resampled over mixtures. The best of a set is not: a resample that
lacks the winner says nothing about it, so top1 and regret take the mixtures as they are and resample the
items that could have made another one win.

A verdict is stated from intervals alone: see `verdicts`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from evalengine.analysis.correlation import DECISION, Sample, pair_sums
from evalengine.analysis.panel import Array
from evalengine.analysis.protocols import ALL, Data, Group, Label
from evalengine.analysis.tables import Row

PAIR_MEASURES = ("pairwise agreement", "pairwise loss")
BEST_MEASURES = ("top1", "regret")
ALPHA = 0.05
USEFUL_R = 0.5  # a transfer whose interval stays below this at every scale is called unreliable


class Verdict(NamedTuple):
    """One benchmark's verdict on one quantity, and the intervals it rests on."""

    quantity: str
    category: str
    benchmark: str
    verdict: str
    because: str


def pairwise(data: Data, quantity: str) -> Group:
    """Agreement and loss over pairs of mixtures, of each benchmark and as means over categories."""
    return _decide(data, quantity, PAIR_MEASURES)


def best_choice(data: Data, quantity: str) -> Group:
    """Top-1 agreement and regret; `data` resamples items, the mixtures are as they are."""
    return _decide(data, quantity, BEST_MEASURES)


def _decide(data: Data, quantity: str, measures: tuple[str, str]) -> Group:
    from evalengine.analysis.resampling_kernels import decide_best

    panel = data.panel
    B = len(panel.benchmarks)
    sign = -1.0 if quantity == "loss" else 1.0
    members = [*panel.category_members().items(), (ALL, list(range(B)))]
    labels = [Label(panel.categories[b], panel.benchmarks[b], name) for b in range(B) for name in measures]
    labels += [
        Label(category, f"mean of {len(index)}", name) for category, index in members for name in measures
    ]
    pair = np.array([[0, 1]])
    values, n, notes, defined_at = {}, {}, {}, {}
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
            part = Sample(chosen, sample.w_MC).only(keep)
            x_VMC = np.round(sign * part.x_VMC, 12)  # equal accuracies stay tied
            if measures == PAIR_MEASURES:
                found[b] = _pairwise(x_VMC, np.nan_to_num(part.w_MC))
            else:
                found[b] = decide_best(x_VMC, pair)[0]
        means, kept, said = [], [[b] for b in range(B) for _ in measures], [""] * (B * len(measures))
        for _, index in members:
            defined = [b for b in index if counts[b] >= 4]
            lost = [panel.benchmarks[b] for b in index if counts[b] < 4]
            kept += [defined] * len(measures)
            said += [f"without {', '.join(lost)} (fewer than 4 mixtures)" if lost else ""] * len(measures)
            means.append(found[defined].mean(axis=0) if defined else np.full(found.shape[1:], np.nan))
        values[scale] = np.concatenate([found, np.array(means)]).reshape(-1, found.shape[2])
        smallest = [min((int(counts[b]) for b in index if counts[b] >= 4), default=0) for _, index in members]
        n[scale] = np.repeat(np.concatenate([counts, smallest]), 2)
        notes[scale], defined_at[scale] = said, kept
    return Group("decision", quantity, labels, values, n, notes, members=defined_at)


def _pairwise(x_2MC: Array, w_MC: Array) -> Array:
    """(2, C): share of pairs of different mixtures ordered alike, and the mean loss of taking the one better
    before.

    A tie on one side counts one half, on both sides as agreement.
    """
    pairs_C = 0.5 * (1.0 - (w_MC**2).sum(axis=0))  # weight of all pairs
    pairs_C[pairs_C < 1e-12] = np.nan
    wrong_C, loss_C = pair_sums(x_2MC, np.array([[0, 1]]), w_MC, DECISION)[:, 0]
    return np.stack([1.0 - wrong_C / pairs_C, loss_C / pairs_C])


def verdicts(rows: list[Row], useful: float = USEFUL_R) -> list[Verdict]:
    """What the intervals of a benchmark's transfer allow to say.

    reliable: above 0 at every scale, and so says the permutation test (p below ALPHA: with few different values an
    interval alone is too sure). scale-dependent: not that, and the interval of the difference between
    the scales excludes 0. unreliable: below `useful` at every scale. undecided: the intervals are too wide
    for any of these.
    """
    out = []
    single = [row for row in rows if row.protocol == "transfer"]
    for quantity, category, benchmark in dict.fromkeys((r.quantity, r.category, r.name) for r in single):
        mine = [r for r in single if (r.quantity, r.name) == (quantity, benchmark)]
        scales = [r for r in mine if "-" not in r.scale or not _is_contrast(r, mine)]
        contrast = [r for r in mine if r not in scales]
        known = [r for r in scales if np.isfinite([r.low, r.high]).all()]
        shown = "; ".join(
            f"{r.scale}: {r.estimate:.2f} [{r.low:.2f}, {r.high:.2f}], n = {r.n}" for r in known
        )
        if not known:
            verdict, why = (
                "undefined",
                "; ".join(dict.fromkeys(r.note for r in scales if r.note)) or "no interval",
            )
        elif len(known) == len(scales) and all(r.low > 0 and not r.p >= ALPHA for r in known):
            verdict, why = "reliable", f"the intervals lie above 0: {shown}"
        elif any(r.low > 0 or r.high < 0 for r in contrast if np.isfinite([r.low, r.high]).all()):
            r = contrast[0]
            verdict = "scale-dependent"
            why = f"{r.scale} is {r.estimate:.2f} [{r.low:.2f}, {r.high:.2f}], which excludes 0: {shown}"
        elif len(known) == len(scales) and all(r.high < useful for r in known):
            verdict, why = "unreliable", f"the intervals lie below {useful:g}: {shown}"
        else:
            verdict, why = "undecided", f"the intervals allow both none and a useful transfer: {shown}"
        out.append(Verdict(quantity, category, benchmark, verdict, why))
    return out


def _is_contrast(row: Row, mine: list[Row]) -> bool:
    """Whether the row's scale is the difference of two others of the same statistic."""
    names = {r.scale for r in mine}
    return any(row.scale == f"{a}-{b}" for a in names for b in names)
