"""The store choice by choice: every checkpoint's scores of a benchmark in one array.

Cost: a file is opened once, 0.2 ms; 8 bytes for each checkpoint and choice.
Dims: K checkpoints, I items of one benchmark, C choices of all items.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from evalengine.analysis.data.cells import refuse_all
from evalengine.analysis.data.items import CheckpointLabels, Scored, category_of, names, scored_tables
from evalengine.arrow import numbers
from evalengine.checkpoints import emulated_fingerprint
from evalengine.errors import UserError
from evalengine.store.metrics import METRICS, Answers, answers, known_metric
from evalengine.untrusted import printable

if TYPE_CHECKING:
    import pyarrow as pa

Array = NDArray[np.float64]
OWN_CONTEXTS = ("winogrande",)  # in stores that do not say which benchmarks have them
CLIP = 5.0  # nats, of margins: a few items that are far off would decide a mean
EFT_KEYS = ("eft_base", "eft_tuned", "eft_ref", "eft_beta")  # metadata of emulated scores


class Choices(NamedTuple):
    """One benchmark on the K checkpoints that have it. Item i owns the choices offset[i] to offset[i + 1] - 1."""

    name: str
    category: str
    metric: str  # the score that picks the answer, of metrics.METRICS
    item_I: tuple[str, ...]
    gold_I: NDArray[np.int64]  # index of the right choice within its item
    offset_I1: NDArray[np.int64]
    chars_C: NDArray[np.int64]  # lengths of the choices, without the delimiter
    bytes_C: NDArray[np.int64]
    checkpoints: tuple[str, ...]
    loglik_KC: NDArray[Any]  # nats, summed over the tokens of the choice
    tokens_KC: NDArray[np.int32]
    uncond_KC: NDArray[Any] | None  # the same without the context, where all were scored so
    own_contexts: bool  # whether choices of one item stand behind contexts of their own
    # names, templates; an item has all choices in one, then the next
    formats: tuple[tuple[str, str], ...] = ()
    cue: str = ""  # what contexts were left without
    overlapping: frozenset[str] = frozenset()  # items of which an answer begins another, in any format
    data_hash: str = ""  # of the benchmark's rows alone; "" where it is unknown
    version: str = ""  # of the benchmark; "" where other software made the scores
    asked: str = ""  # how items were worded and preceded, "" where by default

    def row(self, checkpoint: str) -> int:
        """The checkpoint's place in K, -1 where it lacks this benchmark."""
        return self.checkpoints.index(checkpoint) if checkpoint in self.checkpoints else -1

    def of(self, checkpoints: Sequence[str]) -> Choices | None:
        """The same for some of the checkpoints, in float64; None where one of them lacks this benchmark."""
        k = [self.row(name) for name in checkpoints]
        if -1 in k:
            return None
        uncond_KC = None if self.uncond_KC is None else self.uncond_KC[k].astype(np.float64)
        return self._replace(
            checkpoints=tuple(checkpoints),
            loglik_KC=self.loglik_KC[k].astype(np.float64),
            tokens_KC=self.tokens_KC[k],
            uncond_KC=uncond_KC,
        )

    @property
    def gold_C(self) -> NDArray[np.int64]:
        """The place of each item's right choice among all choices, (I,)."""
        return self.offset_I1[:-1] + self.gold_I

    def taken(self, choice_C: NDArray[np.int64], count_I: NDArray[np.int64]) -> Choices:
        """The same items with `count_I` of their choices each."""
        return self._replace(
            offset_I1=np.concatenate([[0], np.cumsum(count_I)]),
            chars_C=self.chars_C[choice_C],
            bytes_C=self.bytes_C[choice_C],
            loglik_KC=self.loglik_KC[:, choice_C],
            tokens_KC=self.tokens_KC[:, choice_C],
            uncond_KC=None if self.uncond_KC is None else self.uncond_KC[:, choice_C],
        )

    def in_format(self, f: int) -> Choices:
        """The choices as they are written in one of the formats."""
        count_I = np.diff(self.offset_I1) // len(self.formats)
        offset_I1 = np.concatenate([[0], np.cumsum(count_I)])
        start_I = self.offset_I1[:-1] + f * count_I - offset_I1[:-1]
        return self.taken(np.repeat(start_I, count_I) + np.arange(offset_I1[-1]), count_I)

    def gold(self) -> Array:
        """(K, I): log-likelihoods of the right choices."""
        return self.loglik_KC[:, self.gold_C].astype(np.float64)

    def wrong(self) -> Array:
        """(K, W): log-likelihoods of the W wrong choices of all items."""
        return np.delete(self.loglik_KC, self.gold_C, axis=1)

    def right(self) -> Array:
        """(K, I): 1 where the benchmark's own score picks the right choice, else 0."""
        return (self.picks() == self.gold_I).astype(np.float64)

    def margin(self) -> Array:
        """(K, I): log-likelihood of the right choice minus the largest of a wrong one, nats, within -5 and 5."""
        return (self.gold() - self.best_wrong(self.loglik_KC)).clip(-CLIP, CLIP)

    def picks(self) -> NDArray[np.int64]:
        """(K, I): which choice each checkpoint picks by the benchmark's own score."""
        score, column = known_metric(self.metric)
        values: dict[str, Any] = {"chars": self.chars_C, "bytes": self.bytes_C, "tokens": self.tokens_KC}
        values["loglik_uncond"] = self.uncond_KC
        score_KC = score(self.loglik_KC.astype(np.float64), values.get(column))
        return self.answers(score_KC).pick.astype(np.int64)

    def answers(self, score_KC: NDArray[Any], pick_KI: NDArray[Any] | None = None) -> Answers:
        """What the scores (K, C) of several checkpoints say of each item (`metrics.answers`): fields of (K, I)."""
        K, C = score_KC.shape
        starts_KI = self.offset_I1[:-1] + C * np.arange(K)[:, None]
        offset = np.append(starts_KI.ravel(), K * C)
        pick = None if pick_KI is None else pick_KI.ravel()
        found = answers(score_KC.ravel(), offset, np.tile(self.gold_I, K), pick)
        return Answers(found.pick.reshape(K, -1), *(field.reshape(K, -1) for field in found[1:]))

    def best_wrong(self, value_KC: NDArray[Any]) -> Array:
        """The largest value among each item's wrong choices, (K, I); -inf where an item has no other choice."""
        wrong_KC = value_KC.astype(np.float64)
        wrong_KC[:, self.gold_C] = -np.inf
        return np.maximum.reduceat(wrong_KC, self.offset_I1[:-1], axis=1)

    def log_mass(self) -> Array:
        """Log of the summed probabilities of an item's choices, (K, I), nats."""
        x_KC, start_I = self.loglik_KC.astype(np.float64), self.offset_I1[:-1]
        top_KI = np.maximum.reduceat(x_KC, start_I, axis=1)
        item_C = np.repeat(np.arange(len(start_I)), np.diff(self.offset_I1))
        return top_KI + np.log(np.add.reduceat(np.exp(x_KC - top_KI[:, item_C]), start_I, axis=1))


