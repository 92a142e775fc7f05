"""Doses from exposure files, and what a planted world says of them: the slope comes back, with its interval over mixtures."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import planted
import pytest
from planted_exposure import Row, write_for, write_similarity
from planted_exposure import write_exposure as write_rows

from evalengine import store
from evalengine.analysis.claims import CAUTION
from evalengine.analysis.estimates.groups import ALL
from evalengine.analysis.explain import dose_slopes as frequency
from evalengine.analysis.explain import doses, exposed
from evalengine.analysis.explain.choices import read_choices
from evalengine.analysis.explain.design import design_of
from evalengine.analysis.explain.explainer import ExplainOptions, StudyScores
from evalengine.analysis.explain.exposed import Dose
from evalengine.analysis.explain.findings import explain, not_shown
from evalengine.analysis.explain.frequency import OF_ITEMS, OF_SLOPE, bin_rows
from evalengine.analysis.explain.registry import EXPLAINERS
from evalengine.analysis.statistics.ranges import SHARE, shifted
from evalengine.errors import UserError
from evalengine.store import sealed
from evalengine.training.exposure import table

MIXTURES = tuple(f"v{v}p{p}" for v in (1, 2, 3) for p in (0, 1, 2))
SOURCES = ("web_a", "web_b", "web_c", "code")
SHARES = {
    m: {SOURCES[k // 3]: (0.65, 0.45, 0.25)[k % 3], "code": 1 - (0.65, 0.45, 0.25)[k % 3]}
    for k, m in enumerate(MIXTURES)
}
TOKENS = {"1B": 3000}
CATEGORIES = {"piqa": "Commonsense", "rte": "NLI"}
ABOUT = table.ExposureAbout(
    {s: table.SourceSize(900, 5000, 10, 1000, False) for s in SOURCES},
    SHARES,
    TOKENS,
    versions=dict.fromkeys(CATEGORIES, "1"),  # planted.metadata()
)


def write_exposure(
    folder: Path, items: Mapping[str, Sequence[str]], rows: Sequence[Row], about: table.ExposureAbout = ABOUT
) -> None:
    write_rows(folder, items, rows, about)


def rows_of(count: Mapping[str, np.ndarray], kind: str = "cross", n: int = 3) -> list[Row]:
    """Counts (S, I, choices) of each benchmark; zeros are left out."""
    return [
        (benchmark, f"i{i}", SOURCES[s], kind, j, n, 1, int(count_SIJ[s, i, j]))
        for benchmark, count_SIJ in count.items()
        for s, i, j in zip(*np.nonzero(count_SIJ), strict=True)
    ]


class World(NamedTuple):
    study: Callable[..., StudyScores]
    dose: dict[str, np.ndarray]  # (M, I)


def make_world(
    folder: Path,
    slope: float = 0.6,
    *,
    items: int = 50,
    choices: int = 2,
    curve: float = 0.0,
    zero: float = 0.0,
    noise: float = 0.1,
    spread: float = 0.0,
    after: float = 0.5,
    seed: int = 0,
) -> World:
    """A store whose log-likelihoods rise with log(1 + E) of each choice, and the counts.

    after: the share of the slope that fine-tuning leaves. spread: how mixtures differ in it.
    """
    rng = np.random.default_rng(seed)
    count = {b: rng.poisson(rng.gamma(0.6, 3.0, size=(len(SOURCES), items, choices))) for b in CATEGORIES}
    epochs_MS = np.array([[3.0 * SHARES[m].get(s, 0.0) for s in SOURCES] for m in MIXTURES])
    dose = {}
    slope_M = slope + spread * rng.normal(size=len(MIXTURES))
    for name in CATEGORIES:
        told = np.einsum("ms,sij->mij", epochs_MS, count[name])
        log = np.log1p(told)
        gold = rng.integers(0, choices, items)
        here = np.take_along_axis(log, gold[None, :, None], 2)[..., 0]
        dose[name] = here - (log.sum(2) - here) / (choices - 1)
        level = rng.normal(size=(items, choices))
        for stage, kept in (("pt", 1.0), ("sft", after)):
            loglik = level + kept * slope_M[:, None, None] * log + curve * log**2 + zero * (told == 0)
            loglik = loglik + noise * rng.normal(size=loglik.shape)
            for m, mixture in enumerate(MIXTURES):
                loglik[m, np.arange(items), gold] += rng.normal()
                who = {
                    "checkpoint": f"1B-{mixture}-{stage}",
                    "scale": "1B",
                    "mixture": mixture,
                    "stage": stage,
                }
                who |= {"benchmark": name, "category": CATEGORIES[name]}
                made = planted.item_table(who, loglik[m].astype(np.float32), gold)
                store.write(folder / "scores" / who["checkpoint"] / f"{name}.arrow", made, planted.metadata())
    write_exposure(
        folder / "exposure", {b: [f"i{i}" for i in range(items)] for b in CATEGORIES}, rows_of(count)
    )
    return World(lambda: study_of(folder), dose)


def study_of(folder: Path) -> StudyScores:
    scores = read_choices(folder / "scores")
    return StudyScores(scores, design_of(scores), ExplainOptions(exposure=folder / "exposure"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("frequency")


@pytest.fixture(scope="module")
def world(folder: Path) -> World:
    return make_world(folder)


def test_doses_are_log_exposures_of_the_right_choice_minus_the_wrong(world: World) -> None:
    found = doses.dosed(world.study(), "1B")
    assert found is not None and found[0] == MIXTURES
    for one in found[1]:
        np.testing.assert_allclose(one.of(Dose("cross", 3)), world.dose[one.choices.name], atol=1e-12)


def test_zero_unknown_and_longest(tmp_path: Path) -> None:
    """Left out is zero, no n-gram is unknown, not listed is unknown; a longest match is the longest of a mixture's sources."""
    make_world(tmp_path, items=4, choices=3)
    rows: list[Row] = [
        ("rte", "i0", "web_a", "cross", 0, 2, 5, 7),
        ("rte", "i1", "web_a", "cross", 2, 2, 0, 0),
        ("rte", "i2", "web_b", "cross", 1, 2, 5, 3),
        ("rte", "i0", "web_a", "longest", 0, 4, 5, 1),
        ("rte", "i0", "code", "longest", 0, 2, 5, 9),
        ("rte", "i0", "code", "longest", 1, 3, 5, 2),
        ("rte", "i3", "code", "longest", 1, 0, 0, 0),
    ]
    write_exposure(tmp_path / "exposure", {"rte": ["i0", "i1", "i3"]}, rows)
    study = study_of(tmp_path)
    found = doses.dosed(study, "1B")
    assert found is not None
    rte = next(one for one in found[1] if one.choices.name == "rte")
    told = rte.value[Dose("cross", 2)].reshape(9, 4, 3)
    assert told[0, 0].tolist() == pytest.approx([3 * 0.65 * 7, 0, 0]) and told[3, 0].tolist() == [0, 0, 0]
    dose = rte.of(Dose("cross", 2))
    assert np.isnan(dose[:, [1, 2]]).all() and np.isfinite(dose[:, [0, 3]]).all()
    longest = rte.value[Dose("longest", 0)].reshape(9, 4, 3)
    assert longest[0, 0].tolist() == [4, 3, 0] and longest[8, 0].tolist() == [2, 3, 0]
    assert np.isnan(rte.of(Dose("longest", 0))[:, 3]).all()
    piqa = next(one for one in found[1] if one.choices.name == "piqa")
    assert all(np.isnan(value).all() for value in piqa.value.values())
    assert "piqa: no item is in" in exposed.notes(study)[0]
    assert any("reads code up to 2.2 times (in v1p2)" in note for note in exposed.notes(study))
    assert not any("estimated" in note for note in exposed.notes(study))
    sources = {**ABOUT.sources, "code": ABOUT.sources["code"]._replace(tokens_estimated=True)}
    write_exposure(tmp_path / "exposure", {}, rows, table.ExposureAbout(sources, SHARES, TOKENS))
    assert any("how often code is read is estimated" in note for note in exposed.notes(study_of(tmp_path)))


