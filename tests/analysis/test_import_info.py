"""What is known of imported benchmarks: their names, numbers of items, chance and categories, and the noise from these."""

from __future__ import annotations

import csv
import json
import math
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import scipy.stats as st

from evalengine.analysis.data.panel import load_panel
from evalengine.analysis.importing.benchmark_info import About, read_info
from evalengine.analysis.importing.imported import COLUMNS
from evalengine.analysis.importing.spellings import benchmark_name, similar
from evalengine.analysis.protocols import noise
from evalengine.analysis.study import CorrelateOptions, analyse
from evalengine.benchmarks import BENCHMARKS
from evalengine.cli import main
from evalengine.errors import UserError

PLACE = ["--mixture", "m", "--stage", "t"]


def table(path: Path, columns: dict[str, dict[str, np.ndarray]]) -> Path:
    """A CSV of columns by stage, (M,) values each."""
    mixtures = len(next(iter(next(iter(columns.values())).values())))
    with path.open("w", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(["m", "t", *columns])
        for m in range(mixtures):
            for t in ("pt", "sft"):
                writer.writerow([f"m{m}", t, *(by_stage[t][m] for by_stage in columns.values())])
    return path


def imported(out: Path, *given: str | Path) -> Path:
    assert main(["import", *map(str, given), *PLACE, "--out", str(out)]) == 0
    return out


def refused(capsys: pytest.CaptureFixture[str], out: Path, *given: str | Path) -> str:
    assert main(["import", *map(str, given), *PLACE, "--out", str(out)]) == 1
    assert not out.exists()
    return capsys.readouterr().err


@pytest.fixture
def accuracies(tmp_path: Path) -> tuple[Path, dict[str, dict[str, np.ndarray]]]:
    rng = np.random.default_rng(3)
    quality = rng.normal(0.0, 0.06, 9)
    drawn = {
        name: {
            t: np.round(np.clip(0.55 + quality + rng.normal(0, 0.02, 9), 0.05, 0.95), 6)
            for t in ("pt", "sft")
        }
        for name in ("rte", "piqa2", "mine.acc")
    }
    return table(tmp_path / "t.csv", drawn), drawn


@pytest.mark.parametrize(
    ("benchmark", "spellings"),
    [
        ("arc_challenge", "ARC-C, ARC-Challenge, arc_c, arc:challenge, ai2_arc_challenge, ARC Challenge"),
        ("arc_easy", "ARC-E, ARC Easy, arc-easy, ai2_arc_easy"),
        ("boolq", "BoolQ, bool_q, superglue.boolq, super_glue:boolq"),
        ("cb", "CB, super_glue-cb, CommitmentBank"),
        ("commonsense_qa", "CSQA, commonsense qa, CommonsenseQA"),
        ("hellaswag", "HellaSwag, hella_swag"),
        ("mnli", "MNLI, glue_mnli, MNLI-m, mnli_matched"),
        ("openbookqa", "OpenBookQA, openbook_qa, OBQA"),
        ("rte", "glue_rte, sglue_rte, superglue_rte"),
        ("siqa", "social_iqa, social_i_qa, SocialIQA"),
        ("winogrande", "WinoGrande, wino_grande, winogrande_xl"),
        ("wsc", "wsc.fixed, super_glue_wsc_fixed"),
        ("piqa2", "piqa2"),
        ("wsc273", "wsc273"),
        ("mnli_mismatched", "mnli_mismatched"),
        ("MNLI-mm", "MNLI-mm"),
        ("ARC", "ARC"),
    ],
)
def test_spellings(benchmark: str, spellings: str) -> None:
    assert {benchmark_name(name, BENCHMARKS) for name in spellings.split(", ")} == {benchmark}


def test_no_other_task_of_the_harness_is_taken_for_one_of_ours() -> None:
    """Among the thousands of names that its task files define, and what each may be is only a hint."""
    lm_eval = pytest.importorskip("lm_eval")
    found = set()
    for file in Path(lm_eval.__file__).parent.joinpath("tasks").rglob("*.yaml"):
        text = file.read_text(errors="replace")
        found |= {
            m[1].strip() for m in re.finditer(r"^\s*-?\s*(?:task|group): *['\"]?([^'\"\n#]+)", text, re.M)
        }
    assert len(found) > 5000
    ours = {
        name: benchmark_name(name, BENCHMARKS)
        for name in found
        if benchmark_name(name, BENCHMARKS) in BENCHMARKS
    }
    same = {name: name for name in BENCHMARKS if name != "siqa"}
    assert ours == same | {"social_iqa": "siqa", "sglue_rte": "rte"}
    assert similar("wsc273", BENCHMARKS) == "wsc" and similar("arc_easy_mc", BENCHMARKS) == "arc_easy"
    assert similar("xcopa", BENCHMARKS) == "copa"
    assert not any(similar(name, BENCHMARKS) for name in ("cola", "squad", "mmlu", "lambada_openai", "mine"))


def test_unknown_benchmarks_are_said(accuracies, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, _ = accuracies
    imported(tmp_path / "a", file, "--benchmarks", "rte,piqa2,mine.acc")
    said = " ".join(capsys.readouterr().err.split())
    assert "piqa2 is not known, category Other (if it is piqa, call it that)" in said
    assert "not known, category Other (--category gives another): mine" in said
    assert "no item noise (--items, --stderr): rte, piqa2, mine" in said
    given = (
        "--benchmarks",
        "rte,piqa2,mine.acc",
        "--category",
        "Own,piqa2=Commonsense,rte=NLI",
        "--items",
        "500",
    )
    panel = load_panel(imported(tmp_path / "b", file, *given))
    assert "not known" not in capsys.readouterr().err
    assert dict(zip(panel.benchmarks, panel.categories, strict=True)) == {
        "piqa2": "Commonsense",
        "rte": "NLI",
        "mine": "Own",
    }


def test_items_chance_and_category_of_benchmarks(tmp_path: Path) -> None:
    file = tmp_path / "info.csv"
    file.write_text("benchmark, items, chance, category\nARC-C,1172,,\nmine,,0.2,Own\n")
    info = read_info(file, {"items": "500,rte=277", "chance": "mine=0.1", "category": None}, BENCHMARKS)
    assert (
        info.of("rte").items == 277
        and info.of("arc_challenge").items == 1172
        and info.of("piqa").items == 500
    )
    assert info.of("mine") == (500, 0.1, "Own")
    several = read_info(None, {"category": "mmlu_law=Law,mmlu_*=Knowledge"}, BENCHMARKS)
    assert [several.of(name).category for name in ("mmlu_law", "mmlu_art", "mmlu")] == [
        "Law",
        "Knowledge",
        "",
    ]
    assert math.isnan(info.of("rte").chance) and About().category == info.of("rte").category == ""


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"items": "1.5"}, "--items 1.5: a number of items is a whole number above 1"),
        ({"items": "rte="}, "--items rte=: a number of items is a whole number above 1"),
        ({"items": "5,6"}, "--items 6: all benchmarks have a value already"),
        ({"items": "glue_rte=5,rte=6"}, "--items rte=6: rte has a value already"),
        ({"chance": "25"}, "--chance 25: chance is the accuracy of guessing, a number from 0 to below 1"),
        ({"chance": "rte=x"}, "--chance rte=x: chance is the accuracy of guessing"),
        ({"category": "rte="}, "--category rte=: '' must be 1 to 200 bytes of visible characters"),
        ("benchmark,items\nrte,5\nglue_rte,6\n", "line 3: rte appears twice"),
        ("benchmark,items\nrte,x\n", "line 2, items: a number of items is a whole number above 1"),
        (
            "benchmark,n\nrte,5\n",
            "has the columns benchmark, n: it may have benchmark and one or more of items",
        ),
        ("benchmark,items\nrte,5,6\n", "line 2 has more than the header's 2 fields"),
    ],
)
def test_bad_info(tmp_path: Path, options: dict[str, str] | str, said: str) -> None:
    file = tmp_path / "info.csv"
    with pytest.raises(UserError, match=re.escape(said)):
        if isinstance(options, str):
            file.write_text(options)
            read_info(file, {}, BENCHMARKS)
        else:
            read_info(None, options, BENCHMARKS)


