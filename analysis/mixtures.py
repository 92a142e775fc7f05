"""What the mixtures are made of, and what that does to the benchmarks.

Shares come from a study file (`mixtures:` of shares by source) or from columns of an imported table. The web
source is a
factor: with one web source per mixture, differences between them come from a linear model with the
proportions as a second factor, which is all that 3 x 3 points can carry.

Reference: Student (1908); any text on two-way analysis of variance without replication.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from evalengine.analysis.correlation import Sample, correlate
from evalengine.analysis.panel import RESULTS_FILE, Array, Panel
from evalengine.analysis.protocols import Data, Group, Label
from evalengine.analysis.tables import Row, plain_row
from evalengine.errors import UserError
from evalengine.untrusted import parse_json, read_yaml

KINDS = {  # what a source's name says about it
    "web": ("web", "dclm", "c4", "crawl", "pile_cc"),
    "code": ("code", "stack_v", "thestack", "the_stack", "github", "starcoder"),
}
OTHER_KIND = "curated"


class Mixtures(NamedTuple):
    """Shares of each mixture by kind (web, code, curated) or source, and its web source where it has exactly
    one."""

    shares: dict[str, dict[str, float]]  # by name of the share, then mixture
    web_source: dict[str, str]


def kind_of(source: str) -> str:
    plain = source.lower().replace("-", "_")
    for kind in ("code", "web"):
        if any(word in plain for word in KINDS[kind]):
            return kind
    return OTHER_KIND


def from_sources(mixtures: Mapping[str, Mapping[str, float]]) -> Mixtures:
    """Sums the shares of each kind of source; a source of its own kind only is not listed twice."""
    shares: dict[str, dict[str, float]] = {}
    web: dict[str, str] = {}
    for mixture, parts in mixtures.items():
        total = sum(parts.values()) or 1.0
        for source, share in parts.items():
            name = f"{kind_of(source)} share"
            shares.setdefault(name, dict.fromkeys(mixtures, 0.0))[mixture] += share / total
        sources = [source for source, share in parts.items() if kind_of(source) == "web" and share > 0]
        if len(sources) == 1:
            web[mixture] = sources[0]
    return Mixtures(shares, web if len(set(web.values())) > 1 and len(web) == len(mixtures) else {})


def read_study(where: str) -> Mixtures:
    """The mixtures of a study file, or of a shipped study by its name."""
    from importlib.resources import files

    path = Path(where)
    if not path.is_file():
        shipped = Path(str(files("evalengine.studies"))) / f"{where}.yaml"
        if not shipped.is_file():
            raise UserError(f"there is no study file {where}: --study takes a YAML file with `mixtures:`")
        path = shipped
    raw: Any = read_yaml(path)
    try:
        mixtures = {
            str(name): {str(source): float(share) for source, share in parts.items()}
            for name, parts in raw["mixtures"].items()
        }
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError):
        raise UserError(
            f"{path} has no readable `mixtures:` of sources and shares: give a study file"
        ) from None
    return from_sources(mixtures)


def imported_mixtures(source: Path | str) -> Mixtures | None:
    """The shares that an imported table of results carries; None for a score store or a table without
    them."""
    from evalengine import sealed

    source = Path(source)
    path = source if source.suffix == ".arrow" else source / RESULTS_FILE
    if not path.is_file():
        return None
    try:
        raw = (sealed.read(path).schema.metadata or {}).get(b"shares")
        shares = parse_json(raw) if raw else {}
        checked = {
            str(name): {mixture: float(share) for mixture, share in by_mixture.items()}
            for name, by_mixture in shares.items()
        }
    except (sealed.Damaged, OSError, ValueError, TypeError, AttributeError, OverflowError):
        raise UserError(f"{path} is damaged: import the results again") from None
    return Mixtures(checked, {}) if checked else None


def share_effects(data: Data, quantity: str, mixtures: Mixtures) -> Group | None:
    """corr over mixtures of a benchmark's value with each share, at both stages."""
    panel = data.panel
    shares = {
        name: np.array([by_mixture.get(m, np.nan) for m in panel.mixtures])
        for name, by_mixture in mixtures.shares.items()
    }
    shares = {name: x for name, x in shares.items() if np.isfinite(x).sum() >= 4 and np.nanstd(x) > 1e-12}
    if not shares:
        return None
    B, V = len(panel.benchmarks), 2 * len(panel.benchmarks)
    pairs = np.array([(v, V + k) for k in range(len(shares)) for v in range(V)])
    labels = [
        Label(panel.categories[v % B], panel.benchmarks[v % B], f"{panel.stages[v // B]}: {name}")
        for name in shares
        for v in range(V)
    ]
    values, n, notes = {}, {}, {}
    for scale in panel.scales:
        x_VMC, w_MC = data.sample(quantity, scale).x_VMC, data.sample(quantity, scale).w_MC
        extra = np.stack(list(shares.values()))[:, :, None]
        extra = np.broadcast_to(extra, (len(shares), *x_VMC.shape[1:]))
        joined = np.concatenate([x_VMC, extra])
        values[scale] = data.reportable(correlate(Sample(joined, w_MC), pairs, data.statistic))
        known = np.isfinite(joined[:, :, 0])
        n[scale] = (known[pairs[:, 0]] & known[pairs[:, 1]]).sum(axis=1)
        values[scale][n[scale] < 4] = np.nan
        few, flat = "fewer than 4 mixtures have a value", f"{quantity} hardly varies over the mixtures: no r"
        notes[scale] = [
            "" if np.isfinite(value) else few if count < 4 else flat
            for value, count in zip(values[scale][:, 0], n[scale], strict=True)
        ]
    return Group("mixture_effect", quantity, labels, values, n, notes, data.statistic == "pearson")