def measured(rows: list[frequency.FrequencyRow], **at: object) -> frequency.FrequencyRow:
    wanted = {
        "stage": "pt",
        "minus": "",
        "outcome": "margin",
        "measure": "slope",
        "category": ALL,
        "benchmark": "",
    } | at
    (found,) = [row for row in rows if all(getattr(row, key) == value for key, value in wanted.items())]
    return found


def test_a_planted_slope_comes_back(world: World) -> None:
    rows = frequency.rows(world.study())
    before, after = measured(rows), measured(rows, stage="sft")
    assert (
        before.estimate == pytest.approx(0.6, abs=0.03)
        and before.low < 0.6 < before.high < before.estimate + 0.1
    )
    assert after.estimate == pytest.approx(0.3, abs=0.03)
    change = measured(rows, stage="sft", minus="pt")
    assert change.estimate == pytest.approx(after.estimate - before.estimate) and change.high < 0
    assert (before.n, before.items, before.dose, before.headline) == (9, 100, "cross 3", 1)
    assert before.p_wild == 2 / 512 and before.p_permutation == before.p_least == 1 / 36
    assert before.q == pytest.approx(before.p)
    assert measured(rows, benchmark="rte", category="NLI").items == 50
    share = measured(rows, outcome="accuracy")
    assert share.low > 0 and share.estimate > 10  # points for each factor of ten
    assert (
        measured(rows, measure=frequency.CURVATURE).low < 0 < measured(rows, measure=frequency.CURVATURE).high
    )
    zero = measured(rows, measure=frequency.ZERO)
    assert zero.low < 0 < zero.high


