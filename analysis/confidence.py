"""Where it matters which confidence is taken: over raw log-likelihoods, or over the score that picks (`evalengine.metrics`).

Both are correlated between the stages (`transfer`); the one that was asked for is the quantity `confidence` everywhere. On
benchmarks that pick by log-likelihood per character the two can disagree about the sign of a correlation.
"""

from __future__ import annotations

from collections.abc import Iterator

from evalengine.analysis.groups import ALL
from evalengine.analysis.items import names
from evalengine.analysis.protocol import CAUTION, Claim
from evalengine.analysis.results import Results, excludes_zero

OVER = {"raw": "the raw log-likelihoods", "own": "the score that picks"}


def claims(results: Results) -> Iterator[Claim]:
    """One sentence, where there are two confidences: on which benchmarks and categories they tell different things."""
    taken = results.method["confidence"]
    if not results.method["other_confidence"]:
        return
    other = next(kind for kind in OVER if kind != taken)
    found = disagreements(results)
    yield Claim(
        CAUTION,
        f"Confidence is the softmax over {OVER[taken]}; over {OVER[other]} (--confidence {other}) "
        + (
            f"the sign of the transfer or the verdict would change on {names(found, 12)}."
            if found
            else "no verdict and no sign of a transfer whose interval excludes 0 would change."
        ),
    )


def disagreements(results: Results) -> list[str]:
    """Signs that differ although one interval excludes 0, and verdicts that differ; this confidence first, then the other."""
    other = results.method["other_confidence"]
    at = {(r.protocol, r.scale, r.category, r.name): r for r in results.rows("transfer", quantity=other)}
    out = []
    for row in results.rows("transfer", quantity="confidence"):
        twin = at.get((row.protocol, row.scale, row.category, row.name))
        if twin is None:
            continue
        if row.estimate * twin.estimate < 0.0 and (excludes_zero(row) or excludes_zero(twin)):
            of_mean = "all benchmarks" if row.category == ALL else row.category
            name = row.name if row.protocol == "transfer" else of_mean
            out.append(f"{name} ({row.scale}: r = {row.estimate:+.2f} against {twin.estimate:+.2f})")
    verdict = {(v["quantity"], v["benchmark"]): v["verdict"] for v in results.verdicts}
    for benchmark in results.method["benchmarks"]:
        mine, theirs = (verdict.get((quantity, benchmark)) for quantity in ("confidence", other))
        if mine != theirs:
            out.append(f"{benchmark} ({mine} against {theirs})")
    return out
