"""What the report begins with: what the item noise of this study allows one to say."""

from __future__ import annotations

import math

from evalengine.analysis import page
from evalengine.analysis.figure import Table, by
from evalengine.analysis.groups import ALL
from evalengine.analysis.noise import CEILING, RELIABILITY
from evalengine.analysis.results import Results, n_words, with_interval
from evalengine.analysis.tables import Row

HIGH = 0.7  # an r that is called a strong transfer, and a ceiling that lets it be seen


def section(results: Results) -> str:
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
        "Mixtures differ: the interval of the reliability lies above 0 at both stages. Means are over the benchmarks that have "
        f"an r, with intervals over mixtures, {n_words(results.rows('transfer', protocol='category_transfer', category=ALL))}."
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
