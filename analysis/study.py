"""The whole analysis in one call: panel -> weights -> protocols -> tables.

    analysis = analyse(load_panel("scores/"), Options())
    analysis.write(Path("analysis"))

Cost at the study's size (36 checkpoints, 20 benchmarks, all 24,310 resamples of 9 mixtures): seconds, below 1
GB.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from evalengine.analysis import decisions, noise, protocols
from evalengine.analysis.bootstrap import KINDS, Array, Resamples, resamples
from evalengine.analysis.correlation import (
    STATISTICS,
    Sample,
    benjamini_hochberg,
    permutation_p,
    ranks,
    similarity_terms,
)
from evalengine.analysis.decisions import Verdict
from evalengine.analysis.item_bootstrap import item_data
from evalengine.analysis.mixtures import Mixtures, share_effects, web_source_differences
from evalengine.analysis.panel import Panel
from evalengine.analysis.protocols import Data, Group
from evalengine.analysis.results import checksums
from evalengine.analysis.tables import Row, Settings, replacing, rows_of, write_table
from evalengine.errors import UserError

ASIDE = ".writing"  # where the tables of a run wait for the last of them
MANIFEST = "analysis.json"
ITEM_RESAMPLES = 1000  # of items, for the choice of the best mixture
RESAMPLED = {"mixtures": "mixtures", "items": "items", "both": "mixtures and items"}


Part = dict[str, list[Row]]  # rows by table


class Options(NamedTuple):
    """What the user may choose.

    bootstrap: "exact", a number of resamples, or None for exact up to 10 mixtures. resample: what is drawn:
    mixtures, items, or both.
    """

    bootstrap: str | int | None = None
    interval: str = "bca"
    level: float = 0.95
    statistic: str = "pearson"
    seed: int = 0
    resample: str = "mixtures"


class Analysis(NamedTuple):
    """Tables by name, the panel they come from, and how they were made."""

    panel: Panel
    tables: dict[str, list[Row]]
    verdicts: list[Verdict]
    method: dict[str, Any]

    def write(self, folder: Path) -> None:
        """Writes every table as csv, arrow and json, the panel's cells, and analysis.json (how it was made).

        All of it is written aside and moved into place at the end, within milliseconds: analysis.json goes first and comes
        last, so that where it stands the tables beside it are all of its run.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            raise UserError(f"{folder} is a file: give --out a folder") from None
        aside = folder / ASIDE
        shutil.rmtree(aside, ignore_errors=True)  # of a run that was killed
        try:
            for name, rows in self.tables.items():
                write_table(aside, name, Row._fields, rows)
            write_table(aside, "verdicts", Verdict._fields, self.verdicts)
            write_table(aside, "cells", *cell_rows(self.panel))
            write_table(aside, "curves", *curve_rows(self.panel, self.method["level"]))
            written = sorted(aside.iterdir())
            with replacing(aside / MANIFEST) as handle:
                method = json.loads(json.dumps({**self.method, "tables": list(self.tables)}))
                json.dump({**method, "checksums": checksums(aside, method)}, handle, indent=1)
                handle.write("\n")
            (folder / MANIFEST).unlink(missing_ok=True)
            for path in [*written, aside / MANIFEST]:
                os.replace(path, folder / path.name)
        finally:
            shutil.rmtree(aside, ignore_errors=True)


def analyse(panel: Panel, options: Options, mixtures: Mixtures | None = None) -> Analysis:
    """Runs every protocol on every quantity of the panel. `mixtures` says what they are made of, where known."""
    _check(options)
    names = ("transfer", "matrices", "coherence", "reliability", "decisions", "calibration")
    tables: dict[str, list[Row]] = {name: [] for name in names}
    data, plan = weighted(panel, options)
    parts = [of_quantity(data, plan, options, panel.quantities[0])]
    best = _best_choices(panel, options, data, plan) if panel.items else []
    more = _across_quantities(data, plan, options, mixtures)
    rest = _rest(data, plan, options)
    for part in [*parts, *rest, {"decisions": best}, more]:
        for name, rows in part.items():
            tables.setdefault(name, []).extend(rows)
    verdicts = decisions.verdicts(tables["transfer"])
    return Analysis(panel, tables, verdicts, describe(panel, plan, options, mixtures))


def _across_quantities(data: Data, plan: Resamples, options: Options, mixtures: Mixtures | None) -> Part:
    """Alignment, effects of what the mixtures are made of, and the means of everything."""
    panel = data.panel
    settings = Settings(options.interval, options.level, options.statistic)
    rows: Part = {"calibration": []}
    if {"accuracy", "confidence"} <= set(panel.quantities):
        rows["alignment"] = rows_of(protocols.alignment(data), plan, settings)
    if mixtures is not None:
        rows["mixture_effects"] = []
        for quantity in panel.quantities:
            effects = share_effects(data, quantity, mixtures)
            rows["mixture_effects"] += rows_of(effects, plan, settings) if effects else []
            rows["mixture_effects"] += web_source_differences(panel, quantity, mixtures, options.level)
    fixed = resamples(len(panel.mixtures), options.bootstrap, options.seed)
    for quantity, value_STMB in {**panel.values, **panel.calibration}.items():
        group = protocols.means(panel, quantity, value_STMB, fixed.weight_MC)
        rows["calibration"] += rows_of(group, fixed, settings)
    return rows


