"""The findings of the embedded study, counted in a score store.

Everything is counted at three standard errors, and differences between checkpoints are taken item by item,
since all of them answer the same items:

    above     benchmarks above chance, for the mixture with the most of them
    reliable  benchmarks whose differences between mixtures are more than half real (docs/analysis.md)
    moved     benchmarks that a web source, or more code and curated text for less web, moves up or down
    reranked  benchmarks on which fine-tuning reverses the order of two mixtures that differ before and after
    full      benchmarks that some mixture answers nearly always (97%)

Cost: a second for 36 checkpoints.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from evalengine.analysis.data.panel import Panel, load_panel
from evalengine.analysis.protocols.noise import from_items

ERRORS = 3.0  # standard errors
RELIABLE = 0.5
FULL = 0.97
Array = NDArray[np.float64]


class Moved(NamedTuple):
    up: tuple[str, ...]
    down: tuple[str, ...]


class StudyFindings(NamedTuple):
    """Of one scale of one study. counts: numbers of benchmarks, by what is counted. holds: the requirements of the study, and
    whether each is met."""

    counts: dict[str, str]
    holds: dict[str, bool]


def findings(store: Path, scale: str) -> StudyFindings:
    """Reads a store of the embedded design: mixtures v{source}p{level}, stages pt and sft."""
    panel = load_panel(store, stages=("pt", "sft"))
    s = panel.scales.index(scale)
    correct = {stage: _correct(panel, s, t) for t, stage in enumerate(panel.stages)}
    guess = {b.name: chance(store / b.checkpoints[0] / f"{b.name}.arrow") for b in panel.items}
    above, reliable, counts = {}, {}, {}
    for stage, of_benchmark in correct.items():
        over = {
            mixture: [n for n, c in of_benchmark.items() if standard_errors(c[m], guess[n]) >= ERRORS]
            for m, mixture in enumerate(panel.mixtures)
        }
        best, above[stage] = max(over.items(), key=lambda entry: len(entry[1]))
        counts[f"above chance, {stage}"] = f"{len(above[stage])} ({best})"
    for stage, of_benchmark in correct.items():
        reliable[stage] = [name for name, c_MI in of_benchmark.items() if _reliability(c_MI) > RELIABLE]
        counts[f"reliable, {stage}"] = str(len(reliable[stage]))
    webs = sorted({m[:2] for m in panel.mixtures})
    contrasts = {f"web {b} against {a}": (f"{b}*", f"{a}*") for a, b in combinations(webs, 2)}
    moved = {}
    for name, patterns in {**contrasts, "code share": ("*p2", "*p0")}.items():
        more, less = ([m for m, x in enumerate(panel.mixtures) if fnmatchcase(x, p)] for p in patterns)
        if more and less:
            moved[name] = moved_between(correct["pt"], more, less)
            counts[f"moved by {name}"] = f"{len(moved[name].up)} up, {len(moved[name].down)} down"
    turned = [n for n in correct["pt"] if reranked(correct["pt"][n], correct["sft"][n])]
    full = [n for n in correct["pt"] if max(correct[t][n].mean(1).max() for t in correct) >= FULL]
    counts |= {"reranked by sft": str(len(turned)), "at the ceiling": ", ".join(full) or "none"}
    both_ways = [name.split()[0] for name, m in moved.items() if m.up and m.down]
    return StudyFindings(
        counts,
        {
            "12 benchmarks above chance": max(map(len, above.values())) >= 12,
            "8 benchmarks reliable at pt": len(reliable["pt"]) >= 8,
            "web sources move some up, others down": "web" in both_ways,
            "code share moves some up, others down": "code" in both_ways,
            "sft reranks the mixtures of some": bool(turned),
            "no benchmark at the ceiling": not full,
        },
    )


def _correct(panel: Panel, s: int, t: int) -> dict[str, Array]:
    """Benchmark -> (M, I): 1 where a mixture's checkpoint is right."""
    return {b.name: b.correct_KI[panel.row[s, t, :, k]].astype(np.float64) for k, b in enumerate(panel.items)}


def chance(file: Path) -> float:
    """The accuracy without a model: of a random guess or, where all items have the same labels, of the most frequent one.

    (Elsewhere a position means nothing: SciQ's right answer is the last by its format, and no model sees that.)
    """
    import pyarrow as pa

    with pa.memory_map(str(file)) as mapped:
        table = pa.ipc.open_file(mapped).read_all()
        choices = np.array([len(scores) for scores in table["loglik"]])
        gold = np.bincount(table["gold"].to_numpy())
        labels = len({tuple(lengths) for lengths in table["chars"].to_pylist()}) == 1
    guess = float((1 / choices).mean())
    return max(guess, float(gold.max() / gold.sum())) if labels else guess


def standard_errors(correct_I: Array, chance: float) -> float:
    """How far accuracy is above `chance`, in standard errors of a guesser."""
    return float((correct_I.mean() - chance) / np.sqrt(chance * (1 - chance) / len(correct_I)))


def _reliability(correct_MI: Array) -> float:
    variance = correct_MI.mean(axis=1).var(ddof=1)
    return 1.0 - from_items(correct_MI, correct_MI).before / variance if variance > 0 else 0.0


def _difference(one_I: Array, other_I: Array) -> float:
    """Mean difference over its standard error, item by item; 0 where nothing differs."""
    d_I = one_I - other_I
    spread = d_I.std(ddof=1)
    return float(d_I.mean() / (spread / np.sqrt(len(d_I)))) if spread > 0 else 0.0


def moved_between(correct: dict[str, Array], more: list[int], less: list[int]) -> Moved:
    """Benchmarks that the mixtures `more` answer better, or worse, than the mixtures `less`."""
    z = {name: _difference(c_MI[more].mean(0), c_MI[less].mean(0)) for name, c_MI in correct.items()}
    return Moved(
        tuple(n for n, value in z.items() if value >= ERRORS),
        tuple(n for n, value in z.items() if value <= -ERRORS),
    )


def reranked(before_MI: Array, after_MI: Array) -> bool:
    return any(
        _difference(before_MI[i], before_MI[j]) * sign >= ERRORS
        and _difference(after_MI[i], after_MI[j]) * sign <= -ERRORS
        for i, j in combinations(range(len(before_MI)), 2)
        for sign in (1, -1)
    )
