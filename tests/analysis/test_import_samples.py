"""samples_*.jsonl: which choice a target means, whose samples they are, and nothing written by halves."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evalengine import store
from evalengine.analysis.data.items import read_store
from evalengine.analysis.importing.samples import read_samples, to_table
from evalengine.cli import main
from evalengine.errors import UserError

FIRST, SECOND = "2025-03-01T00-00-00.0", "2025-03-02T00-00-00.0"


def sample(
    number: int,
    target: object,
    choices: Sequence[str],
    loglik: Sequence[float],
    gold: int | None = None,
    **more: Any,
) -> dict[str, Any]:
    """A line as the harness writes it, with its acc where `gold` is given."""
    acc = {} if gold is None else {"acc": float(int(np.argmax(loglik)) == gold)}
    return {
        "doc_id": number,
        "doc_hash": f"h{number}",
        "target": str(target),
        "arguments": {f"gen_args_{i}": {"arg_0": "Q", "arg_1": f" {text}"} for i, text in enumerate(choices)},
        "filtered_resps": [[str(value), "False"] for value in loglik],
        **acc,
        **more,
    }  # fmt: skip


def write(path: Path, lines: Sequence[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def golds(path: Path, lines: Sequence[dict[str, Any]]) -> list[int]:
    return [found.gold for found in read_samples(write(path, lines))]


DIGITS = ("1", "2", "3", "4")


def test_a_digit_is_an_index(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    truth = [int(g) for g in rng.integers(4, size=20)]
    lines = [sample(n, g, DIGITS, (rng.normal(size=4) - 9).tolist(), g) for n, g in enumerate(truth)]
    assert golds(tmp_path / "s.jsonl", lines) == truth
    without = [{key: value for key, value in line.items() if key != "acc"} for line in lines]
    assert golds(tmp_path / "s.jsonl", without) == truth
    wrong = [sample(n, 1, DIGITS, [-9.0, -9.0, -1.0, -4.0], 1) for n in range(3)]  # acc fits text and index
    assert golds(tmp_path / "s.jsonl", wrong) == [1, 1, 1]


def test_one_rule_for_all_lines(tmp_path: Path) -> None:
    """Where one target is no index, or acc says otherwise, the digits are texts on every line."""
    low = [-2.0, -1.0, -3.0, -4.0]
    lines = [sample(0, "2", DIGITS, low), sample(1, "4", DIGITS, low)]
    assert golds(tmp_path / "s.jsonl", lines) == [1, 3]
    lines = [sample(0, "2", DIGITS, low, 1), sample(1, "1", DIGITS, low, 0)]
    assert golds(tmp_path / "s.jsonl", lines) == [1, 0]
    letters = [sample(0, "B", ("x", "y"), [-1.0, -2.0], 1), sample(1, "A", ("y", "z"), [-1.0, -2.0], 0)]
    assert golds(tmp_path / "s.jsonl", letters) == [1, 0]
    swapped = [sample(0, "B", ("B", "A"), [-1.0, -2.0], 0)]
    assert golds(tmp_path / "s.jsonl", swapped) == [0], "a text before a letter"


def test_no_rule(tmp_path: Path) -> None:
    low = [-2.0, -1.0, -3.0, -4.0]
    path = write(
        tmp_path / "s.jsonl",
        [sample(0, "3", ("a", "b", "c", "d"), low), sample(1, "b", ("a", "b", "c", "d"), low)],
    )
    with pytest.raises(UserError, match="targets are not all of one kind"):
        read_samples(path)
    # by acc a text on the first line and an index on the second
    write(path, [sample(0, "2", DIGITS, low, 1), sample(1, "3", DIGITS, [-2.0, -3.0, -4.0, -1.0], 3)])
    with pytest.raises(UserError, match=r"line \d: its acc says"):
        read_samples(path)
    write(path, [sample(0, "maybe", ("a", "b", "c"), [-1.0, -2.0, -3.0], 1)])
    with pytest.raises(UserError, match="line 1: cannot tell which choice its target 'maybe' means"):
        read_samples(path)
    write(path, [sample(0, "0", ("a", "b"), [-1.0, -2.0], acc=0.4)])
    with pytest.raises(UserError, match=r"line 1: its acc is 0\.4: a task with several right choices"):
        read_samples(path)
    write(path, [sample(0, "0", ("a", "b"), [-1.0, -2.0])] * 2)
    with pytest.raises(UserError, match="line 2: the item of line 1 again"):
        read_samples(path)


PAIR = [sample(n, n % 2, ("yes", "no"), [-1.0, -2.0], n % 2) for n in range(4)]
OTHER = [sample(n, n % 2, ("yes", "no"), [-2.0, -1.0], n % 2) for n in range(4)]


def test_two_runs_of_one_task(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = tmp_path / "runs" / "o__1B-a-pt"
    old = write(home / f"samples_rte_{FIRST}.jsonl", PAIR)
    new = write(home / f"samples_rte_{SECOND}.jsonl", OTHER)
    out = tmp_path / "out"
    assert main(["import", str(tmp_path / "runs"), "--out", str(out)]) == 1
    said = capsys.readouterr().err
    assert f"{old} and {new} both hold rte of 1B-a-pt: remove {old}, the older one" in said
    assert not out.exists()
    for date, step, shots in ((FIRST, "step1", 0), (SECOND, "step2", 5)):
        beside = {
            "results": {"rte": {"acc,none": 0.5}},
            "n-shot": {"rte": shots},
            "config": {"model_args": f"pretrained=o/1B-a-pt,revision={step}", "limit": 4},
        }
        (home / f"results_{date}.json").write_text(json.dumps(beside))
    assert main(["import", str(tmp_path / "runs"), "--out", str(out)]) == 0
    assert "hold every item" in capsys.readouterr().err
    found = {path.parent.name: path for path in store.paths(out)}
    metadata = {name: store.read_metadata(path) for name, path in found.items()}
    assert set(found) == {"1B-a-pt@step1", "1B-a-pt@step2"}
    assert [metadata[f"1B-a-pt@step{n}"]["fewshot"] for n in (1, 2)] == ["0", "5"]
    assert metadata["1B-a-pt@step1"]["limit"] == "4"
    rows = store.read(found["1B-a-pt@step2"]).to_pylist()
    assert [row["loglik"] for row in rows] == [[-2.0, -1.0]] * 4
    assert (rows[0]["scale"], rows[0]["mixture"], rows[0]["stage"]) == ("1B", "a", "pt")


def test_versions_of_a_task_are_not_compared(tmp_path: Path) -> None:
    """Another version of a task may word its items otherwise; lm-evaluation-harness gives them the same ids."""
    for stage, version in (("pt", 1.0), ("sft", 1.0), ("dpo", 2.0)):
        home = tmp_path / "runs" / f"o__1B-a-{stage}"
        write(home / f"samples_rte_{FIRST}.jsonl", PAIR)
        beside = {"results": {"rte": {"acc,none": 0.5}}, "versions": {"rte": version}}
        (home / f"results_{FIRST}.json").write_text(json.dumps(beside))
    out = tmp_path / "out"
    assert main(["import", str(tmp_path / "runs"), "--out", str(out)]) == 0
    found = {path.parent.name: store.read_metadata(path) for path in store.paths(out)}
    assert {name: about["benchmark_version"][-3:] for name, about in found.items()} == {
        "1B-a-pt": "1.0", "1B-a-sft": "1.0", "1B-a-dpo": "2.0",
    }  # fmt: skip
    with pytest.raises(
        UserError, match=r"rte was scored with different versions: .* 2\.0' \(1B-a-dpo\); .* 1\.0'"
    ):
        read_store(out)
    shutil.rmtree(out / "1B-a-dpo")
    assert len(read_store(out).checkpoints) == 2


def test_chat_formats_of_a_stage_are_not_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever import they come by; of two stages a note says it."""
    out = tmp_path / "out"

    def run(model: str, **said: Any) -> None:
        home = tmp_path / model
        write(home / f"samples_rte_{FIRST}.jsonl", PAIR)
        raw = {"results": {"rte": {}}, "config": {"model_args": f"pretrained=org/{model}"}, **said}
        (home / f"results_{FIRST}.json").write_text(json.dumps(raw))
        assert main(["import", str(home), "--out", str(out)]) == 0

    run("1B-a-pt", chat_template=None, system_instruction=None)
    run("1B-a-sft", chat_template="{{x}}", system_instruction=None)
    run("1B-b-sft")  # does not say it
    notes = " ".join(read_store(out).notes)
    assert "stages were scored with different chat formats" in notes
    assert "'none' (1B-a-pt), 'a chat template' (1B-a-sft)" in notes and "system instructions" not in notes
    run("1B-c-sft", chat_template="{{x}}", system_instruction="Be brief.")
    with pytest.raises(
        UserError,
        match=r"rte at sft was scored with different system instructions: 'none' \(1B-a-sft\); 'Be brief.'",
    ):
        read_store(out)
    shutil.rmtree(out / "1B-c-sft")
    run("1B-d-sft", chat_template="", system_instruction="")
    with pytest.raises(
        UserError, match=r"rte at sft was scored with different chat formats: 'a chat template'"
    ):
        read_store(out)