def test_zero_counts_and_curves_are_found_where_they_are(tmp_path: Path) -> None:
    make_world(tmp_path / "zero", 0.5, zero=-0.8, noise=0.1)
    rows = frequency.rows(study_of(tmp_path / "zero"))
    assert measured(rows, measure=frequency.ZERO).estimate == pytest.approx(-0.8, abs=0.05)
    assert measured(rows, measure=frequency.WHERE_SEEN).estimate == pytest.approx(0.5, abs=0.05)
    make_world(tmp_path / "curve", 0.8, curve=-0.1, noise=0.1)
    rows = frequency.rows(study_of(tmp_path / "curve"))
    assert measured(rows, measure=frequency.CURVATURE).estimate == pytest.approx(-0.1, abs=0.02)


def test_the_value_at_zero_dose_is_what_is_right_without_the_text(tmp_path: Path) -> None:
    """Items that no text moves: the value is the mean accuracy above chance. `slope` moves them around that."""
    world = make_world(tmp_path, 0.4, items=200, noise=0.5)
    rows = frequency.rows(world.study())
    found = measured(rows, measure=frequency.AT_ZERO, outcome="accuracy")
    study = world.study()
    right, dose = [], []
    for choices in study.scores.benchmarks:
        k = [choices.row(f"1B-{m}-pt") for m in MIXTURES]
        right.append((choices.picks() == choices.gold_I)[k].mean())
        dose.append(world.dose[choices.name].mean())
    slope = measured(rows, outcome="accuracy").estimate / np.log(10)  # points for each log unit
    assert found.estimate == pytest.approx(100 * np.mean(right) - 50 - slope * np.mean(dose))
    assert found.low < found.estimate < found.high
    change = measured(rows, measure=frequency.AT_ZERO, outcome="accuracy", stage="sft", minus="pt")
    assert abs(change.estimate) < 8 and not np.isnan(change.se)


def test_the_value_at_zero_dose_ends_where_accuracy_does(world: World) -> None:
    """A line through doses far from 0 leaves what an accuracy can be; chance is one half."""
    slope = measured(frequency.rows(world.study()), outcome="accuracy")
    rng = np.random.default_rng(0)
    right = [rng.integers(0, 2, (9, 50)) - 0.5 for _ in range(2)]
    possible = shifted(SHARE, -0.5)
    for dose, expected in ((0.0, None), (40.0, (-0.5, -0.5)), (-40.0, (0.5, 0.5))):
        every = [(np.full((9, 50), dose), x) for x in right]
        found = frequency._at_zero(slope._replace(estimate=0.02, se=0.001), every, 0.95, possible)
        if expected is None:
            assert found.low < found.estimate < found.high < 0.5
            assert found.estimate == pytest.approx(np.mean(right))
        else:
            assert -0.5 <= found.low <= found.estimate <= found.high <= 0.5
            assert found.estimate in expected


