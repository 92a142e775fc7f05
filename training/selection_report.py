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
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from evalengine import console, files
from evalengine.training import export, selections
from evalengine.training.prepare import work_folder
from evalengine.training.selections import Selection
from evalengine.training.study import Run, Select, Study, runs

FEW = 4  # tokens that carry loss, the closing one among them, of an answer in a word or two
RESPONSE_ALONE = 0.5  # share of the ranks' variance from which a note says so


Line = dict[str, Any]  # of a table: column -> value
PAIR = ("scale_a", "mixture_a", "scale_b", "mixture_b", "overlap", "chance", "spearman")


def row(run: Run, s: Selection) -> Line:
    """What one run selects of the conversations that have a score; `_all` is of all that have one.

    score: the median, since a few tokens of a rare answer can have any ifd. length: mean tokens that carry loss. few: share of
    the conversations whose responses have at most `FEW` of them. length_r: Spearman of score and length.
    """
    scored_M = ~np.isnan(s.score_M)
    line: Line = {"scale": run.scale, "mixture": run.mixture}
    line |= {
        "chosen": int(s.chosen_M.sum()),
        "scored": int(scored_M.sum()),
        "unscored": int((~scored_M).sum()),
    }
    line["chosen_tokens"] = int(s.token_M[s.chosen_M].sum())
    for name, value_M, of in (
        ("score", s.score_M, np.median),
        ("mean_score", s.score_M, np.mean),
        ("length", s.token_M, np.mean),
        ("few", s.token_M <= FEW, np.mean),
    ):
        line |= {name: float(of(value_M[s.chosen_M])), f"{name}_all": float(of(value_M[scored_M]))}
    line["length_r"] = spearman(s.score_M, s.token_M.astype(float))
    line["response_share"] = response_share(s.score_M[scored_M], s.response_M[scored_M])
    return line


def pair(run_a: Run, a: Selection, run_b: Run, b: Selection) -> Line:
    """How alike two runs of one scale or mixture select: `PAIR`.

    overlap: Jaccard of the chosen sets; chance: that of random sets of these sizes; spearman: of the scores.
    """
    both, either = int((a.chosen_M & b.chosen_M).sum()), int((a.chosen_M | b.chosen_M).sum())
    size_a, size_b = int(a.chosen_M.sum()), int(b.chosen_M.sum())
    expected = size_a * size_b / max(1, int((~np.isnan(a.score_M) & ~np.isnan(b.score_M)).sum()))
    places = (run_a.scale, run_a.mixture, run_b.scale, run_b.mixture)
    agreement = both / either, expected / (size_a + size_b - expected), spearman(a.score_M, b.score_M)
    return dict(zip(PAIR, (*places, *agreement), strict=True))


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
    _write_csv(work / "selection.csv", rows[0], rows)
    _write_csv(work / "selection_pairs.csv", PAIR, pairs)
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


def _write_csv(path: Path, columns: Iterable[str], lines: Sequence[Line]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([columns, *(line.values() for line in lines)])
    files.write(path, text.getvalue())


def show(select: Select, rows: Sequence[Line], pairs: Sequence[Line]) -> None:
    low, high = select.keep
    by = f" of the {select.by} models" if select.by else ""
    what = f"{select.score}{by}, quantiles {low:g} to {high:g}"
    title = f"random conversations, as many tokens as {what}" if select.control else f"selected by {what}"
    columns = "scale, mixture, chosen, scored, unscored, tokens, score, of all, length, of all"
    how = {"score": ".3f", "length": ".1f", "few": ".0%"}  # of the chosen, and of all
    cells = []
    for r in rows:
        counts = (r["scale"], r["mixture"], r["chosen"], r["scored"], r["unscored"] or "")
        values = (format(r[name + of], spec) for name, spec in how.items() for of in ("", "_all"))
        shares = (_number(r["length_r"]), _number(r["response_share"]))
        cells.append([*counts, f"{r['chosen_tokens']:,}", *values, *shares])
    console.table(
        title,
        [*columns.split(", "), f"<= {FEW} tokens", "of all", "length r", "response"],
        cells,
        left=2,
        caption="score: the median; length: mean tokens that carry loss; length r: Spearman of score and length; "
        "response: share of the scores' rank variance that the response alone explains",
    )
    groups: dict[str, list[Line]] = {}
    for p in pairs:
        same = p["scale_a"] == p["scale_b"]
        label = f"mixtures at {p['scale_a']}" if same else f"{p['scale_a']} and {p['scale_b']}, same mixture"
        groups.setdefault(label, []).append(p)
    if groups:
        console.table(
            "overlap of what is selected (Jaccard), and rank correlation of the scores",
            ["between", "pairs", "overlap", "lowest", "by chance", "Spearman", "lowest"],
            [[label, len(some), *_agreement(some)] for label, some in groups.items()],
        )
    told = [r["response_share"] for r in rows if r["response_share"] > RESPONSE_ALONE]
    if told:
        console.say(
            f"in {len(told)} of {len(rows)} runs the response alone explains more than {RESPONSE_ALONE:.0%} of the scores' "
            "ranks: the score there says which answer it is more than what was asked"
        )


def _agreement(pairs: Sequence[Line]) -> list[str]:
    overlap, chance, rank_r = np.array([(p["overlap"], p["chance"], p["spearman"]) for p in pairs]).T
    values = (overlap.mean(), overlap.min(), chance.mean(), rank_r.mean(), rank_r.min())
    return [_number(float(value)) for value in values]


def _as_json(line: Line) -> Line:
    """None where a number is not defined."""
    return {k: None if isinstance(v, float) and np.isnan(v) else v for k, v in line.items()}


def _number(value: float) -> str:
    return "" if np.isnan(value) else f"{value:.2f}"
