"""Every item of a scale on every run, before and after fine-tuning: what the item-level explainers read.

Dims: R runs, I items of all benchmarks, W wrong choices of all items.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from evalengine.analysis.explain.choices import Array, Choices
from evalengine.analysis.explain.explainer import Study, once


class ItemLevel(NamedTuple):
    """Of the runs of one scale, the items of the benchmarks that all of them have.

    margin: log-likelihood of the right choice minus the largest of a wrong one, in nats, within -5 and 5. logp: log-likelihood
    of the right choice.
    """

    benchmarks: tuple[str, ...]
    categories: tuple[str, ...]
    mixture_R: NDArray[np.int64]
    benchmark_I: NDArray[np.int64]
    item_I: tuple[str, ...]
    right_before: Array  # (R, I), 0 or 1, by the benchmark's own score
    right_after: Array
    margin: Array
    logp: Array
    logp_after: Array
    item_W: NDArray[np.int64]
    wrong: Array  # (R, W): log-likelihoods of the wrong choices
    wrong_after: Array


def item_levels(study: Study, mixtures: int = 1) -> Iterator[tuple[str, ItemLevel]]:
    """The scales that have them, of so many mixtures or more."""
    for scale in study.design.scales:
        data = item_level(study, scale)
        if data is not None and len(np.unique(data.mixture_R)) >= mixtures:
            yield scale, data


@once
def item_level(study: Study, scale: str) -> ItemLevel | None:
    """None where no benchmark was scored on every run."""
    both = study.design.names(scale, False), study.design.names(scale, True)
    found = []
    for choices in study.scores.benchmarks:
        before, after = map(choices.of, both)
        if before is not None and after is not None:
            found.append((before, after))
    if not found:
        return None
    sizes, columns = [len(one.item_I) for one, _ in found], [list(_columns(*pair)) for pair in found]
    right_before, right_after, margin, logp, logp_after, wrong, wrong_after = (
        np.concatenate(column, axis=1) for column in zip(*columns, strict=True)
    )
    wrong_I = np.concatenate([np.diff(one.offset_I1) - 1 for one, _ in found])
    return ItemLevel(
        tuple(one.name for one, _ in found),
        tuple(one.category for one, _ in found),
        study.design.mixture_R(scale),
        np.repeat(np.arange(len(found)), sizes),
        tuple(item for one, _ in found for item in one.item_I),
        right_before,
        right_after,
        margin,
        logp,
        logp_after,
        np.repeat(np.arange(len(wrong_I)), wrong_I),
        wrong,
        wrong_after,
    )


def _columns(one: Choices, other: Choices) -> Iterator[Array]:
    """The fields of ItemLevel from `right_before` to `wrong_after` but `item_W`, of one benchmark before and after."""
    wrong_C = np.ones(one.loglik_KC.shape[1], dtype=bool)
    wrong_C[one.gold_C] = False
    yield one.right()
    yield other.right()
    yield one.margin()
    yield one.gold()
    yield other.gold()
    yield one.loglik_KC[:, wrong_C]
    yield other.loglik_KC[:, wrong_C]