def test_lines_through_bins_end_at_nought_and_a_hundred(tmp_path: Path) -> None:
    world = make_world(tmp_path, 3.0, items=100)
    rows = bin_rows(world.study())
    assert {row.category for row in rows} == {OF_ITEMS, OF_SLOPE}
    ends = np.array([[row.low, row.estimate, row.high] for row in rows])
    assert (ends >= 0.0).all() and (ends <= 100.0).all() and (np.diff(ends, axis=1) >= 0.0).all()
    lines = [row for row in rows if row.category == OF_SLOPE]
    assert any(100.0 in (row.low, row.high) or 0.0 in (row.low, row.high) for row in lines)


def test_across_items_is_not_within_items(tmp_path: Path) -> None:
    """Easy items are told often and do not answer to it: the slope across items is there, that within is not."""
    world = make_world(tmp_path, 0.0, items=100)
    rows = frequency.rows(world.study())
    study = world.study()
    x, y = [], []
    for choices in study.scores.benchmarks:
        k = [choices.row(f"1B-{m}-pt") for m in MIXTURES]
        loglik = choices.loglik_KC[k].astype(float)
        margin = (loglik[:, choices.gold_C] - choices.best_wrong(loglik)).clip(-5, 5)
        for values, into in ((world.dose[choices.name], x), (margin, y)):
            into.append(values - values.mean(axis=1, keepdims=True))
    x_N, y_N = (np.concatenate(values, axis=1).ravel() for values in (x, y))
    found = measured(rows, measure=frequency.ACROSS)
    assert found.estimate == pytest.approx(x_N @ y_N / (x_N @ x_N))
    assert abs(measured(rows).estimate) < 0.05


def test_doses_that_no_mixture_moves_have_no_slope(tmp_path: Path) -> None:
    make_world(tmp_path)
    alike = table.ExposureAbout(ABOUT.sources, {m: {"web_a": 0.5, "code": 0.5} for m in MIXTURES}, TOKENS)
    items = {b: [f"i{i}" for i in range(50)] for b in CATEGORIES}
    write_exposure(tmp_path / "exposure", items, [("rte", "i0", "web_a", "cross", 0, 3, 2, 5)], alike)
    rows = frequency.rows(study_of(tmp_path))
    assert rows and all(np.isnan(row.estimate) and row.note.endswith(doses.FEW) for row in rows)


@pytest.mark.parametrize(
    ("about", "words"),
    [
        (table.ExposureAbout(ABOUT.sources), "counts without a design"),
        (
            table.ExposureAbout(ABOUT.sources, {"x": {"web_a": 1.0}}, TOKENS),
            "another study, with mixtures x and scales 1B",
        ),
        (
            table.ExposureAbout({"web_a": ABOUT.sources["web_a"]}, SHARES, TOKENS),
            "no counts of code, web_b, web_c",
        ),
    ],
)
def test_exposures_that_do_not_fit_are_refused(
    tmp_path: Path, about: table.ExposureAbout, words: str
) -> None:
    make_world(tmp_path, items=5)
    write_exposure(tmp_path / "exposure", {"rte": ["i0"]}, [], about)
    with pytest.raises(UserError, match=words):
        frequency.rows(study_of(tmp_path))


def test_choices_that_the_store_lacks_are_refused(tmp_path: Path) -> None:
    make_world(tmp_path, items=5)
    write_exposure(tmp_path / "exposure", {"rte": ["i0"]}, [("rte", "i0", "web_a", "cross", 2, 3, 2, 5)])
    with pytest.raises(UserError, match="choices that the store's items have not"):
        frequency.rows(study_of(tmp_path))


def test_a_benchmark_that_a_checkpoint_lacks_is_named(tmp_path: Path) -> None:
    make_world(tmp_path, items=5)
    assert not any("not on every checkpoint" in note for note in exposed.notes(study_of(tmp_path)))
    (tmp_path / "scores/1B-v3p2-sft/rte.arrow").unlink()
    assert "scale 1B: rte not on every checkpoint, so without slopes on doses" in exposed.notes(
        study_of(tmp_path)
    )


