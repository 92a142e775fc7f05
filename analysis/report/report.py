"""The report: one HTML file that stands alone, and its figures as files for papers.

Styles and drawings are inside the page, and there is no script; a content-security policy forbids it to run or load
anything. Every text from outside (names of mixtures, benchmarks, notes) is escaped.

Cost: 2 MB and some seconds of drawing at 20 benchmarks and two scales.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from importlib import resources
from pathlib import Path

from evalengine.analysis.claims import CAUTION, HEADINGS, SUPPORTED, UNSUPPORTED
from evalengine.analysis.data.items import names
from evalengine.analysis.estimates.tables import Row
from evalengine.analysis.explain import findings
from evalengine.analysis.explain.explainer import Findings
from evalengine.analysis.explain.registry import EXPLAINERS
from evalengine.analysis.figure import File, Part, Table, files, panels
from evalengine.analysis.protocols.registry import PROTOCOLS
from evalengine.analysis.report import latex, levels
from evalengine.analysis.report.drawing import draw
from evalengine.analysis.report.page import html
from evalengine.analysis.report.style import FORMATS, extent, styled
from evalengine.analysis.report.summary import noise_section, summarise
from evalengine.analysis.results import Method, Results, interval_words, load_results
from evalengine.analysis.statistics.bootstrap import DEGENERATE_MOST
from evalengine.errors import UserError
from evalengine.files import atomic, write

EQUALS = "\u00a0=\u00a0"  # a line does not break within "n = 9"
DEGENERATE_SAID = 1e-3  # share of undefined resamples above which they are spoken of
RECORD = ".written"  # in figures/ and tables/: the names of the files there that the last report wrote
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def write_report(tables: Path, folder: Path) -> Path:
    """Writes `folder`/report.html from the tables that `correlate` wrote; returns its path. Raises UserError without
    matplotlib."""
    results, explained = load_both(tables)
    path = folder / "report.html"
    with atomic(path) as temporary:
        try:
            text = page(results, explained)
        except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError):
            if os.environ.get("EVALENGINE_DEBUG"):
                raise
            raise UserError(
                f"{tables} holds tables that do not fit each other: run `evalengine correlate STORE --out {tables}` again"
            ) from None
        temporary.write_text(text, encoding="utf-8", newline="")
    return path


def write_figures(tables: Path, folder: Path, formats: Sequence[str] = ("png", "pdf")) -> list[Path]:
    """Writes every figure that the tables allow, in place of those of an earlier report; returns the paths. Raises UserError
    without matplotlib."""
    if unknown := [kind for kind in formats if kind not in FORMATS]:
        raise UserError(f"--figures {','.join(unknown)}: choose from {', '.join(FORMATS)}, or none")
    written = []
    with styled():
        for method, file in _files(*load_both(tables)):
            if isinstance(file.of, Table) or not panels(file.of):
                continue
            drawing = draw(method, file.of, notes=True)
            box = extent(drawing)
            for kind in formats:
                path = folder / f"{file.name}.{kind}"
                with atomic(path) as temporary:
                    drawing.savefig(temporary, format=kind, bbox_inches=box, metadata=FORMATS[kind])
                written.append(path)
    _replace(folder, written)
    return written


def write_latex(tables: Path, folder: Path) -> list[Path]:
    """Writes the tables of the report as `folder`/NAME.tex, in place of those of an earlier one; returns the paths."""
    paths = []
    for _, file in _files(*load_both(tables)):
        if isinstance(file.of, Table) and any(file.of.blocks):
            paths.append(folder / f"{file.name}.tex")
            write(paths[-1], latex.tabular(file.of))
    _replace(folder, paths)
    return paths


def _replace(folder: Path, written: Sequence[Path]) -> None:
    """Removes what an earlier report wrote into a folder and this one did not; files of others stay."""
    record, names_ = folder / RECORD, [path.name for path in written]
    earlier = record.read_text(encoding="utf-8", errors="replace").splitlines() if record.is_file() else []
    for name in set(earlier) - {*names_}:
        if Path(name).name == name and (folder / name).is_file():
            (folder / name).unlink()
    if names_ or earlier:
        write(record, "\n".join(names_))


def _files(results: Results, explained: Findings | None) -> Iterator[tuple[Method, File]]:
    """Tables and figures for papers, each with how the study was made that it is about."""
    for method, parts in shown(results, explained):
        yield from ((method, file) for file in files(parts))


def shown(results: Results, explained: Findings | None) -> list[tuple[Method, list[Part]]]:
    """What the report shows of the correlations, and of what `explain` found, below what it says in plain words."""
    parts = list(levels.shown(results))
    for protocol in PROTOCOLS:
        parts += protocol.shown(results)
    out = [(results.method, parts)]
    if explained is not None:
        out.append((explained.method, [*differences(results, explained), *findings.shown(explained)]))
    return out


def load_both(tables: Path) -> tuple[Results, Findings | None]:
    """What `correlate` wrote and what `explain` wrote beside it. Raises UserError where these are of two studies."""
    results, explained = load_results(tables), findings.load(tables)
    if explained is None:
        return results, None
    one, other = results.method, explained.method
    again, or_delete = f"run `evalengine explain STORE --out {tables}", "or delete explain.json"
    if one["stages"] != other["stages"]:
        correlated, explained_ = (" to ".join(method["stages"]) for method in (one, other))
        raise UserError(
            f"{tables} holds correlations of {correlated} and explanations of {explained_}: {again} --stages "
            f"{','.join(one['stages'])}`, {or_delete}"
        )
    kept = [k for k, name in enumerate(one["benchmarks"]) if name not in other["left_out"]]
    benchmarks = [one["benchmarks"][k] for k in kept]
    # Imported results state neither items nor scores of their own.
    items, metrics = (
        [one[key][k] for k in kept] if one["metrics"] else other[theirs]
        for key, theirs in (("items", "scored"), ("metrics", "metrics"))
    )
    if (
        (benchmarks, items) != (other["benchmarks"], other["scored"])
        or not set(one["scales"]) <= set(other["scales"])
        or not set(one["mixtures"]) <= set(other["mixtures"])
    ):
        raise UserError(
            f"{tables} holds tables of two studies: {again}` on the store of the correlations, {or_delete}"
        )
    scores = zip(benchmarks, metrics, other["metrics"], strict=True)
    if differ := [f"{name} ({mine}, {theirs})" for name, mine, theirs in scores if mine != theirs]:
        raise UserError(
            f"{tables} holds correlations and explanations by different scores of {names(differ)}: {again}` with the --metric of "
            f"the correlations, {or_delete}"
        )
    return results, explained


def differences(results: Results, explained: Findings) -> list[str]:
    """Sentences on how `correlate` and `explain` were run otherwise, on what is one study."""
    said = []
    levels = [f"{of.method['level']:.4g}" for of in (results, explained)]
    if levels[0] != levels[1]:
        said.append(
            f"The intervals of `evalengine explain` have the level {levels[1]}, those of `evalengine correlate` {levels[0]}."
        )
    factors = [results.method["block"].get("factor", ""), explained.method["block"]]
    if factors[0] != factors[1]:
        how = [
            f"compares mixtures within {factor}" if factor else "takes all mixtures as exchangeable"
            for factor in factors
        ]
        said.append(f"`evalengine correlate` {how[0]}, `evalengine explain` {how[1]}.")
    return said


def page(results: Results, explained: Findings | None = None) -> str:
    """The whole document."""
    before, after = results.method["stages"]
    title = f"What carries over from {before} to {after}"
    with styled():
        sections = [html(parts, method) for method, parts in shown(results, explained)]
    css = (resources.files("evalengine.analysis.report") / "report.css").read_text(encoding="utf-8")
    body = "".join(
        [
            _head(results, title),
            noise_section(results),
            _in_plain_words(results, explained),
            *sections,
            _method(results),
        ]
    )
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f"<style>{css}</style></head><body>{body}</body></html>\n"
    )


def _head(results: Results, title: str) -> str:
    method = results.method
    items = sum(method["items"])
    parts = [
        f"{len(method['mixtures'])} mixtures",
        f"{len(method['scales'])} scale{'s' if len(method['scales']) > 1 else ''} ({', '.join(method['scales'])})",
        f"{len(method['benchmarks'])} benchmarks in {len(results.categories)} "
        + ("categories" if len(results.categories) > 1 else "category"),
    ] + ([f"{items:,} items"] if items else [])
    return f'<h1>{escape(title)}</h1><p class="lead">{escape(" · ".join(parts))}</p>'


def _in_plain_words(results: Results, explained: Findings | None) -> str:
    claims = () if explained is None else [c for one in EXPLAINERS for c in one.claims(explained)]
    found = summarise(results, claims)

    def block(title: str, lines: Sequence[str], empty: str) -> str:
        points = (
            "".join(f"<li>{escape(line).replace(' = ', EQUALS)}</li>" for line in lines)
            or f"<li>{escape(empty)}</li>"
        )
        return f"<div><h3>{escape(title)}</h3><ul>{points}</ul></div>"

    return (
        "<h2>In plain words</h2>"
        '<div class="says">'
        + block(HEADINGS[SUPPORTED], found[SUPPORTED], "Nothing whose interval excludes the opposite.")
        + block(HEADINGS[UNSUPPORTED], found[UNSUPPORTED], "Nothing was left open.")
        + "</div>"
        + block(HEADINGS[CAUTION], found[CAUTION], "").replace("<div>", '<div class="cautions">')
    )


def undefined_words(rows: Iterable[Row]) -> str:
    """What is said once of the resamples in which reported statistics are undefined; "" where there are none to speak of."""
    found = [r.degenerate for r in rows if math.isfinite(r.estimate) and r.degenerate > DEGENERATE_SAID]
    if not found:
        return ""
    return (
        f"{len(found):,} statistics are undefined in {DEGENERATE_SAID:.1%} to {max(found):.1%} of the resamples, which are left"
        f" out for them (column degenerate of the tables). What is undefined in more than {DEGENERATE_MOST:.0%} is not reported."
    )


def _method(results: Results) -> str:
    m = results.method
    orders = f"orders: {m['permutations']}"
    if block := m["block"]:
        orders = f"permuted within {block['factor']}: {block['permutations']}"
    lines = [
        f"Statistic: {m['statistic']}; {interval_words(results)} ({m['resampling']}), resampled: {m['resampled']}"
        + (f", seed {m['seed']}" if m["seed"] is not None else "")
        + ".",
        f"p-values: two-sided permutation tests over mixtures ({orders}), adjusted by Benjamini-Hochberg.",
        f"Mixtures: {', '.join(m['mixtures'][:40])}{' and more' if len(m['mixtures']) > 40 else ''}.",
    ]
    if m["metrics"]:
        scores = [f"{b} {s}" for b, s in zip(m["benchmarks"], m["metrics"], strict=True)]
        lines.append(f"Scores: {', '.join(scores)}.")
    if undefined := undefined_words(row for rows in results.tables.values() for row in rows):
        lines.append(undefined)
    lines.append(f"evalengine {m['evalengine']}. All tables are beside this file as csv, arrow and json.")
    return "<h2>Method</h2><ul>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>"
