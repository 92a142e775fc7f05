"""Which checkpoints belong together: the runs of every mixture, before and after fine-tuning, at each scale.

Dims: R runs of a scale, M mixtures, I items.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from evalengine.analysis.data.items import CheckpointLabels, names
from evalengine.analysis.data.panel import choose_stages, natural_key, scale_key
from evalengine.analysis.explain.choices import Array, StoreScores
from evalengine.errors import UserError

Place = tuple[str, str]  # a run's mixture and seed


class PairedRun(NamedTuple):
    """One run of a mixture at a scale: its checkpoints before and after fine-tuning, by name.

    by_stage: these and those of all other stages in the store.
    """

    mixture: str
    seed: str
    before: str
    after: str
    by_stage: Mapping[str, str]


class Design(NamedTuple):
    """`runs`: by scale, the smallest first; in the order of the mixtures, a mixture's by seed."""

    stages: tuple[str, str]
    mixtures: tuple[str, ...]
    runs: dict[str, tuple[PairedRun, ...]]
    notes: tuple[str, ...]

    @property
    def scales(self) -> tuple[str, ...]:
        return tuple(self.runs)

    @property
    def paired(self) -> dict[str, int]:
        """How many mixtures each scale has."""
        return {scale: len({run.mixture for run in runs}) for scale, runs in self.runs.items()}

    def names(self, scale: str, after: bool) -> list[str]:
        """The checkpoints of all runs at the first or the last stage."""
        return [run.after if after else run.before for run in self.runs[scale]]

    def numbered(self, scale: str) -> tuple[tuple[str, ...], NDArray[np.int64]]:
        """The mixtures of a scale, and the place of each run's among them."""
        return numbered(run.mixture for run in self.runs[scale])


def numbered(mixture_R: Iterable[str]) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """The mixtures of some runs, in their order, and the place of each run's among them."""
    names = list(mixture_R)
    mixtures = tuple(dict.fromkeys(names))
    return mixtures, np.array([mixtures.index(name) for name in names], dtype=np.int64)


def design_of(scores: StoreScores, stages: Sequence[str] | None = None) -> Design:
    """Pairs the checkpoints of two stages; of more that are asked for, the first and the last.

    Emulated checkpoints are in no pair unless their stage is asked for. What has no counterpart is named in the notes.
    Raises UserError where no pair is left.
    """
    known = [one for one in scores.checkpoints.values() if one.mixture is not None and one.stage is not None]
    found = {
        str(one.stage) for one in known if one.name not in scores.emulated or one.stage in (stages or ())
    }
    if not found:
        raise UserError(
            "no checkpoint has a mixture and a stage, so nothing can be compared: name checkpoints {scale}-{mixture}-{stage}, or"
            " give `evalengine score` a --manifest FILE.yaml"
        )
    order = choose_stages(found, stages)
    pair = order[0], order[-1]
    by_place = placed(one for one in known if one.name not in scores.emulated or one.stage in pair)
    runs, notes, unlike = {}, [], list[str]()
    for scale in sorted(by_place, key=scale_key):
        of = {place: by_stage for place, by_stage in by_place[scale].items() if by_stage.keys() & set(pair)}
        places = ordered(of)
        whole = [place for place in places if set(pair) <= of[place].keys()]
        if len(whole) < len(places):
            kept = {mixture for mixture, _ in whole}
            has: dict[str, set[str]] = defaultdict(set)  # the stages of all its runs
            for mixture, seed in places:
                has[mixture] |= of[mixture, seed].keys()
            apart = [mixture for mixture in has if set(pair) <= has[mixture] and mixture not in kept]
            unlike += [f"{scale}-{mixture}" for mixture in apart]
            said = dict.fromkeys(apart, " (its seeds differ between them)")
            lonely = dict.fromkeys(
                mixture + (f" (its run {seed})" if mixture in kept else said.get(mixture, ""))
                for mixture, seed in places
                if (mixture, seed) not in whole
            )
            notes.append(f"scale {scale}: without both {pair[0]} and {pair[1]}, left out: {names(lonely)}")
        if whole:
            runs[scale] = tuple(
                PairedRun(*place, before=of[place][pair[0]], after=of[place][pair[1]], by_stage=of[place])
                for place in whole
            )
    if not runs and unlike:
        raise UserError(
            f"no run has both a {pair[0]} and a {pair[1]} checkpoint, as the seeds of {names(unlike)} differ between the stages:"
            " give a run the same seed at both in a manifest, and run `evalengine score --manifest FILE.yaml` again"
        )
    if not runs:
        raise UserError(
            f"no mixture has checkpoints of both stages, {pair[0]} and {pair[1]}: score both into one store"
        )
    every = {run.mixture for run in itertools.chain(*runs.values())}
    return Design(pair, tuple(sorted(every, key=natural_key)), runs, tuple(notes))


def placed(
    checkpoints: Iterable[CheckpointLabels], where: str = ""
) -> dict[str, dict[Place, dict[str, str]]]:
    """Names of checkpoints with a mixture and a stage by scale, place and stage. Raises UserError where two claim one place, and
    says `where`."""
    out: dict[str, dict[Place, dict[str, str]]] = defaultdict(lambda: defaultdict(dict))
    for one in checkpoints:
        if one.mixture is None or one.stage is None:
            continue
        of_run = out[one.scale or "all"][one.mixture, one.seed]
        if (other := of_run.setdefault(one.stage, one.name)) != one.name:
            raise UserError(
                f"{where}{other} and {one.name} both claim scale {one.scale}, mixture {one.mixture}, stage {one.stage}: give one "
                "of them another name, or each a seed"
            )
    return out


def ordered(places: Iterable[Place]) -> list[Place]:
    """By mixture, then by seed."""
    return sorted(places, key=lambda place: (natural_key(place[0]), natural_key(place[1])))


def by_mixture(value_R: NDArray[Any], mixture_R: NDArray[np.int64]) -> Array:
    """Means over the runs of each mixture, (M, ...) of (R, ...), in the mixtures' order."""
    found = np.unique(mixture_R)
    if len(found) == len(mixture_R):
        return value_R[np.argsort(mixture_R)].astype(np.float64)
    return np.stack([value_R[mixture_R == m].mean(axis=0, dtype=np.float64) for m in found])