def test_info_of_what_is_not_there(accuracies, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, _ = accuracies
    said = refused(capsys, tmp_path / "no", file, "--items", "rtee=5")
    assert "--items rtee=5: no benchmark 'rtee' is imported: did you mean 'rte'?" in said
    counted = tmp_path / "c.csv"
    counted.write_text("m,t,rte,rte_n\na,pt,0.5,100\n")
    said = refused(capsys, tmp_path / "no", counted, "--items", "277")
    assert f"{counted} holds 100 items of rte, and you say 277: leave one out" in said
    said = refused(capsys, tmp_path / "no", file, "--pattern", "x")
    assert "--pattern would do nothing: only .json and .jsonl files use it" in said
    old = tmp_path / "results_x.json"
    old.write_text(json.dumps({"results": {"rte": {"acc": 0.5}}, "model_name": "1B-a-pt"}))
    assert main(["import", str(old), "--block", "web", "--out", str(tmp_path / "no")]) == 1
    assert "--block would do nothing: only .csv files use it" in capsys.readouterr().err


def test_results_of_the_version_before(accuracies, tmp_path: Path) -> None:
    """Nine columns, without standard errors, chance and replicates."""
    from evalengine.store import sealed

    file, drawn = accuracies
    folder = imported(tmp_path / "out", file, "--items", "500")
    now = sealed.read(folder / "results.arrow")
    assert tuple(now.column_names) == COLUMNS and COLUMNS[9:] == ("stderr", "chance", "replicate")
    assert [str(kind) for kind in now.schema.types[9:]] == ["double", "double", "string"]
    sealed.write(folder / "results.arrow", now.select(COLUMNS[:9]), {})
    panel = load_panel(folder)
    b = panel.benchmarks.index("rte")
    assert panel.values["accuracy"][0, 0, :, b].tolist() == drawn["rte"]["pt"].tolist()
    assert np.isnan(panel.stderr).all() and np.isnan(panel.chance).all() and panel.n_items[b] == 500
    sealed.write(folder / "results.arrow", now.append_column("more", pa.nulls(len(now), pa.string())), {})
    with pytest.raises(UserError, match="no table of results"):
        load_panel(folder)


def test_chance_of_known_benchmarks_and_of_a_store(accuracies, tmp_path: Path) -> None:
    import planted

    from evalengine import store

    file, _ = accuracies
    panel = load_panel(imported(tmp_path / "a", file, "--chance", "mine=0.2"))
    assert dict(zip(panel.benchmarks, panel.chance.tolist(), strict=True)) == {"rte": 0.5, "mine": 0.2}
    assert analyse(panel, CorrelateOptions(bootstrap=100)).method["chance"] == panel.chance.tolist()
    planted.write_study(tmp_path / "store", items=20)
    panel = load_panel(tmp_path / "store")
    rows = store.load(tmp_path / "store").to_pylist()
    for name, chance in zip(panel.benchmarks, panel.chance, strict=True):
        choices = [len(row["loglik"]) for row in rows if row["benchmark"] == name]
        assert chance == pytest.approx(np.mean([1 / n for n in choices]))


def test_noise_from_standard_errors_and_counts(accuracies, tmp_path: Path) -> None:
    """Reliability is 1 - mean squared standard error / variance; binomial from counts, which lm-eval's errors equal."""
    _, drawn = accuracies
    rng = np.random.default_rng(4)
    errors = {t: np.round(rng.uniform(0.02, 0.03, 9), 6) for t in ("pt", "sft")}
    errors["sft"][4] = np.nan  # binomial in its place
    both = table(tmp_path / "both.csv", {**drawn, "rte_stderr": errors})
    panel = load_panel(imported(tmp_path / "a", both, "--items", "400"))
    assert panel.stderr[0, 0, :, panel.benchmarks.index("rte")].tolist() == errors["pt"].tolist()
    assert any(
        "item noise of rte, mine is the sampling error of each accuracy, an upper bound" in n
        for n in panel.notes
    )
    rows = {
        (r.name, r.other): r.estimate
        for r in analyse(panel, CorrelateOptions()).tables["reliability"]
        if not r.contrast
    }
    for name in ("rte", "mine"):
        x = drawn["rte" if name == "rte" else "mine.acc"]
        wanted = []
        for t in ("pt", "sft"):
            binomial = st.bernoulli(x[t]).var() / 399
            known = np.isfinite(errors[t]) & (name == "rte")
            wanted.append(1 - np.where(known, errors[t] ** 2, binomial).mean() / x[t].var(ddof=1))
        assert [rows[name, f"reliability {t}"] for t in ("pt", "sft")] == pytest.approx(wanted, abs=1e-9)
        assert rows[name, "ceiling"] == pytest.approx(math.sqrt(wanted[0] * wanted[1]), abs=1e-9)
    bare = load_panel(imported(tmp_path / "b", both, "--items", "rte=400"))
    named = {
        r.name: r.note
        for r in analyse(bare, CorrelateOptions(bootstrap=100)).tables["reliability"]
        if r.other == "ceiling"
    }
    assert named["mine"] == "neither the number of items nor all standard errors are known"
    assert "known" not in named["rte"]


def test_sampling_error_bounds_the_noise_of_shared_items() -> None:
    """Items differ in difficulty for all mixtures alike: that part of the sampling error blurs no comparison."""
    rng = np.random.default_rng(5)
    items = 4000
    difficulty = rng.beta(1.0, 1.0, items)  # variance 1/12 of an accuracy's 1/4
    x, y = ((rng.uniform(size=(30, items)) < difficulty).astype(float) for _ in range(2))
    paired = noise.from_items(x, y)
    bound = noise.from_errors(np.stack([x.mean(axis=1), y.mean(axis=1)]), None, items)
    assert bound is not None and bound.between == 0.0
    assert bound.before == pytest.approx(0.25 / items, rel=0.02)
    assert paired.before == pytest.approx((0.25 - 1 / 12) / items, rel=0.05)
    assert noise.from_errors(x[:, :9].T[:2], None, 1) is None
