"""Studies with a known truth, written as real score stores.

Each (scale, stage, mixture, benchmark) has an ability theta. Item i with difficulty d_i is answered by scores
theta - d_i + noise for the gold choice and 0 for the others, so accuracy rises with theta; abilities before
and after are bivariate normal over mixtures with the planted correlation.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from evalengine import store

MIXTURES = tuple(f"V{v}P{p}" for v in (1, 2, 3) for p in (0, 1, 2))
BENCHMARKS = {
    "hellaswag": "Commonsense",
    "piqa": "Commonsense",
    "arc_easy": "Science",
    "sciq": "Science",
    "rte": "NLI",
}
ORDER = ("Commonsense", "Science", "NLI", "Semantic")


class Truth(NamedTuple):
    """What was planted: abilities (S, 2, M, B) and the correlation of each benchmark."""

    ability: np.ndarray
    r: dict[str, float]


def abilities(
    rng: np.random.Generator, r: Mapping[str, float], scales: int = 2, mixtures: int = 9, spread: float = 0.5
) -> np.ndarray:
    theta = np.empty((scales, 2, mixtures, len(r)))
    for b, value in enumerate(r.values()):
        z = rng.normal(size=(2, scales, mixtures))
        theta[:, 0, :, b] = z[0]
        theta[:, 1, :, b] = value * z[0] + np.sqrt(1 - value**2) * z[1]
    return spread * theta


def item_table(
    who: Mapping[str, str | None],
    loglik: np.ndarray,
    gold: np.ndarray,
    ids: Sequence[str] | None = None,
    chars: np.ndarray | None = None,
) -> pa.Table:
    """A table of the store's schema from (I, choices) log-likelihoods."""
    items, choices = loglik.shape
    offsets = pa.array(np.arange(items + 1, dtype=np.int32) * choices)

    def lists(values: np.ndarray, kind: pa.DataType) -> pa.Array:
        return pa.ListArray.from_arrays(offsets, pa.array(values.reshape(-1), type=kind))

    lengths = np.full((items, choices), 5, dtype=np.int32) if chars is None else chars
    columns = {
        **{key: pa.array([who.get(key)] * items, pa.string()).dictionary_encode() for key in store.KEYS},
        "item": pa.array(ids if ids is not None else [f"i{n}" for n in range(items)]),
        "gold": pa.array(gold, pa.int16()),
        "loglik": lists(loglik, pa.float32()),
        "tokens": lists(np.ones_like(lengths), pa.int32()),
        "chars": lists(lengths, pa.int32()),
        "bytes": lists(lengths, pa.int32()),
        "greedy": lists(np.zeros((items, choices), dtype=bool), pa.bool_()),
        "loglik_uncond": pa.nulls(items, pa.list_(pa.float32())),
    }
    return pa.table(columns).cast(store.schema())


def metadata(**changed: str) -> dict[str, str]:
    known = {
        "store_version": "1", "evalengine_version": "0", "checkpoint_fingerprint": "f", "tokenizer_hash": "t",
        "benchmark_version": "1", "data_hash": "d", "backend": "torch", "dtype": "float32", "fewshot": "0",
        "limit": "", "variant": "", "default_score": "acc",
    }  # fmt: skip
    return {**known, **changed}


def write_study(
    folder: Path,
    r: Mapping[str, float] | None = None,
    *,
    seed: int = 0,
    items: int = 400,
    choices: int = 4,
    scales: Sequence[str] = ("240M", "1B"),
    mixtures: Sequence[str] = MIXTURES,
    stages: Sequence[str] = ("pt", "sft"),
    spread: float = 0.5,
    categories: Mapping[str, str] = BENCHMARKS,
    skip: Sequence[str] = (),
) -> Truth:
    """Writes scores/<checkpoint>/<benchmark>.arrow for every checkpoint but those named in `skip`.

    Further stages have the abilities of the second one.
    """
    r = dict(r or dict.fromkeys(categories, 0.8))
    rng = np.random.default_rng(seed)
    theta = abilities(rng, r, len(scales), len(mixtures), spread)
    for b, name in enumerate(r):
        difficulty = rng.normal(size=items)
        gold = rng.integers(0, choices, items)
        for s, scale in enumerate(scales):
            for t, stage in enumerate(stages):
                for m, mixture in enumerate(mixtures):
                    checkpoint = f"{scale}-{mixture}-{stage}"
                    score = rng.gumbel(size=(items, choices))
                    score[np.arange(items), gold] += theta[s, min(t, 1), m, b] - difficulty
                    if checkpoint in skip:
                        continue
                    who = {
                        "checkpoint": checkpoint, "scale": scale, "mixture": mixture, "stage": stage,
                        "benchmark": name, "category": categories[name],
                    }  # fmt: skip
                    table = item_table(who, score.astype(np.float32), gold)
                    store.write(folder / checkpoint / f"{name}.arrow", table, metadata())
    return Truth(theta, r)


FORMAT_ITEMS = 12


def write_formats(
    folder: Path,
    formats: Mapping[str, str],
    categories: Mapping[str, str],
    scales: Sequence[str],
    mixtures: Sequence[str],
    stages: Sequence[str],
    skip: Sequence[str] = (),
    overlapping: Mapping[str, Sequence[str]] = {},
) -> tuple[dict[tuple[str, str, str], np.ndarray], np.ndarray]:
    """Writes what `score --formats` would, of 12 items of 3 choices; each stage prefers the second format more.

    Returns the log-likelihoods (items, formats, choices) of each (mixture, stage, benchmark) of the last scale, and the right
    choices.
    """
    rng = np.random.default_rng(5)
    gold = rng.integers(0, 3, FORMAT_ITEMS)
    logs = {}
    for scale, (k, stage), m, name in itertools.product(scales, enumerate(stages), mixtures, categories):
        x = rng.normal(-6.0, 1.0, (FORMAT_ITEMS, len(formats), 3)).astype(np.float32)
        x[:, 1] += 2.0 * k
        checkpoint = f"{scale}-{m}-{stage}"
        logs[m, stage, name] = x.astype(np.float64)
        if checkpoint in skip:
            continue
        who = {
            "checkpoint": checkpoint, "scale": scale, "mixture": m, "stage": stage, "benchmark": name,
            "category": categories[name],
        }  # fmt: skip
        table = item_table(who, x.reshape(FORMAT_ITEMS, -1), gold)
        about = metadata(
            formats=json.dumps({"cue": "", "formats": dict(formats)}),
            overlapping=json.dumps(list(overlapping.get(name, ()))),
        )
        store.write(folder / "formats" / checkpoint / f"{name}.arrow", table, about)
    return logs, gold