def web_source_differences(panel: Panel, quantity: str, mixtures: Mixtures, level: float) -> list[Row]:
    """Differences between web sources in a benchmark's value, in its own unit, with t intervals.

    Model: value = web source + code share (as a factor) + error, least squares over mixtures. In a balanced factorial
    the difference is the plain difference of means; the error has n - sources - proportions + 1 degrees of freedom.
    """
    if not mixtures.web_source or any(m not in mixtures.web_source for m in panel.mixtures):
        return []
    source = [mixtures.web_source[m] for m in panel.mixtures]
    levels = list(dict.fromkeys(source))
    code = mixtures.shares.get("code share", {})
    design = _design(source, levels, [f"{code.get(m, 0.0):.6f}" for m in panel.mixtures])
    rows = []
    for (s, scale), (t, stage), (b, benchmark) in itertools.product(
        enumerate(panel.scales), enumerate(panel.stages), enumerate(panel.benchmarks)
    ):
        y = panel.values[quantity][s, t, :, b]
        keep = np.isfinite(y)
        if {source[m] for m in np.flatnonzero(keep)} != set(levels):
            continue
        for i, j, estimate, half, freedom in _contrasts(design[keep], y[keep], len(levels), level):
            label = Label(panel.categories[b], benchmark, f"{stage}: {levels[j]} - {levels[i]}")
            known = {"low": estimate - half, "high": estimate + half, "n": int(keep.sum())}
            note = f"t interval, {freedom} degrees of freedom"
            rows.append(plain_row("web_source", quantity, scale, label, estimate, **known, note=note))
    return rows


def _contrasts(
    design: Array, y: Array, levels: int, level: float
) -> Iterator[tuple[int, int, float, float, int]]:
    """Each pair i < j of the first `levels` coefficients: their difference j - i, its half interval, the freedom."""
    from scipy.special import stdtrit

    freedom = len(y) - int(np.linalg.matrix_rank(design))
    if freedom < 1:
        return
    inverse = np.linalg.pinv(design)
    coefficient = inverse @ y
    residual = y - design @ coefficient
    covariance = inverse @ inverse.T * (residual @ residual / freedom)
    width = float(stdtrit(freedom, 0.5 + level / 2.0))
    for i, j in itertools.combinations(range(levels), 2):
        contrast = np.zeros(design.shape[1])
        contrast[[i, j]] = -1.0, 1.0
        variance = float(contrast @ covariance @ contrast)
        yield i, j, float(contrast @ coefficient), width * math.sqrt(max(variance, 0.0)), freedom


def _design(source: Sequence[str], levels: Sequence[str], second: Sequence[str]) -> Array:
    """Columns: one per web source (no intercept), then the proportions but the first."""
    others = list(dict.fromkeys(second))[1:]
    return np.array(
        [
            [float(s == level) for level in levels] + [float(p == o) for o in others]
            for s, p in zip(source, second, strict=True)
        ]
    )
