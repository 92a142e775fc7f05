"""Counts a study's items in its sources, or in files, and writes exposure.arrow."""

from __future__ import annotations

import glob
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from evalengine import console, files
from evalengine.benchmarks import ItemSet, held, load_items, resolve
from evalengine.errors import UserError
from evalengine.training import prepare
from evalengine.training.data import shards, sources
from evalengine.training.exposure import table
from evalengine.training.exposure.counting import Source, SourceCounts, count
from evalengine.training.exposure.grams import LEAST, MOST, Items, K, gather
from evalengine.training.exposure.ngrams import compile_kernels
from evalengine.training.exposure.table import (
    KINDS,
    NUMBERS,
    Coded,
    Exposure,
    ExposureAbout,
    SourceSize,
    coded,
)
from evalengine.training.study import SourceSpec, Study, used_sources
from evalengine.untrusted import check_name

MB = 1e6


class Corpus(NamedTuple):
    """What is read, and the design it belongs to."""

    sources: list[Source]
    tokens: Mapping[str, int]  # of sources whose token shards are there
    data: Path | None  # folder of the benchmarks
    mixtures: Mapping[str, Mapping[str, float]]
    scales: Mapping[str, int]  # pretraining tokens


class Done(NamedTuple):
    exposure: Exposure
    rates: Mapping[str, float]  # bytes a second of this run; 0 where there was nothing left


def of_study(study: Study, data: Path | None, out: Path, ckpts: Path) -> Corpus:
    """The sources that some mixture uses; a hub source as far as the trainer reads it."""
    used = used_sources(study)
    prepare.check_data(study, data, used)
    data = prepare.data_of(study, data, _work(out))
    found, tokens = [], {}
    for name in used:
        spec = study.sources[name]
        folder = prepare.work_folder(ckpts) / "tokens"
        own = glob.escape(f"{name}-{sources.source_key(spec, data, name)}")
        made = sorted(folder.glob(f"{own}-*/done.json"))
        documents = 0
        if len(made) == 1:  # several: of different tokenizers
            tokens[name], documents = shards.extent(made[0].parent)
        need = 0 if documents else prepare.tokens_needed(study, name) * prepare.BYTES_PER_TOKEN
        found.append(Source(name, spec, data, *((documents, need) if spec.hub else ())))
    scales = {name: scale.pretrain.tokens for name, scale in study.scales.items()}
    return Corpus(found, tokens, data, study.mixtures, scales)


def of_files(given: Sequence[str], field: str, data: Path | None) -> Corpus:
    """Sources from NAME=PATH."""
    found: dict[str, Source] = {}
    for text in given:
        name, _, path = text.partition("=")
        if not name or not path:
            raise UserError(f"--source {text}: write it as NAME=PATH, such as web=corpora/web.txt")
        check_name(name, "source")
        if name in found:
            raise UserError(f"--source names {name} twice: give each a name of its own")
        found[name] = Source(name, SourceSpec(path=str(Path(path).resolve()), field=field), Path())
        sources.check(found[name].spec, found[name].data, name)
    return Corpus(list(found.values()), {}, data, {}, {})


def load_sets(data: Path | None, names: str, limit: int | None, seed: int) -> list[ItemSet]:
    """The benchmarks to look for; of `all`, those that the data folder holds."""
    chosen = resolve(names)
    if data is not None and names == "all":
        chosen = held(data, chosen)
    return [load_items(benchmark, data, limit=limit, seed=seed) for benchmark in chosen]


