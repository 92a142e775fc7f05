"""Results files of lm-evaluation-harness and lighteval: whose they are, and what must not be mixed."""

from __future__ import annotations

import csv
import json
import logging
import math
from pathlib import Path
from typing import Any

import pytest

from evalengine.analysis.data.panel import load_panel
from evalengine.analysis.importing.harness import NAME_PATTERN, Model, identities, model_of
from evalengine.cli import main
from evalengine.errors import UserError


def results(path: Path, scores: dict[str, Any], model: str = "", **more: Any) -> Path:
    """A file as lm-evaluation-harness 0.4 writes it; a number stands for {"acc,none": number}."""
    tasks = {
        task: value
        if isinstance(value, dict)
        else {"alias": task, "acc,none": value, "acc_stderr,none": 0.01}
        for task, value in scores.items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"results": tasks, **({"model_name": model} if model else {}), **more}))
    return path


def test_a_key_that_results_have_twice_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "results.json"
    path.write_text('{"results": {"rte": {"acc,none": 0.5}, "rte": {"acc,none": 0.6}}}')
    assert "results.json: the key 'rte' appears twice in one object" in refused(
        capsys, tmp_path / "out", path
    )


def args(text: Any) -> dict[str, Any]:
    return {"config": {"model": "hf", "model_args": text}}


def rows(folder: Path) -> dict[tuple[str, str], float]:
    with (folder / "results.csv").open() as handle:
        return {(r["checkpoint"], r["benchmark"]): float(r["value"]) for r in csv.DictReader(handle)}


def refused(capsys: pytest.CaptureFixture[str], out: Path, *given: str | Path) -> str:
    """What is said by an import that must not write anything."""
    assert main(["import", *map(str, given), "--out", str(out)]) == 1
    assert not out.exists()
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("file", "raw", "name"),
    [
        ("a.json", {"model_name": "org/60M-a-pt", **args("pretrained=org/60M-a-pt")}, "60M-a-pt"),
        ("a.json", args("dtype=float16,pretrained=org/60M-a-pt,revision=step10"), "60M-a-pt@step10"),
        ("a.json", args({"pretrained": "org/60M-a-pt", "revision": "main"}), "60M-a-pt"),
        ("a.json", args("pretrained=/c/lr=1e-3/60M-a-pt/,revision=refs/pr/3"), "60M-a-pt@refs_pr_3"),
        ("a.json", args("pretrained=org/60M-a-pt,peft=/c/60M-a-sft"), "60M-a-pt+60M-a-sft"),
        ("a.json", args("pretrained=org/run,subfolder=ckpt/step5"), "run__ckpt__step5"),
        ("a.json", {"model_name": "org/x", "config": {"model_args": "", "model_revision": "v2"}}, "x@v2"),
        ("a.json", {"config_general": {"model_name": "org/light", "model_sha": "0f"}}, "light"),
        ("m-160m/zero-shot/160m_step3000.json", {"config": {"model_args": None}}, "m-160m@step3000"),
        ("m-160m/5shot/m-160m-5shot-global_step40_x.json", args({"train_iters": 9}), "m-160m@step40"),
        ("__c__60M-a-pt/results_x.json", {}, "60M-a-pt"),
    ],
)  # fmt: skip
def test_what_a_checkpoint_is_called(tmp_path: Path, file: str, raw: dict[str, Any], name: str) -> None:
    assert model_of(tmp_path / file, raw).name() == name


def test_an_adapter_says_the_stage() -> None:
    model = Model("org/60M-a-pt", adapter="/c/60M-a-sft")
    assert identities([model], NAME_PATTERN)[model][:5] == ("60M-a-pt+60M-a-sft", "60M", "a", "sft", "")


