"""How many mixtures it takes to see a correlation.

Power of the two-sided t test of r = 0 for bivariate normal data, without simulation: given the x values, the
t statistic is noncentral t with noncentrality rho / sqrt(1 - rho^2) * sqrt(sum (x - mean)^2), and that sum is
chi-squared with n - 1 degrees of freedom; the power is the mean over it. Item noise lowers rho before the
test sees it: what is tested is rho times the ceiling (the square root of the two reliabilities' product).

Seeds lower it too, and where a fine-tuned run inherits its seed they also raise it: with a share s of the variance of a single
run from seeds, a part h of it inherited, and k runs averaged, rho is seen as (rho (1 - s) + h s / k) / (1 - s + s / k), and 0
not as 0. What there is to detect is the distance of the two on Fisher's z, whose spread does not depend on r; the power is
that of an r as far from 0.

Cost: milliseconds.
"""

from __future__ import annotations

import bisect
import math
from typing import NamedTuple

from evalengine.errors import UserError

LARGEST_N = 100_000
LARGEST_R = 0.999999
NODES = 96
MOST_SEEDS = 5  # of a mixture, when runs are spent


class Blur(NamedTuple):
    """What stands between a true correlation and the one that is seen.

    ceiling: the highest r that item noise allows. share: of the variance of a single run, what seeds have. seeds: runs of a
    mixture, averaged. inherited: the correlation of the seeds' part before with that after.
    """

    ceiling: float = 1.0
    share: float = 0.0
    seeds: int = 1
    inherited: float = 0.0

    def seen(self, r: float) -> float:
        """A true r as it is observed."""
        noise = self.share / self.seeds
        return self.ceiling * (r * (1.0 - self.share) + self.inherited * noise) / (1.0 - self.share + noise)

    def distance(self, r: float) -> float:
        """The r whose Fisher's z is that of the observed r minus that of a true 0."""
        zero = self.seen(0.0)
        return (self.seen(r) - zero) / (1.0 - self.seen(r) * zero)

    def true(self, distance: float) -> float:
        """The true r that lies at a distance: 1 or more where the noise hides it."""
        zero, noise = self.seen(0.0), self.share / self.seeds
        seen = (distance + zero) / (1.0 + distance * zero)
        return (seen / self.ceiling * (1.0 - self.share + noise) - self.inherited * noise) / (
            1.0 - self.share
        )


CLEAR = Blur()


class PowerResult(NamedTuple):
    """One answer: with `n` mixtures a true correlation `r` is seen with probability `power`.

    low, high: the interval (Fisher's z) that an estimate equal to `observed`, as which r is seen, would have.
    """

    r: float
    observed: float
    power: float
    n: int
    low: float
    high: float


def power_of(r: float, n: int, alpha: float = 0.05) -> float:
    """Probability that n mixtures show a true correlation r as different from 0 at level alpha."""
    import numpy as np
    from scipy.special import ndtr, stdtrit
    from scipy.stats import chi2

    if n < 4:
        return math.nan
    critical = float(stdtrit(n - 2, 1.0 - alpha / 2.0))
    # Both chi-squared variables (spread of x, residual variance) by Gauss-Legendre over their quantiles.
    node, weight = np.polynomial.legendre.leggauss(NODES)
    node, weight = 0.5 * (node + 1.0), 0.5 * weight
    shift = abs(r) / math.sqrt(1.0 - r * r) * np.sqrt(chi2.ppf(node, n - 1))[:, None]
    bound = critical * np.sqrt(chi2.ppf(node, n - 2) / (n - 2))[None, :]
    reject = ndtr(shift - bound) + ndtr(-shift - bound)
    return float(weight @ reject @ weight)


def mixtures_needed(r: float, power: float = 0.8, alpha: float = 0.05, blur: Blur = CLEAR) -> int:
    """The smallest n that sees a true r with at least the given power."""
    _check(r, power, alpha)
    r = blur.distance(r)
    numbers = range(4, LARGEST_N + 1)
    place = bisect.bisect_left(numbers, True, key=lambda n: power_of(r, n, alpha) >= power)
    if place == len(numbers):
        raise UserError(f"r = {r:g} would take more than {LARGEST_N:,} mixtures: too small to detect")
    return numbers[place]


def detectable(n: int, power: float = 0.8, alpha: float = 0.05, blur: Blur = CLEAR) -> float:
    """The smallest true r that n mixtures see with the given power; infinite where they see none up to 0.999999, 1 or more
    where the noise hides even that."""
    if n < 4:
        raise UserError(f"-n {n} is too few mixtures for a correlation: at least 4")
    _check(0.5, power, alpha)
    low, high = 0.0, LARGEST_R
    if power_of(high, n, alpha) < power:
        return math.inf
    while high - low > 1e-7:
        middle = 0.5 * (low + high)
        low, high = (low, middle) if power_of(middle, n, alpha) >= power else (middle, high)
    return blur.true(high)


class Spent(NamedTuple):
    """A number of runs spent on `n` mixtures of `seeds` runs each, and the smallest true r that this sees."""

    runs: int
    seeds: int
    n: int
    r: float


def spend(runs: int, power: float = 0.8, alpha: float = 0.05, blur: Blur = CLEAR) -> list[Spent]:
    """More seeds or more mixtures: every way to spend `runs` runs a stage, up to 5 a mixture, on 4 mixtures or more."""
    ways = [(seeds, runs // seeds) for seeds in range(1, MOST_SEEDS + 1) if runs // seeds >= 4]
    return [
        Spent(runs, seeds, n, detectable(n, power, alpha, blur._replace(seeds=seeds))) for seeds, n in ways
    ]


def plan(r: float, n: int, blur: Blur = CLEAR, alpha: float = 0.05) -> PowerResult:
    """What n mixtures see of a true r."""
    import numpy as np

    from evalengine.analysis.statistics.bootstrap import fisher

    observed = blur.seen(r)
    low, high = fisher(np.array([observed]), n, 1.0 - alpha)[0]
    return PowerResult(r, observed, power_of(blur.distance(r), n, alpha), n, float(low), float(high))


def _check(r: float, power: float, alpha: float) -> None:
    if not 0.0 < abs(r) < 1.0:
        raise UserError(f"r = {r:g} must lie between -1 and 1 and not be 0")
    if not alpha < power < 1.0 or not 0.0 < alpha < 1.0:
        raise UserError("--power and --alpha must lie between 0 and 1, and the power above alpha")
