"""Which answer format a model gives its answers in: tables `format_shares` and `format_winners`.

Every item was scored with its choices written in each of several formats behind the same context (`score --formats`):

    mass_f = sum over the choices of p(choice written in format f | context),   share_f = mass_f / sum over the formats of mass

What sampling would estimate by counting answers is exact here, of answers that are in one of the formats; `mass` says how many
are, and a note names the benchmarks where hardly any are. The entropy is that of a mixture's mean shares over items and
benchmarks, in nats: log of the number of formats where all are alike, 0 where one has everything. It is the mean over items of
-sum_f share_f log(mean share_f), whose interval it gets: the error is the same to first order. Accuracy is that within a format,
by the benchmark's own score.

A stage is compared with the one that its models come from: sft and its arms with pt, dpo with sft; other stages with the first of
the two that are explained.

Reference: Zhao et al. (2025), "Echo Chamber: RL Post-training Amplifies Behaviors Learned in Pretraining", arXiv 2504.07912,
which counts generations.

Dims: R runs, M mixtures, F formats, I items of one benchmark.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from evalengine.analysis.claims import Claim, claim
from evalengine.analysis.data.items import names
from evalengine.analysis.estimates.groups import ALL
from evalengine.analysis.explain.choices import Array, StoreScores
from evalengine.analysis.explain.design import by_mixture, numbered, ordered, placed
from evalengine.analysis.explain.explainer import Explainer, Findings, StudyScores, once
from evalengine.analysis.explain.means import Member, grouped, joined, over, partly
from evalengine.analysis.explain.student import two_way_mean
from evalengine.analysis.figure import File, Folded, Lines, Part, Table, blocks, by, pivot
from evalengine.analysis.results import share_with_interval, signed, with_interval
from evalengine.analysis.statistics.ranges import Range, difference
from evalengine.labels import CHAT, TRAINED, scale_key, stage_key

SHARE, ACCURACY, ENTROPY, MASS = "share", "accuracy", "entropy", "mass"
COMES_FROM = {"sft": "pt", "dpo": "sft"}
DRAWN = 0.02  # share that a format must reach at some stage to be drawn
FAINT = 0.01  # mass below which shares are of next to nothing


class ShareRow(NamedTuple):
    """A measure at a stage, or its change from the stage before (`minus`). Shares, accuracies and mass are between 0 and 1."""

    scale: str
    category: str
    benchmark: str  # "" of a mean over benchmarks
    mixture: str  # "" of a mean over mixtures; one mixture has no interval
    stage: str
    minus: str  # "" at a stage
    measure: str
    format: str  # "" of the entropy and the mass
    estimate: float
    low: float
    high: float
    se: float
    n: int
    note: str


class WinnerRow(NamedTuple):
    """The format of the largest share at a stage, and what was so before. NaN and "" where there is no stage before."""

    scale: str
    category: str
    benchmark: str
    mixture: str
    stage: str
    before: str  # the stage that it is compared with
    winner: str
    winner_before: str
    share: float
    share_before: float  # of this stage's winner
    entropy: float
    drop: float  # of the entropy, from the stage before; positive where answers have become more alike
    accuracy: float  # within the winner's format
    accuracy_before: float
    mass: float  # of all formats together
    n: int
    note: str


class Shares(NamedTuple):
    """One benchmark at one stage."""

    share_MFI: Array
    right_MFI: Array
    mass_MI: Array


@dataclass(frozen=True)
class Shared(Member):
    at: dict[str, Shares]  # by stage, where all its runs were scored


Runs = list[tuple[str, str]]  # mixture and checkpoint of each, in order
Measures = dict[tuple[str, str], list[Array]]  # by measure and format: (M, I) of each benchmark


@once
def rows(study: StudyScores) -> list[ShareRow]:
    return list(_rows(study))


def _rows(study: StudyScores) -> Iterator[ShareRow]:
    if study.formats is None or not study.formats.benchmarks:
        return
    formats = [name for name, _ in study.formats.benchmarks[0].formats]
    for scale, by_stage in runs_of(study.formats).items():
        mixtures = {stage: numbered(mixture for mixture, _ in runs)[0] for stage, runs in by_stage.items()}
        pairs = [(stage, "") for stage in by_stage]
        pairs += [(stage, previous(stage, by_stage, study.design.stages[0])) for stage in by_stage]
        every = list(cells(study.formats, by_stage))
        for (category, benchmark, chosen), (stage, minus) in itertools.product(
            grouped(every), dict.fromkeys(pairs)
        ):
            there = [cell for cell in chosen if {stage, minus or stage} <= cell.at.keys()]
            shared = [m for m in mixtures[stage] if m in mixtures[minus or stage]]
            if not there or not shared:
                continue
            values = measures(there, stage, [mixtures[stage].index(m) for m in shared], formats)
            if minus:
                first = measures(there, minus, [mixtures[minus].index(m) for m in shared], formats)
                values = {
                    key: [x - y for x, y in zip(of, first[key], strict=True)] for key, of in values.items()
                }
            note = note_of(there, chosen, stage)
            each = [(m, slice(k, k + 1)) for k, m in enumerate(shared)] if not benchmark else []
            for (mixture, use), (key, value) in itertools.product([("", slice(None)), *each], values.items()):
                possible = Range(0.0, math.log(len(formats)) if key[0] == ENTROPY else 1.0)
                possible = difference(possible) if minus else possible
                mean = two_way_mean([x[use] for x in value], study.options.level, possible)
                yield ShareRow(scale, category, benchmark, mixture, stage, minus, key[0], key[1], *mean, note)


def note_of(there: list[Shared], every: list[Shared], stage: str) -> str:
    faint = [cell.benchmark for cell in there if cell.at[stage].mass_MI.mean() < FAINT]
    said = f"below {FAINT:.0%} of the probability is in any of the formats on {names(faint)}" if faint else ""
    return joined(said, partly(there, every))


def measures(cells: list[Shared], stage: str, index_M: list[int], formats: Sequence[str]) -> Measures:
    """What is averaged over items and benchmarks, of some of the stage's mixtures."""
    found = [Shares(*(x[index_M] for x in cell.at[stage])) for cell in cells]
    mean_MF = np.mean([one.share_MFI.mean(axis=2) for one in found], axis=0)
    surprise_MF = -np.log(np.where(mean_MF > 0, mean_MF, 1.0))
    out: Measures = {(SHARE, name): [one.share_MFI[:, f] for one in found] for f, name in enumerate(formats)}
    out |= {(ACCURACY, name): [one.right_MFI[:, f] for one in found] for f, name in enumerate(formats)}
    out[ENTROPY, ""] = [(one.share_MFI * surprise_MF[:, :, None]).sum(axis=1) for one in found]
    out[MASS, ""] = [one.mass_MI for one in found]
    return out


