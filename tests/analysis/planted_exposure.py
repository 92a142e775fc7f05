"""Exposure and similarity files of a planted store, with given or random counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from evalengine.analysis.explain.choices import read_choices
from evalengine.analysis.explain.design import design_of
from evalengine.store import sealed
from evalengine.training.exposure import similarity, table

Row = tuple[str, str, str, str, int, int, int, int]  # benchmark, item, source, kind, choice, n, grams, count

NO_SOURCES = table.ExposureAbout({})


def write_exposure(
    folder: Path, items: Mapping[str, Sequence[str]], rows: Sequence[Row], about: table.ExposureAbout
) -> None:
    columns = list(zip(*rows, strict=True)) if rows else [()] * 8
    coded = []
    for column in columns[:4]:
        names, codes = np.unique(np.array(column, dtype=object), return_inverse=True)
        coded.append(table.Coded(names.tolist(), codes))
    folder.mkdir(exist_ok=True)
    numbers = [np.array(column, dtype=np.int64) for column in columns[4:]]
    table.write(folder / table.NAME, table.Exposure(about, items, *coded, *numbers))


def write_similarity(
    folder: Path,
    rows: Sequence[tuple[str, str, int, str, str, float]],
    about: table.ExposureAbout = NO_SOURCES,
) -> None:
    """rows: benchmark, item, choice, source, kind, value."""
    benchmark, item, choice, source, kind, value = zip(*rows, strict=True)
    columns = {
        "benchmark": pa.array(benchmark),
        "item": pa.array(item),
        "choice": pa.array(choice, pa.int16()),
        "source": pa.array(source),
        "kind": pa.array(kind),
        "value": pa.array(value, pa.float32()),
    }
    sealed.write(folder / similarity.NAME, pa.table(columns), {"exposure": about.as_json()})


def write_for(folder: Path, scores: Path, stages: Sequence[str] | None = None, seed: int = 0) -> None:
    """Random counts and similarities of every choice in two sources, of which each mixture has shares of its own."""
    rng = np.random.default_rng(seed)
    found = read_choices(scores)
    design = design_of(found, stages)
    sources = ("web<i>", "code")
    shares = {
        m: {sources[0]: 0.1 + 0.1 * k, sources[1]: 0.9 - 0.1 * k} for k, m in enumerate(design.mixtures)
    }
    about = table.ExposureAbout(
        dict.fromkeys(sources, table.SourceSize(900, 5000, 10, 1000, False)),
        shares,
        dict.fromkeys(design.scales, 3000),
        versions=dict.fromkeys((one.name for one in found.benchmarks), "1"),
    )
    every = [
        (one.name, item, j, source)
        for one in found.benchmarks
        for item, n in zip(one.item_I, np.diff(one.offset_I1), strict=True)
        for j in range(n)
        for source in sources
    ]
    rows: list[Row] = [
        (name, item, source, kind, j, n, 1, int(rng.poisson(2)))
        for kind, n in (("cross", 2), ("task", 2), ("longest", 3), ("context", 2))
        for name, item, j, source in every
    ]
    write_exposure(folder, {one.name: one.item_I for one in found.benchmarks}, rows, about)
    write_similarity(
        folder, [(name, item, j, source, "bm25", float(rng.normal())) for name, item, j, source in every]
    )
