"""What choosing the best mixture before fine-tuning loses, judged by what endless items would show.

The loss is that of this study's mixtures: the best true value after minus that of the mixture chosen. Which one is best is never
known, so the answer is a posterior. The model is that of `latent`: the measured pair of a mixture (before, after) has the
covariance S over mixtures, of which N, known from the items, is noise. With Jeffreys' prior |S|^(-3/2) wherever S - N is a
covariance, S given the pairs is inverse Wishart, cut to that region by rejection. Given S, a mean is Normal(mean of the n pairs,
S / n), one for each block of mixtures, and a true pair is

    Normal(mean + (S - N) S^-1 (measured - mean), N - N S^-1 N).

A posterior of the mixtures at hand hangs little on the tails of their distribution, where the expected regret of n normal
mixtures would. The posteriors of several benchmarks are averaged draw by draw in the order of the loss that each draw's S
implies, sd (1 - rho): what is not known of rho then does not average out, as noise does.

References: Gelman et al. (2013), "Bayesian Data Analysis", 3rd ed., 3.6 (the normal model with unknown covariance); Bartlett
(1933) on drawing a Wishart matrix.

Dims: M mixtures, D draws.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from evalengine.analysis.estimates.groups import Label, Note, means_over
from evalengine.analysis.estimates.tables import Row, plain_row
from evalengine.analysis.protocols.noise import Measured
from evalengine.analysis.protocols.protocol import StudyData
from evalengine.analysis.protocols.true_decisions import TABLE, Known, clean_row
from evalengine.analysis.statistics.bootstrap import Array
from evalengine.analysis.statistics.correlation import BlockNumbers, parts_of

TOP1_JUDGED = "top1 judged without noise"
REGRET_JUDGED = "regret judged without noise"
REGRET = "regret without noise"
# The Monte Carlo error of a posterior mean is 1.6% of the posterior's standard deviation, of a probability at most 0.8 points.
DRAWS = 4000
# Where a smaller share of so many draws of S exceeds the noise, the mixtures differ no more than it makes them.
EXCEEDING_LEAST, TRIES = 0.005, 200_000


class Regret(NamedTuple):
    """Draws of the loss of choosing the best, in the order of the loss that each draw's covariance implies."""

    judged_D: Array  # chosen by the measured values before
    true_D: Array  # chosen by the true values before
    best: float  # probability that the one chosen by the measured values is the best after


def regret(
    value_2M: Array, found: Measured, block_M: BlockNumbers | None, rng: np.random.Generator
) -> Regret | None:
    """Of one benchmark, measured before and after; None where the mixtures differ no more than noise makes them.

    found: noise and unbiased covariance of `value_2M`. Of mixtures that tie for the best before, the mean is taken. What is drawn
    goes to the mixtures by their values, so that the result does not depend on their order.
    """
    order_M = np.lexsort([*value_2M[::-1], *([] if block_M is None else [block_M])])
    value_2M, block_M = value_2M[:, order_M], None if block_M is None else block_M[order_M]
    noise_22 = np.array([[found.noise.before, found.noise.between], [found.noise.between, found.noise.after]])
    before, after, both = found.covariance_3C[:, 0]
    s_D22 = _covariances(np.array([[before, both], [both, after]]), noise_22, found.freedom, rng)
    if s_D22 is None:
        return None
    g_D22 = s_D22 - noise_22
    sd_D, gained_D = np.sqrt(g_D22[:, 1, 1]), g_D22[:, 0, 1]
    before_DM, after_DM = _true_pairs(value_2M, noise_22, s_D22, block_M, rng).swapaxes(0, 1)
    chosen_M = np.round(value_2M[0], 12) == np.round(value_2M[0], 12).max()  # equal accuracies stay tied
    best_D = after_DM.max(axis=1)
    judged_D = best_D - after_DM[:, chosen_M].mean(axis=1)
    true_D = best_D - np.take_along_axis(after_DM, before_DM.argmax(axis=1)[:, None], axis=1)[:, 0]
    implied_D = sd_D - gained_D / np.sqrt(s_D22[:, 0, 0]), sd_D - gained_D / np.sqrt(g_D22[:, 0, 0])
    best = float(chosen_M[after_DM.argmax(axis=1)].mean() / chosen_M.sum())
    return Regret(judged_D[np.argsort(implied_D[0])], true_D[np.argsort(implied_D[1])], best)


def _covariances(measured_22: Array, noise_22: Array, freedom: int, rng: np.random.Generator) -> Array | None:
    """(DRAWS, 2, 2): the posterior of S; None where fewer than EXCEEDING_LEAST of the draws exceed the noise."""
    if not _positive(measured_22):
        return None
    root_22 = np.linalg.cholesky(np.linalg.inv(freedom * measured_22))
    kept: list[Array] = []
    tried = found = 0
    while found < DRAWS:
        if tried >= TRIES and found < EXCEEDING_LEAST * tried:
            return None
        # the factor [[a, 0], [b, c]] of the inverse of S, by Bartlett
        chi_D = np.sqrt(rng.chisquare(freedom, DRAWS))
        b_D = root_22[1, 0] * chi_D + root_22[1, 1] * rng.normal(size=DRAWS)
        a_D, c_D = root_22[0, 0] * chi_D, root_22[1, 1] * np.sqrt(rng.chisquare(freedom - 1, DRAWS))
        square_D, between_D = c_D * c_D, -b_D / (a_D * c_D * c_D)
        before_D = (b_D * b_D + square_D) / (a_D * a_D * square_D)
        s_D22 = np.stack([before_D, between_D, between_D, 1.0 / square_D], axis=1).reshape(-1, 2, 2)
        kept.append(s_D22[_positive(s_D22 - noise_22)])
        tried, found = tried + DRAWS, found + len(kept[-1])
    return np.concatenate(kept)[:DRAWS]


