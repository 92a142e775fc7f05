"""How often, and how similarly, a mixture's text holds each choice of an item: what `frequency` and `gelbach` regress on.

    exposures of choice j in mixture m    E_jm = sum_s share_ms tokens / tokens_s count_js
    dose of item i                        x_im = f(right choice) - mean over wrong choices of f, with f = log(1 + E)

tokens is what the scale is pretrained on, tokens_s the length of source s, so share_ms tokens / tokens_s is how many times the
source was read. Doses of longest matches are in words: the longest match in any source of the mixture. Similarities are
log sum_s share_ms exp(value_js). "context" is no contrast: n-grams of the context alone, which say how familiar the task is.

An item has a dose where all its choices have one: a choice too short for an n-gram is unknown, not zero. What a dose may move:

    margin    log-likelihood of the right choice minus the largest of a wrong one, nats, within -5 and 5
    p(gold)   softmax probability of the right choice among the choices
    accuracy  whether the benchmark's own score picks the right choice

Dims: S sources, M mixtures, R runs, C choices of all items of a benchmark, I items.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from evalengine.analysis.data.items import names
from evalengine.analysis.data.mixtures import kind_of
from evalengine.analysis.estimates.groups import ALL
from evalengine.analysis.explain.choices import Array
from evalengine.analysis.explain.design import by_mixture, numbered
from evalengine.analysis.explain.explainer import StudyScores, once
from evalengine.analysis.explain.exposed import CROSS, LONGEST, SIMILARITIES, Dose, Dosed, exposed
from evalengine.analysis.explain.means import Member, grouped, joined
from evalengine.analysis.explain.within import demeaned, relabellings, varies
from evalengine.analysis.figure import by

KEPT = 0.5  # of the items that the best n has, for the headline dose
LEAST = 5  # different sets of doses, of a benchmark
FEW = "fewer than 5 different sets of doses differ between mixtures, as where all items have the same answers"
UNKNOWN = "no item has a dose, as where choices are too short for n-grams of so many words"
LACKING = "not on every checkpoint"
# What a study without a headline dose lacks.
NO_HEADLINE = "crossing n-grams whose counts differ between mixtures"
MARGIN, P_GOLD, ACCURACY = "margin", "p(gold)", "accuracy"
OUTCOMES = (MARGIN, P_GOLD, ACCURACY)

Regressor = tuple[Dose, Callable[[Array], Array] | None]  # as of `Dosed.of`
When = tuple[str, str]  # a stage and "", or the last stage minus the first


def different(dose_MI: Array) -> float:
    """How many different sets of doses carry a benchmark's slope (Kish 1965): (sum_g S_g)^2 / sum_g S_g^2, S_g the sum of squares
    of the items with set g, their effects taken out.

    Where every item has the same answers, such as yes and no, there are two, whatever the number of items: the mixture's liking
    of a word, and nothing about items. The same where a few items alone are seen at all.
    """
    within_MI = demeaned(dose_MI)
    if not varies(within_MI):
        return 0.0
    _, set_I = np.unique(dose_MI.round(9), axis=1, return_inverse=True)
    square_G = np.bincount(set_I.ravel(), (within_MI**2).sum(axis=0))
    return float(square_G.sum() ** 2 / (square_G**2).sum())


@once
def headline(study: StudyScores) -> Dose | None:
    """The dose that is looked at most closely: crossing n-grams of the largest n that keeps at least half of the items that the
    best n has, items of usable benchmarks whose dose differs between mixtures. It depends on texts and design alone, not on any
    score, so choosing it needs no correction."""
    every = next((found[1] for s in study.design.scales if (found := dosed(study, s)) is not None), [])
    items: dict[Dose, int] = {}
    for one in every:
        for dose in one.value:
            if dose.kind == CROSS:
                x_MI = one.of(dose)
                x_MI = x_MI[:, np.isfinite(x_MI).all(axis=0)]
                usable = x_MI.shape[1] > 0 and different(x_MI) >= LEAST
                moved = int((np.ptp(x_MI, axis=0) > 1e-9).sum()) if usable else 0
                items[dose] = items.get(dose, 0) + moved
    enough = [dose for dose, count in items.items() if count >= KEPT * max(items.values())]
    return max(enough, key=lambda dose: dose.n, default=None)


def orders(study: StudyScores, mixtures: tuple[str, ...]) -> NDArray[np.int64] | None:
    """Relabellings of the design, where its mixtures are a grid: which sources they have, by their shares of web, code and
    curated text (within.relabellings)."""
    found = exposed(study)
    if found is None:
        return None
    versions, proportions = [], []
    for mixture in mixtures:
        shares = dict(zip(found.sources, found.share[mixture].tolist(), strict=True))
        versions.append(frozenset(source for source, share in shares.items() if share > 0.0))
        kinds: dict[str, float] = {}
        for source, share in shares.items():
            kinds[kind_of(source)] = kinds.get(kind_of(source), 0.0) + share
        proportions.append(tuple(sorted((kind, round(share, 6)) for kind, share in kinds.items() if share)))
    return relabellings(versions, proportions)


@once
def dosed(study: StudyScores, scale: str) -> tuple[tuple[str, ...], list[Dosed]] | None:
    """The mixtures of a scale whose shares are known, and their doses; None where nothing can be said."""
    if (found := exposed(study)) is None:
        return None
    mixtures = tuple(m for m in study.design.numbered(scale)[0] if m in found.share)
    if len(mixtures) < 2 or scale not in found.tokens:
        return None
    share_MS = np.stack([found.share[m] for m in mixtures])
    epochs_MS = np.stack([found.epochs(scale, m) for m in mixtures])
    every = []
    for one in found.counts:
        value = {dose: _mixed(dose, value_SC, share_MS, epochs_MS) for dose, value_SC in one.value.items()}
        every.append(Dosed(one.choices, value))
    return mixtures, every


def _mixed(dose: Dose, value_SC: Array, share_MS: Array, epochs_MS: Array) -> Array:
    if dose.counted:
        return epochs_MS @ value_SC
    if dose.kind == LONGEST:
        return np.stack([value_SC[share_S > 0.0].max(axis=0) for share_S in share_MS])
    return of_mixtures(value_SC, share_MS)


def of_mixtures(value_SC: Array, share_MS: Array) -> Array:
    """Similarities of choices with mixtures, (M, C), from those with sources: log sum_s share_s exp(value_s).

    For bm25 and embedding that is the log-mean-exp over all sources' ten best chunks, each weighted by its source's share.
    For dsir it is exact: a mixture draws whole documents from its sources, so a text's likelihood is the mean of the sources'
    by share, and gold minus wrong is how much likelier the mixture makes the right choice after the context.
    """
    from scipy.special import logsumexp

    return logsumexp(value_SC, axis=1, b=share_MS[:, :, None])


@dataclass(frozen=True)
class DosedItems(Member):
    """The items of a benchmark whose doses are known on all mixtures."""

    chance_I: Array  # accuracy of guessing
    x: dict[str, Array]  # by the regressor's name, (M, I)
    y: dict[tuple[When, str], Array]  # by stage and outcome, (M, I)

    def within(self) -> DosedItems:
        """`x` and `y` without the effects of items and of mixtures on the benchmark."""
        x = {name: demeaned(x_MI) for name, x_MI in self.x.items()}
        return replace(self, x=x, y={key: demeaned(y_MI) for key, y_MI in self.y.items()})


class LeftOut(NamedTuple):
    category: str
    benchmark: str
    why: str


class Dosages(NamedTuple):
    """What the mixtures of a scale have read of the items."""

    mixtures: tuple[str, ...]
    benchmarks: list[DosedItems]
    left_out: list[LeftOut]

    def groups(self) -> list[tuple[str, str, list[DosedItems]]]:
        """As of `grouped`, all items first."""
        return sorted(grouped(self.benchmarks), key=lambda group: group[0] != ALL)

    def without(self, category: str) -> str:
        """Which benchmarks of a category, or of all, are left out, and why."""
        mine = [one for one in self.left_out if category in (ALL, one.category)]
        whys = by(mine, lambda one: one.why)
        return joined(
            *(f"without {names([one.benchmark for one in of], 20)}: {why}" for why, of in whys.items())
        )


def whens(stages: Sequence[str]) -> tuple[When, When, When]:
    """The first stage, the last, and the change."""
    first, last = stages
    return (first, ""), (last, ""), (last, first)


def dosed_items(study: StudyScores, scale: str, regressors: Mapping[str, Regressor]) -> Dosages | None:
    """The items on which all regressors are known, of benchmarks in which the first one differs; None without doses at all."""
    if (found := dosed(study, scale)) is None:
        return None
    mixtures, every = found
    out = Dosages(mixtures, [], [])
    for one in every:
        place = one.choices.category, one.choices.name
        if lost := [dose for dose, _ in regressors.values() if dose not in one.value]:
            similar = any(dose.kind in SIMILARITIES for dose in lost)
            out.left_out.append(LeftOut(*place, UNKNOWN if similar else FEW))  # without rows all counts are 0
            continue
        x = {name: one.of(*regressor) for name, regressor in regressors.items()}
        known_I = np.isfinite(np.stack(list(x.values()))).all(axis=(0, 1))
        moved = outcomes(study, scale, one.choices.name, mixtures)
        if moved is None or not known_I.any():
            out.left_out.append(LeftOut(*place, LACKING if moved is None else UNKNOWN))
            continue
        x = {name: x_MI[:, known_I] for name, x_MI in x.items()}
        y = {key: y_MI[:, known_I] for key, y_MI in moved.items()}
        if different(next(iter(x.values()))) < LEAST:
            out.left_out.append(LeftOut(*place, FEW))
        else:
            out.benchmarks.append(DosedItems(*place, 1.0 / np.diff(one.choices.offset_I1)[known_I], x, y))
    return out


def together(parts: Iterable[Array]) -> Array:
    """Values (M, I) of several benchmarks."""
    return np.concatenate(list(parts), axis=1)


@once
def outcomes(
    study: StudyScores, scale: str, benchmark: str, mixtures: tuple[str, ...]
) -> dict[tuple[When, str], Array] | None:
    """(M, I), runs of a mixture averaged; None where a run lacks the benchmark."""
    choices = next(one for one in study.scores.benchmarks if one.name == benchmark)
    runs = [run for run in study.design.runs[scale] if run.mixture in mixtures]
    mixture_R = numbered(run.mixture for run in runs)[1]
    first, last, change = whens(study.design.stages)
    out: dict[tuple[When, str], Array] = {}
    for when, checkpoints in ((first, [run.before for run in runs]), (last, [run.after for run in runs])):
        if (some := choices.of(checkpoints)) is None:
            return None
        p_RI = np.exp(some.gold() - some.log_mass())
        value = {MARGIN: some.margin(), P_GOLD: p_RI, ACCURACY: some.right()}
        out.update({(when, name): by_mixture(value_RI, mixture_R) for name, value_RI in value.items()})
    out.update({(change, name): out[last, name] - out[first, name] for name in OUTCOMES})
    return out
