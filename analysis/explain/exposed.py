"""The files that `evalengine expose` wrote, joined to the items of a store choice by choice.

exposure.arrow holds counts, similarity.arrow similarities; the second may be missing. Both are of sources; what they are in a
mixture is made in doses.py.

Dims: S sources, M mixtures, C choices of all items of a benchmark, I items, R rows of a file.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from evalengine.analysis.data.items import names
from evalengine.analysis.explain.choices import Array, Choices
from evalengine.analysis.explain.explainer import StudyScores, once
from evalengine.analysis.figure import by
from evalengine.errors import UserError
from evalengine.labels import CHAT
from evalengine.untrusted import printable

if TYPE_CHECKING:
    from evalengine.training.exposure import table
    from evalengine.training.exposure.table import ExposureAbout

CROSS, TASK, LONGEST, CONTEXT = "cross", "task", "longest", "context"
SIMILARITIES = ("bm25", "embedding", "dsir")
SIMILARITY = "similarity.arrow"


class Dose(NamedTuple):
    """kind: of exposure.arrow or similarity.arrow; n: words of the n-grams, 0 where there are none."""

    kind: str
    n: int

    def __str__(self) -> str:
        return f"{self.kind} {self.n}" if self.n else self.kind

    @property
    def counted(self) -> bool:
        """Whether it counts exposures, so that it is measured on a log scale and may be zero."""
        return self.kind not in (LONGEST, *SIMILARITIES)

    @property
    def order(self) -> tuple[int, int]:
        kinds = (CROSS, TASK, LONGEST, CONTEXT, *SIMILARITIES)
        return kinds.index(self.kind) if self.kind in kinds else len(kinds), self.n


class Dosed(NamedTuple):
    """One benchmark: by dose, counts, longest matches or similarities in each source, (S, C), or what they are in each mixture,
    (M, C) (doses.py); NaN where unknown."""

    choices: Choices
    value: dict[Dose, Array]

    def of(self, dose: Dose, f: Callable[[Array], Array] | None = None) -> Array:
        """The dose of each item in mixtures, (M, I), NaN where it is unknown; `f` in the place of log(1 + E)."""
        value_MC = self.value[dose]
        f = f or (np.log1p if dose.counted else np.asarray)
        first_I = self.choices.offset_I1[:-1]
        if dose.kind == CONTEXT:
            return f(value_MC[:, first_I])
        of_MC = f(value_MC)
        gold_MI = of_MC[:, self.choices.gold_C]
        wrong_I = np.diff(self.choices.offset_I1) - 1
        sum_MI = np.add.reduceat(of_MC, first_I, axis=1)
        return np.where(wrong_I > 0, gold_MI - (sum_MI - gold_MI) / np.maximum(wrong_I, 1), np.nan)


class Exposed(NamedTuple):
    """What is known of a store's items, and the design of the study that it was counted for."""

    sources: tuple[str, ...]
    share: dict[str, Array]  # by mixture, of the sources, (S,)
    tokens: dict[str, float]  # by scale, of pretraining
    tokens_S: Array  # of the sources
    counts: tuple[Dosed, ...] = ()
    notes: tuple[str, ...] = ()

    def epochs(self, scale: str, mixture: str) -> Array:
        """How many times each source is read, (S,)."""
        epochs_S: Array = self.share[mixture] * self.tokens[scale] / self.tokens_S
        return epochs_S


class ExposureRows(NamedTuple):
    """The rows of one benchmark: their numbers, the places of their choices in the store, and their sources'."""

    row: NDArray[np.int64]
    choice: NDArray[np.int64]
    source: NDArray[np.int64]


@once
def exposed(study: StudyScores) -> Exposed | None:
    """What `--exposure` names, joined to the store's items; None without. Raises UserError where it does not fit the store."""
    folder = study.options.exposure
    if folder is not None and folder.is_file():
        raise UserError(f"--exposure takes a folder, and {folder} is a file: give {folder.parent}")
    return None if folder is None else _read(study, folder)


def notes(study: StudyScores) -> tuple[str, ...]:
    """What was left out of the exposures, and where they are the same text again."""
    found = exposed(study)
    return () if found is None else found.notes


def lacks(study: StudyScores) -> str:
    """What a study lacks for doses, as it follows "needs"; "" where it has the files."""
    return "" if study.options.exposure else "what `evalengine expose` counted (--exposure)"


