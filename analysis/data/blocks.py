"""Blocks of mixtures: those that share a web source, or another factor, are alike, and not exchangeable with the others.

With blocks every correlation over mixtures is within them (`correlation.within`), mixtures are permuted and resampled within
them, and degrees of freedom count one mean per block. Without, a permutation test of r = 0 at 5% rejects 9% of studies
of 3 x 3 mixtures whose source has half of the variance at both stages, and 34% where it has nine tenths.

References: Good (2005), "Permutation, Parametric and Bootstrap Tests of Hypotheses" (restricted permutations); Hays (1963),
"Statistics for Psychologists" (omega squared).
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from evalengine.analysis.data.items import names
from evalengine.analysis.data.mixtures import WEB_SOURCE, Mixtures
from evalengine.analysis.data.orders import permutation_words
from evalengine.analysis.data.panel import Array, Blocks, Panel
from evalengine.analysis.statistics.bootstrap import DEGENERATE_MOST, constant_share
from evalengine.errors import UserError

AUTO, NONE = "auto", "none"
FREEDOM_LEAST = 3  # degrees of freedom within blocks
LARGE = 0.5  # share of the variance between mixtures above which a factor is pointed out


def with_blocks(panel: Panel, asked: str, mixtures: Mixtures | None, statistic: str = "pearson") -> Panel:
    """The panel with the blocks asked for (`blocks_of`), and a note on what they mean, or on a factor that asks for them.

    statistic: that of the study, for the note.
    """
    if (blocks := blocks_of(panel.mixtures, asked, mixtures)) is None:
        factors = _factors(panel.mixtures, mixtures)
        notes = [note for name, labels in factors.items() if (note := _explained(panel, name, labels))]
        return replace(panel, notes=(*panel.notes, *notes)) if notes else panel
    panel = replace(panel, blocks=blocks)
    return replace(panel, notes=(*panel.notes, _said(blocks, permutation_words(panel, statistic))))


def blocks_of(compared: Sequence[str], asked: str, mixtures: Mixtures | None) -> Blocks | None:
    """The blocks of the mixtures that are compared; None where all are exchangeable.

    asked: "auto" (the web source, where at least two mixtures have each and they are enough), "none", or a factor's name.
    Raises UserError for a factor that is not known for every mixture or leaves too little to compare.
    """
    factors = _factors(compared, mixtures)
    if asked == NONE or (asked == AUTO and not _enough(factors.get(WEB_SOURCE, ()), 2)):
        return None
    name = WEB_SOURCE if asked == AUTO else asked
    if name not in factors:
        raise UserError(f"--block {name}: {_why_no_factor(compared, name, factors, mixtures)}")
    labels = factors[name]
    if not _enough(labels, 1):
        sizes = ", ".join(map(str, Counter(labels).values()))
        raise UserError(
            f"--block {name}: {len(labels)} mixtures in {len(set(labels))} blocks ({sizes}) are too few to compare "
            f"within them, which takes at least {FREEDOM_LEAST} more mixtures than blocks and blocks of 3: use --block none"
        )
    return Blocks(words(name), labels)


def _factors(compared: Sequence[str], mixtures: Mixtures | None) -> dict[str, tuple[str, ...]]:
    """The labels of the factors that are known of all mixtures and differ between them."""
    return {
        name: tuple(label_of[m] for m in compared)
        for name, label_of in (mixtures.factors if mixtures else {}).items()
        if all(m in label_of for m in compared) and len({label_of[m] for m in compared}) > 1
    }


def _why_no_factor(
    compared: Sequence[str], name: str, factors: dict[str, tuple[str, ...]], mixtures: Mixtures | None
) -> str:
    label_of = mixtures.factors.get(name) if mixtures else None
    if label_of is None:
        known = f"known: {', '.join(factors)}"
        advice = known if factors else "give a study file, which names web sources, with --study"
        return f"no mixture has this factor ({advice})"
    if without := [m for m in compared if m not in label_of]:
        return f"it is not known for {names(without, 6)}"
    return "it is the same for all mixtures; leave --block out"


def _enough(labels: Sequence[str], least: int) -> bool:
    """Whether blocks of `least` mixtures or more leave something to compare and resample."""
    counts = Counter(labels).values()
    return (
        len(counts) > 1
        and min(counts) >= least
        and len(labels) - len(counts) >= FREEDOM_LEAST
        and constant_share(list(counts)) <= DEGENERATE_MOST
    )


def words(factor: str) -> str:
    """A factor as it is printed."""
    return factor.replace("_", " ") if factor == WEB_SOURCE else factor


def _said(blocks: Blocks, permuted: str) -> str:
    return (
        f"Every correlation over mixtures is within {blocks.factor} ({', '.join(dict.fromkeys(blocks.labels))}), whose means are "
        f"taken out: mixtures are permuted ({permuted}) and resampled within it; the table "
        "across_blocks has the plain r"
    )


def _explained(panel: Panel, name: str, labels: tuple[str, ...]) -> str:
    """A note on a factor that explains more than LARGE of the variance between mixtures."""
    quantity = "accuracy" if "accuracy" in panel.values else next(iter(panel.values))
    share = explained_share(panel.values[quantity], labels)
    if not share > LARGE:
        return ""
    advice = (
        f"compare within it with --block {name}"
        if _enough(labels, 1)
        else "there are too few mixtures of each to compare within it"
    )
    return (
        f"{words(name)} explains {share:.0%} of the variance of {quantity} between mixtures (omega squared, mean over "
        f"benchmarks), so mixtures are not exchangeable and p-values are too small: {advice}"
    )


def explained_share(x_STMB: Array, labels: Sequence[str]) -> float:
    """Omega squared of a factor (one-way analysis of variance over mixtures), the mean over scales, stages, benchmarks.

    (SS between - (G - 1) MS within) / (SS total + MS within), for G levels; nearly unbiased, so negative by chance. NaN
    where no benchmark allows it.
    """
    found = []
    for at in itertools.product(*map(range, (*x_STMB.shape[:2], x_STMB.shape[3]))):
        x_M = x_STMB[at[0], at[1], :, at[2]]
        known = np.isfinite(x_M)
        parts = [x_M[known & (np.array(labels) == label)] for label in dict.fromkeys(labels)]
        parts = [part for part in parts if len(part)]
        freedom = int(known.sum()) - len(parts)
        total = float(((x_M[known] - x_M[known].mean()) ** 2).sum()) if known.any() else 0.0
        if len(parts) < 2 or freedom < 1 or total <= 1e-18:
            continue
        error = sum(float(((part - part.mean()) ** 2).sum()) for part in parts)
        mean_error = error / freedom
        found.append((total - error - (len(parts) - 1) * mean_error) / (total + mean_error))
    return float(np.mean(found)) if found else math.nan
