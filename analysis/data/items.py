"""From the score store to accuracies: every file read once, reduced item by item, paired across checkpoints.

The one reader of the store. It refuses what must not be compared: another benchmark version, variant, number
of few-shot examples or sample of items under one name.

Cost: each file is opened once, checked and parsed, 0.1 ms; the items of many files are reduced in one pass. What stays
is one float32 confidence (two, where the score that picks is not the log-likelihood) and one byte per (checkpoint, item).
Dims: K checkpoints, I items of one benchmark, F fields per item.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from evalengine.arrow import numbers
from evalengine.errors import UserError
from evalengine.store import ONE_MODEL, UNSTATED, of_one_model
from evalengine.store.metrics import known_metric, raw_answers, table_answers
from evalengine.untrusted import printable

if TYPE_CHECKING:
    import pyarrow as pa

BLOCK_ITEMS = 1 << 18  # items reduced at once
MUST_AGREE = {  # metadata that must be one value per benchmark, and what a user calls it
    "benchmark_version": "versions",
    "variant": "variants",
    "fewshot": "numbers of few-shot examples",
    "limit": "limits",
    "data_hash": "data files",
    "category": "categories",  # which each row names
}
# Of imported samples: what must be one value per benchmark and stage. Before and after learning a chat format it may differ.
PROMPTS = {"chat_format": "chat formats", "system_instruction": "system instructions"}
# Of which one value is taken, or which change scores a little: a note says where they differ.
MAY_DIFFER = {
    "dtype": "dtypes; small differences may come from that",
    "backend": "backends; small differences may come from that",
    "seed": "seeds, so with other few-shot examples; differences may come from that",
    "rows_hash": "files of few-shot examples; differences may come from that",
}
OTHERS = ("default_score", "checkpoint_seed", "blocks")
READ = {
    key: key.encode() for key in (*MUST_AGREE, *PROMPTS, *ONE_MODEL, *MAY_DIFFER, *OTHERS)
}  # metadata, and as a file has it


class CheckpointLabels(NamedTuple):
    name: str
    scale: str | None
    mixture: str | None
    stage: str | None
    seed: str = ""  # "" where it is not stated
    blocks: str = ""  # JSON: factors of the design, and this mixture's label
    one_model: tuple[str, ...] = UNSTATED  # what its files state of it


class BenchmarkItems(NamedTuple):
    """One benchmark's items on all the checkpoints that have it; `averaged`: on the mixtures, means over their runs.

    An item whose score is not finite has no probabilities: it counts as answered wrong, its confidence is NaN, and means of
    confidence and of calibration leave it out.
    """

    name: str
    category: str
    metric: str  # the score that picks the answer
    chance: float  # mean over items of 1 / choices
    checkpoints: tuple[str, ...]  # K names
    correct_KI: NDArray[np.uint8] | NDArray[np.float64]
    confidence_KI: NDArray[np.float32]  # of the kind that was asked for
    other_KI: NDArray[np.float32]  # of the other kind; the same array where log-likelihoods pick
    means_KF: NDArray[np.float64]  # over items, of raw log-likelihoods: p_gold, margin, entropy, brier, nll
    unusable_K: NDArray[np.int64]  # items without a finite score

    def scores(self, quantity: str) -> NDArray[np.number]:
        """(K, I): whose mean over items the accuracy is, the confidence, or the other confidence."""
        if quantity == "accuracy":
            return self.correct_KI
        return self.confidence_KI if quantity == "confidence" else self.other_KI


class Store(NamedTuple):
    checkpoints: tuple[CheckpointLabels, ...]
    benchmarks: tuple[BenchmarkItems, ...]
    notes: tuple[str, ...]


def read_store(store: Path | str, metric: str | None = None, confidence: str = "raw") -> Store:
    """Reads and reduces a score store.

    `metric` replaces every benchmark's default score; `confidence` is one of CONFIDENCES. Raises UserError for an empty
    store, a damaged file, mixed versions or variants, files of one name but of several models, or checkpoints that saw different
    items.
    """
    from evalengine.store import paths

    if metric is not None:
        known_metric(metric)
    by_benchmark: dict[str, list[Path]] = defaultdict(list)
    for path in paths(store):
        by_benchmark[path.stem].append(path)
    checkpoints: dict[str, CheckpointLabels] = {}
    read: list[BenchmarkItems] = []
    notes: dict[str, list[str]] = {}  # what is to be known -> of which benchmarks
    for name, group in by_benchmark.items():
        benchmark, said = _read_benchmark(name, group, metric, confidence, checkpoints)
        read.append(benchmark)
        for note in said:
            notes.setdefault(note, []).append(name)
    for benchmark in read:
        if bad := int(benchmark.unusable_K.sum()):
            note = f"{bad} item scores are not finite; those items count as wrong, and confidence and calibration leave them out"
            notes.setdefault(note, []).append(benchmark.name)
    seen = dict.fromkeys(name for benchmark in read for name in benchmark.checkpoints)
    every = f"all {len(read)} benchmarks"
    said = [
        f"{every if len(which) == len(read) > 2 else ', '.join(which)}: {note}"
        for note, which in notes.items()
    ]
    return Store(tuple(checkpoints[name] for name in seen), tuple(read), tuple(said))


class Scored(NamedTuple):
    """A stored file: its checkpoint and its metadata."""

    checkpoint: str
    metadata: Mapping[str, str]  # of READ, "" where a file does not say


def _refuse_mixed(name: str, one: Scored, other: Scored, must_agree: Mapping[str, str]) -> None:
    """Refuses two checkpoints that were scored on different data or in different ways."""
    for key, word in must_agree.items():
        if one.metadata[key] != other.metadata[key]:
            raise UserError(
                f"{name} was scored with different {word}: '{one.metadata[key]}' ({one.checkpoint}); "
                f"'{other.metadata[key]}' ({other.checkpoint}); score these checkpoints again alike, or give them "
                "stores of their own"
            )


def _notes(found: Sequence[Scored]) -> list[str]:
    """What has to be known of a benchmark that was scored in this way."""
    first = found[0].metadata
    notes = []
    if first["limit"] not in ("", "None", "none", "null", "0"):
        notes.append(f"a sample of at most {first['limit']} items (--limit)")
    if first["variant"] not in ("", "default", "None"):
        notes.append(f"scored in its '{first['variant']}' variant")
    shots = first["fewshot"] not in ("", "0")
    notes += [
        f"checkpoints were scored with different {said}"
        for key, said in MAY_DIFFER.items()
        if (shots or key not in ("seed", "rows_hash"))
        and len({metadata[key] for _, metadata in found} - {""}) > 1
    ]
    for key, word in PROMPTS.items():
        said = {metadata[key]: name for name, metadata in reversed(found) if metadata[key]}
        if len(said) > 1:
            listed = ", ".join(f"'{value}' ({name})" for value, name in reversed(said.items()))
            notes.append(
                f"stages were scored with different {word}, which may be what changed between them: {listed}"
            )
    return notes


def _read_benchmark(
    name: str,
    group: Sequence[Path],
    metric: str | None,
    confidence: str,
    checkpoints: dict[str, CheckpointLabels],
) -> tuple[BenchmarkItems, list[str]]:
    """One benchmark's files, each opened once, and the notes on them. Adds to `checkpoints`."""
    found: list[Scored] = []
    waiting: list[pa.Table] = []
    parts: list[_Part] = []
    for scored, table in scored_tables(name, group, checkpoints):
        found.append(scored)
        if len(found) == 1:
            category, chance = category_of(table), _chance(table)
            chosen = metric or scored.metadata["default_score"] or "acc"
            needed = [column] if (column := known_metric(chosen).column) else []
        waiting.append(table.select(["gold", "loglik", *needed]))
        if len(waiting) * len(table) >= BLOCK_ITEMS or len(found) == len(group):
            parts.append(_reduce(name, waiting, chosen, confidence))
            waiting = []
            _same_choices(name, [checkpoint for checkpoint, _ in found], parts)
    columns = (np.concatenate(column) for column in list(zip(*parts, strict=True))[:-2])
    names = tuple(checkpoint for checkpoint, _ in found)
    read_items = BenchmarkItems(name, category, chosen, chance, names, *columns)
    if chosen == "acc":
        read_items = read_items._replace(other_KI=read_items.confidence_KI)
    notes = _notes(found)
    if metric is None and (others := {of["default_score"] or "acc" for _, of in found} - {chosen}):
        listed = ", ".join(sorted({chosen, *others}))
        notes.append(
            f"its files name different default scores ({listed}); {chosen} is taken, --metric chooses"
        )
    return read_items, notes


