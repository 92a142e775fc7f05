"""The figures of the study as PNG and PDF, for papers: the same numbers as the report, drawn by matplotlib.

Cost: some seconds, most of it in saving.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from evalengine.analysis.figure import Curves, Figure, Heatmaps, Intervals
from evalengine.analysis.page import short
from evalengine.analysis.registry import PROTOCOLS
from evalengine.analysis.results import Results, excludes_zero, load_results
from evalengine.analysis.tables import Row
from evalengine.errors import UserError
from evalengine.files import atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

COLOURS = ("#0072b2", "#d55e00", "#00795a", "#a34f85")  # Okabe & Ito, told apart by all common colour visions
DIVERGING = ("#d9730d", "#ffffff", "#0b6bb0")
FORMATS = ("png", "pdf", "svg")


def write_figures(tables: Path, folder: Path, formats: Sequence[str] = ("png", "pdf")) -> list[Path]:
    """Writes every figure that the tables allow; returns the paths. Raises UserError without matplotlib."""
    unknown = [f for f in formats if f not in FORMATS]
    if unknown:
        raise UserError(f"--figures {','.join(unknown)}: choose from {', '.join(FORMATS)}, or none")
    try:
        import matplotlib
    except ImportError:
        raise UserError(
            "figures need matplotlib: pip install 'evalengine[report]', or leave them out with --figures none"
        ) from None
    matplotlib.use("Agg")
    results = load_results(tables)
    folder.mkdir(parents=True, exist_ok=True)
    style: dict[Any, Any] = {
        "font.size": 8,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "pdf.fonttype": 42,
    }
    written = []
    figures = {name: figure for protocol in PROTOCOLS for name, figure in protocol.figures(results).items()}
    import matplotlib.pyplot as plt

    with plt.rc_context(style):
        for name, described in figures.items():
            figure = draw(results, described)
            if figure is None:
                continue
            for kind in formats:
                path = folder / f"{name}.{kind}"
                metadata = {"png": {"Software": None}, "pdf": {"CreationDate": None}, "svg": {"Date": None}}[
                    kind
                ]
                with atomic(path) as temporary:
                    figure.savefig(temporary, format=kind, dpi=160, bbox_inches="tight", metadata=metadata)
                written.append(path)
            plt.close(figure)
    return written


def draw(results: Results, described: Figure) -> Drawing | None:
    """One figure; None where it has no data."""
    if isinstance(described, Intervals):
        return _intervals(results, described)
    return _heatmaps(results, described) if isinstance(described, Heatmaps) else _curves(results, described)


def _intervals(results: Results, described: Intervals) -> Drawing | None:
    """Bars with intervals, a colour per scale."""
    import matplotlib.pyplot as plt

    label, panel_of = described.label, described.panel
    rows = [r for r in described.shown if math.isfinite(r.estimate)]
    if not rows:
        return None
    panels = list(dict.fromkeys(map(panel_of, rows)))
    labels = list(dict.fromkeys(map(label, rows)))
    count = len(results.scales)
    height = 0.9 + 0.2 * len(labels) * max(1.0, 0.7 * count)
    figure, axes = plt.subplots(
        1, len(panels), figsize=(1.6 + 3.1 * len(panels), height), sharey=True, squeeze=False
    )
    for panel, axis in zip(panels, axes[0], strict=True):
        for s, scale in enumerate(results.scales):
            mine = {label(r): r for r in rows if r.scale == scale and panel_of(r) == panel}
            _bars(axis, mine, labels, s, count)
        axis.axvline(0, color="#555", lw=0.7, ls=":")
        low, high = described.axis
        axis.set_xlim(1.02 * low, 1.02 * high)
        axis.set_xticks(np.linspace(low, high, 5))
        axis.set_xlabel("r")
        axis.set_title(panel)
    axes[0][0].set_yticks(range(len(labels)), [short(text) for text in labels])
    axes[0][0].set_ylim(len(labels) - 0.4, -0.6)
    if count > 1:
        handles = [
            plt.Line2D([], [], color=COLOURS[s % 4], lw=5, label=scale)
            for s, scale in enumerate(results.scales)
        ]
        figure.legend(
            handles=handles, loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=count, frameon=False
        )
    n = sorted({r.n for r in rows})
    counts = f"n = {n[0]}" if len(n) == 1 else f"n = {n[0]} to {n[-1]}"
    words = f"{results.method['level']:.0%} intervals, {counts} mixtures"
    figure.text(0.99, -0.01, words, ha="right", va="top", size=7)
    figure.tight_layout()
    return figure


def _bars(axis: Axes, rows: dict[str, Row], labels: Sequence[str], s: int, count: int) -> None:
    step = 0.8 / count
    for k, text in enumerate(labels):
        row = rows.get(text)
        if row is None:
            continue
        y = k + (s - (count - 1) / 2) * step
        axis.barh(y, row.estimate, height=0.8 * step, color=COLOURS[s % 4], alpha=0.35)
        axis.plot([row.estimate], [y], "o", ms=2.6, color=COLOURS[s % 4])
        if math.isfinite(row.low):
            axis.plot([row.low, row.high], [y, y], color="#222", lw=0.9)


def _heatmaps(results: Results, described: Heatmaps) -> Drawing | None:
    """Heatmaps of r with category blocks, a panel per quantity and scale; dots mark intervals that exclude 0."""
    import matplotlib.pyplot as plt
    from matplotlib.colors import LinearSegmentedColormap

    benchmarks = list(results.method["benchmarks"])
    index = {name: b for b, name in enumerate(benchmarks)}
    B = len(benchmarks)
    quantities, scales = results.method["quantities"], results.scales
    if not results.rows("matrices", protocol=described.protocol):
        return None
    colours = LinearSegmentedColormap.from_list("r", DIVERGING).with_extremes(bad="#dddddd")
    side = 1.3 + 0.17 * B
    shape = (len(quantities), len(scales))
    size = (side * shape[1] + 0.6, side * shape[0])
    figure, axes = plt.subplots(*shape, figsize=size, squeeze=False, layout="constrained")
    image: Any = None
    for (q, s), axis in np.ndenumerate(axes):
        grid = np.full((B, B), np.nan)
        for row in results.rows(
            "matrices", protocol=described.protocol, quantity=quantities[q], scale=scales[s]
        ):
            places = [(index[row.name], index[row.other])]
            if described.triangle:
                places.append(places[0][::-1])
            for i, j in places:
                grid[i, j] = row.estimate
                if excludes_zero(row):
                    axis.plot(j, i, "o", ms=2.4, mfc="none", mec="#111", mew=0.7)
        image = axis.imshow(grid, cmap=colours, vmin=-1, vmax=1, interpolation="nearest")
        axis.set_title(f"{quantities[q]}, {scales[s]}" if len(scales) > 1 else quantities[q])
        axis.set_xticks(range(B), [short(b) for b in benchmarks], rotation=90)
        axis.set_yticks(range(B), [short(b) for b in benchmarks])
        axis.tick_params(length=0, labelsize=6.5)
        axis.set_xlabel(described.column_title)
        axis.set_ylabel(described.row_title)
        for edge in _edges(results.method["categories"]):
            axis.axhline(edge - 0.5, color="#222", lw=0.7)
            axis.axvline(edge - 0.5, color="#222", lw=0.7)
    figure.colorbar(image, ax=axes, shrink=0.5, label="r")
    return figure


def _edges(categories: Sequence[str]) -> list[int]:
    return [b for b in range(1, len(categories)) if categories[b] != categories[b - 1]]


def _curves(results: Results, described: Curves) -> Drawing | None:
    """Accuracy against confidence, an axis per benchmark, a line per stage."""
    import matplotlib.pyplot as plt

    scale, stages = described.scale, results.method["stages"]
    names = [
        b for b in results.method["benchmarks"] if any(results.curve(scale, stage, b) for stage in stages)
    ]
    if not names:
        return None
    columns = min(5, len(names))
    rows = math.ceil(len(names) / columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(1.55 * columns, 1.6 * rows), sharex=True, sharey=True, squeeze=False
    )
    for axis in axes.flat[len(names) :]:
        axis.axis("off")
    for name, axis in zip(names, axes.flat, strict=False):
        axis.plot([0, 1], [0, 1], color="#888", lw=0.7, ls="--")
        for t, stage in enumerate(stages):
            mine = results.curve(scale, stage, name)
            x, y = ([c[key] for c in mine] for key in ("confidence", "accuracy"))
            axis.plot(x, y, color=COLOURS[2 + t], lw=1.2, label=stage)
            low, high = ([c[key] for c in mine] for key in ("low", "high"))
            axis.vlines(x, low, high, color=COLOURS[2 + t], lw=0.6, alpha=0.5)
        axis.set(xlim=(0, 1), ylim=(0, 1), title=short(name))
    axes[0][0].legend(frameon=False, fontsize=6.5)
    figure.supxlabel(f"confidence, {scale}")
    figure.supylabel("accuracy")
    figure.tight_layout()
    return figure
