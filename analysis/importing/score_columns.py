"""Which columns of a wide table are scores, and which hold a score's standard errors and numbers of items.

A column is a score if --benchmarks names it, if it is named after a benchmark that evalengine knows, or if it ends in a
score (`.acc`): a table also holds seeds, tokens, means and perplexities, and as one more benchmark each would enter the
statistics. What is left out is said, with the reason. The standard errors and numbers of items of a score stand in columns
named after it: `piqa.acc_stderr` or `piqa_n` beside `piqa.acc`.
"""

from __future__ import annotations

import fnmatch
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from evalengine.analysis.data.items import names
from evalengine.analysis.importing.imported import UNKNOWN, Known
from evalengine.analysis.importing.spellings import benchmark_name
from evalengine.errors import UserError
from evalengine.untrusted import printable

QUANTITY = {"acc": "accuracy", "acc_norm": "accuracy", "confidence": "confidence", "loss": "loss"}  # by score
ACCURACY = ("", "acc", "acc_norm")
MEANS = {"mean", "average", "avg", "macro", "micro", "overall", "total", "all", "score"}
ERRORS = {"stderr", "stdev", "std", "ci"}
STDERR = ("{}_stderr", "{}.stderr", "{}/stderr", "{} stderr")  # columns beside a score; {} is the score's
ITEMS = ("{}_n", "{}.n", "{}/n", "{}_items", "{}_n_samples", "{}_num_samples")
NOT_KNOWN = "no benchmarks that evalengine knows: --benchmarks names the columns to take"
LOWER_IS_BETTER = {"ppl", "perplexity", "bpb", "nll"}
SPLITS = {"train", "training", "val", "valid", "validation", "dev", "eval", "test"}  # as in val_loss


class WideTable(NamedTuple):
    """How to read a CSV: which column is what.

    replicate: tells runs of one mixture apart. blocks: factors of the mixtures. stderr, items: names of the columns of
    standard errors and numbers of items, with {} for that of the score. where: rows to keep, by column. constant: fields
    that are the same for the whole file (scale, mixture, stage, replicate). metric: which accuracy of a benchmark. loss:
    columns without a score in their name are losses.
    """

    scale: str | None = None
    mixture: str | None = None
    stage: str | None = None
    model: str | None = None
    replicate: str | None = None
    blocks: tuple[str, ...] = ()
    stderr: tuple[str, ...] = STDERR
    items: tuple[str, ...] = ITEMS
    benchmarks: tuple[str, ...] = ()
    shares: tuple[str, ...] = ()
    where: Mapping[str, str] = {}
    constant: Mapping[str, str] = {}
    loss: bool = False
    metric: str | None = None

    @property
    def about_rows(self) -> set[str | None]:
        """The columns that say what a row is, rather than what it scored."""
        return {self.scale, self.mixture, self.stage, self.model, self.replicate, *self.blocks, *self.where}


class Column(NamedTuple):
    """A column of scores, and those of its standard errors and numbers of items."""

    name: str
    benchmark: str
    quantity: str
    score: str  # "" where the name does not say it
    stderr: str | None = None
    items: str | None = None