class EmulatedFrom(NamedTuple):
    """What an emulated checkpoint is made of: names of checkpoints, and the strength."""

    base: str
    tuned: str
    ref: str
    beta: float


class StoreScores(NamedTuple):
    """A store. `emulated`: by the name of the emulated checkpoint. `notes`: what was left out. `scored`: how many items each
    benchmark was scored on, also those that are left out and benchmarks that are."""

    checkpoints: dict[str, CheckpointLabels]
    benchmarks: tuple[Choices, ...]
    emulated: dict[str, EmulatedFrom]
    notes: tuple[str, ...]
    scored: dict[str, int]


def read_choices(store: Path | str, metric: str | None = None, formats: bool = False) -> StoreScores:
    """Reads a score store. `metric` replaces every benchmark's default score. `formats`: the store is one of `score --formats`.

    Items of which some checkpoint has a score that is not finite are left out for all, and benchmarks of which no item is left;
    notes name both. Raises UserError as `items.read_store` does, and where no benchmark is left.
    """
    from evalengine.analysis.data.panel import RESULTS_FILE, category_key
    from evalengine.store import paths

    if (Path(store) / RESULTS_FILE).is_file():
        raise UserError(
            f"{store} holds imported results, which say nothing of single items: `evalengine explain` reads a score store"
        )
    by_benchmark: dict[str, list[Path]] = defaultdict(list)
    for path in paths(store):
        by_benchmark[path.stem].append(path)
    checkpoints: dict[str, CheckpointLabels] = {}
    emulated: dict[str, EmulatedFrom] = {}
    found: list[Choices] = []
    notes, scored = [], {}
    for name, group in by_benchmark.items():
        choices = _read_benchmark(name, group, metric, checkpoints, emulated, formats)
        refuse_all({name: choices.category})
        scored[name] = len(choices.item_I)
        usable_KI = np.logical_and.reduceat(np.isfinite(choices.loglik_KC), choices.offset_I1[:-1], axis=1)
        keep_I = np.asarray(usable_KI.all(axis=0))
        if not keep_I.any():
            empty = [
                one
                for one, usable_I in zip(choices.checkpoints, usable_KI, strict=True)
                if not usable_I.any()
            ]
            why = f" ({names(empty)}: on none)" if empty else ""
            notes.append(
                f"{name} is left out: no item has a finite score on every checkpoint{why}; score it again"
            )
            continue
        if not keep_I.all():
            lost = (~keep_I).sum()
            notes.append(f"{name}: {lost} items without a finite score on some checkpoint are left out")
            choices = only(choices, np.asarray(keep_I))
        found.append(choices)
    if not found:
        raise UserError(
            f"{store}: no item of any benchmark has a finite score on every checkpoint: score them again"
        )
    for name, one in emulated.items():
        _refuse_other_weights(name, one, checkpoints)
    found.sort(key=lambda one: (category_key(one.category), one.name))
    return StoreScores(checkpoints, tuple(found), emulated, tuple(notes), scored)