def _inverse(matrix_D22: Array) -> Array:
    """Of symmetric matrices: by the closed form, ten times faster than LAPACK one after the other."""
    a_D, b_D, c_D = matrix_D22[:, 0, 0], matrix_D22[:, 1, 1], matrix_D22[:, 0, 1]
    inverse_D22 = np.array([[b_D, -c_D], [-c_D, a_D]]) / (a_D * b_D - c_D * c_D)
    return np.ascontiguousarray(inverse_D22.transpose(2, 0, 1))


def _positive(matrix_22: Array) -> NDArray[np.bool_]:
    """Whether each symmetric (..., 2, 2) is positive definite."""
    a, b, c = matrix_22[..., 0, 0], matrix_22[..., 1, 1], matrix_22[..., 0, 1]
    return (a > 0.0) & (b > 0.0) & (a * b > c * c * (1.0 + 1e-12))


def _true_pairs(
    value_2M: Array, noise_22: Array, s_D22: Array, block_M: BlockNumbers | None, rng: np.random.Generator
) -> NDArray[np.float32]:
    """(D, 2, M): the posterior of the mixtures' true values, given S."""
    kept_D22 = np.eye(2) - noise_22 @ _inverse(s_D22)  # (S - N) S^-1
    spread_D22 = kept_D22 @ noise_22  # N - N S^-1 N
    spread_D22 = 0.5 * (spread_D22 + spread_D22.transpose(0, 2, 1)) + 1e-9 * np.diag(np.diag(noise_22))
    root_D22, root_of_mean_D22 = np.linalg.cholesky(spread_D22), np.linalg.cholesky(s_D22)
    # In float32, which the draws' precision does not notice.
    true_D2M = _times(root_D22, rng.standard_normal((len(s_D22), *value_2M.shape), np.float32))
    for mine_M in parts_of(value_2M.shape[1], block_M):
        pair_2M = value_2M[:, mine_M]
        mean_21 = pair_2M.mean(axis=1, keepdims=True)
        off_D21 = root_of_mean_D22 @ rng.standard_normal((len(s_D22), 2, 1)) / np.sqrt(pair_2M.shape[1])
        moved_D2M = _times(kept_D22, (pair_2M - mean_21)[None].astype(np.float32))
        moved_D2M += (mean_21 + off_D21 - kept_D22 @ off_D21).astype(np.float32)
        true_D2M[:, :, mine_M] += moved_D2M
    return true_D2M


def _times(matrix_D22: NDArray[Any], pair_D2M: NDArray[np.float32]) -> NDArray[np.float32]:
    """Products of small matrices, element by element: NumPy would call BLAS for each."""
    m_D22, (x_DM, y_DM) = matrix_D22.astype(np.float32), pair_D2M.swapaxes(0, 1)
    return np.stack([m_D22[:, k, :1] * x_DM + m_D22[:, k, 1:] * y_DM for k in (0, 1)], axis=1)


def rows(study: StudyData, quantity: str, known_at: Mapping[str, Known]) -> Iterator[Row]:
    """Of each benchmark, category and all, where the item noise is known."""
    panel = study.panel
    B = len(panel.benchmarks)
    for s, scale in enumerate(panel.scales):
        sample = study.data.sample(quantity, scale)
        counts, regrets = {}, {}
        for b, found in known_at[scale].items():
            value_2M = sample.x_VMC[[b, B + b], :, 0]
            keep_M = np.isfinite(value_2M).all(axis=0)
            block_M = None if sample.block_M is None else sample.block_M[keep_M]
            rng = np.random.default_rng([study.options.seed, s, b])
            mine = regret(value_2M[:, keep_M], found, block_M, rng)
            counts[b] = found.n
            if mine is not None:
                regrets[b] = mine
            label = Label(panel.categories[b], panel.benchmarks[b])
            yield from _rows(study, quantity, scale, label, [mine] if mine else [], found.n, Note())
        for label, used, said in means_over(panel, regrets):
            if known := used or [b for b in panel.with_all()[label.category] if b in counts]:
                n = min(counts[b] for b in known)
                yield from _rows(study, quantity, scale, label, [regrets[b] for b in used], n, said)


def _rows(
    study: StudyData, quantity: str, scale: str, label: Label, of: Sequence[Regret], n: int, said: Note
) -> Iterator[Row]:
    """Means over benchmarks, with equal-tailed intervals of the posterior."""
    ends = 0.5 + 0.5 * study.options.level * np.array([-1.0, 1.0])
    for name, draws in ((REGRET_JUDGED, [r.judged_D for r in of]), (REGRET, [r.true_D for r in of])):
        mean_D = np.mean(draws, axis=0) if of else np.array([np.nan])
        three = np.array([mean_D.mean(), *np.quantile(mean_D, ends)])
        rare = Note(
            text=f"{(mean_D == 0.0).mean():.1%} of the draws lose nothing" if three[0] > three[2] else ""
        )
        yield clean_row(quantity, scale, label._replace(other=name), three, n, said.also(rare), "posterior")
    if of:  # a probability of the posterior, and as such without an interval
        best = float(np.mean([r.best for r in of]))
        yield plain_row(TABLE, quantity, scale, label._replace(other=TOP1_JUDGED), [best], n, said)