def test_two_revisions_are_two_checkpoints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same files whose dates are swapped gave r of the other sign."""
    runs = (("pt", "step10", 0.1, 0.0), ("pt", "step90", -0.1, 0.9), ("sft", "step90", 0.1, 0.2))
    for day, (stage, step, slope, start) in enumerate(runs):
        for m in range(5):
            name = f"60M-m{m}-{stage}"
            file = tmp_path / "in" / f"o__{name}" / f"results_2025-01-0{day}T00-00-00.0.json"
            about = args(f"pretrained=o/{name},revision={step}")
            results(file, {"boolq": start + slope * m}, f"o/{name}", **about)
    assert main(["import", str(tmp_path / "in"), "--out", str(tmp_path / "out")]) == 0
    found = rows(tmp_path / "out")
    assert found["60M-m3-pt@step10", "boolq"] == pytest.approx(0.3)
    assert found["60M-m3-pt@step90", "boolq"] == pytest.approx(0.6)
    assert main(["correlate", str(tmp_path / "out"), "--out", str(tmp_path / "a")]) == 1
    assert "60M-m0-pt@step10 and 60M-m0-pt@step90 both claim" in capsys.readouterr().err
    pattern = r"(?P<scale>[^-]+)-(?P<mixture>[^-]+)-pt@(?P<stage>.+)"
    assert main(["import", str(tmp_path / "in"), "--pattern", pattern, "--out", str(tmp_path / "own")]) == 0
    panel = load_panel(tmp_path / "own")
    assert panel.stages == ("step10", "step90") and len(panel.mixtures) == 5
    assert panel.values["accuracy"][0, :, 3, 0].tolist() == pytest.approx([0.3, 0.6])


def test_checkpoints_in_one_place_are_refused_whatever_they_were_run_on(tmp_path: Path) -> None:
    for m in range(5):
        for stage in ("pt", "sft"):
            for step, task in (("step10", "boolq"), ("step90", "rte")):
                name = f"60M-m{m}-{stage}"
                results(
                    tmp_path / "in" / name / f"results_{step}.json",
                    {task: 0.1 * m},
                    name,
                    **args(f"pretrained={name},revision={step}"),
                )
    assert main(["import", str(tmp_path / "in"), "--out", str(tmp_path / "out")]) == 0
    with pytest.raises(UserError, match="@step10 and 60M-m0-pt@step90 both claim"):
        load_panel(tmp_path / "out")


def test_models_with_one_base_name_are_told_apart_by_their_paths(tmp_path: Path) -> None:
    files = [
        results(tmp_path / f"{n}.json", {"boolq": 0.1 * n}, f"/exp/{run}/ckpts/step-7")
        for n, run in enumerate(("one", "two", "three"))
    ]
    assert main(["import", *map(str, files), "--out", str(tmp_path / "out")]) == 0
    names = {f"{run}__ckpts__step-7": 0.1 * n for n, run in enumerate(("one", "two", "three"))}
    assert {name: value for (name, _), value in rows(tmp_path / "out").items()} == pytest.approx(names)


def test_two_values_of_one_cell_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = results(tmp_path / "results_2025-01-01T00-00-00.0.json", {"boolq": 0.4}, "1B-a-pt")
    new = results(tmp_path / "results_2025-01-02T00-00-00.0.json", {"boolq": 0.5}, "1B-a-pt")
    for given in ((new, old), (tmp_path,)):
        said = refused(capsys, tmp_path / "out", *given)
        assert str(old) in said and str(new) in said and "boolq of 1B-a-pt" in said
        assert f"remove {old}, the older one" in said
    table = tmp_path / "t.csv"
    table.write_text("s,m,t,boolq\n1B,a,pt,0.7\n")
    columns = ("--scale", "s", "--mixture", "m", "--stage", "t")
    said = refused(capsys, tmp_path / "out", table, new, *columns)
    assert f"{table} and {new} both hold boolq of 1B-a-pt" in said
    twice = results(tmp_path / "x.json", {"social_iqa": 0.4, "siqa": 0.5}, "1B-a-pt")
    assert "holds siqa of 1B-a-pt twice" in refused(capsys, tmp_path / "out", twice)
    assert main(["import", str(new), str(new), "--out", str(tmp_path / "out")]) == 0, "one file, given twice"
    assert rows(tmp_path / "out") == {("1B-a-pt", "boolq"): 0.5}


def test_numbers_of_shots_and_items_do_not_mix(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def run(name: str, model: str, shots: int, items: int = 100) -> Path:
        more = {"n-shot": {"boolq": shots}, "n-samples": {"boolq": {"effective": items}}}
        return results(tmp_path / name, {"boolq": 0.1 * shots}, model, **more)

    zero, five = run("zero.json", "1B-a-pt", 0), run("five.json", "1B-a-pt", 5)
    said = refused(capsys, tmp_path / "out", zero, five)
    assert (
        f"{zero} and {five} both hold boolq of 1B-a-pt, with 0 and 5 few-shot examples: import them" in said
    )
    other = run("other.json", "1B-a-sft", 5)
    said = refused(capsys, tmp_path / "out", zero, other)
    assert f"boolq has different numbers of few-shot examples: 0 in {zero}, 5 in {other}" in said
    few = run("few.json", "1B-b-pt", 0, items=10)
    assert f"different numbers of items: 100 in {zero}, 10 in {few}" in refused(
        capsys, tmp_path / "out", zero, few
    )
    # as 0.3 wrote it
    old = results(tmp_path / "old.json", {"boolq": 0.3}, "1B-c-pt", config={"num_fewshot": 3})
    assert f"0 in {zero}, 3 in {old}" in refused(capsys, tmp_path / "out", zero, old)
    light = results(tmp_path / "l.json", {"suite|boolq|2": {"acc": 0.3}}, "1B-d-pt")
    assert f"0 in {zero}, 2 in {light}" in refused(capsys, tmp_path / "out", zero, light)


def prompted(
    template: str | None, system: str | None = None, multiturn: bool = True, shots: int = 0
) -> dict[str, Any]:
    """What the harness writes of a prompt, with its own tracker."""
    from lm_eval.loggers.evaluation_tracker import GeneralConfigTracker

    tracker = GeneralConfigTracker()
    tracker.log_experiment_args("hf", "pretrained=x", system, template, multiturn)
    said = {key: value for key, value in tracker.__dict__.items() if key not in ("model_name", "start_time")}
    return {**said, "n-shot": {"boolq": shots}}


def test_chat_formats_and_system_instructions_of_a_stage_do_not_mix(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(model: str, **more: Any) -> Path:
        return results(tmp_path / f"{model}.json", {"boolq": 0.5}, model, **more)

    plain, chat = run("1B-a-sft", **prompted(None)), run("1B-b-sft", **prompted("{{x}}"))
    said = refused(capsys, tmp_path / "out", plain, chat)
    assert (
        f"boolq at sft has different chat formats: none in {plain}, a chat template in {chat}; import them"
        in said
    )
    turns, one = (run(f"1B-{m}-sft", **prompted("{{x}}", multiturn=m == "c", shots=3)) for m in "cd")
    said = refused(capsys, tmp_path / "out", turns, one)
    assert f"a chat template, examples as turns in {turns}, a chat template in {one}" in said
    # Without examples there are no turns of them.
    again = run("1B-e-sft", **prompted("{{x}}", multiturn=False))
    assert main(["import", str(chat), str(again), "--out", str(tmp_path / "alike")]) == 0
    long = "You are a helpful assistant who answers in one word, and the word is always "
    first, second = (run(f"1B-{m}-sft", **prompted(None, long + m)) for m in "fg")
    said = refused(capsys, tmp_path / "out", first, second)
    assert "boolq at sft has different system instructions: You are a helpful assistant" in said
    assert f"none in {plain}, You are" in refused(capsys, tmp_path / "out", plain, second)


def test_what_stages_were_asked_in_different_formats_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [
        results(tmp_path / "a.json", {"boolq": 0.4}, "1B-a-pt", **prompted(None)),
        results(tmp_path / "b.json", {"boolq": 0.5}, "1B-a-sft", **prompted("{{x}}")),
        results(tmp_path / "c.json", {"boolq": 0.5}, "1B-b-sft", **prompted("{{y}}")),
        results(tmp_path / "d.json", {"boolq": 0.5}, "1B-c-sft"),  # an older file, which does not say it
    ]
    assert main(["import", *map(str, files), "--out", str(tmp_path / "out"), "--json"]) == 0
    notes = json.loads(capsys.readouterr().out)["notes"]
    a, b, c, _ = files
    assert f"boolq: different chat formats, none in {a} and a chat template in {b}" in notes
    (templates,) = (note for note in notes if "chat templates" in note)
    assert templates.startswith("boolq at sft: ") and str(b) in templates and str(c) in templates


def test_one_benchmark_has_one_score(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """piqa is judged by acc_norm; a file without it has another number."""
    both = results(tmp_path / "a.json", {"piqa": {"acc,none": 0.7, "acc_norm,none": 0.8}}, "1B-a-pt")
    one = results(tmp_path / "b.json", {"piqa": 0.6}, "1B-b-pt")
    said = refused(capsys, tmp_path / "out", both, one)
    assert f"piqa has different scores: acc_norm in {both}, acc in {one}; choose one with --metric" in said
    assert main(["import", str(both), str(one), "--metric", "acc", "--out", str(tmp_path / "out")]) == 0
    assert rows(tmp_path / "out") == {("1B-a-pt", "piqa"): 0.7, ("1B-b-pt", "piqa"): 0.6}


def test_groups_of_the_harness_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import lm_eval
    from lm_eval.api.group import Group
    from lm_eval.api.model import LM
    from lm_eval.config.group import AggMetricConfig

    from evalengine.benchmarks import world
    from lm_eval_reference import tasks

    class Lengths(LM):
        def loglikelihood(self, requests, disable_tqdm: bool = False):
            return [(-float(len(r.args[1])), False) for r in requests]

        loglikelihood_rolling = generate_until = None

    world.write(tmp_path / "data", items=12, train_items=12, words=500, chats=5)
    logging.disable(logging.WARNING)
    found = {task.config.task: task for task in tasks(tmp_path / "data" / "bench").values()}

    mean = [AggMetricConfig(metric="acc", weight_by_size=True)]
    pairs, suite = Group("pairs", aggregate_metric_list=mean), Group("suite", aggregate_metric_list=mean)
    for member in (found["rte"], found["wic"]):
        pairs.add(member)
    for part in (pairs, found["copa"]):
        suite.add(part)
    chosen = {
        "tasks": {task: found[task] for task in ("rte", "wic", "copa", "boolq")},
        "groups": {"suite": suite, "pairs": pairs},
    }
    out = lm_eval.evaluate(Lengths(), task_dict=chosen, bootstrap_iters=0)
    logging.disable(logging.NOTSET)
    assert "acc,none" in out["results"]["suite"] and "acc,none" in out["results"]["pairs"]
    keys = ("results", "groups", "group_subtasks", "n-shot", "n-samples")
    raw = {key: out[key] for key in keys if key in out} | {"model_name": "1B-a-pt"}
    path = tmp_path / "results_x.json"
    path.write_text(json.dumps(raw, default=str))
    assert main(["import", str(path), "--out", str(tmp_path / "out")]) == 0
    assert rows(tmp_path / "out") == pytest.approx(
        {("1B-a-pt", t): out["results"][t]["acc,none"] for t in ("boolq", "copa", "rte", "wic")}
    )
    assert "Left out: pairs, suite (groups, whose tasks are there)" in capsys.readouterr().out


def test_groups_of_other_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    early = {  # before group_subtasks
        "ai": {"acc,none": 0.5, "alias": "ai"},
        "x_easy": {"acc,none": 0.6, "alias": " - x_easy"},
        "x_hard": {"acc,none": 0.4, "alias": " - x_hard"},
    }
    file = results(tmp_path / "a.json", early, "1B-a-pt", groups={"ai": early["ai"]})
    assert main(["import", str(file), "--out", str(tmp_path / "early")]) == 0
    assert {b for _, b in rows(tmp_path / "early")} == {"x_easy", "x_hard"}
    light = {
        "suite|arc:easy|0": {"acc": 0.5, "acc_norm": 0.6},
        "suite|mmlu:law|5": {"acc": 0.3},
        "suite|mmlu:_average|5": {"acc": 0.3},
        "all": {"acc": 0.4, "acc_norm": 0.6},
    }
    file = results(tmp_path / "b.json", light, config_general={"model_name": "o/1B-a-pt"})
    assert main(["import", str(file), "--out", str(tmp_path / "light")]) == 0
    assert rows(tmp_path / "light") == {("1B-a-pt", "arc_easy"): 0.6, ("1B-a-pt", "mmlu_law"): 0.3}
    assert "suite|mmlu:_average|5, all (means of others)" in capsys.readouterr().out
    alone = results(tmp_path / "c.json", {"mmlu": 0.3}, "1B-a-pt", group_subtasks={"mmlu": ["mmlu_law"]})
    assert main(["import", str(alone), "--out", str(tmp_path / "alone")]) == 0, "its tasks are not there"
    assert rows(tmp_path / "alone") == {("1B-a-pt", "mmlu"): 0.3}


def test_a_nan_costs_one_cell(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for m in range(5):
        for stage in ("pt", "sft"):
            bad = (m, stage) == (2, "sft")
            scores = {"rte": math.nan if bad else 0.1 * m, "wic": 0.2 * m}
            results(tmp_path / "in" / f"results_{m}{stage}.json", scores, f"1B-m{m}-{stage}")
    assert main(["import", str(tmp_path / "in"), "--out", str(tmp_path / "out")]) == 0
    assert "Missing: 1 value (rte of 1B-m2-sft)" in capsys.readouterr().out
    assert main(["correlate", str(tmp_path / "out"), "--out", str(tmp_path / "a"), "--bootstrap", "200"]) == 0
    said = capsys.readouterr()
    assert "rte has no value for 1B-m2-sft" in said.out + said.err
    panel = load_panel(tmp_path / "out")
    values = dict(zip(panel.benchmarks, panel.values["accuracy"][0, 1].T, strict=True))
    assert values["wic"].tolist() == pytest.approx([0.0, 0.2, 0.4, 0.6, 0.8])
    assert [math.isnan(v) for v in values["rte"]] == [False, False, True, False, False]


def test_other_metrics(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = results(tmp_path / "a.json", {"gsm": {"exact_match,strict": 0.2, "f1,none": 0.3}}, "1B-a-pt")
    said = refused(capsys, tmp_path / "out", other)
    assert f"no accuracies in {other}" in said and "gsm: no acc, only exact_match, f1" in said
    norm = results(
        tmp_path / "b.json", {"odd": {"acc_norm,none": 0.2, "acc_norm_stderr,none": 0.1}}, "1B-a-pt"
    )
    assert "odd: no acc, only acc_norm; --metric acc_norm takes those)" in refused(
        capsys, tmp_path / "out", norm
    )
    assert main(["import", str(norm), "--metric", "acc_norm", "--out", str(tmp_path / "norm")]) == 0
    assert rows(tmp_path / "norm") == {("1B-a-pt", "odd"): 0.2}
    beside = results(tmp_path / "d.json", {"rte": 0.5}, "1B-b-pt")
    assert main(["import", str(other), str(beside), "--out", str(tmp_path / "beside")]) == 0
    assert f"no accuracies in {other} (gsm" in " ".join(capsys.readouterr().err.split())
    mixed = results(tmp_path / "c.json", {"gsm": {"exact_match,strict": 0.2}, "rte": 0.6}, "1B-a-pt")
    assert main(["import", str(mixed), "--out", str(tmp_path / "mixed")]) == 0
    assert "Left out: gsm (no acc, only exact_match)" in capsys.readouterr().out


def test_what_may_have_changed_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def run(task: str, model: str, commit: str, version: float, limit: int | None) -> Path:
        more = {"versions": {task: version}, "config": {"model_sha": commit, "limit": limit}}
        return results(tmp_path / f"{task}{model}.json", {task: 0.5}, model, **more)

    a, b = run("rte", "1B-a-pt", "aaaa", 1.0, None), run("wic", "1B-a-pt", "bbbb", 1.0, None)
    c = run("wic", "1B-b-pt", "cccc", 2.0, None)
    assert main(["import", str(a), str(b), str(c), "--out", str(tmp_path / "out")]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert f"1B-a-pt: different commits of the model, aaaa in {a} and bbbb in {b}" in said
    assert f"wic: different versions of the task, 1.0 in {b} and 2.0 in {c}" in said
    d = run("wic", "1B-d-pt", "dddd", 1.0, 10)
    assert f"different limits of items: None in {b}, 10 in {d}" in refused(capsys, tmp_path / "no", b, d)


def test_a_stage_given_with_the_file(tmp_path: Path) -> None:
    file = results(tmp_path / "a.json", {"rte": 0.5}, "org/base")
    given = f"{file}@scale=1B,mixture=a,stage=pt"
    assert main(["import", given, "--out", str(tmp_path / "out")]) == 0
    with (tmp_path / "out" / "results.csv").open() as handle:
        row = next(csv.DictReader(handle))
    assert [row[key] for key in ("checkpoint", "scale", "mixture", "stage")] == ["base", "1B", "a", "pt"]


def test_standard_errors_and_numbers_of_items(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As lm-evaluation-harness computes and writes them itself, and lighteval's."""
    import lm_eval
    from lm_eval.api.model import LM

    from evalengine.benchmarks import world
    from lm_eval_reference import tasks

    class Lengths(LM):
        def loglikelihood(self, requests, disable_tqdm: bool = False):
            return [(-float(len(r.args[1])), False) for r in requests]

        loglikelihood_rolling = generate_until = None

    world.write(tmp_path / "data", items=30, train_items=12, words=500, chats=5)
    logging.disable(logging.WARNING)
    found = {task.config.task: task for task in tasks(tmp_path / "data" / "bench").values()}
    chosen = {task: found[task] for task in ("piqa", "social_iqa", "hellaswag")}
    out = lm_eval.evaluate(Lengths(), task_dict=chosen, bootstrap_iters=1)
    logging.disable(logging.NOTSET)
    path = tmp_path / "results_x.json"
    path.write_text(
        json.dumps({"results": out["results"], "n-samples": out["n-samples"], "model_name": "1B-a-pt"})
    )
    assert main(["import", str(path), "--out", str(tmp_path / "out")]) == 0
    assert "no item noise" not in capsys.readouterr().err
    for row in stored(tmp_path / "out"):
        task, score = {"piqa": ("piqa", "acc_norm"), "siqa": ("social_iqa", "acc")}.get(
            row["benchmark"], ("hellaswag", "acc_norm")
        )
        p = out["results"][task][f"{score},none"]
        assert float(row["value"]) == p and int(row["items"]) == 30
        assert float(row["stderr"]) == pytest.approx(math.sqrt(p * (1 - p) / 29)), (
            "of the score that is taken"
        )
        assert float(row["stderr"]) == out["results"][task][f"{score}_stderr,none"]
    light = {"lighteval|arc:easy|0": {"acc": 0.5, "acc_stderr": 0.02, "acc_norm": 0.6, "acc_norm_stderr": 0.01},
             "lighteval|glue:rte|0": {"acc": 0.4, "acc_stderr": None}}  # fmt: skip
    about = {
        "lighteval|arc:easy|0": {"effective_num_docs": 2376},
        "lighteval|glue:rte|0": {"effective_num_docs": -1},
    }
    file = results(tmp_path / "l.json", light, config_general={"model_name": "o/1B-a-pt"}, config_tasks=about)
    assert main(["import", str(file), "--out", str(tmp_path / "light")]) == 0
    assert "no item noise (--items, --stderr): rte" in " ".join(capsys.readouterr().err.split())
    of = {
        row["benchmark"]: (row["items"], row["stderr"], row["chance"]) for row in stored(tmp_path / "light")
    }
    assert of == {"arc_easy": ("2376", "0.01", ""), "rte": ("0", "", "0.5")}
    bad = results(tmp_path / "b.json", {"rte": {"acc,none": 0.5, "acc_stderr,none": 2.0}}, "1B-a-pt")
    assert "the standard error of rte must be between 0 and 1" in refused(capsys, tmp_path / "no", bad)


