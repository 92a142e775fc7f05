"""Counts of n-grams to the rows of exposure.arrow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from evalengine.benchmarks import ItemSet
from evalengine.training.exposure.counting import Counts
from evalengine.training.exposure.grams import LEAST, MOST, Items, K
from evalengine.training.exposure.table import KINDS, NUMBERS, About, Coded, Exposure, coded


def tabulate(sets: Sequence[ItemSet], items: Items, counts: Mapping[str, Counts], about: About) -> Exposure:
    """All rows but those of a count of zero, source by source; `items` are those of the sets, one after another."""
    choices_I = np.array([len(item.continuations) for some in sets for item in some.items])
    item_C = np.repeat(np.arange(len(choices_I)), choices_I)
    choice_C = np.arange(len(item_C)) - np.repeat(np.cumsum(choices_I) - choices_I, choices_I)
    ids = [item.id for some in sets for item in some.items]
    names, name_I = coded(ids)  # two benchmarks may have items of the same id
    benchmark_I = np.repeat(np.arange(len(sets)), [len(some.items) for some in sets])

    columns: dict[str, list[np.ndarray]] = {name: [] for name in ("owner", "kind", "source", *NUMBERS)}
    for s, counted in enumerate(counts.values()):
        for k, kind in enumerate(KINDS):
            c, n, grams, count = _rows(kind, items, counted)
            kept = (count > 0) | (grams == 0)
            values = (item_C[c], np.full(len(c), k), np.full(len(c), s), choice_C[c], n, grams, count)
            for column, value in zip(columns.values(), values, strict=True):
                column.append(value[kept])
    row = {name: np.concatenate(parts) for name, parts in columns.items()}
    return Exposure(
        about,
        {some.benchmark: [item.id for item in some.items] for some in sets},
        Coded([some.benchmark for some in sets], benchmark_I[row["owner"]]),
        Coded(names, name_I[row["owner"]]),
        Coded(list(counts), row["source"]),
        Coded(list(KINDS), row["kind"]),
        *(row[name] for name in NUMBERS),
    )


def _rows(kind: str, items: Items, counts: Counts) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(choice, n, grams, count) of every row that a kind may have."""
    C = len(items.own_C)
    every_C = np.arange(C)
    each, lengths = np.repeat(every_C, K), np.tile(np.arange(LEAST, MOST + 1), C)
    cross_CK = items.cross.sums(counts.count_G).reshape(C, K)
    grams_CK = np.diff(items.cross.start_R).reshape(C, K)
    of_context_CK = np.diff(items.of_context.start_R).reshape(-1, K)[items.grams.context_of_C]
    if kind == "cross":
        return each, lengths, grams_CK.reshape(-1), cross_CK.reshape(-1)
    if kind == "task":
        of_choice_CK = np.diff(items.of_choice.start_R).reshape(C, K)
        looked_CK = np.where(of_context_CK > 0, of_choice_CK, 0)
        return each, lengths, looked_CK.reshape(-1), counts.task_CK.reshape(-1)
    if kind == "context":
        own = np.repeat(items.own_C, K)
        count_CK = items.of_context.sums(counts.count_G).reshape(-1, K)[items.grams.context_of_C]
        return each[own], lengths[own], of_context_CK.reshape(-1)[own], count_CK.reshape(-1)[own]
    n_C = np.where(cross_CK > 0, np.arange(LEAST, MOST + 1), 0).max(axis=1)
    pick = (every_C, np.maximum(n_C - LEAST, 0))
    grams_C, count_C = grams_CK[pick], cross_CK[pick]
    for c in map(int, np.flatnonzero(counts.longest_C2[:, 0] > MOST)):
        n_C[c], count_C[c] = counts.longest_C2[c]
        grams_C[c] = _different(items, c, int(n_C[c]))
    return every_C, n_C, grams_C, count_C


def _different(items: Items, c: int, n: int) -> int:
    """How many different n-grams cross into choice c."""
    context, choice = items.grams.context, items.grams.choice
    x = items.grams.context_of_C[c]
    before = context.value[context.start_R[x] : context.start_R[x + 1]].tolist()
    after = choice.value[choice.start_R[c] : choice.start_R[c + 1]].tolist()
    word = before + after
    starts = range(max(0, len(before) - n + 1), min(len(before), len(word) - n + 1))
    return len({tuple(word[s : s + n]) for s in starts})
