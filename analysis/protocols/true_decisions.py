"""Choosing mixtures before fine-tuning, judged by what endless items would show after it.

Measured decisions are judged by accuracies that hold item noise, so a right choice often looks wrong. Take the values of the
mixtures at both stages as bivariate normal, and let rho be the correlation of what one chooses by with the true value after,
sd the standard deviation of that. Then of two mixtures

    the better one is chosen with probability 1/2 + arcsin(rho) / pi        (Sheppard 1899, an orthant of the normal)
    and choosing loses on average sd (1 - rho) / sqrt(pi).

Two questions: "judged without noise" keeps the choice as it is made, by the measured values before (rho is that of measured
before with true after): what the decision at hand is worth. "without noise" chooses by true values as well: what it would be
worth with more items. Variances and covariance between mixtures less those of the item noise are `noise.measured`; rho of a
category is `latent.pooled`, of one benchmark `latent_r`. The loss is the mean of the benchmarks' own,
sd (1 - rho) = sd - covariance / (standard deviation measured before).

Intervals of a share are those of rho put through the formula, which rises with rho: the jackknife's for a category, profile
likelihood for a benchmark; of the loss, the jackknife's. Only what holds its interval in simulation is given (docs/analysis.md):
no loss of choosing one of two by true values, and no such loss of one benchmark. What choosing the best of all loses hangs on
the tails of the mixtures' distribution, so `true_regret` estimates it of the mixtures at hand.

Dims: B benchmarks, C columns (the sample, and without each mixture).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np

from evalengine.analysis.estimates.groups import ITEM_NOISE, NO_NOTE, Data, Label, Note, means_over
from evalengine.analysis.estimates.tables import Row, plain_row
from evalengine.analysis.protocols.noise import LIKELIHOOD, NOISY, Measured, latent_of, measured
from evalengine.analysis.protocols.protocol import StudyData
from evalengine.analysis.statistics.bootstrap import Array, Basis, jackknife_t
from evalengine.analysis.statistics.latent import pooled

TABLE = "decision_without_noise"  # protocol of the rows
AGREEMENT_JUDGED = "pairwise agreement judged without noise"
AGREEMENT = "pairwise agreement without noise"
LOSS_JUDGED = "pairwise loss judged without noise"


def right_of_two(rho: Array) -> Array:
    """Probability that the better of two mixtures is chosen. An estimate of rho beyond -1 or 1 counts as that."""
    return 0.5 + np.arcsin(np.clip(rho, -1.0, 1.0)) / math.pi


def correlations(covariance_B3C: Array, noise_B3: Array) -> tuple[Array, Array]:
    """rho judged without noise and without noise, (C,) each, over benchmarks; NaN as in `pooled`, whose arguments they are."""
    true_C = pooled(covariance_B3C, noise_B3)
    in_noise_C = (covariance_B3C[:, 0] / noise_B3[:, :1]).sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return true_C * np.sqrt(1.0 - len(noise_B3) / in_noise_C), true_C


def loss_judged(covariance_B3C: Array, noise_B3: Array, n_B: Array) -> Array:
    """Mean loss of choosing by the measured values before, judged by true ones, in their unit, (C,).

    n_B: mixtures, or with blocks one more than their degrees of freedom. Both terms are standard deviations of n mixtures,
    below the true ones on average by the same factor.
    """
    from scipy.special import gammaln

    shrunk_B = np.sqrt(2.0 / (n_B - 1)) * np.exp(gammaln(n_B / 2) - gammaln((n_B - 1) / 2))
    sd_BC = np.sqrt(np.maximum(covariance_B3C[:, 1] - noise_B3[:, 1:2], 0.0))
    with np.errstate(invalid="ignore", divide="ignore"):
        gained_BC = (covariance_B3C[:, 2] - noise_B3[:, 2:]) / np.sqrt(covariance_B3C[:, 0])
        loss_C: Array = ((sd_BC - gained_BC) / shrunk_B[:, None]).mean(axis=0) / math.sqrt(math.pi)
    return loss_C


def rows(study: StudyData, quantity: str, known_at: Mapping[str, Known]) -> Iterator[Row]:
    """Of each benchmark, category and all, where the item noise is known."""
    panel = study.panel
    for scale, known in known_at.items():
        for b, found in known.items():
            share = right_of_two(np.array(latent_of(found, study.options.level)))
            said = found.said.also(NOISY if found.lost_in_noise else NO_NOTE)
            label = Label(panel.categories[b], panel.benchmarks[b], AGREEMENT)
            yield clean_row(quantity, scale, label, share, found.n, said, LIKELIHOOD)
        for label, used, said in means_over(panel, known):
            if used:
                yield from _of_category(study, quantity, scale, label, [known[b] for b in used], said)


Known = dict[int, Measured]  # by benchmark


def known_noise(study: StudyData, quantity: str) -> dict[str, Known]:
    """At each scale, the benchmarks whose item noise is known at both stages."""
    return {
        scale: {
            b: found
            for b, found in measured(_without_resamples(study, quantity, scale), quantity, scale).items()
            if isinstance(found, Measured) and min(found.noise.before, found.noise.after) > 0.0
        }
        for scale in study.panel.scales
    }


def _without_resamples(study: StudyData, quantity: str, scale: str) -> Data:
    """The sample and the jackknife's columns."""
    sample, columns = study.data.sample(quantity, scale), 1 + study.plan.jackknife
    x_VMC, w_MC = (np.ascontiguousarray(x[..., :columns]) for x in (sample.x_VMC, sample.w_MC))
    few = replace(sample, x_VMC=x_VMC, w_MC=w_MC)
    return replace(study.data, samples={(quantity, scale): few})


def _of_category(
    study: StudyData, quantity: str, scale: str, label: Label, found: list[Measured], said: Note
) -> Iterator[Row]:
    covariance_B3C = np.array([m.covariance_3C for m in found])
    noise_B3 = np.array([m.noise for m in found])
    n_B = np.array([m.freedom + 1 for m in found])
    judged_C, true_C = correlations(covariance_B3C, noise_B3)
    loss_C = loss_judged(covariance_B3C, noise_B3, n_B)
    values = np.array([judged_C, true_C, loss_C])
    used_M, n = Basis.of(np.array([m.used_M for m in found])).together()
    basis = Basis(np.tile(used_M, (len(values), 1)), np.full(len(values), n))
    ends = jackknife_t(values, study.plan, study.options.level, basis)
    judged, true, loss = np.concatenate([values[:, :1], ends], axis=1)
    for name, three in (
        (AGREEMENT_JUDGED, right_of_two(judged)),
        (AGREEMENT, right_of_two(true)),
        (LOSS_JUDGED, np.maximum(loss, 0.0)),
    ):
        yield clean_row(quantity, scale, label._replace(other=name), three, n, said, "jackknife")


def clean_row(quantity: str, scale: str, label: Label, three: Array, n: int, said: Note, kind: str) -> Row:
    """A row of an estimate with the ends of its interval. Of a category without an interval neither is reported."""
    if not np.isfinite(three).all():
        why = "the mixtures, or all but one of them, differ no more than item noise makes them"
        three, kind, said = np.full(3, np.nan), "", said.also(Note(ITEM_NOISE, why))
    return plain_row(TABLE, quantity, scale, label, three, n, said, interval=kind)