def choose_columns(
    path: Path, header: Sequence[str], how: WideTable, known: Mapping[str, Known]
) -> tuple[list[Column], dict[str, str]]:
    """The columns of scores, with those of their errors and numbers of items, and why each other one is none.

    Where a benchmark has several accuracies, the one it is judged by is taken, or `how.metric`. Raises UserError
    where that leaves two columns, or none at all.
    """
    used = {"", *how.about_rows}
    plain = [name for name in header if name not in used and not fits(name, how.shares)]
    kinds = {name: _column(path, name, how, known) for name in plain}
    accuracies = Counter(
        benchmark_name(base, known) for base, score in map(split_column, plain) if score in ACCURACY
    )
    columns = {
        name: _with_others(path, plain, column, how, accuracies[column.benchmark] < 2)
        for name, column in kinds.items()
        if isinstance(column, Column)
    }
    about_scores = {name for c in columns.values() for name in (c.stderr, c.items)} - {*how.benchmarks}
    for option, patterns, default in (("stderr", how.stderr, STDERR), ("items", how.items, ITEMS)):
        if patterns != default and not any(getattr(column, option) for column in columns.values()):
            raise UserError(
                f"{path}: no column is called --{option} '{patterns[0]}', with a score's name for {{}}: "
                f"its columns are {names(header, 12)}"
            )
    left_out: dict[str, str] = {}
    candidates: dict[tuple[str, str], list[Column]] = defaultdict(list)
    for name, kind in kinds.items():
        if name in about_scores:
            continue
        if isinstance(kind, str):
            left_out[name] = kind
        else:
            candidates[kind.benchmark, kind.quantity].append(columns[name])
    if not candidates:
        others = [printable(name) for name, why in left_out.items() if why == NOT_KNOWN]
        raise UserError(
            f"{path}: no column looks like a benchmark that evalengine knows: name those that are with "
            f"--benchmarks '{','.join(others) or 'COLUMN,PATTERN*'}'"
        )
    chosen = []
    for (benchmark, _), found in candidates.items():
        wanted = how.metric or known.get(benchmark, UNKNOWN).default_score
        best = [column for column in found if column.score == wanted] or found
        if len(best) > 1:
            raise UserError(
                f"{path}: the columns {names([column.name for column in best])} are all scores of {benchmark}: "
                "name the one to take with --benchmarks"
            )
        chosen.append(best[0])
        left_out |= {c.name: "another score is taken: --metric chooses" for c in found if c is not best[0]}
    return chosen, left_out


def _with_others(path: Path, header: Sequence[str], column: Column, how: WideTable, is_only: bool) -> Column:
    """A column of scores with those of its standard errors and numbers of items.

    They are named after the column of the score (`piqa.acc_stderr`). Numbers of items, which all scores of a benchmark
    share, and the errors of its only accuracy, may also be named after the benchmark (`piqa_stderr`). Raises UserError
    where there are two.
    """
    own = column.name.removesuffix(",none")
    benchmark = own[: -len(column.score) - 1] if column.score else own
    ends = {"", column.name[len(own) :]}
    found: dict[str, Any] = {}
    for option, patterns, stems in (
        ("stderr", how.stderr, {own, benchmark} if is_only and column.quantity == "accuracy" else {own}),
        ("items", how.items, {own, benchmark}),
    ):
        wanted = {pattern.replace("{}", stem) + end for pattern in patterns for stem in stems for end in ends}
        there = [name for name in header if name in wanted]
        if len(there) > 1:
            raise UserError(
                f"{path}: the columns {names(there)} may all be meant for {column.name}: name one with --{option}"
            )
        found[option] = there[0] if there else None
    return column._replace(**found)


def _column(path: Path, name: str, how: WideTable, known: Mapping[str, Known]) -> Column | str:
    """The column of scores that `name` is, or why it is none."""
    base, score = split_column(name)
    benchmark = benchmark_name(base, known)
    words = set(re.split(r"[^a-z0-9]+", name.lower()))
    lower_is_better = words & LOWER_IS_BETTER and not how.loss
    if name in how.benchmarks:
        if lower_is_better:
            raise UserError(
                f"{path}: of {name}, lower is better: say --loss, or leave it out of --benchmarks"
            )
    elif how.benchmarks and not fits(name, how.benchmarks):
        return "not in --benchmarks"
    elif words & {"average", "avg"} or set(re.split(r"[^a-z0-9]+", base.lower())) <= MEANS:
        return "means of others"
    elif words & ERRORS:
        return "errors, no scores"
    elif lower_is_better:
        return "lower is better: --benchmarks with --loss takes them"
    elif not how.benchmarks and benchmark not in known and (not score or base.lower() in SPLITS):
        return NOT_KNOWN
    quantity = QUANTITY.get(score, "loss" if how.loss else "accuracy")
    if how.metric and quantity == "accuracy" and score not in ("", how.metric):
        return f"not --metric {how.metric}"
    return Column(name, benchmark, quantity, score)


def split_column(column: str) -> tuple[str, str]:
    """("piqa", "acc") from "piqa.acc", "metric/piqa,acc,none", "piqa_acc" or "piqa/acc"; score "" where there is none."""
    found = re.fullmatch(r"(?:.*/)?([^/]+?)(?:_val)?[.,_/](acc|acc_norm|confidence|loss)(?:,none)?", column)
    return (found[1], found[2]) if found else (column.rsplit("/", 1)[-1], "")


def fits(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