def run(corpus: Corpus, sets: Sequence[ItemSet], out: Path, jobs: int = 0) -> Done:
    """Counts what is left, in `jobs` threads (0: one a core), and writes OUT/exposure.arrow."""
    console.say("loading the counting kernels; the first run compiles them")
    compile_kernels()
    with prepare.locked(_work(out), f"counting into {out}"):
        items = gather([item for some in sets for item in some.items])
        total = sum(_bytes(source, corpus.tokens) for source in corpus.sources)
        counts: dict[str, SourceCounts] = {}
        rates: dict[str, float] = {}
        with console.progress("counting", total / MB, "MB") as line:
            for source in corpus.sources:
                line.describe(f"counting {source.name}")
                started, added = time.monotonic(), list[int]()

                def on_bytes(some: int, added: list[int] = added, started: float = started) -> None:
                    added.append(some)
                    rate = sum(added[1:]) / MB / max(time.monotonic() - started, 1e-9)
                    line.update(some / MB, f"{rate:.1f} MB/s")

                counts[source.name] = count(source, items, _work(out), jobs or files.cores(), on_bytes)
                if not counts[source.name].read_3[0]:
                    raise UserError(f"source {source.name} holds no text: check its path and field")
                rates[source.name] = sum(added[1:]) / max(time.monotonic() - started, 1e-9)
        sizes = {name: _size(counted, corpus.tokens.get(name)) for name, counted in counts.items()}
        data = {some.benchmark: some.data_hash for some in sets}
        versions = {some.benchmark: some.version for some in sets}
        about = ExposureAbout(sizes, corpus.mixtures, corpus.scales, data, versions)
        exposure = tabulate(sets, items, counts, about)
        table.write(out / table.NAME, exposure)
    return Done(exposure, rates)


def _work(out: Path) -> Path:
    return out / ".counts"


def _bytes(source: Source, tokens: Mapping[str, int]) -> int:
    """Of the files, or about what is read of a hub source; for the progress line."""
    if source.spec.hub:
        return source.bytes or tokens[source.name] * prepare.BYTES_PER_TOKEN
    return sum(file.stat().st_size for file in sources.files(source.spec, source.data, source.name))


def _size(counts: SourceCounts, tokens: int | None) -> SourceSize:
    documents, words, size = map(int, counts.read_3)
    estimate = size // prepare.BYTES_PER_TOKEN
    return SourceSize(words, size, documents, estimate if tokens is None else tokens, tokens is None)


def tabulate(
    sets: Sequence[ItemSet], items: Items, counts: Mapping[str, SourceCounts], about: ExposureAbout
) -> Exposure:
    """All rows but those of a count of zero, source by source; `items` are those of the sets, one after another."""
    choices_I = np.array([len(item.continuations) for some in sets for item in some.items])
    item_C = np.repeat(np.arange(len(choices_I)), choices_I)
    choice_C = np.arange(len(item_C)) - np.repeat(np.cumsum(choices_I) - choices_I, choices_I)
    ids = [item.id for some in sets for item in some.items]
    names, name_I = coded(ids)  # two benchmarks may have items of the same id
    benchmark_I = np.repeat(np.arange(len(sets)), [len(some.items) for some in sets])

    columns: dict[str, list[np.ndarray]] = {name: [] for name in ("owner", "kind", "source", *NUMBERS)}
    for s, counted in enumerate(counts.values()):
        for k, kind in enumerate(KINDS):
            c, n, grams, count = _rows(kind, items, counted)
            kept = (count > 0) | (grams == 0)
            values = (item_C[c], np.full(len(c), k), np.full(len(c), s), choice_C[c], n, grams, count)
            for column, value in zip(columns.values(), values, strict=True):
                column.append(value[kept])
    row = {name: np.concatenate(parts) for name, parts in columns.items()}
    return Exposure(
        about,
        {some.benchmark: [item.id for item in some.items] for some in sets},
        Coded([some.benchmark for some in sets], benchmark_I[row["owner"]]),
        Coded(names, name_I[row["owner"]]),
        Coded(list(counts), row["source"]),
        Coded(list(KINDS), row["kind"]),
        *(row[name] for name in NUMBERS),
    )


