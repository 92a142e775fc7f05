"""Every item of a scale on every run, before and after fine-tuning: what the item-level explainers read.

Dims: R runs, I items of all benchmarks, W wrong choices of all items.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from evalengine.analysis.explain.choices import Array, Choices
from evalengine.analysis.explain.explainer import StudyScores, once


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


def item_levels(study: StudyScores, mixtures: int = 1) -> Iterator[tuple[str, ItemLevel]]:
    """The scales that have them, of so many mixtures or more."""
    for scale in study.design.scales:
        data = item_level(study, scale)
        if data is not None and len(np.unique(data.mixture_R)) >= mixtures:
            yield scale, data


@once
def item_level(study: StudyScores, scale: str) -> ItemLevel | None:
    """None where no benchmark was scored on every run."""
    both = study.design.names(scale, False), study.design.names(scale, True)
    pairs = [tuple(map(choices.of, both)) for choices in study.scores.benchmarks]
    found = [(one, other) for one, other in pairs if one is not None and other is not None]
    if not found:
        return None
    before, after = zip(*found, strict=True)

    def joined(of: Callable[[Choices], Array], benchmarks: Iterable[Choices]) -> Array:
        return np.concatenate([of(one) for one in benchmarks], axis=-1)

    wrong_I = joined(lambda one: np.diff(one.offset_I1) - 1, before).astype(np.int64)
    return ItemLevel(
        tuple(one.name for one in before),
        tuple(one.category for one in before),
        study.design.numbered(scale)[1],
        np.repeat(np.arange(len(before)), [len(one.item_I) for one in before]),
        tuple(item for one in before for item in one.item_I),
        right_before=joined(Choices.right, before),
        right_after=joined(Choices.right, after),
        margin=joined(Choices.margin, before),
        logp=joined(Choices.gold, before),
        logp_after=joined(Choices.gold, after),
        item_W=np.repeat(np.arange(len(wrong_I)), wrong_I),
        wrong=joined(Choices.wrong, before),
        wrong_after=joined(Choices.wrong, after),
    )
