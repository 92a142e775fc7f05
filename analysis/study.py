"""The whole analysis in one call: panel -> weights -> protocols -> tables.

    analysis = analyse(load_panel("scores/"), Options())
    analysis.write(Path("analysis"))

Cost at the study's size (36 checkpoints, 20 benchmarks, all 24,310 resamples of 9 mixtures): seconds, below 1 GB.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from threadpoolctl import threadpool_limits

from evalengine.analysis.data.blocks import with_blocks
from evalengine.analysis.data.mixtures import Mixtures, joined
from evalengine.analysis.data.orders import permutation_words
from evalengine.analysis.data.panel import Panel
from evalengine.analysis.estimates.groups import Data
from evalengine.analysis.estimates.item_bootstrap import item_data
from evalengine.analysis.estimates.tables import CorrelateOptions, Row
from evalengine.analysis.protocols.protocol import StudyData
from evalengine.analysis.protocols.registry import PROTOCOLS
from evalengine.analysis.protocols.verdicts import Verdict, verdicts
from evalengine.analysis.results import MANIFEST, TABLES_VERSION
from evalengine.analysis.statistics.bootstrap import KINDS, Resamples, resamples
from evalengine.analysis.statistics.correlation import STATISTICS, Sample
from evalengine.analysis.statistics.ranges import SHARE
from evalengine.analysis.statistics.threads import each
from evalengine.analysis.together import Content, write_together
from evalengine.errors import UserError

RESAMPLED = {"mixtures": "mixtures", "items": "items", "both": "mixtures and items"}


class Analysis(NamedTuple):
    """Tables by name, the panel they come from, and how they were made."""

    panel: Panel
    tables: dict[str, list[Row]]
    verdicts: list[Verdict]
    method: dict[str, Any]

    def write(self, folder: Path) -> None:
        """Writes every table as csv, arrow and json, the panel's cells, and analysis.json (how it was made), together."""
        tables: dict[str, Content] = {name: (Row._fields, rows) for name, rows in self.tables.items()}
        tables["verdicts"] = Verdict._fields, self.verdicts
        tables["cells"] = cell_rows(self.panel)
        tables["curves"] = curve_rows(self.panel, self.method["level"])
        write_together(folder, MANIFEST, {**self.method, "tables": list(self.tables)}, tables)


def analyse(panel: Panel, options: CorrelateOptions, mixtures: Mixtures | None = None) -> Analysis:
    """Runs every protocol on every quantity of the panel. `mixtures` says what they are made of, where known."""
    _check(options)
    if panel.factors:
        mixtures = joined(mixtures, Mixtures({}, panel.factors))
    panel = with_blocks(panel, options.block, mixtures, options.statistic)
    data, plan = weighted(panel, options)
    study = StudyData(data, plan, options, mixtures)
    if panel.blocks is not None:
        across = replace(panel, blocks=None)
        study = replace(study, across=StudyData(*weighted(across, options), options, mixtures))
    # Begun in reverse: the last ones take longest, and cores idle least when long calls begin first. BLAS has threads of its
    # own, which would take the cores from these.
    with threadpool_limits(1, user_api="blas"):
        rows = each([partial(protocol.rows, study) for protocol in reversed(PROTOCOLS)])
    tables = {protocol.table: found for protocol, found in zip(PROTOCOLS, reversed(rows), strict=True)}
    return Analysis(panel, tables, verdicts(tables["transfer"]), describe(study))


def weighted(panel: Panel, options: CorrelateOptions) -> tuple[Data, Resamples]:
    """The panel with columns of weights, as `--resample` and `--bootstrap` ask."""
    if options.resample == "mixtures":
        plan = resamples(len(panel.mixtures), options.bootstrap, options.seed, panel.block_M)
        return fixed_data(panel, plan, options.statistic), plan
    if options.bootstrap == "exact":
        raise UserError(
            "items cannot be resampled exactly: use --bootstrap 10000 with --resample items or both"
        )
    count = int(options.bootstrap or 10_000)
    return item_data(panel, count, options.seed, options.statistic, mixtures=options.resample == "both")