def test_nothing_is_half_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "runs" / "1B-a-pt" / f"samples_rte_{FIRST}.jsonl", PAIR)
    bad = write(tmp_path / "runs" / "1B-a-pt" / f"samples_wic_{FIRST}.jsonl", [{"doc_id": 0}])
    assert main(["import", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]) == 1
    assert f"{bad}, line 1 is no multiple-choice sample" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_key_that_a_sample_has_twice_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "samples.jsonl", PAIR)
    path.write_text(path.read_text().replace('"doc_id"', '"doc_id": 7, "doc_id"', 1))
    with pytest.raises(UserError, match=r"line 1: the key 'doc_id' appears twice in one object; remove one"):
        read_samples(path)


def test_unconditional_scores_are_no_choices(tmp_path: Path) -> None:
    """With acc_mutual_info the harness scores every choice once more without context, behind those with it."""
    lines = [
        sample(
            n,
            n % 2,
            ("yes", "no", "yes", "no"),
            [-3.0, -2.0, -1.0, -1.5],
            acc=float(n % 2),
            acc_mutual_info=0.0,
        )
        for n in range(4)
    ]
    found = read_samples(write(tmp_path / "s.jsonl", lines))
    assert [one.loglik for one in found] == [(-3.0, -2.0)] * 4
    assert [one.gold for one in found] == [0, 1, 0, 1] and found[0].choices == (" yes", " no")


