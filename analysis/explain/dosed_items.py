"""Items with their doses and with what a dose may move: what `frequency` and `gelbach` compute from.

    margin    log-likelihood of the right choice minus the largest of a wrong one, nats, within -5 and 5
    p(gold)   softmax probability of the right choice among the choices
    accuracy  whether the benchmark's own score picks the right choice

Dims: R runs, M mixtures, I items.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from evalengine.analysis.explain.choices import Array
from evalengine.analysis.explain.design import by_mixture
from evalengine.analysis.explain.doses import LEAST, different, dosed
from evalengine.analysis.explain.explainer import Study, once
from evalengine.analysis.explain.exposed import Dose
from evalengine.analysis.explain.within import demeaned
from evalengine.analysis.groups import ALL
from evalengine.analysis.panel import category_key

MARGIN, P_GOLD, ACCURACY = "margin", "p(gold)", "accuracy"
OUTCOMES = (MARGIN, P_GOLD, ACCURACY)

Regressor = tuple[Dose, Callable[[Array], Array] | None]  # as of `Dosed.of`
When = tuple[str, str]  # a stage and "", or the last stage minus the first


class Group(NamedTuple):
    """All items, those of a category, or those of a benchmark ("" of several)."""

    category: str
    benchmark: str
    item: NDArray[np.int64]


class DosedItems(NamedTuple):
    """The items of a scale whose doses are known on all mixtures, those of a benchmark together."""

    mixtures: tuple[str, ...]
    benchmarks: tuple[tuple[str, str], ...]  # category and name
    benchmark_I: NDArray[np.int64]
    chance_I: Array  # accuracy of guessing
    x: dict[str, Array]  # by the regressor's name, (M, I)
    y: dict[tuple[When, str], Array]  # by stage and outcome, (M, I)
    left_out: tuple[tuple[str, str], ...]  # too few sets of doses differ (`doses.different`)

    def groups(self) -> list[Group]:
        """All items and those of each category, then of each benchmark."""
        categories = np.array([category for category, _ in self.benchmarks], dtype=object)
        every = [Group(ALL, "", np.arange(len(self.benchmark_I)))]
        every += [
            Group(category, "", np.flatnonzero((categories == category)[self.benchmark_I]))
            for category in sorted(set(categories), key=category_key)
        ]
        every += [
            Group(category, benchmark, np.flatnonzero(self.benchmark_I == b))
            for b, (category, benchmark) in enumerate(self.benchmarks)
        ]
        return every

    def within(self) -> tuple[dict[str, Array], dict[tuple[When, str], Array]]:
        """`x` and `y` without the effects of items and of benchmarks by mixtures."""
        value_VMI = demeaned(np.stack([*self.x.values(), *self.y.values()]), self.benchmark_I)
        x_VMI, y_VMI = np.split(value_VMI, [len(self.x)])
        return dict(zip(self.x, x_VMI, strict=True)), dict(zip(self.y, y_VMI, strict=True))


def whens(stages: Sequence[str]) -> tuple[When, When, When]:
    """The first stage, the last, and the change."""
    first, last = stages
    return (first, ""), (last, ""), (last, first)


def dosed_items(study: Study, scale: str, regressors: Mapping[str, Regressor]) -> DosedItems | None:
    """The items on which all regressors are known, of benchmarks in which the first one differs; None where there are none."""
    found = dosed(study, scale)
    if found is None:
        return None
    mixtures, every = found
    names, chance, left_out = [], [], []
    x: dict[str, list[Array]] = {name: [] for name in regressors}
    y: dict[tuple[When, str], list[Array]] = {}
    for one in every:
        if any(dose not in one.value for dose, _ in regressors.values()):
            continue
        doses = {key: one.of(*regressor) for key, regressor in regressors.items()}
        known_I = np.isfinite(np.stack(list(doses.values()))).all(axis=(0, 1))
        moved = outcomes(study, scale, one.choices.name, mixtures)
        if moved is None or not known_I.any():
            continue
        name = one.choices.category, one.choices.name
        if different(next(iter(doses.values()))[:, known_I]) < LEAST:
            left_out.append(name)
            continue
        names.append(name)
        chance.append(1.0 / np.diff(one.choices.offset_I1)[known_I])
        for regressor, value_MI in doses.items():
            x[regressor].append(value_MI[:, known_I])
        for key, value_MI in moved.items():
            y.setdefault(key, []).append(value_MI[:, known_I])
    if not names:
        return None
    return DosedItems(
        mixtures,
        tuple(names),
        np.repeat(np.arange(len(names)), list(map(len, chance))),
        np.concatenate(chance),
        {name: np.concatenate(parts, axis=1) for name, parts in x.items()},
        {key: np.concatenate(parts, axis=1) for key, parts in y.items()},
        tuple(left_out),
    )


@once
def outcomes(
    study: Study, scale: str, benchmark: str, mixtures: tuple[str, ...]
) -> dict[tuple[When, str], Array] | None:
    """(M, I), runs of a mixture averaged; None where a run lacks the benchmark."""
    choices = next(one for one in study.scores.benchmarks if one.name == benchmark)
    runs = [run for run in study.design.runs[scale] if run.mixture in mixtures]
    mixture_R = np.array([mixtures.index(run.mixture) for run in runs])
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