def scored_tables(
    name: str, group: Sequence[Path], checkpoints: dict[str, CheckpointLabels], formats: bool = False
) -> Iterator[tuple[Scored, pa.Table]]:
    """One benchmark's files, each opened once and checked, their items in the order of the first one's.

    formats: those of `score --formats` are read, and no others; otherwise they are refused. Adds to `checkpoints`. Raises
    UserError for a damaged or empty file, and for files that must not be compared.
    """
    from evalengine.store import read

    first: tuple[Scored, pa.Table] | None = None
    first_at: dict[tuple[str, str], Scored] = {}  # stage, and one of PROMPTS
    for path in group:
        table = read(path)
        if table.num_rows == 0:
            raise UserError(f"{path} holds no items: delete it and score again")
        checkpoint = path.parent.name
        raw = table.schema.metadata or {}
        if (b"formats" in raw) != formats:
            raise UserError(
                f"{path} was scored with{'out' * formats} --formats: give the store that its folder `formats` lies in, and keep"
                " the two kinds of scores apart"
            )
        metadata = {key: raw.get(stored, b"").decode(errors="replace") for key, stored in READ.items()}
        scored = Scored(checkpoint, {**metadata, "category": category_of(table)})
        if checkpoint not in checkpoints:
            scale, mixture, stage = (_first(table, key) for key in ("scale", "mixture", "stage"))
            checkpoints[checkpoint] = CheckpointLabels(checkpoint, scale, mixture, stage)
        known = checkpoints[checkpoint]
        checkpoints[checkpoint] = known._replace(one_model=of_one_model(path, metadata, known.one_model))
        stated = {"seed": metadata["checkpoint_seed"], "blocks": metadata["blocks"]}
        if any(stated.values()):
            checkpoints[checkpoint] = checkpoints[checkpoint]._replace(**stated)
        for key, word in PROMPTS.items():
            if (stage := checkpoints[checkpoint].stage) is not None and metadata[key]:
                at_stage = first_at.setdefault((stage, key), scored)
                _refuse_mixed(f"{name} at {stage}", at_stage, scored, {key: word})
        if first is None:
            first = scored, table
        else:
            _refuse_mixed(name, first[0], scored, MUST_AGREE)
            if not table["item"].chunk(0).equals(first[1]["item"].chunk(0)):
                table = _same_order(name, first[0].checkpoint, first[1], checkpoint, table)
        yield scored, table


