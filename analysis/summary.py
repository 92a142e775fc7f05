"""What the data does and does not support, in plain words, from the intervals.

Every sentence carries its estimate, its interval and n. A claim needs an interval that excludes what it denies.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from evalengine.analysis.power import detectable
from evalengine.analysis.results import Results, excludes_zero, one, with_interval
from evalengine.analysis.tables import Row

FEW = 20  # mixtures below which the summary warns of small n


class Summary(NamedTuple):
    supported: list[str]
    unsupported: list[str]
    cautions: list[str]


def summarise(results: Results) -> Summary:
    """Sentences about transfer, scales, benchmarks, noise and the design."""
    supported: list[str] = []
    unsupported: list[str] = []
    for quantity in results.method["quantities"]:
        _overall(results, quantity, supported, unsupported)
        _benchmarks(results, quantity, supported, unsupported)
    _coherence(results, unsupported, supported)
    return Summary(supported, unsupported, _cautions(results))


def _overall(results: Results, quantity: str, supported: list[str], unsupported: list[str]) -> None:
    before, after = results.method["stages"]
    for scale in results.scales:
        row = one(
            results.rows(
                "transfer", protocol="category_transfer", quantity=quantity, scale=scale, category="All"
            )
        )
        if row is None or not math.isfinite(row.estimate):
            continue
        at = f" at {scale}" if len(results.scales) > 1 else ""
        said = f"{with_interval(row)}, n = {row.n}"
        if row.low > 0:
            supported.append(
                f"Over all benchmarks{at}, mixtures with higher {quantity} at {before} tend to have higher {quantity} at "
                f"{after}: mean r = {said}."
            )
        elif row.high < 0:
            supported.append(
                f"Over all benchmarks{at}, {quantity} reverses from {before} to {after}: mean r = {said}."
            )
        else:
            unsupported.append(
                f"That {quantity} carries over at all on average{at}: mean r = {said}, which holds 0."
            )
    if results.contrast:
        rows = results.rows(
            "transfer", protocol="category_transfer", quantity=quantity, scale=results.contrast
        )
        for row in rows:
            name = "all benchmarks" if row.category == "All" else row.category
            small, large = results.scales[0], results.scales[-1]
            if excludes_zero(row):
                word = "higher" if row.estimate > 0 else "lower"
                supported.append(
                    f"Transfer of {quantity} on {name} is {word} at {large} than at {small}: difference of the mean r "
                    f"{with_interval(row)}, n = {row.n}."
                )
            elif row.category == "All" and math.isfinite(row.estimate):
                unsupported.append(
                    f"That transfer of {quantity} changes with scale on average: difference {large} − {small} of the mean "
                    f"r {with_interval(row)}, n = {row.n}."
                )


def _benchmarks(results: Results, quantity: str, supported: list[str], unsupported: list[str]) -> None:
    verdicts = [v for v in results.verdicts if v["quantity"] == quantity]
    by_verdict: dict[str, list[str]] = {}
    for verdict in verdicts:
        by_verdict.setdefault(verdict["verdict"], []).append(verdict["benchmark"])
    total = len(verdicts)
    scales = "every scale" if len(results.scales) > 1 else "this scale"
    if found := by_verdict.get("reliable"):
        supported.append(
            f"{len(found)} of {total} benchmarks are reliable for {quantity} (interval above 0 and p below 0.05 at {scales}): "
            f"{_list(found)}."
        )
    if found := by_verdict.get("unreliable"):
        supported.append(
            f"A useful transfer of {quantity} (r of 0.5 or more) is excluded at {scales} for {_list(found)}."
        )
    if found := by_verdict.get("scale-dependent"):
        supported.append(
            f"Transfer of {quantity} differs between scales on {_list(found)} (interval of the difference)."
        )
    if found := by_verdict.get("undecided"):
        unsupported.append(
            f"Any verdict on {quantity} for {len(found)} of {total} benchmarks; their intervals allow both no transfer and "
            f"a strong one: {_list(found)}."
        )
    if found := by_verdict.get("undefined"):
        unsupported.append(
            f"Anything about {quantity} on {_list(found)}: no correlation is defined (see the notes)."
        )
    rows = [r for r in results.rows("transfer", protocol="transfer", quantity=quantity) if math.isfinite(r.q)]
    if rows:
        lost = sum(r.q >= 0.05 for r in rows)
        (unsupported if lost else supported).append(
            f"A non-zero transfer of {quantity} in {lost or len(rows)} of {len(rows)} tests (benchmark and scale) once the "
            f"false-discovery rate is held at 5% within each scale (permutation tests, Benjamini-Hochberg)."
        )


def _coherence(results: Results, unsupported: list[str], supported: list[str]) -> None:
    rows = [
        r
        for r in results.tables.get("coherence", [])
        if math.isfinite(r.estimate) and r.scale != results.contrast
    ]
    rows = [r for r in rows if math.isfinite(r.low)]
    if not rows:
        return
    clear = [r for r in rows if r.low > 0]
    supported += [
        f"{r.category} benchmarks move together ({r.quantity}, {r.name}"
        + (f", {r.scale}" if len(results.scales) > 1 else "")
        + f"): mean r = {with_interval(r)}, n = {r.n}."
        for r in sorted(clear, key=lambda r: -r.low)[:3]
    ]
    if len(clear) < len(rows):
        unsupported.append(
            f"Coherence within a category in {len(rows) - len(clear)} of {len(rows)} cases (category, stage, scale, "
            "quantity): their intervals do not lie above 0."
        )


def _cautions(results: Results) -> list[str]:
    said = []
    n = len(results.method["mixtures"])
    level = f"{results.method['level']:.0%}"
    if 4 <= n < FEW:
        said.append(
            f"There are {n} mixtures. A true r below {detectable(n):.2f} is missed more than one time in five, and an "
            "estimate near 0.6 is compatible with almost no transfer: read the intervals, not the points."
        )
    single = [
        r
        for r in results.rows("transfer", protocol="transfer")
        if math.isfinite(r.low) and "-" not in r.scale
    ]
    if single:
        widths = sorted(r.high - r.low for r in single)
        said.append(
            f"The median {level} interval of a benchmark's r is {widths[len(widths) // 2]:.2f} wide, of a possible 2."
        )
    said += _noise(results)
    said.append(
        "Intervals of single correlations hold the truth about 93 to 95 times in 100 at n = 9 (BCa, normal data), those of "
        "means over a category about 90 times: take the latter as somewhat too narrow."
    )
    said.append(
        f"Resampled: {results.method['resampled']}. The intervals say how far the result would move with other "
        + {
            "mixtures": "mixtures of this kind, on the same items.",
            "items": "items, with the same mixtures.",
        }.get(results.method["resampled"], "mixtures and other items.")
    )
    return said + [f"{note}." for note in results.method["notes"]]


def _noise(results: Results) -> list[str]:
    rows = [r for r in results.tables.get("reliability", []) if r.name and r.other == "ceiling"]
    noisy = [r for r in rows if "no more than item noise" in r.note]
    low = [r for r in rows if r.high < 0.7 and math.isfinite(r.high)]
    said = []
    if noisy:
        listed = _list([f"{r.name} ({r.scale}, {r.quantity})" for r in noisy if r.scale in results.scales])
        said.append(
            f"On these the mixtures differ no more than item noise makes them differ, so no r means much: {listed}."
        )
    listed = _list([f"{r.name} ({r.scale}, {r.quantity})" for r in low if r.scale in results.scales])
    if listed:
        said.append(f"Item noise alone keeps r below 0.7 (interval of the ceiling) on {listed}.")
    return said


def _list(names: list[str], most: int = 12) -> str:
    shown = ", ".join(names[:most])
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")


def rows_by(rows: list[Row], field: str) -> dict[str, list[Row]]:
    """Groups rows by a field, in order."""
    out: dict[str, list[Row]] = {}
    for row in rows:
        out.setdefault(str(getattr(row, field)), []).append(row)
    return out