def _rows(
    kind: str, items: Items, counts: SourceCounts
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(choice, n, grams, count) of every row that a kind may have."""
    C = len(items.own_C)
    every_C = np.arange(C)
    each, lengths = np.repeat(every_C, K), np.tile(np.arange(LEAST, MOST + 1), C)
    cross_CK = items.cross.sums(counts.count_G).reshape(C, K)
    grams_CK = np.diff(items.cross.start_R).reshape(C, K)
    of_context_CK = np.diff(items.of_context.start_R).reshape(-1, K)[items.grams.context_of_C]
    if kind == "cross":
        return each, lengths, grams_CK.reshape(-1), cross_CK.reshape(-1)
    if kind == "task":
        of_choice_CK = np.diff(items.of_choice.start_R).reshape(C, K)
        looked_CK = np.where(of_context_CK > 0, of_choice_CK, 0)
        return each, lengths, looked_CK.reshape(-1), counts.task_CK.reshape(-1)
    if kind == "context":
        own = np.repeat(items.own_C, K)
        count_CK = items.of_context.sums(counts.count_G).reshape(-1, K)[items.grams.context_of_C]
        return each[own], lengths[own], of_context_CK.reshape(-1)[own], count_CK.reshape(-1)[own]
    n_C = np.where(cross_CK > 0, np.arange(LEAST, MOST + 1), 0).max(axis=1)
    pick = (every_C, np.maximum(n_C - LEAST, 0))
    grams_C, count_C = grams_CK[pick], cross_CK[pick]
    for c in map(int, np.flatnonzero(counts.longest_C2[:, 0] > MOST)):
        n_C[c], count_C[c] = counts.longest_C2[c]
        grams_C[c] = _different(items, c, int(n_C[c]))
    return every_C, n_C, grams_C, count_C


def _different(items: Items, c: int, n: int) -> int:
    """How many different n-grams cross into choice c."""
    context, choice = items.grams.context, items.grams.choice
    x = items.grams.context_of_C[c]
    before = context.value[context.start_R[x] : context.start_R[x + 1]].tolist()
    after = choice.value[choice.start_R[c] : choice.start_R[c + 1]].tolist()
    word = before + after
    starts = range(max(0, len(before) - n + 1), min(len(before), len(word) - n + 1))
    return len({tuple(word[s : s + n]) for s in starts})


def items_held(exposure: Exposure) -> dict[str, dict[int, int]]:
    """Per benchmark and n, how many items have a crossing n-gram, of any choice, in some source."""
    cross = exposure.kind.names.index("cross")
    found = {}
    for b, name in enumerate(exposure.benchmark.names):
        mine = (exposure.benchmark.code_R == b) & (exposure.kind.code_R == cross) & (exposure.count_R > 0)
        found[name] = {
            n: len(np.unique(exposure.item.code_R[mine & (exposure.n_R == n)]))
            for n in range(LEAST, MOST + 1)
        }
    return found


def show(done: Done) -> None:
    """One table of the sources, one of the benchmarks."""
    about = done.exposure.about
    rows = []
    for name, size in about.sources.items():
        rate = f"{done.rates[name] / MB:.1f}" if done.rates[name] else ""
        rows.append([name, f"{size.bytes / MB:,.1f}", f"{size.documents:,}", f"{size.words:,}", rate])
    console.table("sources", ["source", "MB", "documents", "words", "MB/s"], rows)
    ns = range(LEAST, MOST + 1)
    rows = [
        [name, f"{len(done.exposure.items[name]):,}", *(f"{by_n[n]:,}" if by_n[n] else "" for n in ns)]
        for name, by_n in items_held(done.exposure).items()
    ]
    title = "items of which some source holds an n-gram that leads from the context into a choice"
    console.table(title, ["benchmark", "items", *(f"n={n}" for n in ns)], rows)
    guessed = [name for name, size in about.sources.items() if size.tokens_estimated]
    if about.mixtures and guessed:
        console.say(
            f"Tokens of {', '.join(guessed)} are estimated from bytes: name the trained study's folder with --ckpts"
        )