def wording(study: StudyScores) -> str:
    """What of the prompts that were scored the exposures do not count; "" where they are of the items as they were scored."""
    if exposed(study) is None:
        return ""
    asked = by([one for one in study.scores.benchmarks if one.asked], lambda one: one.asked)
    said = [f"{names(one.name for one in which)} {how}" for how, which in asked.items()]
    said += [f"{stage} in chat format" for stage in study.design.stages if stage.endswith(CHAT)]
    if not said:
        return ""
    return (
        "doses count items in their default wording, without examples or a chat template; scored otherwise: "
        + "; ".join(said)
    )


def _read(study: StudyScores, folder: Path) -> Exposed:
    from evalengine.training.exposure import table

    counted = table.read(folder / table.NAME)
    found = _design(study, folder, counted.about)
    similar = _similar(folder / SIMILARITY)
    unsaid = [_of_other_items(study, folder, table.NAME, counted.about)]
    if similar is not None:
        unsaid.append(_of_other_items(study, folder, SIMILARITY, similar.about))
    counts, said = [], []
    if absent := [
        one.name
        for one in study.scores.benchmarks
        if not set(one.item_I) & set(counted.items.get(one.name, ()))
    ]:
        said.append(f"{names(absent, 12)}: no item is in {folder}, so none has a dose")
    for choices in study.scores.benchmarks:
        listed = set(counted.items.get(choices.name, ()))
        listed_I = np.array([item in listed for item in choices.item_I])
        lost = int((~listed_I).sum())
        if listed_I.any() and lost:
            said.append(
                f"{choices.name}: {lost} of {len(listed_I)} items are not in {folder} and have no dose"
            )
        zero_C = np.where(np.repeat(listed_I, np.diff(choices.offset_I1)), 0.0, np.nan)
        value = _values(choices, counted, found.sources, zero_C)
        if similar is not None:
            value |= _values(choices, similar, found.sources, np.full(len(zero_C), np.nan))
        counts.append(Dosed(choices, value))
    if unknown := [m for m in study.design.mixtures if m not in found.share]:
        said.append(f"{folder} does not say what {names(unknown)} are made of, so they have no doses")
    if guessed := [s for s in found.sources if counted.about.sources[s].tokens_estimated]:
        said.append(
            f"{folder}: how often {names(guessed)} is read is estimated from bytes: run `evalengine expose` with --ckpts, the "
            "folder of the trained study"
        )
    for scale, runs in study.design.runs.items():
        both = {name for run in runs if run.mixture in found.share for name in (run.before, run.after)}
        if lost_B := [one.name for one in study.scores.benchmarks if not both <= set(one.checkpoints)]:
            said.append(f"scale {scale}: {names(lost_B)} not on every checkpoint, so without slopes on doses")
    said += [
        _repeated(found, scale, study.design.numbered(scale)[0]) for scale in study.design.scales
    ] + unsaid
    return found._replace(counts=tuple(counts), notes=tuple(filter(None, said)))


def _of_other_items(study: StudyScores, folder: Path, name: str, about: ExposureAbout) -> str:
    """Refuses a file made of other items, or of another version of a benchmark, than were scored; a note on one that does not
    say its versions, as older ones do not."""
    for choices in study.scores.benchmarks:
        data_hash, version = about.data.get(choices.name, ""), about.versions.get(choices.name, "")
        if choices.data_hash and data_hash and data_hash != choices.data_hash:
            raise UserError(
                f"{choices.name}: {folder} was counted for other items than were scored: run `evalengine expose` with the --data "
                "that was scored"
            )
        if choices.version and version and version != choices.version:
            raise UserError(
                f"{choices.name}: {folder} was counted for version {printable(version)} of the benchmark, and the scores are of "
                f"version {printable(choices.version)}: run `evalengine expose` or `evalengine score` again, both of one version"
            )
    if about.versions:
        return ""
    return (
        f"{folder / name} does not say for which versions of the benchmarks it was made: run `evalengine expose` again if they "
        "may have changed"
    )


def _design(study: StudyScores, folder: Path, about: ExposureAbout) -> Exposed:
    """What the mixtures and scales of the store are made of, without counts."""
    if not about.mixtures or not about.tokens:
        raise UserError(
            f"{folder} holds counts without a design: run `evalengine expose` with a study, which says how much of each source a "
            "mixture has and how long a scale is pretrained"
        )
    mixtures = [m for m in study.design.mixtures if m in about.mixtures]
    scales = [scale for scale in study.design.scales if scale in about.tokens]
    if not mixtures or not scales:
        raise UserError(
            f"{folder} is of another study, with mixtures {names(sorted(about.mixtures), 6)} and scales "
            f"{names(sorted(about.tokens), 6)}: give the folder that `evalengine expose` wrote for this one"
        )
    used = {s for m in mixtures for s, part in about.mixtures[m].items() if part > 0}
    if lacking := sorted(s for s in used if s not in about.sources or not about.sources[s].tokens > 0):
        raise UserError(f"{folder} has no counts of {names(lacking)}: run `evalengine expose` on all sources")
    sources = tuple(s for s in about.sources if s in used)
    tokens_S = np.array([about.sources[s].tokens for s in sources], dtype=np.float64)
    share = {m: np.array([float(about.mixtures[m].get(s, 0.0)) for s in sources]) for m in mixtures}
    return Exposed(sources, share, {scale: float(about.tokens[scale]) for scale in scales}, tokens_S)


