"""A store explained: every explainer's table, written into a folder and read back from it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from evalengine.analysis.data.items import names
from evalengine.analysis.explain import exposed
from evalengine.analysis.explain.choices import StoreScores, read_choices, read_formats
from evalengine.analysis.explain.corners import in_order
from evalengine.analysis.explain.design import Design, design_of
from evalengine.analysis.explain.explainer import ExplainOptions, Findings, StudyScores
from evalengine.analysis.explain.registry import EXPLAINERS
from evalengine.analysis.figure import Part, by
from evalengine.analysis.together import read_together, write_together
from evalengine.errors import UserError

MANIFEST = "explain.json"
TABLES_VERSION = "4"  # of the columns of all explainers and of explain.json
CORRELATED = 4  # mixtures that `correlate` needs


def explain(
    store: Path | str,
    options: ExplainOptions,
    stages: Sequence[str] | None = None,
    metric: str | None = None,
    formats: Path | None = None,
) -> Findings:
    """Reads a score store and runs every explainer. `stages` and `metric` as of `correlate`; `formats`: where what
    `score --formats` stored lies, if not in the store's folder of that name. Raises UserError."""
    if not 0.5 <= options.level < 1.0:
        raise UserError(f"--level {options.level} must lie between 0.5 and 1, such as 0.95")
    if options.seed < 0:
        raise UserError(f"--seed {options.seed} must be 0 or more")
    if options.data is not None:
        from evalengine.benchmarks import check_folder

        check_folder(options.data)
    scores = read_choices(store, metric)
    in_formats = read_formats(formats or Path(store) / "formats", metric)
    study = StudyScores(scores, design_of(scores, stages), options, in_formats)
    tables = {explainer.table: explainer.rows(study) for explainer in EXPLAINERS}
    lacking = {
        one.title: one.lacks(study) for one in EXPLAINERS if one.title and not one.opens(tables[one.table])
    }
    return Findings({**describe(study), "not_shown": lacking}, tables)


def not_shown(findings: Findings) -> str:
    """Which sections are not in the report and what the study lacks for them, in a sentence; "" where all are."""
    lacking: dict[str, str] = findings.method["not_shown"]
    parts = [
        f"{', '.join(titles)} (needs {why})" for why, titles in by(list(lacking), lacking.__getitem__).items()
    ]
    return f"Not shown: {'; '.join(parts)}." if parts else ""


def no_report(findings: Findings) -> str:
    """Why no report shows these tables, in a sentence; "" where one does."""
    most = max(findings.method["paired"].values())
    if most >= CORRELATED:
        return ""
    return (
        f"No report shows these tables: it is built on those of `evalengine correlate`, which needs {CORRELATED} mixtures with "
        f"both stages at one scale, and the most here is {most}."
    )


def shown(findings: Findings) -> list[Part]:
    """The explainers' part of the report: at its end what they leave out."""
    said = [*(f"{note[0].upper()}{note[1:]}." for note in findings.method["notes"]), not_shown(findings)]
    return [*(part for one in EXPLAINERS for part in one.section(findings)), *filter(None, said)]


def describe(study: StudyScores) -> dict[str, Any]:
    """What explain.json says: the design, and what was left out."""
    from evalengine import __version__

    scores, design, options = study.scores, study.design, study.options
    in_formats = study.formats.benchmarks if study.formats else ()
    return {
        "evalengine": __version__,
        "tables_version": TABLES_VERSION,
        "scales": design.scales,
        "stages": design.stages,
        "mixtures": design.mixtures,
        "paired": design.paired,
        "benchmarks": [one.name for one in scores.benchmarks],
        "categories": [one.category for one in scores.benchmarks],
        "metrics": [one.metric for one in scores.benchmarks],
        "items": [len(one.item_I) for one in scores.benchmarks],
        "scored": [scores.scored[one.name] for one in scores.benchmarks],
        "left_out": sorted(scores.scored.keys() - {one.name for one in scores.benchmarks}),
        "emulated": sorted({one.beta for one in scores.emulated.values()}),
        "level": options.level,
        "seed": options.seed,
        "data": options.data is not None,
        "exposure": options.exposure is not None,
        "exposure_wording": exposed.wording(study),
        "block": study.blocks.factor if study.blocks else "",
        "formats": dict(in_formats[0].formats) if in_formats else {},
        "cue": in_formats[0].cue if in_formats else "",
        "notes": [
            *scores.notes,
            *design.notes,
            *within_blocks(study),
            *_lacking(scores, design),
            *unordered(design.scales),
            *exposed.notes(study),
            *unchecked(study),
            *(study.formats.notes if study.formats else ()),
        ],
    }


def within_blocks(study: StudyScores) -> list[str]:
    """Says what is compared within blocks, and what is not."""
    if study.blocks is None:
        return []
    labels = ", ".join(dict.fromkeys(study.blocks.labels))
    return [
        f"the tables that rank mixtures (proxies, eft_decisions) compare them within {study.blocks.factor} ({labels}) alone:"
        " pairs are of one, and r is taken after subtracting the mean of each; all other tables take mixtures as exchangeable"
    ]


def unchecked(study: StudyScores) -> list[str]:
    """Names the benchmarks of which nobody can tell whether the folders that were given hold the rows that were scored."""
    folders = {"--data": study.options.data, "--exposure": study.options.exposure}
    given = " and ".join(option for option, folder in folders.items() if folder is not None)
    unknown = [one.name for one in study.scores.benchmarks if not one.data_hash]
    if not given or not unknown:
        return []
    return [
        f"{names(unknown, 12)}: the scores carry no hash of their rows alone, so it is not checked that {given} holds the same "
        "rows (few-shot scores of an earlier version get one when the same `evalengine score` is run again)"
    ]


def _lacking(scores: StoreScores, design: Design) -> Iterator[str]:
    """Names the benchmarks that some checkpoint of a scale lacks: no mean of all its mixtures holds them."""
    for scale in design.scales:
        checkpoints = [*design.names(scale, after=False), *design.names(scale, after=True)]
        if lost := [one.name for one in scores.benchmarks if not set(checkpoints) <= set(one.checkpoints)]:
            yield f"scale {scale}: {names(lost, 12)} not on every checkpoint, left out where those that lack them take part"


def unordered(scales: Sequence[str]) -> list[str]:
    """Says why emulation is not looked at where nobody can tell which scale is the larger one."""
    if len(scales) < 2 or in_order(scales[0], scales[-1]):
        return []
    return [
        f"scales {', '.join(scales)} do not say their sizes, so emulation between them is left out: name them 1M, 7B"
    ]


def write(findings: Findings, folder: Path) -> None:
    """Writes every table as csv, arrow and json, and explain.json, together."""
    tables = {one.table: (one.row._fields, findings.tables[one.table]) for one in EXPLAINERS}
    write_together(folder, MANIFEST, {**findings.method, "tables": list(tables)}, tables)


def load(folder: Path) -> Findings | None:
    """What `write` wrote, None where a folder holds no explain.json. Raises UserError for damaged tables."""
    if not (folder / MANIFEST).exists():
        return None
    command = f"evalengine explain STORE --out {folder}"
    rows = {one.table: one.row for one in EXPLAINERS}
    method, tables, _ = read_together(folder, MANIFEST, TABLES_VERSION, command, rows.__getitem__)
    return Findings(method, tables)
