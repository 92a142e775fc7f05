"""Do the intervals of contrasts, of r_align and of shares hold the truth? A simulation of whole studies with known truths.

    python -m evalengine.analysis.contrast_coverage [--draws 400] [--mixtures 9]

Two scales, both stages, accuracy and confidence, two categories of four benchmarks. A value is a sum of a factor of the
benchmark, one of the category, and the rest; the loadings give every correlation. "equal": every contrast is 0. "different":
transfer of accuracy rises with scale and that of confidence falls, coherence falls after fine-tuning, and one benchmark goes its
own way. The truth of r_align within models is the mean of 40,000 simulated models.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from evalengine.analysis.coverage import at_least, heading, line, panel_of
from evalengine.analysis.data.panel import Panel
from evalengine.analysis.estimates.contrasts import category_contrasts
from evalengine.analysis.estimates.groups import BENCHMARK, QUANTITY, SCALE, STAGE, Group
from evalengine.analysis.protocols import calibration
from evalengine.analysis.protocols.alignment import WITHIN, alignment
from evalengine.analysis.protocols.coherence import benchmark_coherence, coherence
from evalengine.analysis.protocols.shares import THRESHOLDS, benchmark_shares
from evalengine.analysis.protocols.transfer import category_transfer, quantity_contrasts, transfer
from evalengine.analysis.statistics.bootstrap import Array, draw_resamples, intervals
from evalengine.analysis.study import fixed_data

KINDS = ("bca", "bca-t", "jackknife", "jackknife-z")
RESAMPLES = 2000
S, T, B = 2, 2, 8
QUANTITIES = ("accuracy", "confidence")
CATEGORIES = ("One",) * (B // 2) + ("Two",) * (B // 2)
# of the benchmarks, in standard deviations of a mixture: what r_align rests on
LEVELS = np.array([0.0, 1.0, 2.0, 0.5] * 2)
MODELS = 40_000


class SimulatedDesign(NamedTuple):
    """own_SQ: squared loading of a benchmark's own factor; shared_T: loading of the category's; alone: benchmarks without it."""

    own_SQ: Array
    shared_T: Array
    alone: tuple[int, ...] = ()


DESIGNS = {
    "equal": SimulatedDesign(np.full((S, 2), 0.4), np.array([0.5, 0.5])),
    "different": SimulatedDesign(np.array([[0.2, 0.45], [0.55, 0.1]]), np.array([0.65, 0.3]), (3,)),
}
OWN = 0.7  # correlation of a benchmark's own factors of accuracy and of confidence, and of the rest


def values(rng: np.random.Generator, design: SimulatedDesign, n: int, heavy: bool) -> Array:
    """(Q, S, T, n, B): standardised values of mixtures."""

    def both(*shape: int) -> Array:  # of accuracy and of confidence
        z = rng.normal(size=(2, *shape))
        z[1] = OWN * z[0] + np.sqrt(1.0 - OWN**2) * z[1]
        return z

    own, rest = both(S, 1, n, B), both(S, T, n, B)
    shared = np.repeat(both(S, 1, n, 2), B // 2, axis=4)
    kappa_TB = np.tile(design.shared_T[:, None], (1, B))
    kappa_TB[:, list(design.alone)] = 0.0
    lam = np.sqrt(design.own_SQ.T)[:, :, None, None, None]
    kappa = kappa_TB[:, None, :]
    x = lam * own + kappa * shared + np.sqrt(1.0 - lam**2 - kappa**2) * rest
    if heavy:
        x /= np.sqrt(rng.chisquare(3, size=(1, S, 1, n, 1)) / 3.0)
    return x + LEVELS


def truths(design: SimulatedDesign, heavy: bool) -> dict[str, Array]:
    """Transfer (Q, S, B), r between benchmarks at one stage (T, B, B), and r_align within models (S, T, category)."""
    kappa_TB = np.tile(design.shared_T[:, None], (1, B))
    kappa_TB[:, list(design.alone)] = 0.0
    same = np.kron(np.eye(2), np.ones((B // 2, B // 2)))
    x = values(np.random.default_rng(99), design, MODELS, heavy)
    within = np.empty((S, T, 2))
    for c in range(2):
        a, b = (v - v.mean(axis=-1, keepdims=True) for v in x[..., 4 * c : 4 * c + 4])
        within[:, :, c] = ((a * b).sum(-1) / np.sqrt((a * a).sum(-1) * (b * b).sum(-1))).mean(axis=2)
    return {
        "transfer": design.own_SQ.T[:, :, None] + kappa_TB[0] * kappa_TB[1],
        "pairs": kappa_TB[:, :, None] * kappa_TB[:, None, :] * same,
        "within": within,
    }


def statistics(panel: Panel, plan_seed: int, truth: dict[str, Array]) -> Iterator[tuple[str, Array, Array]]:
    """Names, (K, C) columns and (K,) truths of the contrasts of one study."""
    plan = draw_resamples(len(panel.mixtures), RESAMPLES, plan_seed)
    data = fixed_data(panel, plan, "pearson")
    single = {quantity: transfer(data, quantity) for quantity in QUANTITIES}
    r = truth["transfer"]
    halves = [list(range(4)), list(range(4, 8)), list(range(8))]

    def means(x_B: Array) -> Array:
        return np.array([x_B[index].mean() for index in halves])

    for group in quantity_contrasts(single["accuracy"], single["confidence"], panel):
        of, over = ("means", means) if group.protocol == "category_transfer" else ("one r", np.asarray)
        for scale, value_SC in group.values.items():
            s = panel.scales.index(scale)
            gap = r[0] - r[1]
            if group.contrast == QUANTITY:
                yield f"accuracy minus confidence, {of}", value_SC, over(gap[s])
            else:
                yield f"the same, between scales, {of}", value_SC, over(gap[1] - gap[0])
    for q, quantity in enumerate(QUANTITIES):
        (contrast,) = category_contrasts(category_transfer(single[quantity], panel))
        for s, value_SC in enumerate(contrast.values.values()):
            mean = means(r[q, s])
            yield "one category minus another", value_SC, mean[:1] - mean[1:2]
        whole = coherence(data, quantity)
        pairs = truth["pairs"]
        upper = [np.triu(np.ones((B, B)), 1)[4 * c : 4 * c + 4, 4 * c : 4 * c + 4] > 0 for c in range(2)]
        block = [[p[4 * c : 4 * c + 4, 4 * c : 4 * c + 4] for c in range(2)] for p in pairs]
        change = np.array([(block[1][c] - block[0][c])[upper[c]].mean() for c in range(2)])
        single_ones = benchmark_coherence(whole, panel)
        stage, apart = _of(whole, STAGE), _of(single_ones, BENCHMARK)
        for of, group in (("a category", whole), ("a benchmark", single_ones)):
            (value_SC,) = _of(group, SCALE).values.values()
            yield f"coherence of {of}, between scales", value_SC, np.zeros(len(value_SC))
        for scale in panel.scales:
            yield "coherence, after minus before", stage.values[scale], change
            keep = [k for k, label in enumerate(apart.labels) if label.other in panel.stages]
            expected = [
                _apart(pairs[panel.stages.index(apart.labels[k].other)], int(apart.labels[k].name[1:]))
                for k in keep
            ]
            yield "a benchmark minus the others", apart.values[scale][keep], np.array(expected)
    aligned = next(group for group in alignment(data) if group.labels[0].name == WITHIN)
    levels = calibration.means(panel, "accuracy", panel.values["accuracy"], plan.weight_MC)
    for s, scale in enumerate(panel.scales):
        within = truth["within"][s]
        yield "r_align within models", aligned.values[scale], within.T.ravel()
        yield "r_align, after minus before", aligned.contrasts[0].values[scale], within[1] - within[0]
        yield "mean level, after minus before", _of(levels, STAGE).values[scale], np.zeros(B)


def _of(group: Group, contrast: str) -> Group:
    return next(part for part in group.contrasts if part.contrast == contrast)


def _apart(r_BB: Array, b: int) -> float:
    mates = [i for i in range(B) if i // 4 == b // 4 and i != b]
    rest = [r_BB[i, j] for i in mates for j in mates if i < j]
    return float(r_BB[b, mates].mean() - np.mean(rest))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=at_least(1), default=400, help="studies of a design")
    parser.add_argument("--mixtures", type=at_least(4), default=9)
    parser.add_argument("--designs", default=",".join(DESIGNS))
    args = parser.parse_args()
    if unknown := set(args.designs.split(",")) - set(DESIGNS):
        parser.error(f"--designs {','.join(sorted(unknown))}: choose from {', '.join(DESIGNS)}")
    plan = draw_resamples(args.mixtures, RESAMPLES, 0)
    heading("statistic", "studies", "data", *KINDS)
    for heavy in (False, True):
        for name, design in ((name, DESIGNS[name]) for name in args.designs.split(",")):
            truth = truths(design, heavy)
            rng = np.random.default_rng([len(name), heavy])
            covered: dict[str, list[Array]] = defaultdict(list)
            bounds: dict[str, list[bool]] = defaultdict(list)
            for _ in range(args.draws):
                x = values(rng, design, args.mixtures, heavy)
                panel = panel_of(dict(zip(QUANTITIES, x, strict=True)), CATEGORIES)
                for what, value_KC, expected_K in statistics(panel, 0, truth):
                    ends = intervals(value_KC, plan, 0.95, KINDS).ends
                    hit = [(ends[k][:, 0] <= expected_K) & (expected_K <= ends[k][:, 1]) for k in KINDS]
                    covered[what].append(np.mean(hit, axis=1))
                data = fixed_data(panel, plan, "pearson")
                for q, quantity in enumerate(QUANTITIES):
                    rows = benchmark_shares(transfer(data, quantity), plan, 0.95)
                    for s, scale in enumerate(panel.scales):
                        r_B = truth["transfer"][q, s]
                        for (side, at), row in zip(
                            THRESHOLDS, (row for row in rows if row.scale == scale), strict=True
                        ):
                            share = np.mean(r_B > at if side == "above" else r_B < at)
                            bounds[f"share {side} {at:g}"].append(row.low <= share <= row.high)
            kind = "heavy-tailed" if heavy else "normal"
            for what, hits in covered.items():
                line(what, name, kind, *(f"{x:.3f}" for x in np.mean(hits, axis=0)))
            for what, held in bounds.items():
                line(what, name, kind, f"{np.mean(held):.3f} (closed testing)", *[""] * (len(KINDS) - 1))


if __name__ == "__main__":
    main()