def category_of(table: pa.Table) -> str:
    return _first(table, "category") or "Other"


def _first(table: pa.Table, key: str) -> str | None:
    """The first value of a column of names: of every row, that is."""
    column = table[key].chunk(0)
    index = column.indices[0].as_py()
    return None if index is None else column.dictionary[index].as_py()


def _chance(table: pa.Table) -> float:
    """The mean accuracy of guessing."""
    # Arrow's own arithmetic with one of Python's numbers would import pandas.
    count_I = np.diff(numbers(table["loglik"].combine_chunks().offsets))
    with np.errstate(divide="ignore"):
        return float((1.0 / count_I).mean())


class _Part(NamedTuple):
    """A block of checkpoints on one benchmark, as in BenchmarkItems."""

    correct_KI: NDArray[np.uint8]
    confidence_KI: NDArray[np.float32]
    other_KI: NDArray[np.float32]
    means_KF: NDArray[np.float64]
    unusable_K: NDArray[np.int64]
    choices_KI: NDArray[np.int16]
    gold_KI: NDArray[np.int16]


def _reduce(name: str, tables: Sequence[pa.Table], metric: str, confidence: str) -> _Part:
    """Several checkpoints' items, in the same order, reduced in one pass."""
    import pyarrow as pa

    whole = pa.concat_tables(tables)
    own, gold_I = table_answers(whole, metric, name)
    raw = raw_answers(whole, metric, own, gold_I)
    K = len(tables)
    usable_I = np.isfinite(raw.p_gold)
    usable_KI = usable_I.reshape(K, -1)
    chosen, other = (own, raw) if confidence == "own" else (raw, own)
    return _Part(
        (raw.pick == gold_I).astype(np.uint8).reshape(K, -1),
        _where(usable_KI, chosen.confidence),
        _where(usable_KI, other.confidence),
        np.stack([mean_of_known(_where(usable_KI, field_I), 1) for field_I in raw[2:]], axis=1),
        (~usable_KI).sum(axis=1),
        np.diff(numbers(whole["loglik"].combine_chunks().offsets)).astype(np.int16).reshape(K, -1),
        gold_I.reshape(K, -1),
    )