def test_of_several_filters_none_is_taken_unsaid(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The filter `none` goes first; without it, the first one of a file was taken."""
    strict = {"own": {"acc,strict": 0.1, "acc,flexible": 0.3}, "rte": {"acc,strict": 0.2, "acc,none": 0.4}}
    file = results(tmp_path / "a.json", strict, "1B-a-pt")
    assert main(["import", str(file), "--out", str(tmp_path / "out")]) == 0
    assert "Left out: own (acc by several filters, strict, flexible)" in capsys.readouterr().out
    assert [(row["benchmark"], row["value"]) for row in stored(tmp_path / "out")] == [("rte", "0.4")]
    other = results(tmp_path / "b.json", {"rte": {"acc,strict": 0.5}}, "1B-b-pt")
    said = refused(capsys, tmp_path / "no", file, other)
    assert f"rte has different scores: acc in {file}, acc by the filter strict in {other}" in said


def test_a_standard_error_of_zero_is_not_known(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It would stand for an accuracy without noise. Where all answers are right it is what the formula gives."""
    tasks = {
        "rte": {"acc,none": 0.5, "acc_stderr,none": 0.0},
        "wic": {"acc,none": 1.0, "acc_stderr,none": 0.0},
    }
    file = results(tmp_path / "a.json", tasks, "1B-a-pt")
    assert main(["import", str(file), "--out", str(tmp_path / "out")]) == 0
    assert "standard errors of 0, which none is, are taken as not known: rte" in capsys.readouterr().err
    assert {row["benchmark"]: row["stderr"] for row in stored(tmp_path / "out")} == {"rte": "", "wic": "0.0"}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("dtype=float16", "dtype=bfloat16"), "dtypes, float16"),
        (("dtype=float16", "dtype=float16,load_in_8bit=True"), "quantisations, none"),
        (("dtype=float16", "dtype=float16,load_in_4bit=False"), ""),
    ],
)
def test_weights_that_were_loaded_otherwise_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], given: tuple[str, str], said: str
) -> None:
    files = [
        results(tmp_path / f"{m}.json", {"rte": 0.5}, config={"model_args": f"pretrained=o/1B-{m}-pt,{how}"})
        for m, how in zip("ab", given, strict=True)
    ]
    assert main(["import", *map(str, files), "--out", str(tmp_path / "out"), "--json"]) == 0
    notes = [note for note in json.loads(capsys.readouterr().out)["notes"] if "the checkpoints" in note]
    assert [note.split(f" in {files[0]}")[0] for note in notes] == [
        f"the checkpoints: different {said}"
    ] * bool(said)


