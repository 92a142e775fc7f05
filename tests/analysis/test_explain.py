"""The store choice by choice, designs, intervals for mixtures and items, and the command `explain`."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import planted
import pytest
from planted_exposure import write_for

from evalengine import store
from evalengine.analysis.claims import (
    CAUTION,
    SUPPORTED,
    UNSUPPORTED,
    Claim,
    by_kind,
    claim,
    supported,
    unsupported,
)
from evalengine.analysis.data.items import read_store
from evalengine.analysis.explain.choices import read_choices
from evalengine.analysis.explain.design import design_of
from evalengine.analysis.explain.explainer import ExplainOptions
from evalengine.analysis.explain.findings import explain, load, write
from evalengine.analysis.explain.registry import EXPLAINERS
from evalengine.analysis.explain.student import Mean, jackknife, of_correlation, two_way_mean
from evalengine.analysis.report.page import html
from evalengine.analysis.report.report import write_figures
from evalengine.analysis.results import share_with_interval, with_interval
from evalengine.analysis.statistics.ranges import SHARE
from evalengine.cli import main
from evalengine.errors import UserError

MIXTURES = ("a", "b", "c", "d", "e")


@pytest.fixture(scope="module")
def scores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("explain") / "scores"
    stages = ("pt", "sft", "sft_emptied")
    planted.write_study(folder, items=40, mixtures=MIXTURES, spread=0.8, stages=stages)
    formats = {"plain": " {choice}", "answer": " Answer: {choice}"}
    planted.write_formats(folder, formats, planted.BENCHMARKS, ["240M", "1B"], MIXTURES, ("pt", "sft"))
    return folder


def test_choices_are_the_store(scores: Path) -> None:
    found, reduced = read_choices(scores), read_store(scores)
    assert len(found.benchmarks) == len(planted.BENCHMARKS) and not found.emulated
    for benchmark in reduced.benchmarks:
        choices = next(one for one in found.benchmarks if one.name == benchmark.name)
        k = [choices.row(name) for name in benchmark.checkpoints]
        np.testing.assert_array_equal((choices.picks() == choices.gold_I)[k], benchmark.correct_KI)
        table = store.read(scores / benchmark.checkpoints[3] / f"{benchmark.name}.arrow")
        row = choices.loglik_KC[k[3]]
        np.testing.assert_array_equal(row, table["loglik"].combine_chunks().flatten().to_numpy())
        items = [np.array(x) for x in table["loglik"].to_pylist()]
        np.testing.assert_allclose(
            choices.log_mass()[k[3]], [np.log(np.exp(x).sum()) for x in items], rtol=1e-6
        )
        wrong = [np.delete(x, g).max() for x, g in zip(items, table["gold"].to_pylist(), strict=True)]
        np.testing.assert_allclose(choices.best_wrong(choices.loglik_KC)[k[3]], wrong)


def test_items_without_a_finite_score_are_left_out_for_all(scores: Path, tmp_path: Path) -> None:
    for path in scores.glob("*/rte.arrow"):
        table, metadata = store.read(path), store.read_metadata(path) or {}
        if path.parent.name == "1B-c-sft":
            rows = table.to_pylist()
            rows[7]["loglik"][1] = float("nan")
            table = type(table).from_pylist(rows, schema=store.schema())
        store.write(tmp_path / path.parent.name / path.name, table, metadata)
    found = read_choices(tmp_path)
    (choices,) = found.benchmarks
    assert len(choices.item_I) == 39 and "i7" not in choices.item_I
    assert found.notes == ("rte: 1 items without a finite score on some checkpoint are left out",)


def emptied(scores: Path, folder: Path, checkpoint: str, benchmarks: tuple[str, ...]) -> Path:
    """A copy of the store in which a checkpoint has no finite score on some benchmarks."""
    for path in scores.glob("*/*.arrow"):
        table, metadata = store.read(path), store.read_metadata(path) or {}
        if path.parent.name == checkpoint and path.stem in benchmarks:
            rows = [{**row, "loglik": [float("nan")] * len(row["loglik"])} for row in table.to_pylist()]
            table = type(table).from_pylist(rows, schema=store.schema())
        store.write(folder / path.parent.name / path.name, table, metadata)
    return folder


def test_a_benchmark_without_a_finite_score_on_a_checkpoint_is_left_out_alone(
    scores: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken, out = emptied(scores, tmp_path / "scores", "1B-c-sft", ("rte",)), tmp_path / "out"
    assert main(["explain", str(broken), "--out", str(out)]) == 0
    said = capsys.readouterr().err
    assert "rte is left out: no item has a finite score on every checkpoint (1B-c-sft: on none)" in " ".join(
        said.split()
    )
    method = json.loads((out / "explain.json").read_text())
    assert method["left_out"] == ["rte"] and method["benchmarks"] == ["hellaswag", "piqa", "arc_easy", "sciq"]
    # The others are as if the store had never held it.
    whole = tmp_path / "whole"
    for path in broken.glob("*/*.arrow"):
        if path.stem != "rte":
            store.write(
                whole / path.parent.name / path.name, store.read(path), store.read_metadata(path) or {}
            )
    ours, theirs = (repr(explain(folder, ExplainOptions()).tables) for folder in (broken, whole))
    assert ours == theirs
    # A report of both: correlations have the benchmark.
    assert main(["correlate", str(broken), "--out", str(out), "--bootstrap", "200"]) == 0
    assert main(["report", str(out), "--figures", "none"]) == 0
    assert "Rte is left out: no item" in (out / "report.html").read_text()


def test_a_store_without_any_finite_benchmark_is_refused(
    scores: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = emptied(scores, tmp_path / "scores", "1B-c-sft", tuple(planted.BENCHMARKS))
    assert main(["explain", str(broken), "--out", str(tmp_path / "out")]) == 1
    assert "no item of any benchmark has a finite score on every checkpoint" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_correlations_and_explanations_of_different_scores_or_items_are_not_shown_together(
    scores: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["correlate", str(scores), "--out", str(out), "--bootstrap", "200"]) == 0
    assert main(["explain", str(scores), "--out", str(out), "--metric", "acc_norm"]) == 0
    capsys.readouterr()
    assert main(["report", str(out), "--figures", "none"]) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "by different scores of hellaswag (acc, acc_norm)" in said and "--metric" in said
    assert not (out / "report.html").exists()
    planted.write_study(tmp_path / "limited", items=30, mixtures=MIXTURES)  # the same study on fewer items
    assert main(["explain", str(tmp_path / "limited"), "--out", str(out)]) == 0
    capsys.readouterr()
    assert main(["report", str(out), "--figures", "none"]) == 1
    assert "tables of two studies" in capsys.readouterr().err


def test_the_report_says_where_levels_or_blocks_of_correlate_and_explain_differ(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scores, out, study = tmp_path / "scores", tmp_path / "out", tmp_path / "study.yaml"
    benchmarks = {"hellaswag": 0.8, "piqa": 0.5}
    planted.write_study(scores, benchmarks, items=20, mixtures=(*MIXTURES, "f"), scales=["1B"])
    study.write_text("blocks: {year: {a: 1, b: 1, c: 1, d: 2, e: 2, f: 2}}")
    within = ["--study", str(study), "--block", "year"]
    level = "The intervals of `evalengine explain` have the level 0.8, those of `evalengine correlate` 0.95."
    block = "`evalengine correlate` takes all mixtures as exchangeable, `evalengine explain` compares mixtures within year."
    assert main(["correlate", str(scores), "--out", str(out), "--bootstrap", "200"]) == 0
    for options, expected in (
        ([], []),
        (["--level", "0.8"], [level]),
        (within, [block]),
        (["--level", "0.8", *within], [level, block]),
    ):
        assert main(["explain", str(scores), "--out", str(out), *options]) == 0
        capsys.readouterr()
        assert main(["report", str(out), "--figures", "none"]) == 0
        said, page = " ".join(capsys.readouterr().err.split()), (out / "report.html").read_text()
        for sentence in (level, block):
            assert (sentence in said) == (sentence in page) == (sentence in expected), sentence


def test_designs_pair_the_runs(scores: Path, tmp_path: Path) -> None:
    found = read_choices(scores)
    design = design_of(found)
    assert design.scales == ("240M", "1B") and design.mixtures == MIXTURES
    assert design.runs["1B"][1].after == "1B-b-sft" and not design.notes
    assert design.runs["1B"][1].by_stage == {stage: f"1B-b-{stage}" for stage in ("pt", "sft", "sft_emptied")}
    del found.checkpoints["1B-b-sft"]
    assert [run.mixture for run in design_of(found).runs["1B"]] == ["a", "c", "d", "e"]
    assert design_of(found).notes == ("scale 1B: without both pt and sft, left out: b",)
    with pytest.raises(UserError, match="no checkpoint has the stage 'dpo'"):
        design_of(found, ["pt", "dpo"])
    twin = found.checkpoints["1B-a-pt"]._replace(name="other")
    found.checkpoints["other"] = twin
    with pytest.raises(UserError, match="both claim scale 1B, mixture a, stage pt"):
        design_of(found)
    found.checkpoints["other"] = twin._replace(seed="1")
    (note,) = design_of(found).notes
    # of a, the other run is compared
    assert note == "scale 1B: without both pt and sft, left out: a (its run 1), b"


def test_seeds_that_differ_between_the_stages_are_said(scores: Path) -> None:
    found = read_choices(scores)
    for name, one in found.checkpoints.items():
        found.checkpoints[name] = one._replace(seed="1" if one.stage == "pt" and one.mixture == "b" else "")
    said = "scale 1B: without both pt and sft, left out: b (its seeds differ between them)"
    assert said in design_of(found).notes
    for name, one in found.checkpoints.items():
        found.checkpoints[name] = one._replace(seed="1" if one.stage == "pt" else "")
    with pytest.raises(
        UserError, match=r"no run has both a pt and a sft .*, as the seeds of 240M-a, .* differ between"
    ):
        design_of(found)


def test_the_two_way_mean_is_the_closed_form_of_random_effects() -> None:
    """Of one balanced benchmark, V is MS_mixtures / MI + MS_items / MI - MS_cells / MI of the two-way analysis of variance."""
    x_MI = np.random.default_rng(0).normal(size=(6, 15)) + np.arange(6)[:, None] * 0.3 + np.arange(15) * 0.2
    M, items = x_MI.shape
    rest = x_MI - x_MI.mean(1, keepdims=True) - x_MI.mean(0) + x_MI.mean()
    mixtures = items * x_MI.mean(1).var(ddof=1)
    of_items = M * x_MI.mean(0).var(ddof=1)
    cells = (rest**2).sum() / ((M - 1) * (items - 1))
    found = two_way_mean([x_MI])
    assert found.estimate == pytest.approx(x_MI.mean())
    assert found.se**2 == pytest.approx((mixtures + of_items - cells) / (M * items))
    with np.errstate(all="raise"):
        one, alike = two_way_mean([x_MI[:1]]), two_way_mean([np.ones((9, 20))])
    assert np.isnan([one.low, alike.low, alike.high]).all() and alike.estimate == 1.0
    assert (one.without_ends, found.without_ends) == ("one mixture, so no interval", "")
    assert alike.without_ends == "the same on every item and mixture, so no interval"


def test_two_way_intervals_hold_for_other_mixtures_and_other_items() -> None:
    rng, hits, alone = np.random.default_rng(1), 0, 0
    for _ in range(400):
        mixture = 0.05 * rng.normal(size=(9, 1))
        value = [
            mixture
            + 0.03 * rng.normal(size=(9, 1))
            + 0.3 * rng.normal(size=(1, 60))
            + 0.4 * rng.normal(size=(9, 60))
            for _ in range(3)
        ]
        found = two_way_mean(value)
        hits += found.low <= 0.0 <= found.high
        means = np.stack([x.mean(1) for x in value]).mean(0)
        alone += abs(means.mean()) <= 2.306 * means.std(ddof=1) / 3.0
    assert 0.93 <= hits / 400 <= 0.99
    assert alone / 400 < 0.90  # what mixtures alone would say


def test_the_jackknife_of_a_mean_is_students_interval() -> None:
    import scipy.stats as st

    x = np.random.default_rng(2).normal(size=9)
    without = np.array([np.delete(x, m).mean() for m in range(9)])
    found = jackknife(np.array([x.mean()]), without[:, None])
    direct = st.ttest_1samp(x, 0.0)
    assert found.p[0] == pytest.approx(direct.pvalue)
    assert (found.low[0], found.high[0]) == pytest.approx(tuple(direct.confidence_interval()))
    shares = np.array([0.99, 0.9, 1.0, 0.95])[:, None]
    share = jackknife(np.array([0.97]), shares, possible=SHARE)
    assert share.high[0] == 1.0
    r = of_correlation(np.array([0.9]), np.array([0.95, 0.8, 0.92])[:, None])
    z = np.arctanh([0.95, 0.8, 0.92])
    half = st.t.ppf(0.975, 2) * np.sqrt(2 * z.var())
    assert (r.low[0], r.high[0]) == pytest.approx(
        (np.tanh(np.arctanh(0.9) - half), np.tanh(np.arctanh(0.9) + half))
    )


def test_the_command_and_the_report(scores: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "analysis"
    write_for(tmp_path / "exposure", scores)
    told = ["--exposure", str(tmp_path / "exposure")]
    assert main(["explain", str(scores), "--out", str(out), *told]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines.index("What this data supports") < lines.index("What it does not support")
    assert lines[-1] == f"Next: evalengine correlate {scores} --out {out}, then evalengine report {out}"
    assert main(["report", str(out)]) == 1
    assert f"run `evalengine correlate STORE --out {out}` first" in capsys.readouterr().err
    assert main(["correlate", str(scores), "--out", str(out), "--bootstrap", "200"]) == 0
    findings = load(out)
    assert findings is not None and set(findings.tables) == {one.table for one in EXPLAINERS}
    for explainer in EXPLAINERS:
        assert findings.tables[explainer.table], explainer.table
        assert (out / f"{explainer.table}.csv").is_file() and (out / f"{explainer.table}.arrow").is_file()
    assert main(["report", str(out), "--figures", "png", "--latex"]) == 0
    page = (out / "report.html").read_text()
    for title in (
        "Emulated fine-tuning",
        "What predicts fine-tuning",
        "Format and knowledge",
        "Does a benchmark follow its text?",
        "How often, or how similarly?",
        "Arms of fine-tuning",
        "Answer formats",
        "Items that turn",
    ):
        assert f"<h2>{title}</h2>" in page
    assert (out / "figures" / "dial.png").is_file() and (out / "tables" / "decomposition.tex").is_file()
    assert r"signal (points)" in (out / "tables" / "snr.tex").read_text()
    capsys.readouterr()
    (out / "proxies.json").write_text("[]")
    assert main(["report", str(out)]) == 1
    assert "damaged tables: run `evalengine explain" in capsys.readouterr().err
    assert main(["explain", str(scores), "--out", str(out), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["scales"] == ["240M", "1B"] and list(said["claims"]) == [SUPPORTED, UNSUPPORTED, CAUTION]
    for texts in said["claims"].values():  # what is true at several scales is said once
        heads = [re.sub("^At .*?, ", "", re.split("[.:] ", text)[0]) for text in texts]
        assert len(set(heads)) == len(heads)
    assert all(re.match("(At .*, t|T)hat ", text) for text in said["claims"][UNSUPPORTED])


def test_a_benchmark_that_a_checkpoint_lacks_is_named_everywhere(
    scores: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Means over the mixtures of that scale are of the other benchmarks."""
    planted.write_study(tmp_path / "s", {"rte": 0.5, "piqa": 0.5}, items=30, mixtures=MIXTURES)
    (tmp_path / "s/1B-c-sft/rte.arrow").unlink()
    out = tmp_path / "out"
    said = "scale 1B: rte not on every checkpoint, left out where those that lack them take part"
    assert main(["explain", str(tmp_path / "s"), "--out", str(out)]) == 0
    assert said in " ".join(capsys.readouterr().err.split())
    found = load(out)
    assert found is not None
    assert {row.benchmark for row in found.rows("flips", scale="1B")} == {"", "piqa"}
    assert {row.benchmark for row in found.rows("flips", scale="240M")} == {"", "piqa", "rte"}
    assert main(["correlate", str(tmp_path / "s"), "--out", str(out)]) == 0
    assert main(["report", str(out), "--figures", "none"]) == 0
    assert f"S{said[1:]}." in (out / "report.html").read_text()
    assert not any("not on every" in note for note in explain(scores, ExplainOptions()).method["notes"])


