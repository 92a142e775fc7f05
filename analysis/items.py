"""From the score store to accuracies: every file read once, reduced item by item, paired across checkpoints.

The one reader of the store. It refuses what must not be compared: another benchmark version, variant, number
of few-shot examples or sample of items under one name.

Cost: a pass over the memory-mapped choices; what stays is one float32 confidence and one byte per
(checkpoint, item).
Dims: K checkpoints, I items of one benchmark, F fields per item.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from evalengine.errors import UserError
from evalengine.untrusted import printable

if TYPE_CHECKING:
    import pyarrow as pa

METRICS = ("acc", "acc_norm", "acc_bytes", "acc_token", "acc_pmi")
LENGTHS = {"acc_norm": "chars", "acc_bytes": "bytes", "acc_token": "tokens"}
ECE_BINS = 15
MUST_AGREE = {  # metadata that must be one value per benchmark, and what a user calls it
    "benchmark_version": "versions",
    "variant": "variants",
    "fewshot": "numbers of few-shot examples",
    "limit": "limits",
    "data_hash": "data files",
}


class Checkpoint(NamedTuple):
    name: str
    scale: str | None
    mixture: str | None
    stage: str | None


class BenchmarkItems(NamedTuple):
    """One benchmark's items on all the checkpoints that have it."""

    name: str
    category: str
    metric: str  # the score that picks the answer
    checkpoints: tuple[str, ...]  # K names
    correct_KI: NDArray[np.uint8]
    confidence_KI: NDArray[np.float32]
    means_KF: NDArray[np.float64]  # p_gold, margin, entropy, brier, nll: means over items
    unusable_K: NDArray[np.int64]  # items without a finite score, left out of nothing but counted


class Store(NamedTuple):
    checkpoints: tuple[Checkpoint, ...]
    benchmarks: tuple[BenchmarkItems, ...]
    notes: tuple[str, ...]


class _Read(NamedTuple):
    checkpoint: str
    ids: pa.Array
    field_IF: NDArray[np.float32]
    gold_I: NDArray[np.int16]


def read_store(store: Path | str, metric: str | None = None) -> Store:
    """Reads and reduces a score store.

    `metric` replaces every benchmark's default score. Raises UserError for an empty store, a damaged file,
    mixed versions or variants, or checkpoints that saw different items.
    """
    from evalengine.store import files

    if metric is not None and metric not in METRICS:
        raise UserError(f"no metric '{metric}': choose from {', '.join(METRICS)}")
    by_benchmark: dict[str, list[tuple[str, Path, Mapping[str, str]]]] = defaultdict(list)
    for file in files(store):
        by_benchmark[file.benchmark].append((file.checkpoint, file.path, file.metadata))
    checkpoints: dict[str, Checkpoint] = {}
    notes: list[str] = []
    read = []
    for name, group in by_benchmark.items():
        notes += _check_metadata(name, [(checkpoint, metadata) for checkpoint, _, metadata in group])
        read.append(_read_benchmark(name, [(c, p) for c, p, _ in group], group[0][2], metric, checkpoints))
    for benchmark in read:
        bad = int(benchmark.unusable_K.sum())
        if bad:
            notes.append(f"{benchmark.name}: {bad} item scores are not finite; those items count as wrong")
    return Store(tuple(checkpoints.values()), tuple(read), tuple(grouped(notes)))


def grouped(notes: Iterable[str]) -> Iterator[str]:
    """Notes of the form "name: text", one line for all the names that share a text."""
    names: dict[str, list[str]] = {}
    for note in notes:
        name, colon, text = note.partition(": ")
        names.setdefault(text if colon else "", []).append(name if colon else note)
    for text, which in names.items():
        if not text:
            yield from which
        else:
            yield f"{', '.join(which)}: {text}"


def _check_metadata(name: str, group: Sequence[tuple[str, Mapping[str, str]]]) -> list[str]:
    for key, word in MUST_AGREE.items():
        found: dict[str, str] = {}
        for checkpoint, metadata in group:
            found.setdefault(metadata.get(key, ""), checkpoint)
        if len(found) > 1:
            listed = "; ".join(f"'{value}' ({checkpoint})" for value, checkpoint in list(found.items())[:3])
            raise UserError(
                f"{name} was scored with different {word}: {listed}; score these checkpoints again alike, "
                "or give them stores of their own"
            )
    limit = group[0][1].get("limit", "")
    notes = []
    if limit not in ("", "None", "none", "null", "0"):
        notes.append(f"{name}: a sample of at most {limit} items (--limit)")
    variant = group[0][1].get("variant", "")
    if variant not in ("", "default", "None"):
        notes.append(f"{name}: scored in its '{variant}' variant")
    notes += [
        f"{name}: checkpoints were scored with different {key}s; small differences may come from that"
        for key in ("dtype", "backend")
        if len({metadata.get(key, "") for _, metadata in group}) > 1
    ]
    return notes


def _read_file(checkpoint: str, path: Path, metric: str, name: str) -> tuple[dict[str, Any], _Read]:
    """Who a stored file is about, and its items reduced."""
    from evalengine.store import read

    table = read(path)
    if table.num_rows == 0:
        raise UserError(f"{path} holds no items: delete it and score again")
    who = {key: table[key][0].as_py() for key in ("scale", "mixture", "stage", "category")}
    return who, _Read(checkpoint, table["item"].combine_chunks(), *reduce_table(table, metric, name))