def read_formats(store: Path, metric: str | None = None) -> StoreScores | None:
    """The scores in formats, None where there are none. Items of which an answer begins another are left out, and named.

    Raises UserError as `read_choices` does, and where benchmarks were scored in different formats.
    """
    if not any(store.glob("*/*.arrow")):
        return None
    scores = read_choices(store, metric, formats=True)
    found, notes = [], [f"in formats: {note}" for note in scores.notes]
    for choices in scores.benchmarks:
        first = scores.benchmarks[0]
        if (choices.formats, choices.cue) != (first.formats, first.cue):
            raise UserError(
                f"{store}: {choices.name} and {first.name} were scored in different formats, or with different cues: score one of"
                " them again with --fresh"
            )
        if not choices.formats or (np.diff(choices.offset_I1) % len(choices.formats)).any():
            raise UserError(
                f"{store}: {choices.name} does not hold every choice in every format: score it again with --fresh"
            )
        keep_I = np.array([item not in choices.overlapping for item in choices.item_I])
        if not keep_I.all():
            notes.append(
                f"in formats: {choices.name}: {(~keep_I).sum()} of {len(keep_I)} items are left out, since one answer is the "
                "beginning of another"
            )
        if keep_I.any():
            found.append(only(choices, keep_I))
    return scores._replace(benchmarks=tuple(found), notes=tuple(notes))


def _refuse_other_weights(name: str, made: EmulatedFrom, checkpoints: dict[str, CheckpointLabels]) -> None:
    """Refuses emulated scores of other weights than those whose own scores the store holds."""
    members = (made.base, made.tuned, made.ref)
    prints = [checkpoints[one].one_model[0] if one in checkpoints else "" for one in members]
    own = checkpoints[name].one_model[0]
    if own and all(prints) and own != emulated_fingerprint(prints, made.beta):
        raise UserError(
            f"{name} was emulated with other weights of {', '.join(dict.fromkeys(members))} than their own scores are of: run "
            "`evalengine emulate` on them again"
        )