def test_choices_keep_their_order_where_keys_are_sorted(tmp_path: Path) -> None:
    """As texts gen_args_10 and gen_args_11 come before gen_args_2."""
    texts = [chr(97 + k) * (k + 1) for k in range(12)]
    line = sample(0, 2, texts, [-float(k + 1) for k in range(12)])
    path = tmp_path / "s.jsonl"
    path.write_text(json.dumps(line, sort_keys=True))
    table = to_table(dict.fromkeys(store.KEYS, "x"), read_samples(path))
    assert table["chars"].to_pylist() == [list(range(1, 13))]


def test_what_is_above_zero_is_no_log_likelihood(tmp_path: Path) -> None:
    path = write(tmp_path / "s.jsonl", [sample(0, 0, ("a", "b"), [float("nan"), 0.7])])
    with pytest.raises(UserError, match=r"line 1: its score 0\.7 is above 0, as no log-likelihood is"):
        read_samples(path)


@pytest.mark.parametrize(("delimiter", "stated"), [(" ", ""), ("\n\n", ""), ("", " "), ("", "")])
def test_lengths_are_those_by_which_acc_norm_was_computed(
    tmp_path: Path, delimiter: str, stated: str
) -> None:
    """The harness counts what the task calls a choice, without the delimiter that the task puts before it."""
    rng = np.random.default_rng(0)
    lines, lengths = [], []
    for n in range(200):
        choices = [stated + "x" * int(k) for k in rng.integers(1, 6, size=3)]
        loglik, gold = (-rng.uniform(1, 9, size=3)).tolist(), int(rng.integers(3))
        lengths.append([len(choice) for choice in choices])
        norm = float(int(np.argmax(np.array(loglik) / lengths[-1])) == gold)
        line = sample(n, gold, choices, loglik, gold, acc_norm=norm)
        for pair, choice in zip(line["arguments"].values(), choices, strict=True):
            pair["arg_1"] = delimiter + choice
        lines.append(line)
    table = to_table(dict.fromkeys(store.KEYS, "x"), read_samples(write(tmp_path / "s.jsonl", lines)))
    assert table["chars"].to_pylist() == table["bytes"].to_pylist() == lengths


def test_lengths_that_contradict_acc_norm_are_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As where contexts hold the choices: the harness divides by the choices' lengths, which the file does not have."""
    lines = [sample(n, 0, ("same", "same"), [-1.0, -2.0], 0, acc_norm=float(n % 2)) for n in range(4)]
    for stage in ("pt", "sft"):
        write(tmp_path / "runs" / f"1B-a-{stage}" / f"samples_own_{FIRST}.jsonl", lines)
    assert main(["import", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]) == 0
    assert "its acc_norm is not that of its choices' lengths" in " ".join(capsys.readouterr().err.split())
    assert read_store(tmp_path / "out").benchmarks[0].metric == "acc"
    with pytest.raises(
        UserError, match="own: the store has no chars lengths, so no acc_norm: use --metric acc"
    ):
        read_store(tmp_path / "out", "acc_norm")


