"""The four checkpoints of every mixture, two scales before and after fine-tuning, and what emulation makes of them.

Up: the base is the larger scale, shifted by the smaller one's fine-tuning; down: the other way round. Two levels of emulation:

    token      sum over the tokens of log softmax(z_base + beta (z_tuned - z_ref)): scored by `evalengine emulate`
    sequence   L_base + beta (L_tuned - L_ref) of each choice, from the stored log-likelihoods L

The normaliser of the second is common to the choices behind one context, so picks, margins and confidence are exact; where
choices stand behind contexts of their own it is not defined. The two rank alike where every choice is one token behind one
context.

Reference: Mitchell et al. (2024), "An emulator for fine-tuning large language models using small language models".

Dims: M mixtures, I items, C choices.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from evalengine.analysis.data.items import names
from evalengine.analysis.explain.choices import Array, Choices, EmulatedFrom
from evalengine.analysis.explain.design import by_mixture, numbered
from evalengine.analysis.explain.explainer import StudyScores, once
from evalengine.analysis.explain.means import joined, left_out
from evalengine.labels import scale_key

TOKEN, SEQUENCE = "token", "sequence"
DIRECTIONS = ("up", "down")
BETAS = (0.25, 0.5, 1.0, 2.0)  # of the sequence level, beside those that were emulated


class Quartet(NamedTuple):
    """One run of a mixture: names of its checkpoints at both scales, before and after."""

    mixture: str
    small_before: str
    small_after: str
    large_before: str
    large_after: str

    def roles(self, direction: str) -> tuple[str, str, str]:
        """Base, tuned and ref."""
        if direction == "up":
            return self.large_before, self.small_after, self.small_before
        return self.small_before, self.large_after, self.large_before

    def real(self, direction: str) -> str:
        """The fine-tuned checkpoint of the base."""
        return self.large_after if direction == "up" else self.small_after


class Corners(NamedTuple):
    """The smallest and the largest scale of a study, and the runs that both have."""

    small: str
    large: str
    quartets: tuple[Quartet, ...]
    mixtures: tuple[str, ...]

    @property
    def mixture_R(self) -> NDArray[np.int64]:
        """The number of each run's mixture."""
        return numbered(q.mixture for q in self.quartets)[1]

    def base_scale(self, direction: str) -> str:
        return self.large if direction == "up" else self.small


def lacks_corners(study: StudyScores) -> str:
    """What a study lacks for emulation between two scales, as it follows "needs"; "" where it has all but the benchmarks."""
    design = study.design
    checkpoints = {name for runs in design.runs.values() for run in runs for name in (run.before, run.after)}
    if len(design.scales) < 2:
        return "a second scale"
    if checkpoints & study.scores.emulated.keys():
        return "stages that are not emulated"
    small, large = design.scales[0], design.scales[-1]
    if not in_order(small, large):
        return "scales whose names say their sizes"
    if not {run[:2] for run in design.runs[small]} & {run[:2] for run in design.runs[large]}:
        return f"a mixture at both {small} and {large}"
    return ""


def corners_of(study: StudyScores) -> Corners | None:
    """None where the study lacks them."""
    if lacks_corners(study):
        return None
    design = study.design
    small, large = design.scales[0], design.scales[-1]
    at_large = {(run.mixture, run.seed): run for run in design.runs[large]}
    quartets = [
        Quartet(run.mixture, run.before, run.after, other.before, other.after)
        for run in design.runs[small]
        if (other := at_large.get((run.mixture, run.seed))) is not None
    ]
    return Corners(small, large, tuple(quartets), numbered(q.mixture for q in quartets)[0])


def in_order(small: str, large: str) -> bool:
    """Whether the names of two scales say that the second one is larger."""
    return scale_key(small)[0] < scale_key(large)[0] < math.inf


class Answered(NamedTuple):
    """What checkpoints, emulated or not, say of each item: (R, I) or, once runs are averaged, (M, I)."""

    correct: Array
    confidence: Array  # softmax probability, over the choices' log-likelihoods, of the one that is picked
    p_gold: Array  # of the right one
    pick: NDArray[np.int64]

    def mean(self, mixture_R: NDArray[np.int64]) -> Answered:
        """Runs of a mixture averaged; picks are of the first run."""
        first = np.unique(mixture_R, return_index=True)[1]
        correct, confidence, p_gold = (by_mixture(x, mixture_R) for x in self[:3])
        return Answered(correct, confidence, p_gold, self.pick[first])


def answered(choices: Choices) -> Answered:
    """The benchmark's own score picks; probabilities are over the log-likelihoods."""
    pick_RI = choices.picks()
    raw = choices.answers(choices.loglik_KC, pick_RI)
    confidence, p_gold = (field.astype(np.float64) for field in (raw.confidence, raw.p_gold))
    return Answered((pick_RI == choices.gold_I).astype(np.float64), confidence, p_gold, pick_RI)


@once
def real(study: StudyScores, benchmark: str, *names: str) -> Answered | None:
    """Of checkpoints as they were scored, None where the benchmark lacks one."""
    some = next(one for one in study.scores.benchmarks if one.name == benchmark).of(names)
    return None if some is None else answered(some)


def emulated(
    study: StudyScores, corners: Corners, choices: Choices, direction: str, level: str, beta: float
) -> Answered | None:
    """Of every run's emulated checkpoint, None where there is none at this level and strength."""
    roles = [quartet.roles(direction) for quartet in corners.quartets]
    if level == TOKEN:
        whose = {one: name for name, one in study.scores.emulated.items()}
        return real(study, choices.name, *(whose.get(EmulatedFrom(*of, beta), "") for of in roles))
    if choices.own_contexts:
        return None
    base, tuned, ref = (choices.of(names) for names in zip(*roles, strict=True))
    if base is None or tuned is None or ref is None:
        return None
    shifted = base._replace(loglik_KC=base.loglik_KC + beta * (tuned.loglik_KC - ref.loglik_KC))
    if base.uncond_KC is not None and tuned.uncond_KC is not None and ref.uncond_KC is not None:
        shifted = shifted._replace(uncond_KC=base.uncond_KC + beta * (tuned.uncond_KC - ref.uncond_KC))
    return answered(shifted)


def dials(study: StudyScores) -> Iterator[tuple[str, str, tuple[float, ...]]]:
    """Direction, level, and the strengths that there are, by size."""
    at_token = sorted({one.beta for one in study.scores.emulated.values()})
    at_sequence = sorted({*BETAS, *at_token})
    for direction in DIRECTIONS:
        if at_token:
            yield direction, TOKEN, tuple(at_token)
        yield direction, SEQUENCE, tuple(at_sequence)


def best_level(study: StudyScores, corners: Corners) -> str:
    """The token level where every run has been emulated at beta 1 in both directions, else the sequence level."""
    known = set(study.scores.emulated.values())
    whole = all(
        EmulatedFrom(*quartet.roles(direction), 1.0) in known
        for quartet in corners.quartets
        for direction in DIRECTIONS
    )
    return TOKEN if whole else SEQUENCE


def missing(study: StudyScores, corners: Corners, level: str, category: str, there: Collection[str]) -> str:
    """What the mean over the benchmarks `there` of a category, or of all, does not hold, and why."""
    between = study.design.scales[1:-1]
    lonely = [mixture for mixture in study.design.mixtures if mixture not in corners.mixtures]
    said = [f"without scale {', '.join(between)}"] if between else []
    if lonely:
        said.append(f"without {names(lonely)} (no run at both {corners.small} and {corners.large})")
    return joined(*said, left_out(study, there, category, masses=level == SEQUENCE))
