"""Results from elsewhere: wide tables, lm-evaluation-harness's files as it writes them, and the real published
tables."""

from __future__ import annotations

import csv
import json
import logging
from pathlib import Path

import numpy as np
import pytest
import scipy.stats as st

from evalengine import store
from evalengine.analysis.data.mixtures import imported_mixtures
from evalengine.analysis.data.panel import load_panel
from evalengine.analysis.importing.harness import NAME_PATTERN, identities, model_of_place
from evalengine.analysis.importing.samples import read_samples
from evalengine.analysis.importing.score_columns import split_column
from evalengine.analysis.study import CorrelateOptions, analyse
from evalengine.cli import main
from evalengine.errors import UserError


def write_csv(path: Path, rows: list[dict[str, object]]) -> Path:
    with path.open("w", newline="") as handle:
        writer = csv.DictWriter(handle, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def wide(mixtures: int = 5) -> list[dict[str, object]]:
    rng = np.random.default_rng(0)
    return [
        {"name": f"{s}{m}{t}", "size": s, "data": f"m{m}", "step": t, "shots": 0, "tokens": 1000 * m,
         "piqa.acc": rng.uniform(), "piqa.acc_norm": rng.uniform(), "rte.acc": rng.uniform(), "piqa.ppl": 3.0}
        for s in ("60M", "1B") for m in range(mixtures) for t in (1, 10)
    ]  # fmt: skip


BASIC = ["--scale", "size", "--mixture", "data", "--stage", "step"]


def test_wide_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = wide()
    table = write_csv(tmp_path / "t.csv", rows)
    assert main(["import", str(table), *BASIC, "--out", str(tmp_path / "out"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["results"] == 40
    panel = load_panel(tmp_path / "out")
    assert (
        panel.scales == ("60M", "1B") and panel.stages == ("1", "10") and panel.benchmarks == ("piqa", "rte")
    )
    assert panel.categories == ("Commonsense", "NLI")
    expected = next(r for r in rows if (r["size"], r["data"], r["step"]) == ("1B", "m3", 10))
    assert panel.values["accuracy"][1, 1, 3].tolist() == [expected["piqa.acc_norm"], expected["rte.acc"]]
    assert main(["import", str(table), *BASIC, "--metric", "acc", "--out", str(tmp_path / "acc")]) == 0
    assert load_panel(tmp_path / "acc").values["accuracy"][1, 1, 3, 0] == expected["piqa.acc"]


def test_percent_constants_and_shares(tmp_path: Path) -> None:
    rows = [{"id": m, "code": 0.1 * m, "piqa": 50.0 + m * t, "rte": 60.0 - m} for t in (1,) for m in range(5)]
    a = write_csv(tmp_path / "a.csv", rows)
    b = write_csv(tmp_path / "b.csv", [{**row, "piqa": 70.0 - row["id"] ** 2} for row in rows])
    out = str(tmp_path / "out")
    given = [
        f"{a}@stage=pt,scale=1B",
        f"{b}@stage=sft,scale=1B",
        "--mixture",
        "id",
        "--shares",
        "code",
        "--out",
        out,
    ]
    assert main(["import", *given]) == 0
    panel = load_panel(out)
    assert panel.values["accuracy"][0, 0, 2].tolist() == pytest.approx([0.52, 0.58])
    shares = imported_mixtures(out)
    assert shares is not None and shares.shares["code"]["3"] == pytest.approx(0.3)
    rows_ = analyse(panel, CorrelateOptions(), shares).tables["mixture_effects"]
    row = next(r for r in rows_ if r.name == "piqa" and r.other == "pt: code")
    assert row.estimate == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("change", "arguments", "said"),
    [
        ({}, ["--mixture", "data"], "names the stage"),
        ({}, ["--mixture", "nope", "--stage", "step"], "no column 'nope': its columns are name, size"),
        (
            {},
            ["--mixture", "data", "--stage", "step"],
            "lines 2 and 12 are both mixture m0, stage 1: choose rows",
        ),
        ({}, [*BASIC, "--where", "shots=5"], "no row fits shots=5"),
        ({}, [*BASIC, "--where", "shots"], "write COLUMN=VALUE"),
        ({}, [*BASIC, "--benchmarks", "zzz*"], "no column looks like a benchmark"),
        (
            {"rte.acc": "oops"},
            [*BASIC, "--benchmarks", "rte.acc"],
            "line 2, column rte.acc: 'oops' is not a number",
        ),
        ({"rte.acc": "7000"}, BASIC, "neither shares nor percent"),
    ],
)
def test_bad_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str], change, arguments, said) -> None:
    rows = wide()
    rows[0] |= change
    table = write_csv(tmp_path / "t.csv", rows)
    assert main(["import", str(table), *arguments, "--out", str(tmp_path / "out")]) == 1
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_missing_values_stay_missing(tmp_path: Path) -> None:
    rows = wide()
    rows[0]["rte.acc"] = "NA"
    rows[1]["piqa.acc_norm"] = ""
    table = write_csv(tmp_path / "t.csv", rows)
    assert main(["import", str(table), *BASIC, "--out", str(tmp_path / "out")]) == 0
    panel = load_panel(tmp_path / "out")
    assert np.isnan(panel.values["accuracy"]).sum() == 2
    assert any("rte has no value for 60M-m0-1" in note for note in panel.notes)


def test_names_of_columns_and_checkpoints() -> None:
    assert split_column("piqa.acc_norm") == ("piqa", "acc_norm")
    assert split_column("metric/the_pile_arxiv_val_loss") == ("the_pile_arxiv", "loss")
    assert split_column("piqa.ppl") == ("piqa.ppl", "") and split_column("piqa") == ("piqa", "")
    assert split_column("eval/piqa/acc_norm") == split_column("piqa.acc_norm,none") == ("piqa", "acc_norm")
    for folder, identity in (
        ("__data__ckpts__1B-V1-P0-sft", ("1B-V1-P0-sft", "1B", "V1-P0", "sft")),
        ("org__gpt2", ("gpt2", None, None, None)),
    ):
        model = model_of_place(Path("/runs", folder, "results_x.json"))
        assert identities([model], NAME_PATTERN)[model][:5] == (*identity, "")
    with pytest.raises(UserError, match="not a regular expression"):
        identities([model], "(")


@pytest.fixture(scope="module")
def lm_eval_run(tmp_path_factory: pytest.TempPathFactory):
    """Files of lm-evaluation-harness itself: its tasks on embedded items, random scores, its own logger and
    writer."""
    import lm_eval
    from lm_eval.api.model import LM
    from lm_eval.loggers import EvaluationTracker

    from evalengine.benchmarks import world
    from evalengine.benchmarks.catalogue import BENCHMARKS
    from lm_eval_reference import tasks

    class Random(LM):
        def __init__(self, seed: int) -> None:
            super().__init__()
            self.rng = np.random.default_rng(seed)

        def loglikelihood(self, requests, disable_tqdm: bool = False):
            return [(float(-self.rng.gamma(2.0, 3.0)), bool(self.rng.integers(2))) for _ in requests]

        loglikelihood_rolling = generate_until = None

    root = tmp_path_factory.mktemp("lm_eval")
    data = root / "data"
    world.write(data, items=12, train_items=12, words=500, chats=5)
    logging.disable(logging.WARNING)
    found = {task.config.task: task for task in tasks(data / "bench").values()}
    results = {}
    for seed, checkpoint in enumerate(("1B-m0-pt", "1B-m1-sft")):
        out = lm_eval.evaluate(Random(seed), task_dict=found, log_samples=True, bootstrap_iters=0)
        tracker = EvaluationTracker(output_path=str(root / "runs"))
        tracker.general_config_tracker.model_name = f"/ckpts/{checkpoint}"
        tracker.general_config_tracker.model_name_sanitized = f"__ckpts__{checkpoint}"
        samples = out.pop("samples")
        tracker.save_results_aggregated(
            results={**out, "model_name": f"/ckpts/{checkpoint}"}, samples=samples
        )
        for task_name, rows in samples.items():
            tracker.save_results_samples(task_name=task_name, samples=rows)
        results[checkpoint] = out["results"]
    logging.disable(logging.NOTSET)
    return root, results, set(BENCHMARKS)


def test_samples_become_a_store_with_the_harnesss_accuracies(lm_eval_run, tmp_path: Path) -> None:
    root, results, names = lm_eval_run
    assert main(["import", str(root / "runs"), "--out", str(tmp_path)]) == 0
    found = {(path.parent.name, path.stem) for path in store.paths(tmp_path)}
    assert found == {(c, b) for c in results for b in names}
    from evalengine.analysis.data.items import read_store

    alias = {"siqa": "social_iqa"}
    for metric in ("acc", "acc_norm"):
        for benchmark in read_store(tmp_path, metric).benchmarks:
            for k, checkpoint in enumerate(benchmark.checkpoints):
                theirs = results[checkpoint][alias.get(benchmark.name, benchmark.name)].get(f"{metric},none")
                if theirs is not None:
                    assert benchmark.correct_KI[k].mean() == pytest.approx(theirs), (benchmark.name, metric)


def test_aggregates_of_the_harness(lm_eval_run, tmp_path: Path) -> None:
    root, results, _ = lm_eval_run
    files = [str(path) for path in (root / "runs").rglob("results_*.json")]
    assert len(files) == 2
    assert main(["import", *files, "--out", str(tmp_path)]) == 0
    import pyarrow as pa

    rows = pa.ipc.open_file(str(tmp_path / "results.arrow")).read_all().to_pylist()
    row = next(r for r in rows if (r["checkpoint"], r["benchmark"]) == ("1B-m1-sft", "siqa"))
    assert row["value"] == pytest.approx(results["1B-m1-sft"]["social_iqa"]["acc,none"])
    assert (row["scale"], row["mixture"], row["stage"], row["items"]) == ("1B", "m1", "sft", 12)
    default = next(r for r in rows if (r["checkpoint"], r["benchmark"]) == ("1B-m1-sft", "piqa"))
    assert default["value"] == pytest.approx(results["1B-m1-sft"]["piqa"]["acc_norm,none"])


def test_bad_samples(lm_eval_run, tmp_path: Path) -> None:
    root, _, _ = lm_eval_run
    path = next((root / "runs").rglob("samples_rte_*.jsonl"))
    lines = path.read_text().splitlines()
    raw = json.loads(lines[1])
    raw["acc"] = 1.0 - raw["acc"]
    bad = tmp_path / "samples_rte.jsonl"
    bad.write_text("\n".join([lines[0], json.dumps(raw)]))
    with pytest.raises(UserError, match=r"line 2: its acc says"):
        read_samples(bad)
    bad.write_text(lines[0] + "\n{]\n")
    with pytest.raises(UserError, match="line 2 is no multiple-choice sample"):
        read_samples(bad)
    bad.write_text("")
    with pytest.raises(UserError, match="is empty"):
        read_samples(bad)


def test_pythia(real_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Real checkpoints: stages are training steps; r and p equal SciPy's, a constant column says so."""
    table = real_data / "results" / "pythia_evals_wide.csv"
    if not table.is_file():
        pytest.skip("needs results/pythia_evals_wide.csv in EVALENGINE_DATA")
    given = ["--scale", "deduped", "--mixture", "params_nominal", "--stage", "step"]
    where = [f"--where={w}" for w in ("suite=pythia-v1", "num_fewshot=0", "folder=zero-shot")]
    assert main(["import", str(table), *given, *where, "--out", str(tmp_path / "i")]) == 0
    panel = load_panel(tmp_path / "i", stages=("1000", "143000"))
    assert len(panel.mixtures) == 8 and len(panel.benchmarks) == 9 and not panel.notes
    with table.open() as handle:
        raw = [r for r in csv.DictReader(handle)
               if (r["suite"], r["num_fewshot"], r["folder"], r["deduped"]) == ("pythia-v1", "0", "zero-shot", "1")]  # fmt: skip
    at = {(r["step"], r["params_nominal"]): float(r["sciq.acc_norm"]) for r in raw}
    x, y = ([at[step, m] for m in panel.mixtures] for step in ("1000", "143000"))
    rows = analyse(panel, CorrelateOptions()).tables["transfer"]
    row = next(r for r in rows if (r.scale, r.name) == ("1", "sciq"))
    assert row.estimate == pytest.approx(st.pearsonr(x, y)[0], abs=1e-9)
    assert row.low < row.estimate < row.high and row.n == 8
    assert main(["correlate", str(tmp_path / "i"), "--stages", "0,143000", "--out", str(tmp_path / "a")]) == 0
    assert "lambada_openai (0, 1): accuracy at 0 is 0 for every mixture: no spread" in capsys.readouterr().out


def test_real_runs_of_one_model(real_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Pythia v0 has results files of several runs for some steps: refused without --replicate, averaged with it."""
    table = real_data / "results" / "pythia_evals_wide.csv"
    if not table.is_file():
        pytest.skip("needs results/pythia_evals_wide.csv in EVALENGINE_DATA")
    given = ["import", str(table), "--scale", "deduped", "--mixture", "params_nominal", "--stage", "step"]
    given += [
        "--where=suite=pythia-v0",
        "--where=num_fewshot=0",
        "--items=piqa=1838",
        "--out",
        str(tmp_path / "i"),
    ]
    assert main(given) == 1
    assert "are both scale 0, mixture 1.4b, stage 1500: choose rows with --where" in capsys.readouterr().err
    assert main([*given, "--replicate", "variant"]) == 0
    with table.open() as handle:
        raw = [r for r in csv.DictReader(handle) if (r["suite"], r["num_fewshot"]) == ("pythia-v0", "0")]
    with (tmp_path / "i" / "results.csv").open() as handle:
        assert len({r["checkpoint"] for r in csv.DictReader(handle)}) == len(raw) == 331
    panel = load_panel(tmp_path / "i", stages=("13000", "123000"))
    b = panel.benchmarks.index("piqa")
    for (s, t, m), value in np.ndenumerate(panel.values["accuracy"][..., b]):
        place = (panel.scales[s], panel.stages[t], panel.mixtures[m])
        runs = [
            float(r["piqa.acc_norm"]) for r in raw if (r["deduped"], r["step"], r["params_nominal"]) == place
        ]
        assert value == pytest.approx(np.mean(runs))
    assert panel.n_items[b] == 1838 and panel.chance[b] == 0.5


def test_regmix(real_data: Path, tmp_path: Path) -> None:
    """256 real mixtures at two scales: losses carry over nearly perfectly, and lower is better."""
    folder = real_data / "results"
    files = [folder / f"regmix_test_{s}.csv" for s in ("1m", "60m")]
    if not all(f.is_file() for f in files):
        pytest.skip("needs results/regmix_test_*.csv in EVALENGINE_DATA")
    given = [f"{f}@stage={s}" for f, s in zip(files, ("1m", "60m"), strict=True)]
    columns = ["--mixture", "index", "--benchmarks", "metric/*", "--shares", "train_*", "--loss"]
    assert main(["import", *given, *columns, "--out", str(tmp_path)]) == 0
    panel = load_panel(tmp_path)
    assert len(panel.mixtures) == 256 and panel.quantities == ("loss",)
    tables = analyse(panel, CorrelateOptions(bootstrap=300), imported_mixtures(tmp_path)).tables
    single = [r for r in tables["transfer"] if r.protocol == "transfer"]
    assert len(single) == 13 and all(r.low > 0.9 and r.p < 1e-4 for r in single)
    github = [
        r for r in tables["mixture_effects"] if r.name == "the_pile_github" and r.other.endswith("github")
    ]
    assert all(r.high < -0.4 for r in github)  # more code in the data, lower loss on code
    x = panel.values["loss"][0, :, :, 0]
    agree = np.mean([(x[0, i] - x[0, j]) * (x[1, i] - x[1, j]) > 0 for i in range(256) for j in range(i)])
    row = next(
        r for r in tables["decisions"] if r.name == panel.benchmarks[0] and r.other == "pairwise agreement"
    )
    assert row.estimate == pytest.approx(agree, abs=1e-3)