def _repeated(found: Exposed, scale: str, mixtures: Sequence[str]) -> str:
    """Says where a mixture of a scale reads a source more than once, "" where none does."""
    if scale not in found.tokens:
        return f"scale {scale} is not in the exposures, so it has no doses"
    read = [(found.epochs(scale, m), m) for m in mixtures if m in found.share]
    epochs_S, most = max(read, key=lambda one: float(one[0].max()), default=(np.zeros(1), ""))
    if epochs_S.max() <= 1.0:
        return ""
    return (
        f"scale {scale} reads {found.sources[epochs_S.argmax()]} up to {epochs_S.max():.1f} times (in {most}): exposures above "
        "one epoch are the same text again, which may teach less than as many different texts"
    )


def _values(
    choices: Choices, counted: table.Exposure, sources: tuple[str, ...], missing_C: Array
) -> dict[Dose, Array]:
    """Counts, words of the longest match, or similarities; `missing_C` of choices without a row. What has no n-gram of that n is
    unknown."""
    rows = _rows(choices, counted, sources)
    out: dict[Dose, Array] = {}
    for k, kind in enumerate(counted.kind.names):
        of_kind = counted.kind.code_R[rows.row] == k
        n_R = counted.n_R[rows.row]
        for n in [0] if kind == LONGEST else np.unique(n_R[of_kind]).tolist():
            mine = of_kind if kind == LONGEST else of_kind & (n_R == n)
            row, c, s = (field[mine] for field in rows)
            value_SC = np.tile(missing_C, (len(sources), 1))
            value_SC[s, c] = counted.n_R[row] if kind == LONGEST else counted.count_R[row]
            value_SC[:, c[counted.grams_R[row] == 0]] = np.nan
            out[Dose(kind, int(n))] = value_SC
    return out


def _similar(path: Path) -> table.Exposure | None:
    """Similarities in the place of counts, of n-grams of 0 words; None where there is no such file."""
    from evalengine import arrow
    from evalengine.store import sealed
    from evalengine.training.exposure.table import Coded, Exposure, about_of

    if not path.exists():
        return None
    try:
        found = sealed.read(path)
        about = about_of(path, found.schema.metadata)
        keys = (found[name].combine_chunks() for name in ("benchmark", "item", "source", "kind"))
        coded = [column.dictionary_encode() for column in keys]
        named = (Coded(one.dictionary.to_pylist(), arrow.numbers(one.indices)) for one in coded)
        benchmark, item, source, kind = named
        choice_R, value_R = (arrow.numbers(found[name].combine_chunks()) for name in ("choice", "value"))
    except (sealed.Damaged, KeyError, TypeError, ValueError, AttributeError):
        raise UserError(
            f"{path} is damaged or holds no similarities: run `evalengine expose` again"
        ) from None
    words_R = np.zeros(len(value_R), dtype=np.int64)
    of = benchmark, item, source, kind, choice_R
    return Exposure(about, {}, *of, words_R, words_R + 1, value_R.astype(np.float64))


def _rows(choices: Choices, of: table.Exposure, sources: tuple[str, ...]) -> ExposureRows:
    """The rows of a benchmark's items in the sources that the study has."""
    number = {item: i for i, item in enumerate(choices.item_I)}
    item_R = np.array([number.get(item, -1) for item in of.item.names], dtype=np.int64)[of.item.code_R]
    place = [sources.index(s) if s in sources else -1 for s in of.source.names]
    source_R = np.array(place, dtype=np.int64)[of.source.code_R]
    mine = [name == choices.name for name in of.benchmark.names]
    benchmark_R = np.array(mine, dtype=bool)[of.benchmark.code_R]
    row = np.flatnonzero(benchmark_R & (item_R >= 0) & (source_R >= 0))
    i, j = item_R[row], of.choice_R[row].astype(np.int64)
    if (j < 0).any() or (j >= np.diff(choices.offset_I1)[i]).any():
        raise UserError(
            f"{choices.name}: the exposures have choices that the store's items have not: run `evalengine expose` on the data "
            "that was scored"
        )
    return ExposureRows(row, choices.offset_I1[i] + j, source_R[row])