def test_a_section_that_is_not_there_is_said_on_the_page_and_the_terminal(
    scores: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "analysis"
    assert main(["explain", str(scores), "--out", str(out)]) == 0
    said = (
        "Not shown: Does a benchmark follow its text?, How often, or how similarly? (needs what `evalengine expose` counted "
        "(--exposure))."
    )
    assert capsys.readouterr().out.splitlines()[-2] == said
    assert main(["correlate", str(scores), "--out", str(out), "--bootstrap", "200"]) == 0
    assert main(["report", str(out), "--figures", "none"]) == 0
    assert f'<p class="hint">{said}</p>' in (out / "report.html").read_text()
    for mixtures in (2, 3):
        few = tmp_path / str(mixtures)
        planted.write_study(few, items=20, mixtures=MIXTURES[:mixtures], scales=["1B"])
        capsys.readouterr()
        assert main(["explain", str(few), "--out", str(out)]) == 0
        absent, why = capsys.readouterr().out.splitlines()[-2:]
        assert f"What predicts fine-tuning (needs 4 mixtures of one scale, not {mixtures})" in absent
        assert ("A threshold? (needs 3 mixtures of one scale, not 2)" in absent) == (mixtures == 2)
        assert "Emulated fine-tuning, Pretraining scale and fine-tuning scale" in absent
        assert "(needs a second scale)" in absent and "Answer formats (needs scores of" in absent
        assert why == (
            "No report shows these tables: it is built on those of `evalengine correlate`, which needs 4 mixtures with both "
            f"stages at one scale, and the most here is {mixtures}."
        )
        assert main(["correlate", str(few), "--out", str(out), "--bootstrap", "200"]) == 1


def test_an_interval_that_leaves_out_0_is_not_shown_as_if_it_touched_it() -> None:
    def row(estimate: float, low: float, high: float) -> Mean:
        return Mean(estimate, low, high, 0.1, 9)

    assert share_with_interval(row(-0.223, -0.448, -0.0002)) == "−22.3 [−44.8, −0.02]"
    assert share_with_interval(row(-0.223, -0.448, 0.0002)) == "−22.3 [−44.8, 0.0]"
    assert with_interval(row(0.06, 0.0031, 0.12)) == "+0.06 [+0.003, +0.12]"
    assert with_interval(row(0.06, 0.00003, 0.12)) == "+0.06 [+0.00003, +0.12]"
    assert with_interval(row(0.06, -0.0031, 0.12)) == "+0.06 [−0.00, +0.12]"


def test_claims_are_worded_from_intervals_in_one_place() -> None:
    def said(*ends: tuple[float, float], tested: bool = True, below: str = "B falls") -> tuple[str, str]:
        rows = [two_way_mean([np.zeros((1, 1))])._replace(low=low, high=high) for low, high in ends]
        found = claim(*rows, above="a rises", below=below, otherwise="c moves", said="1", tested=tested)
        ((kind, (text,)),) = ((kind, texts) for kind, texts in by_kind([found]).items() if texts)
        return kind, text

    nothing = (UNSUPPORTED, "That c moves: 1.")
    assert said((0.1, 0.2)) == (SUPPORTED, "A rises: 1.") and said((-0.2, -0.1)) == (SUPPORTED, "B falls: 1.")
    assert said((-0.1, 0.2)) == said((np.nan, np.nan)) == said((0.0, 0.2)) == nothing
    assert said((0.1, 0.2), (0.3, 0.4))[0] == SUPPORTED
    assert said((0.1, 0.2), (-0.3, 0.4)) == said((0.1, 0.2), (-0.2, -0.1)) == nothing
    assert said((0.1, 0.2), tested=False) == said((-0.2, -0.1), below="") == nothing


def test_what_is_true_at_several_scales_is_said_once_and_else_the_scale_is_named() -> None:
    claims = [
        supported("a rises", "1", "1M"),
        unsupported("b falls", "2", "1M"),
        Claim(CAUTION, "Mind the gap."),
        supported("a rises", "3", "7B"),
        supported("b falls", "4", "7B"),
        unsupported("a rises", "5", "70B"),
        supported("a rises", "6"),  # of all scales together
        *(Claim(CAUTION, "c is noisy", n, at) for n, at in (("7", "1M"), ("8", "7B"), ("9", "70B"))),
    ]
    assert by_kind(claims) == {
        SUPPORTED: ["At 1M and 7B, a rises. 1M: 1. 7B: 3.", "At 7B, b falls: 4.", "A rises: 6."],
        UNSUPPORTED: ["At 1M, that b falls: 2.", "At 70B, that a rises: 5."],
        CAUTION: ["Mind the gap.", "At 1M, 7B and 70B, c is noisy. 1M: 7. 7B: 8. 70B: 9."],
    }


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (["--exposure", "a.arrow"], "--exposure takes a folder, and a.arrow is a file: give ."),
        (["--data", "nowhere"], "nowhere is not a folder: --data takes"),
        (["--data", "."], ". holds no file of"),
    ],
)
def test_a_wrong_folder_is_one_sentence(
    given: list[str],
    reason: str,
    scores: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.arrow").touch()
    assert main(["explain", str(scores), *given]) == 1
    said = capsys.readouterr().err.strip()
    assert reason in said and said.count("\n") == 0
    assert not Path("analysis").exists()


def test_names_from_outside_are_text_in_every_section(tmp_path: Path) -> None:
    names = {f"<i>{name}": f"<i>{category}" for name, category in planted.BENCHMARKS.items()}
    scores = tmp_path / "scores"
    planted.write_study(
        scores,
        dict.fromkeys(names, 0.8),
        categories=names,
        items=40,
        scales=["1B<i>", "3B<i>", "7B<i>"],
        mixtures=[f"<i>{mixture}" for mixture in MIXTURES],
        stages=("pt<i>", "sft", "sft_<i>"),
    )
    formats = {"<i>plain": " <i>{choice}", "<i>answer": " Answer: {choice}"}
    planted.write_formats(
        scores, formats, names, ["1B<i>"], [f"<i>{m}" for m in MIXTURES], ("pt<i>", "sft_<i>")
    )
    stages = ["pt<i>", "sft_<i>"]
    write_for(tmp_path / "exposure", scores, stages)
    findings = explain(scores, ExplainOptions(exposure=tmp_path / "exposure"), stages)
    for explainer in EXPLAINERS:
        assert "<i>" not in html(explainer.section(findings), findings.method), explainer.table


def test_a_figure_for_papers_says_the_level_of_its_own_command(tmp_path: Path) -> None:
    scores = tmp_path / "scores"
    planted.write_study(scores, items=40, scales=["1B"])
    write_for(tmp_path / "exposure", scores)
    assert main(["correlate", str(scores), "--out", str(tmp_path), "--bootstrap", "200", "--json"]) == 0
    write(explain(scores, ExplainOptions(level=0.8, exposure=tmp_path / "exposure")), tmp_path)
    paths = write_figures(tmp_path, tmp_path / "figures", ["svg"])
    drawn = {path.stem: path.read_text() for path in paths}
    assert "80% intervals" in drawn["frequency"] and "95% intervals" in drawn["category_transfer"]


def test_tables_of_two_studies_are_not_shown_together(
    scores: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "analysis"
    planted.write_study(tmp_path / "other", items=20, mixtures=("v", "w", "x", "y"), scales=["1B"])
    assert main(["explain", str(tmp_path / "other"), "--out", str(out)]) == 0
    assert main(["correlate", str(scores), "--out", str(out), "--bootstrap", "200"]) == 0
    capsys.readouterr()
    assert main(["report", str(out), "--figures", "none"]) == 1
    assert "tables of two studies" in capsys.readouterr().err
    assert main(["explain", str(scores), "--out", str(out), "--stages", "pt,sft_emptied"]) == 0
    capsys.readouterr()
    assert main(["report", str(out), "--figures", "none"]) == 1
    assert f"run `evalengine explain STORE --out {out} --stages pt,sft`" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--level", "2"], "--level"),
        (["--stages", "pt"], "two different stages"),
        (["--metric", "x"], "no metric 'x'"),
        (["--seed", "-1"], "--seed -1 must be 0 or more"),
        (["--exposure", "nowhere"], "make it with `evalengine expose`"),
    ],
)
def test_refusals(
    scores: Path, tmp_path: Path, options: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["explain", str(scores), "--out", str(tmp_path / "a"), *options]) == 1
    assert words in capsys.readouterr().err and not (tmp_path / "a").exists()