def test_exposures_of_other_items_are_refused(tmp_path: Path) -> None:
    """Items of another file may have the same ids."""
    make_world(tmp_path, items=5)
    for data, refused in ({"rte": "d"}, False), ({"rte": "other"}, True):  # the store's is d
        about = table.ExposureAbout(ABOUT.sources, SHARES, TOKENS, data)
        write_exposure(tmp_path / "exposure", {"rte": ["i0"]}, [], about)
        assert table.read(tmp_path / "exposure" / table.NAME).about.data == data
        if refused:
            with pytest.raises(UserError, match=r"rte: .* counted for other items than were scored"):
                frequency.rows(study_of(tmp_path))
        else:
            frequency.rows(study_of(tmp_path))
    # few-shot scores state the hash of their rows alone beside that of rows and examples
    for path in (tmp_path / "scores").glob("*/rte.arrow"):
        older = {**(store.read_metadata(path) or {}), "fewshot": "5", "data_hash": "of both"}
        store.write(path, store.read(path), {**older, "rows_hash": "d"})
    with pytest.raises(UserError, match=r"rte: .* counted for other items than were scored"):
        frequency.rows(study_of(tmp_path))
    write_exposure(tmp_path / "exposure", {"rte": ["i0"]}, [], replace(ABOUT, data={"rte": "d"}))
    frequency.rows(study_of(tmp_path))


@pytest.mark.parametrize("file", ["counts", "similarities"])
def test_exposures_of_another_version_of_a_benchmark_are_refused(tmp_path: Path, file: str) -> None:
    """The same rows in other words."""
    make_world(tmp_path, items=5)
    folder = tmp_path / "exposure"
    write_similarity(folder, [("rte", "i0", 0, "code", "bm25", 0.5)], ABOUT)
    assert not any("versions" in note for note in exposed.notes(study_of(tmp_path)))
    for version in "2", "yaml-07c1":
        about = replace(ABOUT, versions={"piqa": "1", "rte": version})
        if file == "counts":
            write_exposure(folder, {"rte": ["i0"]}, [], about)
            assert table.read(folder / table.NAME).about == about
        else:
            write_similarity(folder, [("rte", "i0", 0, "code", "bm25", 0.5)], about)
        with pytest.raises(
            UserError, match=rf"rte: .* counted for version {version} .* scores are of version 1:"
        ):
            frequency.rows(study_of(tmp_path))


def test_exposures_that_do_not_say_their_versions_are_read_with_a_note(tmp_path: Path) -> None:
    """As files of older versions of evalengine are."""
    make_world(tmp_path, items=5)
    folder = tmp_path / "exposure"
    write_exposure(folder, {"rte": ["i0"]}, [], replace(ABOUT, versions={}))
    content = sealed.read(folder / table.NAME)
    metadata = {key.decode(): value.decode() for key, value in content.schema.metadata.items()}
    older = {key: value for key, value in json.loads(metadata["exposure"]).items() if key != "versions"}
    sealed.write(folder / table.NAME, content, {**metadata, "exposure": json.dumps(older)})
    assert table.read(folder / table.NAME).about.versions == {}
    said = f"{folder / table.NAME} does not say for which versions of the benchmarks it was made"
    assert [note.startswith(said) for note in exposed.notes(study_of(tmp_path))][-1]


def test_what_was_scored_in_other_words_than_counted_is_said(tmp_path: Path) -> None:
    """A variant, examples before an item, a chat template: the counts are of none of these."""
    make_world(tmp_path / "world", items=20)
    assert exposed.wording(study_of(tmp_path / "world")) == ""
    for path in (tmp_path / "world" / "scores").glob("*/rte.arrow"):
        about = store.read_metadata(path) or {}
        store.write(path, store.read(path), {**about, "variant": "lm_eval", "fewshot": "5"})
    planted.write_study(tmp_path / "chat", items=20, scales=["1B"], stages=("pt+chat", "sft+chat"))
    write_for(tmp_path / "exposed", tmp_path / "chat")
    counted = (
        "doses count items in their default wording, without examples or a chat template; scored otherwise: "
    )
    for scores, exposure, how in (
        (tmp_path / "world" / "scores", "world/exposure", "rte in the variant lm_eval, behind 5 examples"),
        (tmp_path / "chat", "exposed", "pt+chat in chat format; sft+chat in chat format"),
    ):
        findings = explain(scores, ExplainOptions(exposure=tmp_path / exposure))
        assert findings.method["exposure_wording"] == counted + how
        for table_ in ("frequency", "gelbach"):
            slopes = [row for row in findings.tables[table_] if np.isfinite(row.estimate)]
            assert bool(slopes) == (table_ == "frequency" or exposure == "exposed")
            assert all(counted + how in row.note for row in slopes)
        unchecked = [note.split(":")[0] for note in findings.method["notes"] if "it is not checked" in note]
        assert unchecked == (["rte"] if "examples" in how else [])
        said = [
            claim.sentence for one in EXPLAINERS for claim in one.claims(findings) if claim.kind == CAUTION
        ]
        assert sum(f"Doses{counted[5:]}{how}" in text for text in said) == 1