def runs_of(scores: StoreScores) -> dict[str, dict[str, Runs]]:
    """Those of every scale and stage, in order. Raises UserError where two checkpoints claim one place."""
    out = {}
    for scale, found in sorted(
        placed(scores.checkpoints.values(), "in formats, ").items(), key=lambda one: scale_key(one[0])
    ):
        runs = [(mixture, found[mixture, seed]) for mixture, seed in ordered(found)]
        stages = sorted({stage for _, by_stage in runs for stage in by_stage}, key=stage_key)
        out[scale] = {
            stage: [(mixture, of[stage]) for mixture, of in runs if stage in of] for stage in stages
        }
    return out


def previous(stage: str, known: Mapping[str, object], first: str) -> str:
    """The stage that a stage's models come from, of those that are known; "" where there is none."""
    plain = stage.removesuffix(CHAT)
    chat = stage[len(plain) :]
    before = COMES_FROM.get(plain.split("_")[0], "")
    while before and before + chat not in known:
        before = COMES_FROM.get(before, "")
    if before:
        return before + chat
    return first if plain not in TRAINED and first != stage and first in known else ""


def cells(scores: StoreScores, by_stage: Mapping[str, Runs]) -> Iterator[Shared]:
    """Of one scale, every benchmark."""
    for choices in scores.benchmarks:
        at = {}
        for stage, runs in by_stage.items():
            if (some := choices.of([checkpoint for _, checkpoint in runs])) is None:
                continue
            mixture_R = numbered(mixture for mixture, _ in runs)[1]
            written = [some.in_format(f) for f in range(len(choices.formats))]
            log_RFI = np.stack([one.log_mass() for one in written], axis=1)
            right_RFI = np.stack([one.right() for one in written], axis=1)
            total_RI = np.logaddexp.reduce(log_RFI, axis=1)
            share_RFI = np.exp(log_RFI - total_RI[:, None])
            at[stage] = Shares(*(by_mixture(x, mixture_R) for x in (share_RFI, right_RFI, np.exp(total_RI))))
        if at:
            yield Shared(choices.category, choices.name, at)