def stored(folder: Path) -> list[dict[str, str]]:
    with (folder / "results.csv").open() as handle:
        return list(csv.DictReader(handle))


def test_runs_of_one_mixture(tmp_path: Path) -> None:
    for seed in (1, 2):
        results(tmp_path / "in" / f"results_{seed}.json", {"rte": 0.5}, f"org/1B-a-pt-seed{seed}")
    pattern = r"(?P<scale>[^-]+)-(?P<mixture>[^-]+)-(?P<stage>[^-]+)-seed(?P<replicate>.+)"
    assert main(["import", str(tmp_path / "in"), "--pattern", pattern, "--out", str(tmp_path / "out")]) == 0
    found = [
        [row[key] for key in ("checkpoint", "mixture", "stage", "replicate")]
        for row in stored(tmp_path / "out")
    ]
    assert found == [[f"1B-a-pt-seed{seed}", "a", "pt", str(seed)] for seed in (1, 2)]
    files = [results(tmp_path / f"run{n}" / "r.json", {"rte": 0.1 * n}, "org/1B-a-pt") for n in (1, 2)]
    given = [f"{file}@replicate={n}" for n, file in enumerate(files)]
    assert main(["import", *given, "--out", str(tmp_path / "both")]) == 0
    assert [row["checkpoint"] for row in stored(tmp_path / "both")] == [
        "1B-a-pt-replicate0",
        "1B-a-pt-replicate1",
    ]


