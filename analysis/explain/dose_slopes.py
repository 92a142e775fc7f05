"""The slopes of a benchmark's items on how often their material stood in the mixture: what table `frequency` holds.

An item's margin, p(gold) and accuracy are regressed on its dose (doses.py) with an effect for each item and for each benchmark
and mixture (within.py): an item that one mixture's text holds more often than another's is compared with itself, beyond what the
mixture does to the benchmark. Stages and scales have slopes of their own; the slope of the change from the first stage to the
last is the paired difference of theirs. Slopes of the margin are nats for each log unit of exposures, the others points
(hundredths) for each factor of ten; for longest matches both are for each word.

Intervals are for other mixtures and other items (within.py). Errors clustered by item alone and by mixture alone (CR1) stand
beside them. q is Benjamini and Hochberg's over the doses.

One dose (doses.headline) is looked at more closely. Counts of zero get an indicator of their own, log(1 + E) gets a square. The
value at zero dose minus chance is what a model has where right and wrong choices stood equally often: it generalises, the slope
interpolates. Its variance is that of a mean over mixtures and items (student.py) at the slope, and the slope's. The slope across
items compares items with others of their benchmark, as plots of bins do: items may be seen often and be easy for one reason.

Reference: Benjamini & Hochberg (1995), JRSS B 57, 289-300; the others stand in within.py.

Dims: M mixtures, I items of a group, V variables, K regressors.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from evalengine.analysis.estimates.groups import ALL
from evalengine.analysis.explain import doses, exposed
from evalengine.analysis.explain.choices import Array
from evalengine.analysis.explain.doses import MARGIN, OUTCOMES, dosed_items, together, whens
from evalengine.analysis.explain.explainer import StudyScores
from evalengine.analysis.explain.exposed import CONTEXT, SIMILARITIES, Dose
from evalengine.analysis.explain.means import joined, with_q
from evalengine.analysis.explain.student import Interval, jackknife, quantile, two_way_mean
from evalengine.analysis.explain.within import (
    centred,
    fitted,
    permutation_p,
    products,
    slopes,
    varies,
    wild_p,
)
from evalengine.analysis.statistics.ranges import SHARE, Range, difference, shifted

SLOPE, ACROSS = "slope", "slope across items"
WHERE_SEEN, ZERO, CURVATURE = "slope where seen", "never seen", "curvature"
AT_ZERO = "value at zero dose"
NAN = float("nan")
X, NEVER, SQUARE = "dose", "E = 0", "square"


class FrequencyRow(NamedTuple):
    """A slope or another measure at a stage, or its change from the first stage (`minus`).

    p: of the interval; p_wild: over all sign vectors; p_permutation: over the relabellings of the design, none below p_least.
    headline: 1 of the dose that is looked at closely. n: mixtures.
    """

    scale: str
    stage: str
    minus: str  # "" at a stage
    dose: str
    headline: int
    outcome: str
    measure: str
    category: str
    benchmark: str  # "" of several
    estimate: float
    low: float
    high: float
    se: float
    se_item: float
    se_mixture: float
    p: float
    p_wild: float
    p_permutation: float
    p_least: float
    q: float
    n: int
    items: int
    note: str

    @property
    def at(self) -> str:
        return self.stage


def rows(study: StudyScores) -> list[FrequencyRow]:
    out: list[FrequencyRow] = []
    for scale in study.design.scales:
        if (found := doses.dosed(study, scale)) is None:
            continue
        known = {dose for one in found[1] for dose in one.value if dose.kind not in SIMILARITIES}
        for dose in sorted(known, key=lambda dose: dose.order):
            out += of_dose(study, scale, dose)
    return with_q(out, _family)


def of_dose(study: StudyScores, scale: str, dose: Dose) -> Iterator[FrequencyRow]:
    """Every row of a dose at a scale but its q."""
    closely = dose == doses.headline(study)
    regressors: dict[str, Any] = {X: (dose, None)}
    if closely:
        regressors[NEVER] = (dose, lambda E_MC: np.where(np.isnan(E_MC), np.nan, E_MC == 0.0))
        regressors[SQUARE] = (dose, lambda E_MC: np.log1p(E_MC) ** 2)
    if (items := dosed_items(study, scale, regressors)) is None:
        return

    def row(
        when: tuple[str, str], outcome: str, category: str, benchmark: str, of: int, note: str
    ) -> FrequencyRow:
        """Without numbers; `of` how many items."""
        place = (scale, *when, str(dose), int(closely), outcome, SLOPE, category, benchmark)
        return FrequencyRow(*place, *(NAN,) * 11, len(items.mixtures), of, note)

    if not items.benchmarks:
        without = items.without(ALL)
        yield from (row(when, MARGIN, ALL, "", 0, without) for when in whens(study.design.stages))
    orders, wording = doses.orders(study, items.mixtures), exposed.wording(study)
    inside = {one.benchmark: one.within() for one in items.benchmarks}
    for group, when, outcome in itertools.product(items.groups(), whens(study.design.stages), OUTCOMES):
        category, benchmark, cells = group
        without = "" if benchmark else items.without(category)
        within = [inside[one.benchmark] for one in cells]
        x = {name: together(one.x[name] for one in within) for name in regressors}
        y_MI = together(one.y[when, outcome] for one in within)
        base = row(when, outcome, category, benchmark, y_MI.shape[1], joined(without, wording))
        found = [_slope(base, x[X], y_MI, orders, study)]
        if closely:
            found += _closely(base, x, y_MI, study.options.level)
            raw = [(one.x[X], one.y[when, outcome]) for one in cells]
            found.append(_across(base, raw, study.options.level))
            if outcome != MARGIN:
                chance = [0.0 if when[1] else one.chance_I for one in cells]
                above = [(x_MI, y_MI - one) for (x_MI, y_MI), one in zip(raw, chance, strict=True)]
                guessed = float(np.mean([np.mean(one) for one in chance]))
                possible = difference(SHARE) if when[1] else shifted(SHARE, -guessed)
                found.append(_at_zero(found[0], above, study.options.level, possible))
        for one in found:
            yield _scaled(one, unit(dose, outcome, one.measure))
    for left, when in itertools.product(items.left_out, whens(study.design.stages)):
        yield row(when, MARGIN, left.category, left.benchmark, 0, left.why)


def unit(dose: Dose, outcome: str, measure: str) -> float:
    """What is multiplied: the margin stays in nats, all else is in points; slopes are for each factor of ten, or each word."""
    if outcome == MARGIN:
        return 1.0
    power = {SLOPE: 1, WHERE_SEEN: 1, ACROSS: 1, CURVATURE: 2}.get(measure, 0)
    return 100.0 * float(np.log(10.0)) ** (power if dose.counted else 0)


def _scaled(row: FrequencyRow, factor: float) -> FrequencyRow:
    fields = ("estimate", "low", "high", "se", "se_item", "se_mixture")
    scaled: dict[str, Any] = {field: getattr(row, field) * factor for field in fields}
    return row._replace(**scaled)


def _slope(
    base: FrequencyRow, x_MI: Array, y_MI: Array, orders: NDArray[np.int64] | None, study: StudyScores
) -> FrequencyRow:
    found, errors = fitted(np.stack([x_MI, y_MI]), study.options.level)
    row = _with(base, found, 0)._replace(
        se_item=float(errors.item_K[0]),
        se_mixture=float(errors.mixture_K[0]),
        p_wild=wild_p(x_MI, y_MI, seed=study.options.seed),
    )
    if orders is not None:
        row = row._replace(
            p_permutation=permutation_p(x_MI, y_MI, orders), p_least=permutation_p(x_MI, x_MI, orders)
        )
    different = len({row_I.tobytes() for row_I in x_MI.round(9) + 0.0})  # + 0.0: a zero has no sign
    if different < row.n:
        said = f"{row.n} mixtures have {different} different sets of doses"
        row = row._replace(note=joined(row.note, said))
    return row


def _with(base: FrequencyRow, found: Interval, k: int) -> FrequencyRow:
    return base._replace(**found.at(k)._asdict())


def _closely(base: FrequencyRow, x: dict[str, Array], y_MI: Array, level: float) -> Iterator[FrequencyRow]:
    """The slope beside an indicator of zero counts, and the square of the log dose."""
    if varies(x[NEVER]):
        found, _ = fitted(np.stack([x[X], x[NEVER], y_MI]), level)
        yield _with(base._replace(measure=WHERE_SEEN), found, 0)
        yield _with(base._replace(measure=ZERO), found, 1)
    found, _ = fitted(np.stack([x[X], x[SQUARE], y_MI]), level)
    yield _with(base._replace(measure=CURVATURE), found, 1)


Pair = tuple[Array, Array]  # doses and outcomes of a benchmark, (M, I)


def _across(base: FrequencyRow, every: Sequence[Pair], level: float) -> FrequencyRow:
    """The slope over the items of a benchmark and mixture, without effects of items."""
    total_MVV = np.sum([products(np.stack(list(map(centred, pair)))) for pair in every], axis=0)
    every_JK = slopes(np.concatenate([total_MVV.sum(axis=0)[None], total_MVV.sum(axis=0) - total_MVV]))
    return _with(base._replace(measure=ACROSS), jackknife(every_JK[0], every_JK[1:], level), 0)


def _at_zero(slope: FrequencyRow, every: Sequence[Pair], level: float, possible: Range) -> FrequencyRow:
    """The mean over benchmarks of y - slope * x, before units: `slope` is in those of y. A line may leave what is possible."""
    mean = two_way_mean([y_MI - slope.estimate * x_MI for x_MI, y_MI in every], level)
    dose = float(np.mean([x_MI.mean() for x_MI, _ in every]))
    se = float(np.hypot(mean.se, dose * slope.se))
    half = quantile(slope.n, level) * se
    three = np.clip([mean.estimate, mean.estimate - half, mean.estimate + half], *possible).tolist()
    found: dict[str, Any] = {**dict(zip(("estimate", "low", "high"), three, strict=True)), "se": se}
    nothing = dict.fromkeys(("se_item", "se_mixture", "p", "p_wild", "p_permutation", "p_least"), NAN)
    return slope._replace(measure=AT_ZERO, **{**found, **nothing})


def _family(row: FrequencyRow) -> tuple[str, ...] | None:
    """The slopes of one place on all doses; context is no dose of an item, so it is in no family."""
    if row.measure != SLOPE or row.dose.startswith(CONTEXT):
        return None
    return row.scale, row.stage, row.minus, row.outcome, row.category, row.benchmark
