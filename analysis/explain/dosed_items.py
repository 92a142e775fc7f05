"""Items with their doses and with what a dose may move: what `frequency` and `gelbach` compute from.

    margin    log-likelihood of the right choice minus the largest of a wrong one, nats, within -5 and 5
    p(gold)   softmax probability of the right choice among the choices
    accuracy  whether the benchmark's own score picks the right choice

Dims: R runs, M mixtures, I items.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from evalengine.analysis.explain.choices import Array
from evalengine.analysis.explain.design import by_mixture, numbered
from evalengine.analysis.explain.doses import LEAST, different, dosed
from evalengine.analysis.explain.explainer import Study, once
from evalengine.analysis.explain.exposed import Dose
from evalengine.analysis.explain.means import Member, grouped
from evalengine.analysis.explain.within import demeaned
from evalengine.analysis.groups import ALL

MARGIN, P_GOLD, ACCURACY = "margin", "p(gold)", "accuracy"
OUTCOMES = (MARGIN, P_GOLD, ACCURACY)

Regressor = tuple[Dose, Callable[[Array], Array] | None]  # as of `Dosed.of`
When = tuple[str, str]  # a stage and "", or the last stage minus the first


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


class Dosages(NamedTuple):
    """What the mixtures of a scale have read of the items."""

    mixtures: tuple[str, ...]
    benchmarks: list[DosedItems]
    left_out: list[Member]  # too few sets of doses differ (`doses.different`)

    def groups(self) -> list[tuple[str, str, list[DosedItems]]]:
        """As of `grouped`, all items first."""
        return sorted(grouped(self.benchmarks), key=lambda group: group[0] != ALL)


def whens(stages: Sequence[str]) -> tuple[When, When, When]:
    """The first stage, the last, and the change."""
    first, last = stages
    return (first, ""), (last, ""), (last, first)


def dosed_items(study: Study, scale: str, regressors: Mapping[str, Regressor]) -> Dosages | None:
    """The items on which all regressors are known, of benchmarks in which the first one differs; None where there are none."""
    if (found := dosed(study, scale)) is None:
        return None
    mixtures, every = found
    out = Dosages(mixtures, [], [])
    for one in every:
        if any(dose not in one.value for dose, _ in regressors.values()):
            continue
        x = {name: one.of(*regressor) for name, regressor in regressors.items()}
        known_I = np.isfinite(np.stack(list(x.values()))).all(axis=(0, 1))
        moved = outcomes(study, scale, one.choices.name, mixtures)
        if moved is None or not known_I.any():
            continue
        x = {name: x_MI[:, known_I] for name, x_MI in x.items()}
        y = {key: y_MI[:, known_I] for key, y_MI in moved.items()}
        name = one.choices.category, one.choices.name
        if different(next(iter(x.values()))) < LEAST:
            out.left_out.append(Member(*name))
        else:
            out.benchmarks.append(DosedItems(*name, 1.0 / np.diff(one.choices.offset_I1)[known_I], x, y))
    return out if out.benchmarks else None


def together(parts: Iterable[Array]) -> Array:
    """Values (M, I) of several benchmarks."""
    return np.concatenate(list(parts), axis=1)


@once
def outcomes(
    study: Study, scale: str, benchmark: str, mixtures: tuple[str, ...]
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