def _read_benchmark(
    name: str,
    group: Sequence[tuple[str, Path]],
    metadata: Mapping[str, str],
    metric: str | None,
    checkpoints: dict[str, Checkpoint],
) -> BenchmarkItems:
    from evalengine.analysis.item_kernels import CONFIDENCE, P_GOLD, PICK

    chosen = metric or metadata.get("default_score") or "acc"
    first: _Read | None = None
    category = ""
    correct, confidence, means, unusable = [], [], [], []
    for checkpoint, path in group:
        who, current = _read_file(checkpoint, path, chosen, name)
        category = who["category"] or "Other"
        checkpoints.setdefault(checkpoint, Checkpoint(checkpoint, who["scale"], who["mixture"], who["stage"]))
        if first is None:
            first = current
        elif not current.ids.equals(first.ids):
            current = _same_order(name, first, current)
        if not np.array_equal(first.gold_I, current.gold_I):
            raise UserError(
                f"{name}: {first.checkpoint} and {checkpoint} disagree about the right choices of the same "
                "items; their data differ: score one of them again"
            )
        field_IF = current.field_IF
        correct.append((field_IF[:, PICK] == current.gold_I).astype(np.uint8))
        confidence.append(np.nan_to_num(field_IF[:, CONFIDENCE]))
        finite = np.isfinite(field_IF[:, PICK])
        means.append(
            field_IF[finite, P_GOLD:].mean(axis=0, dtype=np.float64) if finite.any() else np.full(5, np.nan)
        )
        unusable.append(int((~finite).sum()))
    return BenchmarkItems(
        name,
        category,
        chosen,
        tuple(checkpoint for checkpoint, _ in group),
        np.stack(correct),
        np.stack(confidence),
        np.stack(means),
        np.array(unusable),
    )


def reduce_table(
    table: pa.Table, metric: str, name: str = ""
) -> tuple[NDArray[np.float32], NDArray[np.int16]]:
    """(I, FIELDS) of `item_kernels.read_items` and the gold indices, from a table of the store's schema."""
    from evalengine.analysis.item_kernels import FIELDS, read_items

    loglik = table["loglik"].combine_chunks()
    offset = loglik.offsets.to_numpy().astype(np.int64)
    score = loglik.values.to_numpy(zero_copy_only=False)
    if metric in LENGTHS:
        lengths = table[LENGTHS[metric]].combine_chunks()
        if lengths.null_count:
            raise UserError(
                f"{name}: the store has no {LENGTHS[metric]} lengths, so no {metric}: use --metric acc"
            )
        score = score / np.maximum(lengths.values.to_numpy(zero_copy_only=False), 1).astype(np.float32)
    elif metric == "acc_pmi":
        uncond = table["loglik_uncond"].combine_chunks()
        if uncond.null_count:
            raise UserError(f"{name} was scored without --pmi, so it has no acc_pmi: score again with --pmi")
        score = score - uncond.values.to_numpy(zero_copy_only=False)
    gold_I = table["gold"].combine_chunks().to_numpy(zero_copy_only=False)
    out_IF = np.empty((table.num_rows, FIELDS), dtype=np.float32)
    read_items(np.ascontiguousarray(score, dtype=np.float32), offset, gold_I, out_IF)
    return out_IF, gold_I


def _same_order(name: str, first: _Read, other: _Read) -> _Read:
    """`other` with its items in the order of `first`; refuses different sets of items."""
    import pyarrow.compute as pc

    position = pc.index_in(other.ids, value_set=first.ids)
    if position.null_count or len(other.ids) != len(first.ids) or len(pc.unique(position)) != len(first.ids):
        extra = [str(i) for i in other.ids.filter(pc.is_null(position)).to_pylist()[:3]]
        lacking = other.ids.filter(pc.is_valid(position))
        shared = pc.is_in(first.ids, value_set=lacking)
        missing = [str(i) for i in first.ids.filter(pc.invert(shared)).to_pylist()[:3]]
        detail = ", ".join(
            ([f"only {other.checkpoint} has {', '.join(extra)}"] if extra else [])
            + ([f"only {first.checkpoint} has {', '.join(missing)}"] if missing else [])
        )
        raise UserError(
            f"{name}: {first.checkpoint} ({len(first.ids)} items) and {other.checkpoint} "
            f"({len(other.ids)} items) saw different items ({detail or 'an item appears twice'}): "
            "score them on the same data"
        )
    order = np.argsort(position.to_numpy())
    return _Read(other.checkpoint, first.ids, other.field_IF[order], other.gold_I[order])


def expected_calibration_error(curve_KB3: NDArray[np.float64]) -> NDArray[np.float64]:
    """ECE of each checkpoint from its reliability curve: sum of share x |accuracy - confidence| (Naeini et
    al. 2015)."""
    return np.nansum(curve_KB3[..., 0] * np.abs(curve_KB3[..., 2] - curve_KB3[..., 1]), axis=-1)


def names(items: Iterable[str], most: int = 4) -> str:
    """A list for a sentence: all of it, or the first few and how many more."""
    listed = [printable(item[:80]) for item in items]
    more = len(listed) - most
    return ", ".join(listed[:most]) + (f" and {more} more" if more > 0 else "")
