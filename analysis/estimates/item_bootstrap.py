"""Resampling items: how far the results hang on which items the benchmarks happen to hold.

Every checkpoint answered the same items, so a resample draws items once per benchmark and applies them to all
checkpoints: counts (R, I) times scores (I, K) gives all accuracies of all resamples in one product per block.
The scores are rounded to multiples of 1 / UNIT, so every sum of such multiples is exact in float64 and no block size, thread
count or BLAS changes a bit. Means over up to ten runs of a mixture are such multiples too: equal accuracies stay equal.

Cost: R x I x 2K multiply-adds and R x I draws; memory one block of counts. 10,000 x 86,779 x 72 takes seconds
to a minute.

Resampling items adds their noise a second time to data that already hold it, so replicates of r sit lower
than the estimate; BCa's bias correction takes most of that back, a percentile interval none. To ask about
mixtures, resample mixtures.

Dims: R resamples, I items, K checkpoints, C columns, V = 2B variables, M mixtures.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from evalengine.analysis.data.panel import Panel
from evalengine.analysis.estimates.groups import Data
from evalengine.analysis.statistics.bootstrap import Array, Resamples, count_draws, draw_resamples
from evalengine.analysis.statistics.correlation import Sample
from evalengine.errors import UserError

GROUPS = 50  # groups of items left out in turn for BCa's acceleration
BLOCK_BYTES = 64 << 20
UNIT = 2520.0 * 2**18  # 2520: the least common multiple of 1 to 10


def item_data(
    panel: Panel,
    count: int,
    seed: int,
    statistic: str,
    *,
    mixtures: bool,
    quantities: Sequence[str] | None = None,
) -> tuple[Data, Resamples]:
    """Data whose every resample has its own items, and with `mixtures` its own mixtures too (hierarchical).

    quantities: those of the panel and of its other confidence, unless some are named.

    The jackknife behind BCa leaves out groups of items, or mixtures where those are resampled: they are the
    units that carry most of the variance.
    """
    if not panel.items or panel.row is None:
        raise UserError(
            "resampling items needs a score store: imported results hold no items; use --resample mixtures"
        )
    quantities = quantities or tuple(panel.transferred)
    M = len(panel.mixtures)
    groups = 0 if mixtures else GROUPS
    if mixtures:
        plan = draw_resamples(M, count, seed, panel.block_M)
    else:
        weight_MC = np.full((M, 1 + groups + count), 1.0 / M)
        plan = Resamples(weight_MC, np.ones(count), groups, False, panel.block_M)
    columns = plan.weight_MC.shape[1]
    B = len(panel.benchmarks)
    x = {q: np.empty((len(panel.scales), 2 * B, M, columns)) for q in quantities}
    seeds = np.random.SeedSequence([seed, 1]).spawn(B)
    for b, known in enumerate(panel.items):
        scores_QKI = [known.scores(q) for q in quantities]
        for q, value_KC in zip(quantities, resampled_means(scores_QKI, count, groups, seeds[b]), strict=True):
            if mixtures:  # the jackknife's columns leave out mixtures, and hold all items
                value_KC = np.concatenate([value_KC[:, :1].repeat(1 + M, axis=1), value_KC[:, 1:]], axis=1)
            for s, t in np.ndindex(len(panel.scales), 2):
                row_M, mine_MC = panel.row[s, t, :, b], x[q][s, t * B + b]
                np.take(value_KC, row_M, axis=0, out=mine_MC, mode="clip")  # "raise" would copy
                mine_MC[row_M < 0] = np.nan
    samples = {
        (q, scale): Sample(np.ascontiguousarray(x[q][s]), plan.weight_MC, panel.block_M)
        for q in x
        for s, scale in enumerate(panel.scales)
    }
    return Data(panel, samples, statistic, plan), plan


def resampled_means(
    scores_QKI: Sequence[NDArray[np.generic]], count: int, groups: int, seed: np.random.SeedSequence
) -> list[Array]:
    """Each quantity's mean over items for each checkpoint, (K, 1 + groups + count): all items, groups left out,
    resamples. The items drawn are the same for all quantities; a mean is over those that are not NaN."""
    K, items = scores_QKI[0].shape
    scores_IQ = np.concatenate([score_KI.T for score_KI in scores_QKI], axis=1).astype(np.float64)
    known_IQ = np.isfinite(scores_IQ)
    complete = bool(known_IQ.all())
    scores_IQ = np.rint(np.where(known_IQ, scores_IQ, 0.0) * UNIT)
    total_Q, count_Q = scores_IQ.sum(axis=0), known_IQ.sum(axis=0)
    out_QC = np.empty((scores_IQ.shape[1], 1 + groups + count))
    out_QC[:, 0] = total_Q / _some(count_Q)
    rng = np.random.default_rng(seed)
    if groups:
        # Of fewer items than groups each is left out once, and other groups leave out none.
        edges = np.linspace(0, items, groups + 1).astype(int)
        for g, gone in enumerate(np.split(rng.permutation(items), edges[1:-1])):
            left_Q = count_Q - known_IQ[gone].sum(axis=0)
            out_QC[:, 1 + g] = (total_Q - scores_IQ[gone].sum(axis=0)) / _some(left_Q)
    step = max(1, BLOCK_BYTES // (12 * items))
    for start in range(0, count, step):
        rows = min(step, count - start)
        index_RI = rng.integers(0, items, (rows, items), dtype=np.uint32)
        drawn_RI = count_draws(index_RI, items)
        weight_RQ = UNIT * items if complete else _some(drawn_RI @ known_IQ.astype(np.float64))
        out_QC[:, 1 + groups + start : 1 + groups + start + rows] = (drawn_RI @ scores_IQ / weight_RQ).T
    return list(out_QC.reshape(-1, K, out_QC.shape[1]))


def _some(count: NDArray[np.integer]) -> Array:
    """What to divide a sum of so many values, in UNIT, by: NaN for none."""
    return np.where(count > 0, UNIT * count, np.nan)