def test_the_headline_dose_depends_on_texts_alone(tmp_path: Path) -> None:
    """The largest n of crossing n-grams at which half of the items differ, else the one at which most do."""
    make_world(tmp_path, items=20)
    items = {b: [f"i{i}" for i in range(20)] for b in CATEGORIES}

    def told(n: int, share: int) -> list[Row]:
        return [(b, f"i{i}", "web_a", "cross", 0, n, 1, 3 + i) for b in CATEGORIES for i in range(share)]

    write_exposure(tmp_path / "exposure", items, [*told(2, 14), *told(3, 16), *told(4, 8), *told(5, 7)])
    assert doses.headline(study_of(tmp_path)) == Dose("cross", 4)
    write_exposure(tmp_path / "exposure", items, [*told(2, 9), *told(3, 4)])
    assert doses.headline(study_of(tmp_path)) == Dose("cross", 2)


def test_without_crossing_n_grams_the_section_is_named_as_not_shown(tmp_path: Path) -> None:
    make_world(tmp_path, items=20)
    rows = [(b, f"i{i}", "web_a", "task", 0, 2, 1, 3 + i) for b in CATEGORIES for i in range(20)]
    write_exposure(tmp_path / "exposure", {b: [f"i{i}" for i in range(20)] for b in CATEGORIES}, rows)
    findings = explain(tmp_path / "scores", ExplainOptions(exposure=tmp_path / "exposure"))
    assert findings.tables["frequency"] and not any(row.headline for row in findings.tables["frequency"])
    title, why = "Does a benchmark follow its text?", "crossing n-grams whose counts differ between mixtures"
    assert findings.method["not_shown"][title] == why and f"{title} (needs {why})" in not_shown(findings)
    (section,) = [one for one in EXPLAINERS if one.title == title]
    assert section.section(findings) == []


def test_a_task_whose_items_have_the_same_answers_says_nothing_of_items(tmp_path: Path) -> None:
    """Yes and no, told more by some mixture: what it likes to answer, with two sets of doses for a hundred items."""
    make_world(tmp_path, items=50)
    items = {b: [f"i{i}" for i in range(50)] for b in CATEGORIES}
    same: list[Row] = [
        ("rte", f"i{i}", source, "cross", j, 3, 1, 5 + 20 * j + 9 * s)
        for i in range(50)
        for j in (0, 1)
        for s, source in enumerate(SOURCES)
    ]
    rng = np.random.default_rng(0)
    rows = [*same, *rows_of({"piqa": rng.poisson(3, size=(4, 50, 2))})]
    write_exposure(tmp_path / "exposure", items, rows)
    found = frequency.rows(study_of(tmp_path))
    row = measured(found)
    assert np.isfinite(row.estimate) and row.items == 50 and row.note.startswith("without rte: fewer than 5")
    alone = measured(found, category="NLI", benchmark="rte")
    assert np.isnan(alone.estimate) and alone.note == doses.FEW
    assert measured(found, category="Commonsense", benchmark="piqa").estimate == pytest.approx(row.estimate)


def test_means_name_every_benchmark_without_a_dose(tmp_path: Path) -> None:
    """The choices of one are too short for an n-gram, so all its counts are unknown."""
    make_world(tmp_path, items=50)
    items = {b: [f"i{i}" for i in range(50)] for b in CATEGORIES}
    short: list[Row] = [
        ("rte", f"i{i}", source, "cross", j, 3, 0, 0) for i in range(50) for j in (0, 1) for source in SOURCES
    ]
    counted = rows_of({"piqa": np.random.default_rng(0).poisson(3, size=(4, 50, 2))})
    write_exposure(tmp_path / "exposure", items, [*short, *counted])
    found = frequency.rows(study_of(tmp_path))
    row, alone = measured(found), measured(found, category="NLI", benchmark="rte")
    assert np.isfinite(row.estimate) and row.items == 50 and row.note == f"without rte: {doses.UNKNOWN}"
    assert np.isnan(alone.estimate) and alone.note == doses.UNKNOWN