def _check(options: CorrelateOptions) -> None:
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
            np.ascontiguousarray(panel.variables(quantity, s)[:, :, None]), plan.weight_MC, panel.block_M
        )
        for quantity in panel.transferred
        for s, scale in enumerate(panel.scales)
    }
    return Data(panel, samples, statistic, plan)


def describe(study: StudyData) -> dict[str, Any]:
    """What analysis.json says: the design, the method in words and numbers, and what was left out."""
    from evalengine import __version__

    panel, plan, options, mixtures = study.panel, study.plan, study.options, study.mixtures
    kind = "all distinct resamples, weighted" if plan.exact else "Monte Carlo"
    return {
        "evalengine": __version__,
        "tables_version": TABLES_VERSION,
        "scales": panel.scales,
        "stages": panel.stages,
        "all_stages": panel.steps.stages if panel.steps else panel.stages,
        "mixtures": panel.mixtures,
        "benchmarks": panel.benchmarks,
        "categories": panel.categories,
        "quantities": panel.quantities,
        "metrics": panel.metrics,
        "confidence": panel.confidence,
        "other_confidence": next(iter(panel.other_confidence), ""),
        "items": panel.n_items.tolist(),
        "chance": [] if panel.chance is None else [None if x != x else x for x in panel.chance.tolist()],
        "statistic": options.statistic,
        "interval": options.interval,
        "level": options.level,
        "resampled": RESAMPLED[options.resample],
        "resamples": plan.count,
        "resampling": kind,
        "seed": None if plan.exact else options.seed,
        "permutations": permutation_words(replace(panel, blocks=None), options.statistic),
        "block": {}
        if panel.blocks is None
        else {
            "factor": panel.blocks.factor,
            "labels": dict(zip(panel.mixtures, panel.blocks.labels, strict=True)),
            "permutations": permutation_words(panel, options.statistic),
        },
        "shares": mixtures.shares if mixtures else {},
        "web_source": mixtures.web_source if mixtures else {},
        "notes": panel.notes,
    }


CELL_COLUMNS = ("scale", "stage", "mixture", "benchmark", "category", "items")


def cell_rows(panel: Panel) -> tuple[list[str], list[list[Any]]]:
    """The panel as a table: one row per checkpoint and benchmark, every value the analysis used."""
    values = {**panel.transferred, **panel.calibration}
    rows = []
    for s, t, m, b in np.ndindex(next(iter(panel.values.values())).shape):
        found = [float(x[s, t, m, b]) for x in values.values()]
        if np.isfinite(found).any():
            who = (
                panel.scales[s],
                panel.stages[t],
                panel.mixtures[m],
                panel.benchmarks[b],
                panel.categories[b],
            )
            rows.append([*who, int(panel.n_items[b]), *found])
    return [*CELL_COLUMNS, *values], rows


CURVE_COLUMNS = (
    *("scale", "stage", "category", "benchmark", "bin", "share"),
    *("confidence", "accuracy", "low", "high", "n"),
)


def curve_rows(panel: Panel, level: float) -> tuple[Sequence[str], list[list[Any]]]:
    """Reliability curves: each benchmark's bins, mean over mixtures with a t interval of the accuracy."""
    from scipy.special import stdtrit

    rows: list[list[Any]] = []
    if panel.curves is None:
        return CURVE_COLUMNS, rows
    for s, t, b in np.ndindex(len(panel.scales), 2, len(panel.benchmarks)):
        for k, curve_M3 in enumerate(panel.curves[s, t, :, b].swapaxes(0, 1)):
            share, confidence, accuracy = curve_M3[np.isfinite(curve_M3[:, 2])].T
            n = len(accuracy)
            if not n:
                continue
            half = stdtrit(n - 1, 0.5 + level / 2) * accuracy.std(ddof=1) / np.sqrt(n) if n > 1 else np.nan
            mean = accuracy.mean()
            point = (panel.scales[s], panel.stages[t], panel.categories[b], panel.benchmarks[b], k)
            ends = np.clip([mean - half, mean + half], *SHARE)
            rows.append([*point, share.mean(), confidence.mean(), mean, *ends.tolist(), n])
    return CURVE_COLUMNS, rows