def winner_rows(study: StudyScores) -> list[WinnerRow]:
    found: dict[tuple[str, str, str, str, str], dict[Any, ShareRow]] = pivot(
        rows(study), "scale category benchmark mixture stage", "minus measure format"
    )
    out = []
    for place, rows_at in found.items():
        winner = largest(rows_at)
        drop = next((r for (minus, measure, _), r in rows_at.items() if measure == ENTROPY and minus), None)
        earlier = found[(*place[:4], drop.minus)] if drop else {}
        was = largest(earlier) if earlier else None

        def value(of: Mapping[tuple[str, str, str], ShareRow], measure: str, form: str = "") -> float:
            return of["", measure, form].estimate if of else math.nan

        other = f"the stage before has {was.n} mixtures" if was and was.n != winner.n else ""
        out.append(
            WinnerRow(
                *place,
                drop.minus if drop else "",
                winner.format,
                was.format if was else "",
                winner.estimate,
                value(earlier, SHARE, winner.format),
                value(rows_at, ENTROPY),
                -drop.estimate if drop else math.nan,
                value(rows_at, ACCURACY, winner.format),
                value(earlier, ACCURACY, winner.format),
                value(rows_at, MASS),
                winner.n,
                joined(winner.note, other),
            )
        )
    return out


def largest(at: Mapping[tuple[str, str, str], ShareRow]) -> ShareRow:
    """The share of the format that has most, of a stage."""
    shares = [r for r in at.values() if r.measure == SHARE and not r.minus]
    return max(shares, key=lambda r: r.estimate)


# --- the report


def percent(value: float) -> str:
    return f"{100 * value:.1f}" if math.isfinite(value) else "–"


def table(findings: Findings, benchmarks: bool = False) -> Table:
    """The winner of each stage, and what has changed."""
    at = {row[:8]: row for row in findings.tables["format_shares"]}
    lines = []
    for w in findings.means("format_winners", benchmarks, mixture=""):
        place, before = (w.scale, w.category, w.benchmark, "", w.stage), "–"
        if w.before:
            before = f"{percent(w.share_before)} ({w.winner_before})"
        lines.append(
            [
                w.benchmark or w.category,
                w.scale,
                w.stage,
                w.winner,
                share_with_interval(at[*place, "", SHARE, w.winner]),
                before,
                f"{w.entropy:.2f}",
                with_interval(at[*place, w.before, ENTROPY, ""] if w.before else None),
                *map(percent, (w.accuracy, w.accuracy_before, w.mass)),
            ]
        )
    head = [over(benchmarks), "scale", "stage", "winner", "share (%)", "before (%), winner then"]
    head += ["entropy", "change", "accuracy in it (%)", "before (%)", "mass (%)"]
    return Table("format shares", head, blocks(lines, 1, 2), texts=4)


def each_format(findings: Findings, measure: str) -> Table:
    """A measure of every format, in percent: a line for each stage and mean."""
    found = findings.means("format_shares", measure=measure, minus="", mixture="")
    formats = list(dict.fromkeys(r.format for r in found))
    at = pivot(found, "category scale stage", "format")
    lines = [[*place, *(percent(of[form].estimate) for form in formats)] for place, of in at.items()]
    head = ["mean over", "scale", "stage", *formats]
    return Table(f"{measure} by format", head, blocks(lines, 1, 2), texts=3)


