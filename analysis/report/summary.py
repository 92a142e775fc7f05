"""What the report begins with: what the item noise of the study allows one to say, and what the data does and does not support,
in plain words, from the intervals.

Every sentence carries its estimate, its interval and n. A claim needs an interval that excludes what it denies.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from evalengine.analysis.claims import CAUTION, Claim, by_kind
from evalengine.analysis.estimates.groups import ALL
from evalengine.analysis.estimates.tables import Row
from evalengine.analysis.figure import Table, by
from evalengine.analysis.power import detectable
from evalengine.analysis.protocols.noise import CEILING, RELIABILITY
from evalengine.analysis.protocols.registry import PROTOCOLS
from evalengine.analysis.report import page
from evalengine.analysis.results import Results, n_words, signed, with_interval
from evalengine.analysis.statistics.bootstrap import fisher

FEW = 20  # mixtures below which the summary warns of small n
HIGH = 0.7  # an r that is called a strong transfer, and a ceiling that lets it be seen


def noise_section(results: Results) -> str:
    known = any(math.isfinite(row.estimate) for row in results.rows("reliability", protocol="reliability"))
    if not known:
        words = (
            "The numbers of items are not known, so it cannot be said how much of the difference between mixtures is noise: a "
            "low r may come from too few items as well as from a transfer that is missing."
        )
        return f"<h2>What the noise allows one to say</h2><p>{words}</p>"
    words = (
        "Every accuracy rests on a finite number of items, and that noise lowers r. A low r speaks against transfer only "
        "where the mixtures differ by more than the noise and where the ceiling, the r that the noise would leave of a perfect "
        "correlation, is high. Elsewhere it says little; there r without item noise is the one to read."
    )
    hint = (
        "Mixtures differ: the interval of the reliability lies above 0 at both stages. A ceiling that is undefined counts as "
        "low. Means are over the benchmarks that have an r, with intervals over mixtures, "
        f"{n_words(results.rows('transfer', protocol='category_transfer', category=ALL))}."
    )
    below = page.html([noise_table(results), hint], results.method)
    return f"<h2>What the noise allows one to say</h2><p>{words}</p>{below}"


def noise_table(results: Results) -> Table:
    """A row for each quantity and scale: on how many benchmarks r can be seen at all, and the mean r with and without noise."""
    rows = []
    for quantity in results.method["quantities"]:
        for scale in results.scales:
            at = {"quantity": quantity, "scale": scale}
            found = results.rows("reliability", protocol="reliability", **at)
            ceilings = [row.estimate for row in found if row.other == CEILING]
            known = any(math.isfinite(row.estimate) for row in found)
            means = (
                results.rows("transfer", protocol="category_transfer", category=ALL, **at),
                results.rows("reliability", protocol="category_reliability", category=ALL, **at),
            )
            high = sum(ceiling >= HIGH for ceiling in ceilings)
            counts = [f"{n} of {len(ceilings)}" if known else "–" for n in (_differ(found), high)]
            r = [with_interval(next(iter(mean), None)) for mean in means]
            rows.append([f"{quantity}, {scale}", *counts, *r])
    columns = ["", "mixtures differ", f"ceiling of {HIGH} or more"]
    columns += ["mean r as measured", "mean r without item noise"]
    return Table("what the noise allows one to say", columns, [rows], stacked=True)


def _differ(rows: list[Row]) -> int:
    """On how many benchmarks the mixtures differ by more than item noise, at both stages."""
    found = [row for row in rows if row.other.startswith(RELIABILITY)]
    return sum(all(row.low > 0 for row in mine) for mine in by(found, lambda row: row.name).values())


def summarise(results: Results, more: Iterable[Claim] = ()) -> dict[str, list[str]]:
    """The claims of every protocol, `more` of them, and what to keep in mind about the design, by kind."""
    found = by_kind([*(claim for protocol in PROTOCOLS for claim in protocol.claims(results)), *more])
    return found | {CAUTION: [*_small_n(results), *found[CAUTION], *_design(results)]}


def _small_n(results: Results) -> list[str]:
    counts = {  # by scale: mixtures of the benchmark that has most
        scale: max((row.n for row in results.rows("transfer", protocol="transfer", scale=scale)), default=0)
        for scale in results.scales
    }
    fewest = min(counts, key=counts.__getitem__)
    at = f" at {fewest}" if len(set(counts.values())) > 1 else ""
    mixtures, labels = counts[fewest], results.method["block"].get("labels", {})
    n = mixtures - max(len(set(labels.values())) - 1, 0)  # of a plain r with as many degrees of freedom
    if not 4 <= n < FEW:
        return []
    shown = 0.6
    low, high = map(signed, fisher(np.array(shown), n))
    as_many = f", which compared within blocks say as much as {n}" if n < mixtures else ""
    return [
        f"There are {mixtures} mixtures{at}{as_many}. A true r below {detectable(n):.2f} is missed more than "
        f"one time in five, and a measured {shown:+.2f} has a 95% interval of about [{low}, {high}]: read the "
        "intervals, not the points."
    ]


def _design(results: Results) -> list[str]:
    others = {
        "mixtures": "mixtures of this kind, on the same items.",
        "items": "items, with the same mixtures.",
    }.get(results.method["resampled"], "mixtures and other items.")
    return [
        f"Resampled: {results.method['resampled']}. The intervals say how far the result would move with other {others}",
        *(f"{note}." for note in results.method["notes"]),
    ]