def _where(usable_KI: NDArray[np.bool_], field_I: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.where(usable_KI, field_I.reshape(usable_KI.shape), np.float32("nan"))


def _same_choices(name: str, checkpoints: Sequence[str], parts: Sequence[_Part]) -> None:
    """Refuses a block whose numbers of choices, or right choices, are not the first checkpoint's."""
    for what, first_KI, these_KI in (
        ("numbers of choices", parts[0].choices_KI, parts[-1].choices_KI),
        ("right choices", parts[0].gold_KI, parts[-1].gold_KI),
    ):
        differs = np.flatnonzero((these_KI != first_KI[0]).any(axis=1))
        if len(differs):
            other = checkpoints[len(checkpoints) - len(these_KI) + differs[0]]
            raise UserError(
                f"{name}: {checkpoints[0]} and {other} disagree about the {what} of the same "
                "items; their data differ: score one of them again"
            )


def _same_order(name: str, holder: str, first: pa.Table, checkpoint: str, other: pa.Table) -> pa.Table:
    """`other` with its items in the order of `first` (of checkpoint `holder`); refuses different sets of items."""
    import pyarrow as pa
    import pyarrow.compute as pc

    first_ids, ids = first["item"].combine_chunks(), other["item"].combine_chunks()
    position = pc.index_in(ids, value_set=first_ids)
    if position.null_count or len(ids) != len(first_ids) or len(pc.unique(position)) != len(first_ids):
        extra = [str(i) for i in ids.filter(pc.is_null(position)).to_pylist()[:3]]
        lacking = ids.filter(pc.is_valid(position))
        shared = pc.is_in(first_ids, value_set=lacking)
        missing = [str(i) for i in first_ids.filter(pc.invert(shared)).to_pylist()[:3]]
        detail = ", ".join(
            ([f"only {checkpoint} has {', '.join(extra)}"] if extra else [])
            + ([f"only {holder} has {', '.join(missing)}"] if missing else [])
        )
        raise UserError(
            f"{name}: {holder} ({len(first_ids)} items) and {checkpoint} "
            f"({len(ids)} items) saw different items ({detail or 'an item appears twice'}): "
            "score them on the same data"
        )
    return other.take(pa.array(np.argsort(position.to_numpy())))


def factors_of(checkpoints: Iterable[CheckpointLabels]) -> dict[str, dict[str, str]]:
    """The labels that manifests gave to the mixtures, by factor. Raises UserError where a mixture has two."""
    factors: dict[str, dict[str, str]] = defaultdict(dict)
    for one in checkpoints:
        for factor, label in json.loads(one.blocks or "{}").items():
            known = factors[factor].setdefault(str(one.mixture), label)
            if known != label:
                raise UserError(
                    f"mixture {one.mixture} has two labels of {factor}, {known} and {label}: give all its checkpoints one in the"
                    " manifest, and run `evalengine score` again (nothing is scored again)"
                )
    return dict(factors)


def rows_of_runs(checkpoints: Sequence[CheckpointLabels]) -> NDArray[np.int64]:
    """(K,) one row for the runs of a mixture at one scale and stage, in the order of the first; one for each other."""
    places = [one[:1] if one.mixture is None or one.stage is None else one[1:4] for one in checkpoints]
    number = {place: row for row, place in enumerate(dict.fromkeys(places))}
    return np.array([number[place] for place in places], dtype=np.int64)


def averaged(items: BenchmarkItems, row_K: NDArray[np.int64]) -> BenchmarkItems:
    """The means over the checkpoints that share a row, each under the name of the first; all as it is where none do."""
    _, first = np.unique(row_K, return_index=True)
    if len(first) == len(row_K):
        return items
    correct, confidence, other, means = (
        mean_by_row(x, row_K) for x in (items.correct_KI, items.confidence_KI, items.other_KI, items.means_KF)
    )
    confidence_KI = confidence.astype(np.float32)
    same = items.other_KI is items.confidence_KI
    return items._replace(
        checkpoints=tuple(items.checkpoints[k] for k in first),
        correct_KI=correct,
        confidence_KI=confidence_KI,
        other_KI=confidence_KI if same else other.astype(np.float32),
        means_KF=means,
        unusable_K=np.bincount(row_K, items.unusable_K).astype(np.int64),
    )


def mean_by_row(x_K: NDArray[Any], row_K: NDArray[np.int64]) -> NDArray[Any]:
    """Means over the known entries (K, ...) that share a row, and `x_K` itself where none do."""
    rows = int(row_K.max(initial=-1)) + 1
    if rows == len(row_K):
        return x_K
    total, count = np.zeros((rows, *x_K.shape[1:])), np.zeros((rows, *x_K.shape[1:]))
    known = ~np.isnan(x_K)
    np.add.at(total, row_K, np.where(known, x_K, 0))
    np.add.at(count, row_K, known)
    with np.errstate(invalid="ignore"):
        mean: NDArray[Any] = total / count
    return mean


def mean_of_known(x: NDArray[np.number], axis: int) -> NDArray[np.float64]:
    """Means along an axis over the values that are finite; NaN where none is."""
    known = np.isfinite(x)
    with np.errstate(invalid="ignore"):
        total: NDArray[np.float64] = np.where(known, x, 0).sum(axis=axis, dtype=np.float64)
        return total / known.sum(axis=axis)


def names(items: Iterable[str], most: int = 4) -> str:
    """A list for a sentence: all of it, or the first few and how many more."""
    listed = [printable(item[:80]) for item in items]
    more = len(listed) - most
    return ", ".join(listed[:most]) + (f" and {more} more" if more > 0 else "")