def _read_benchmark(
    name: str,
    group: list[Path],
    metric: str | None,
    checkpoints: dict[str, CheckpointLabels],
    emulated: dict[str, EmulatedFrom],
    formats: bool,
) -> Choices:
    holders: list[str] = []
    columns: dict[str, list[NDArray[Any]]] = {"loglik": [], "tokens": [], "loglik_uncond": []}
    overlapping: set[str] = set()
    first: pa.Table = None
    for scored, table in scored_tables(name, group, checkpoints, formats):
        raw = table.schema.metadata or {}
        if first is None:
            first, about, offset_I1 = table, _about(raw, scored), _offsets(table)
            chosen = metric or scored.metadata["default_score"] or "acc"
            known_metric(chosen)
        elif not np.array_equal(offset_I1, _offsets(table)) or not table["gold"].equals(first["gold"]):
            raise UserError(
                f"{name}: {holders[0]} and {scored.checkpoint} disagree about the choices or the right ones of the same items;"
                " their data differ: score one of them again"
            )
        holders.append(scored.checkpoint)
        if lacking := [column for column in ("tokens", "chars", "bytes") if table[column].null_count]:
            raise UserError(
                f"{name}: the scores of {scored.checkpoint} do not say how many {lacking[0]} a choice has, as imported samples"
                " do not: `evalengine explain` needs those of `evalengine score`"
            )
        for column, values in columns.items():
            if not table[column].null_count:
                values.append(_values(table[column]))
        overlapping |= set(json.loads(raw.get(b"overlapping", b"[]")))
        if b"eft_beta" in raw:
            base, tuned, ref, beta = (raw.get(key.encode(), b"").decode(errors="replace") for key in EFT_KEYS)
            emulated[scored.checkpoint] = EmulatedFrom(base, tuned, ref, float(beta))
    uncond = columns["loglik_uncond"]
    if METRICS[chosen].column == "loglik_uncond" and len(uncond) < len(holders):
        raise UserError(f"{name} was scored without --pmi, so it has no acc_pmi: score again with --pmi")
    return Choices(
        name,
        category_of(first),
        chosen,
        tuple(first["item"].to_pylist()),
        numbers(first["gold"].combine_chunks()).astype(np.int64),
        offset_I1,
        _values(first["chars"]).astype(np.int64),
        _values(first["bytes"]).astype(np.int64),
        tuple(holders),
        np.stack(columns["loglik"]),
        np.stack(columns["tokens"]),
        np.stack(uncond) if len(uncond) == len(holders) else None,
        own_contexts=(first.schema.metadata or {}).get(b"contexts") == b"own" or name in OWN_CONTEXTS,
        overlapping=frozenset(overlapping),
        **about,
    )


def _about(raw: dict[bytes, bytes], scored: Scored) -> dict[str, Any]:
    """What the metadata of a file say of the benchmark: fields of Choices. They agree, or `scored_tables` refuses them."""
    written = json.loads(raw.get(b"formats", b"{}"))
    # behind few-shot examples, `data_hash` is of them too, and earlier versions wrote no other
    rows_hash = raw.get(b"data_hash" if raw.get(b"fewshot") == b"0" else b"rows_hash", b"")
    return {
        "formats": tuple(written.get("formats", {}).items()),
        "cue": written.get("cue", ""),
        "data_hash": rows_hash.decode(),
        "version": scored.metadata["benchmark_version"] if b"data_hash" in raw else "",
        "asked": _asked(scored.metadata["variant"], scored.metadata["fewshot"]),
    }


def _asked(variant: str, fewshot: str) -> str:
    """How a benchmark was asked, of its metadata."""
    said = [f"in the variant {printable(variant)}"] if variant not in ("", "default", "None") else []
    said += [f"behind {printable(fewshot)} examples"] if fewshot not in ("", "0", "None") else []
    return ", ".join(said)


def only(choices: Choices, keep_I: NDArray[np.bool_]) -> Choices:
    """The same for some of the items, one at least."""
    count_I = np.diff(choices.offset_I1)
    keep_C = np.repeat(keep_I, count_I)
    items = tuple(np.array(choices.item_I, dtype=object)[keep_I])
    some = choices._replace(item_I=items, gold_I=choices.gold_I[keep_I])
    return some.taken(np.flatnonzero(keep_C), count_I[keep_I])


def _values(lists: pa.ChunkedArray) -> NDArray[Any]:
    """The values of all lists of a column."""
    return numbers(lists.combine_chunks().flatten())


def _offsets(table: pa.Table) -> NDArray[np.int64]:
    offset_I1 = numbers(table["loglik"].combine_chunks().offsets).astype(np.int64)
    return offset_I1 - offset_I1[0]