def test_scores_that_are_there_are_not_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path / "1B-a-pt" / f"samples_rte_{FIRST}.jsonl", PAIR)
    out, again = tmp_path / "out", ["import", str(file), "--out", str(tmp_path / "out")]
    assert main(again) == 0 and main(again) == 0
    pattern = r"(?P<scale>1B)-(?P<mixture>.+)-(?P<stage>pt)"
    assert main([*again, "--pattern", pattern.replace("1B)-", "1)B-")]) == 0, (
        "the same scores under a new identity"
    )
    assert store.read(out / "1B-a-pt" / "rte.arrow")["scale"][0].as_py() == "1"
    write(file, OTHER)
    assert main(again) == 1
    assert "is there and holds other scores" in capsys.readouterr().err
    assert store.read(out / "1B-a-pt" / "rte.arrow")["loglik"][0].as_py() == [-1.0, -2.0]
    assert [entry.name for entry in out.iterdir()] == ["1B-a-pt"]


def test_results_and_scores_do_not_share_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    samples = write(tmp_path / "1B-a-pt" / f"samples_rte_{FIRST}.jsonl", PAIR)
    table = tmp_path / "t.csv"
    table.write_text("m,t,rte\na,pt,0.5\n")
    columns = ["--mixture", "m", "--stage", "t"]
    assert main(["import", str(samples), "--out", str(tmp_path / "a")]) == 0
    assert main(["import", str(table), *columns, "--out", str(tmp_path / "a")]) == 1
    assert main(["import", str(table), *columns, "--out", str(tmp_path / "b")]) == 0
    assert main(["import", str(samples), "--out", str(tmp_path / "b")]) == 1
    assert capsys.readouterr().err.count("correlate reads one or the other") == 2


def test_what_the_user_says_of_a_task(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its category; and a seed by the pattern. Numbers of items are in the samples themselves."""
    home = tmp_path / "1B-a-pt-seed3"
    files = [write(home / f"samples_{task}_{FIRST}.jsonl", PAIR) for task in ("own_task", "super_glue:rte")]
    pattern = r"(?P<scale>[^-]+)-(?P<mixture>[^-]+)-(?P<stage>[^-]+)-seed(?P<replicate>.+)"
    given = ["import", *map(str, files), "--pattern", pattern, "--category", "own_*=Mine"]
    assert main([*given, "--out", str(tmp_path / "out")]) == 0
    found = {path.stem: store.read(path)["category"][0].as_py() for path in store.paths(tmp_path / "out")}
    assert found == {"own_task": "Mine", "rte": "NLI"}
    assert store.read_metadata(next(iter(store.paths(tmp_path / "out"))))["checkpoint_seed"] == "3"
    assert main([*given, "--items", "5", "--out", str(tmp_path / "no")]) == 1
    assert "--items would do nothing: only .csv and .json files use it" in capsys.readouterr().err
    assert main([*given, "--category", "x=Mine", "--out", str(tmp_path / "no")]) == 1
    assert "no benchmark 'x' is imported" in capsys.readouterr().err and not (tmp_path / "no").exists()


def test_samples_are_not_explained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They do not say how many tokens a choice has."""
    write(tmp_path / "1B-a-pt" / f"samples_rte_{FIRST}.jsonl", PAIR)
    assert main(["import", str(tmp_path / "1B-a-pt"), "--out", str(tmp_path / "out")]) == 0
    capsys.readouterr()
    assert main(["explain", str(tmp_path / "out"), "--out", str(tmp_path / "a")]) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert (
        "rte: the scores of 1B-a-pt do not say how many tokens a choice has, as imported samples do not"
        in said
    )


@pytest.mark.parametrize("items", [4, 5])
def test_a_file_that_was_cut_off_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], items: int
) -> None:
    file = write(tmp_path / "1B-a-pt" / f"samples_rte_{FIRST}.jsonl", PAIR)
    raw = {"results": {"rte": {"acc,none": 0.5}}, "n-samples": {"rte": {"original": 9, "effective": items}}}
    (file.parent / f"results_{FIRST}.json").write_text(json.dumps(raw))
    assert main(["import", str(file), "--out", str(tmp_path / "out")]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert (f"{file} holds 4 items, and by the results beside it the run was of 5" in said) == (items == 5)