def _rest(data: Data, plan: Resamples, options: Options) -> list[Part]:
    """What rests on one quantity alone, for all but the first of them; and decisions between pairs of mixtures."""
    quantities = data.panel.quantities
    settings = Settings(options.interval, options.level, options.statistic)
    parts = [of_quantity(data, plan, options, quantity) for quantity in quantities[1:]]
    pairs = [decisions.pairwise(data, quantity) for quantity in quantities if quantity != "confidence"]
    return [*parts, {"decisions": [row for group in pairs for row in rows_of(group, plan, settings)]}]


def of_quantity(data: Data, plan: Resamples, options: Options, quantity: str) -> Part:
    """The rows of one quantity's transfers, matrices, coherence and reliability."""
    panel = data.panel
    settings = Settings(options.interval, options.level, options.statistic)
    single = protocols.transfer(data, quantity)
    rows: Part = {"transfer": [], "matrices": []}
    for group in (single, protocols.category_transfer(single, panel)):
        rows["transfer"] += rows_of(group, plan, settings, transfer_p(group, panel, options))
    for group in protocols.matrices(data, quantity):
        rows["matrices"] += rows_of(group, plan, settings)
    rows["matrices"] += rows_of(protocols.similarity(data, quantity), plan, settings)
    rows["coherence"] = rows_of(protocols.coherence(data, quantity), plan, settings)
    rows["reliability"] = rows_of(noise.reliability(data, quantity), plan, settings)
    return rows


def _best_choices(panel: Panel, options: Options, data: Data, plan: Resamples) -> list[Row]:
    """Decisions for the best mixture; always with resampled items."""
    by_item = (data, plan)
    if options.resample != "items":
        by_item = item_data(
            panel, ITEM_RESAMPLES, options.seed, options.statistic, mixtures=False, quantities=["accuracy"]
        )
    group = decisions.best_choice(by_item[0], "accuracy")
    settings = Settings("percentile", options.level, options.statistic)
    return [
        row._replace(note="items resampled, percentile interval")
        for row in rows_of(group, by_item[1], settings)
    ]


def weighted(panel: Panel, options: Options) -> tuple[Data, Resamples]:
    """The panel with columns of weights, as `--resample` and `--bootstrap` ask."""
    if options.resample == "mixtures":
        plan = resamples(len(panel.mixtures), options.bootstrap, options.seed)
        return fixed_data(panel, plan, options.statistic), plan
    if options.bootstrap == "exact":
        raise UserError(
            "items cannot be resampled exactly: use --bootstrap 10000 with --resample items or both"
        )
    count = int(options.bootstrap or 10_000)
    return item_data(panel, count, options.seed, options.statistic, mixtures=options.resample == "both")


def _check(options: Options) -> None:
    if options.interval not in KINDS:
        raise UserError(f"no interval '{options.interval}': choose from {', '.join(KINDS)}")
    if options.resample not in RESAMPLED:
        raise UserError(f"no --resample '{options.resample}': choose from {', '.join(RESAMPLED)}")
    if options.statistic not in STATISTICS:
        raise UserError(f"no statistic '{options.statistic}': choose from {', '.join(STATISTICS)}")
    if options.interval == "fisher" and options.statistic != "pearson":
        raise UserError("Fisher's z is an interval for Pearson's r: use --interval bca with other statistics")
    if not 0.5 <= options.level < 1.0:
        raise UserError(f"--level {options.level} must lie between 0.5 and 1, such as 0.95")


def fixed_data(panel: Panel, plan: Resamples, statistic: str) -> Data:
    """Mixtures resampled, every checkpoint's values as they are."""
    samples = {
        (quantity, scale): Sample(
            np.ascontiguousarray(panel.variables(quantity, s)[:, :, None]), plan.weight_MC
        )
        for quantity in panel.quantities
        for s, scale in enumerate(panel.scales)
    }
    return Data(panel, samples, statistic, plan)


