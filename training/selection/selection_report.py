"""What the runs of a study selected, each and in pairs: the tables at the end of `evalengine train`.

Their rows are also in `OUT/.study/selection.csv` (one a run) and `selection_pairs.csv` (one for each two runs of the
same scale or the same mixture).

Dims: M conversations, N those whose response occurs more than once, G such responses.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import itertools
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from evalengine import console, files
from evalengine.training.decoder import export
from evalengine.training.prepare import work_folder
from evalengine.training.selection import selections
from evalengine.training.selection.selections import Selection
from evalengine.training.study import Run, Select, Study, runs

FEW = 4  # tokens that carry loss, the closing one among them, of an answer in a word or two
RESPONSE_ALONE = 0.5  # share of the ranks' variance from which a note says so


class SelectionRow(NamedTuple):
    """What one run selects of the conversations that have a score."""

    scale: str
    mixture: str
    chosen: int
    scored: int
    unscored: int
    chosen_tokens: int  # that carry loss
    score: float  # median of the chosen: a few tokens of a rare answer can have any ifd
    score_all: float
    mean_score: float
    mean_score_all: float
    length: float  # mean tokens that carry loss, of the chosen
    length_all: float
    few: float  # share of the chosen whose responses have at most `FEW` tokens
    few_all: float
    length_r: float  # Spearman of score and length
    response_share: float  # of the scores' rank variance that the response alone explains


class Pair(NamedTuple):
    """How alike two runs select: of the same scale, or of the same mixture."""

    scale_a: str
    mixture_a: str
    scale_b: str
    mixture_b: str
    overlap: float  # Jaccard of the chosen sets
    chance: float  # of random sets of these sizes
    spearman: float  # of the scores


def row(run: Run, s: Selection) -> SelectionRow:
    scored_M = ~np.isnan(s.score_M)

    def both(value_M: np.ndarray, of: Callable[[np.ndarray], Any] = np.mean) -> tuple[float, float]:
        """Of the chosen, and of all that have a score."""
        return float(of(value_M[s.chosen_M])), float(of(value_M[scored_M]))

    return SelectionRow(
        run.scale,
        run.mixture,
        int(s.chosen_M.sum()),
        int(scored_M.sum()),
        int((~scored_M).sum()),
        int(s.token_M[s.chosen_M].sum()),
        *both(s.score_M, np.median),
        *both(s.score_M),
        *both(s.token_M),
        *both(s.token_M <= FEW),
        spearman(s.score_M, s.token_M.astype(float)),
        response_share(s.score_M[scored_M], s.response_M[scored_M]),
    )


def pair(run_a: Run, a: Selection, run_b: Run, b: Selection) -> Pair:
    both, either = int((a.chosen_M & b.chosen_M).sum()), int((a.chosen_M | b.chosen_M).sum())
    size_a, size_b = int(a.chosen_M.sum()), int(b.chosen_M.sum())
    expected = size_a * size_b / max(1, int((~np.isnan(a.score_M) & ~np.isnan(b.score_M)).sum()))
    return Pair(
        run_a.scale,
        run_a.mixture,
        run_b.scale,
        run_b.mixture,
        both / either,
        expected / (size_a + size_b - expected),
        spearman(a.score_M, b.score_M),
    )


def spearman(a_M: np.ndarray, b_M: np.ndarray) -> float:
    """Spearman's rank correlation where both have a value; NaN where one of them does not vary."""
    from scipy.stats import ConstantInputWarning, spearmanr

    known = ~np.isnan(a_M) & ~np.isnan(b_M)
    if known.sum() < 3:
        return float("nan")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConstantInputWarning)
        return float(spearmanr(a_M[known], b_M[known]).statistic)


def response_share(score_M: np.ndarray, response_M: np.ndarray) -> float:
    """How much of the variance of the scores' ranks lies between responses, not within one: epsilon squared (Kelley, 1935).

    Of conversations whose response occurs more than once, NaN where none does. Near 1 the score says which answer it
    is, whatever was asked.
    """
    from scipy.stats import rankdata

    _, group_M, count_G = np.unique(response_M, return_inverse=True, return_counts=True)
    repeated = count_G[group_M] > 1
    if not repeated.any():
        return float("nan")
    rank_N, (_, group_N) = rankdata(score_M[repeated]), np.unique(group_M[repeated], return_inverse=True)
    mean_G = np.bincount(group_N, rank_N) / np.bincount(group_N)
    n, groups = len(rank_N), len(mean_G)
    total = rank_N.var(ddof=1)
    if not total:
        return float("nan")
    within = np.square(rank_N - mean_G[group_N]).sum() / (n - groups)
    return float(1 - within / total)