def lighteval(path: Path, name: str, setting: dict[str, Any], task: str = "leaderboard|glue:rte|0") -> Path:
    """A results file as lighteval writes it; `setting`: of its model_config."""
    general = {"lighteval_sha": "?", "max_samples": 40, "model_name": f"org/{name}", "model_sha": "ab"}
    general["model_config"] = {"model_name": f"org/{name}", "revision": "main", **setting}
    return results(path, {task: {"acc": 0.5}}, config_general=general)


@pytest.mark.parametrize("key", ["override_chat_template", "use_chat_template"])  # since its 0.10, and before
def test_chat_settings_of_lighteval(key: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain, chat = (lighteval(tmp_path / f"{m}.json", f"1B-{m}-sft", {key: m == "b"}) for m in "ab")
    said = refused(capsys, tmp_path / "out", plain, chat)
    assert f"rte at sft has different chat formats: none in {plain}, a chat template in {chat}" in said
    before = lighteval(tmp_path / "c.json", "1B-b-pt", {key: False})
    assert main(["import", str(before), str(chat), "--out", str(tmp_path / "out"), "--json"]) == 0
    (note,) = (n for n in json.loads(capsys.readouterr().out)["notes"] if "chat" in n)
    assert note == f"rte: different chat formats, none in {before} and a chat template in {chat}"
    told = lighteval(tmp_path / "d.json", "1B-d-sft", {key: True, "system_prompt": "Be brief."})
    silent = lighteval(tmp_path / "e.json", "1B-e-sft", {key: True, "system_prompt": None})
    said = refused(capsys, tmp_path / "no", told, silent)
    assert f"rte at sft has different system instructions: Be brief. in {told}, none in {silent}" in said


def test_a_chat_template_that_lighteval_does_not_state(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """null is what it writes where the tokenizer decides."""
    files = [lighteval(tmp_path / f"{m}.json", f"1B-{m}-pt", {"override_chat_template": None}) for m in "ab"]
    assert main(["import", *map(str, files), "--out", str(tmp_path / "out"), "--json"]) == 0
    notes = json.loads(capsys.readouterr().out)["notes"]
    assert sum("do not say whether a chat template was applied" in note for note in notes) == 1
    other = json.loads(files[1].read_text())
    other["config_general"]["max_samples"] = None
    files[1].write_text(json.dumps(other))
    assert "different limits of items: 40 in" in refused(capsys, tmp_path / "no", *files)


def test_numbers_of_items_of_older_lighteval(tmp_path: Path) -> None:
    """Before 0.10 its tasks are configured by their name without the number of examples."""
    file = lighteval(tmp_path / "a.json", "1B-a-pt", {})
    raw = json.loads(file.read_text())
    file.write_text(
        json.dumps({**raw, "config_tasks": {"leaderboard|glue:rte": {"effective_num_docs": 277}}})
    )
    assert main(["import", str(file), "--out", str(tmp_path / "out")]) == 0
    assert [row["items"] for row in stored(tmp_path / "out")] == ["277"]


def test_no_number_is_dropped_without_a_word(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Numbers as text are read; what is none of its task is named."""
    scores = {"rte": {"acc,none": "0.5"}, "wic": {"acc,none": "6_2"}, "cb": {"acc,none": {"mean": 0.4}}}
    file = results(tmp_path / "a.json", {**scores, "group": {"alias": "group"}}, "1B-a-pt")
    assert main(["import", str(file), "--out", str(tmp_path / "out")]) == 0
    assert rows(tmp_path / "out") == {("1B-a-pt", "rte"): 0.5}
    assert "Left out: wic, cb (no numbers)." in capsys.readouterr().out