def transfer_p(group: Group, panel: Panel, options: Options) -> dict[str, tuple[Array, Array]] | None:
    """Permutation p-values of transfers (of benchmarks, or of their means), adjusted within the group and
    scale."""
    if options.statistic == "kendall":
        return None
    B = len(panel.benchmarks)
    out = {}
    for s, scale in enumerate(panel.scales):
        x_VM = panel.variables(group.quantity, s)
        keep = np.asarray(np.isfinite(x_VM).any(axis=0))
        x_VM = x_VM[:, keep]
        p = np.full(len(group.labels), np.nan)
        members = group.members[scale] if group.members else [[b] for b in range(B)]
        for mask_key, index in _by_mask(x_VM, members, B).items():
            mask = np.frombuffer(mask_key, dtype=bool)
            if mask.sum() < 4:
                continue
            z_VM = x_VM[:, mask]
            z_VM = ranks(z_VM) if options.statistic == "spearman" else z_VM
            a_BMM = similarity_terms(z_VM[:B], z_VM[B:])
            usable = np.asarray(np.isfinite(a_BMM).all(axis=(1, 2)))
            terms = [
                a_BMM[chosen].mean(axis=0)
                if (chosen := [b for b in members[i] if usable[b]])
                else a_BMM[0] * np.nan
                for i in index
            ]
            p[index] = permutation_p(np.array(terms), options.seed)
        p[~np.isfinite(group.values[scale][:, 0])] = np.nan
        out[scale] = (p, benjamini_hochberg(p))
    return out


def _by_mask(x_VM: Array, members: Sequence[Sequence[int]], B: int) -> dict[bytes, list[int]]:
    """Statistics grouped by the mixtures that all of their benchmarks have."""
    known = np.isfinite(x_VM)
    usable = np.asarray(known.any(axis=1))
    grouped: dict[bytes, list[int]] = {}
    for i, index in enumerate(members):
        rows = [v for b in index for v in (b, B + b) if usable[b] and usable[B + b]]
        mask = known[rows].all(axis=0) if rows else np.zeros(x_VM.shape[1], dtype=bool)
        grouped.setdefault(mask.tobytes(), []).append(i)
    return grouped


def describe(panel: Panel, plan: Resamples, options: Options, mixtures: Mixtures | None) -> dict[str, Any]:
    """What analysis.json says: the design, the method in words and numbers, and what was left out."""
    from evalengine import __version__

    kind = "all distinct resamples, weighted" if plan.exact else "Monte Carlo"
    return {
        "evalengine": __version__,
        "scales": panel.scales,
        "stages": panel.stages,
        "mixtures": panel.mixtures,
        "benchmarks": panel.benchmarks,
        "categories": panel.categories,
        "quantities": panel.quantities,
        "metrics": panel.metrics,
        "items": [int(n) for n in panel.n_items] if panel.n_items is not None else [],
        "statistic": options.statistic,
        "interval": options.interval,
        "level": options.level,
        "resampled": RESAMPLED[options.resample],
        "resamples": plan.count,
        "resampling": kind,
        "seed": None if plan.exact else options.seed,
        "permutations": "all" if len(panel.mixtures) <= 9 else "100000 sampled",
        "shares": mixtures.shares if mixtures else {},
        "web_source": mixtures.web_source if mixtures else {},
        "notes": panel.notes,
    }


CELL_COLUMNS = ("scale", "stage", "mixture", "benchmark", "category", "items")


def cell_rows(panel: Panel) -> tuple[list[str], list[list[Any]]]:
    """The panel as a table: one row per checkpoint and benchmark, every value the analysis used."""
    values = {**panel.values, **panel.calibration}
    rows = []
    for s, t, m, b in np.ndindex(next(iter(panel.values.values())).shape):
        found = [float(x[s, t, m, b]) for x in values.values()]
        if np.isfinite(found).any():
            items = int(panel.n_items[b]) if panel.n_items is not None else 0
            who = (
                panel.scales[s],
                panel.stages[t],
                panel.mixtures[m],
                panel.benchmarks[b],
                panel.categories[b],
            )
            rows.append([*who, items, *found])
    return [*CELL_COLUMNS, *values], rows


CURVE_COLUMNS = (
    "scale",
    "stage",
    "category",
    "benchmark",
    "bin",
    "share",
    "confidence",
    "accuracy",
    "low",
    "high",
    "n",
)


def curve_rows(panel: Panel, level: float) -> tuple[Sequence[str], list[list[Any]]]:
    """Reliability curves: each benchmark's bins, mean over mixtures with a t interval of the accuracy."""
    from scipy.special import stdtrit

    rows: list[list[Any]] = []
    if panel.curves is None:
        return CURVE_COLUMNS, rows
    for s, t, b in np.ndindex(len(panel.scales), 2, len(panel.benchmarks)):
        curve_MK3 = panel.curves[s, t, :, b]
        curve_MK3 = curve_MK3[np.isfinite(curve_MK3[:, 0, 0])]
        n = len(curve_MK3)
        for k in range(panel.curves.shape[4]):
            share, confidence, accuracy = (curve_MK3[:, k, f] for f in range(3))
            if not n or not np.isfinite(accuracy).all():
                continue
            half = stdtrit(n - 1, 0.5 + level / 2) * accuracy.std(ddof=1) / np.sqrt(n) if n > 1 else np.nan
            mean = accuracy.mean()
            who = (panel.scales[s], panel.stages[t], panel.categories[b], panel.benchmarks[b], k)
            rows.append([*who, share.mean(), confidence.mean(), mean, mean - half, mean + half, n])
    return CURVE_COLUMNS, rows