def report(study: Study, out: Path) -> dict[str, Any]:
    """Prints what the finished runs of a study selected, each and in pairs, and writes both as CSV; returns them for JSON."""
    work = work_folder(out)
    found = _found(study, out, work)
    if not found:
        return {"runs": [], "pairs": []}
    rows = [row(run, s) for run, s in found.items()]
    pairs = [
        pair(*one, *other)
        for one, other in itertools.combinations(found.items(), 2)
        if one[0].scale == other[0].scale or one[0].mixture == other[0].mixture
    ]
    _write_csv(work / "selection.csv", SelectionRow._fields, rows)
    _write_csv(work / "selection_pairs.csv", Pair._fields, pairs)
    assert study.sft.select is not None
    show(study.sft.select, rows, pairs)
    return {"runs": list(map(_as_json, rows)), "pairs": list(map(_as_json, pairs))}


def _found(study: Study, out: Path, work: Path) -> dict[Run, Selection]:
    """The selections of the finished runs, one for each scale and mixture."""
    found = {}
    for run in runs(study):
        key = (export.metadata(out / run.name) or {}).get("select", {}).get("key")
        first = dataclasses.replace(run, stage="sft")
        if key and first not in found:
            selection = selections.read(selections.path_of(work, run), key)
            if selection is not None:
                found[first] = selection
    return found


def _write_csv(path: Path, fields: Sequence[str], values: Sequence[Sequence[Any]]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([fields, *values])
    files.write(path, text.getvalue())


def show(select: Select, rows: Sequence[SelectionRow], pairs: Sequence[Pair]) -> None:
    low, high = select.keep
    by = f" of the {select.by} models" if select.by else ""
    what = f"{select.score}{by}, quantiles {low:g} to {high:g}"
    title = f"random conversations, as many tokens as {what}" if select.control else f"selected by {what}"
    columns = "scale, mixture, chosen, scored, unscored, tokens, score, of all, length, of all"
    console.table(
        title,
        [*columns.split(", "), f"<= {FEW} tokens", "of all", "length r", "response"],
        [
            [
                *(r.scale, r.mixture, r.chosen, r.scored, r.unscored or "", f"{r.chosen_tokens:,}"),
                *(f"{r.score:.3f}", f"{r.score_all:.3f}", f"{r.length:.1f}", f"{r.length_all:.1f}"),
                *(f"{r.few:.0%}", f"{r.few_all:.0%}", _number(r.length_r), _number(r.response_share)),
            ]
            for r in rows
        ],
        left=2,
        caption="score: the median; length: mean tokens that carry loss; length r: Spearman of score and length; "
        "response: share of the scores' rank variance that the response alone explains",
    )
    groups: dict[str, list[Pair]] = {}
    for p in pairs:
        same = p.scale_a == p.scale_b
        label = f"mixtures at {p.scale_a}" if same else f"{p.scale_a} and {p.scale_b}, same mixture"
        groups.setdefault(label, []).append(p)
    if groups:
        console.table(
            "overlap of what is selected (Jaccard), and rank correlation of the scores",
            ["between", "pairs", "overlap", "lowest", "by chance", "Spearman", "lowest"],
            [[label, len(some), *_agreement(some)] for label, some in groups.items()],
        )
    dominated = [r.response_share for r in rows if r.response_share > RESPONSE_ALONE]
    if dominated:
        console.say(
            f"in {len(dominated)} of {len(rows)} runs the response alone explains more than {RESPONSE_ALONE:.0%} of the scores' "
            "ranks: the score there says which answer it is more than what was asked"
        )


def _agreement(pairs: Sequence[Pair]) -> list[str]:
    overlap, chance, rank_r = np.array([(p.overlap, p.chance, p.spearman) for p in pairs]).T
    values = (overlap.mean(), overlap.min(), chance.mean(), rank_r.mean(), rank_r.min())
    return [_number(float(value)) for value in values]


def _as_json(row: SelectionRow | Pair) -> dict[str, Any]:
    """None where a number is not defined."""
    return {k: None if isinstance(v, float) and np.isnan(v) else v for k, v in row._asdict().items()}


def _number(value: float) -> str:
    return "" if np.isnan(value) else f"{value:.2f}"