def by_mixtures(findings: Findings) -> Table:
    """Every mixture's winner, over all benchmarks."""
    lines = []
    for w in findings.means("format_winners", category=ALL):
        if w.mixture:
            entropy = [f"{w.entropy:.2f}", signed(w.drop) if w.before else "–"]
            shares = [percent(w.share), percent(w.share_before), *entropy, percent(w.accuracy)]
            lines.append([w.mixture, w.scale, w.stage, w.winner, *shares])
    head = ["mixture", "scale", "stage", "winner", "share (%)", "before (%)", "entropy", "drop"]
    head += ["accuracy in it (%)"]
    return Table("format winners by mixture", head, blocks(lines, 1, 2), texts=4)


def shown(findings: Findings) -> Iterator[Part]:
    listed = ", ".join(f"{name} {template!r}" for name, template in findings.method["formats"].items())
    cue = findings.method["cue"]
    without = f"; contexts without the {cue!r} that they end in" if cue else ""
    winners = [w for w in findings.rows("format_winners", category=ALL, mixture="") if w.note]
    yield (
        "Every choice written in each of several formats behind the same context. The share of a format is the probability of "
        "its answers over that of the answers in all formats, which is the mass. The winner has the largest mean share. The "
        "entropy of the mean shares, in nats, falls where one format takes over. Accuracy is within the winner's format. Before: "
        "at the stage that the models come from. Items of which one answer begins another, and benchmarks whose choices stand "
        "behind contexts of their own, are left out. Intervals are for other mixtures and other items."
    )
    yield File("format_shares", table(findings))
    for note, of in by(winners, lambda w: w.note).items():
        places = ", ".join(dict.fromkeys(f"{w.scale} {w.stage}" for w in of))
        yield f"{places}: {note}."
    yield from _drawn(findings)
    yield Folded("Shares of all formats (%)", [each_format(findings, SHARE)])
    yield Folded("Accuracy within each format (%)", [each_format(findings, ACCURACY)])
    yield Folded("Mixtures", [by_mixtures(findings)])
    yield Folded("Benchmarks", [table(findings, benchmarks=True)])
    yield f"Formats: {listed}{without}."


def _drawn(findings: Findings) -> Iterator[File]:
    found = findings.means("format_shares", minus="", mixture="")
    stages = list(dict.fromkeys(r.stage for r in found))
    if len(stages) < 2:
        return
    large = {r.format for r in found if r.measure == SHARE and r.category == ALL and r.estimate >= DRAWN}
    shares = [r for r in found if r.measure == SHARE and r.category == ALL and r.format in large]

    def lines(rows: list[ShareRow], what: str) -> Lines:
        return Lines(rows, stages, lambda r: str(r.stage), lambda r: f"{what} of formats, {r.scale}")

    yield File("format_shares", lines([r._replace(category=r.format) for r in shares], "share"))
    yield File("format_entropy", lines([r for r in found if r.measure == ENTROPY], "entropy"))


def claims(findings: Findings) -> Iterator[Claim]:
    at = {row[:8]: row for row in findings.tables["format_shares"]}
    for w in findings.rows("format_winners", category=ALL, benchmark="", mixture=""):
        if not w.before:
            continue
        place, what = (w.scale, ALL, "", "", w.stage, w.before), f"{w.before} to {w.stage}"
        entropy, share = at[*place, ENTROPY, ""], at[*place, SHARE, w.winner]
        other = f", when {w.winner_before} had the most" if w.winner != w.winner_before else ""
        yield claim(
            entropy,
            above=f"{what} widens the formats of answers",
            below=f"{what} narrows the formats of answers",
            otherwise=f"{what} narrows the formats of answers",
            at=w.scale,
            said=f"entropy {with_interval(entropy)} nats over all benchmarks; {w.winner} has {percent(w.share)}% of "
            f"the answers in these formats, before {percent(w.share_before)}%{other}: a change of {share_with_interval(share)} "
            f"points, n = {entropy.n}",
        )


EXPLAINER = Explainer(
    "format_shares",
    ShareRow,
    rows,
    "Answer formats",
    lacks=lambda study: "scores of `evalengine score --formats`",
    shown=shown,
    said=claims,
)
WINNERS = Explainer("format_winners", WinnerRow, winner_rows)
