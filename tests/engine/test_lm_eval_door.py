"""lm-evaluation-harness on this engine: the same results as its own HF model; its tasks as benchmarks of ours."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lm_eval_reference as reference
import tiny_models
from evalengine.bench import lm_eval as lm_eval_bench
from evalengine.cli import main
from evalengine.errors import UserError


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.save(
        tmp_path_factory.mktemp("lm_eval") / "llama", "llama", "sentencepiece_like", window=128
    )


@pytest.fixture(scope="module")
def models(checkpoint: Path) -> tuple[Any, Any]:
    from lm_eval.models.huggingface import HFLM

    from evalengine.lm_eval.model import EvalengineLM

    ours = EvalengineLM(pretrained=str(checkpoint), device="cpu", batch_size=1)
    return ours, HFLM(pretrained=str(checkpoint), device="cpu", batch_size=4)


@pytest.mark.slow
def test_five_tasks_give_lm_evals_own_results(small_world: Path, models: tuple[Any, Any]) -> None:
    ours, theirs = (lm_eval_bench.evaluated(model, small_world / "bench", limit=8) for model in models)
    assert set(ours.loglik) == {reference.TASK_OF[name] for name in lm_eval_bench.TASKS}
    assert len(ours.metrics) >= 5
    of_metrics, of_loglik = lm_eval_bench.largest_differences(ours, theirs)
    assert of_metrics < 1e-3 and of_loglik < 1e-3


LONG = "The sun rises in the east and sets in the west. " * 30  # several windows


def test_log_likelihoods_agree(models: tuple[Any, Any]) -> None:
    from lm_eval.api.instance import Instance

    pairs = [
        ("The glass broke because", " xyz qq"),
        ("", "yes"),
        ("Which one, x", " C. bird "),
        (LONG.strip(), " xyz"),
        ("Which", " dog" * 3),
    ]
    requests = [Instance("loglikelihood", {}, pair, 0) for pair in pairs]
    ours, theirs = models
    with reference.quiet():
        expected = theirs.loglikelihood(requests)
    got = ours.loglikelihood(requests)
    np.testing.assert_allclose([a for a, _ in got], [a for a, _ in expected], rtol=0, atol=1e-3)
    assert [b for _, b in got] == [b for _, b in expected]


def test_what_is_longer_than_the_window_is_said_or_refused(
    models: tuple[Any, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """lm-eval's own model stops at such a continuation: its score would be that of its end."""
    from lm_eval.api.instance import Instance

    ours, theirs = models
    short, cut, beyond = (
        [Instance("loglikelihood", {}, pair, 0)]
        for pair in (("Which", " dog"), (LONG.strip(), " dog"), ("Which", LONG))
    )
    for requests, words in (
        (short, ""),
        (cut, "1 requests are longer than the model's window of 128 tokens"),
    ):
        capsys.readouterr()
        ours.loglikelihood(requests)
        assert words in capsys.readouterr().err
    with reference.quiet(), pytest.raises(AssertionError):
        theirs.loglikelihood(beyond)
    with pytest.raises(
        UserError, match=r"a continuation of .* tokens is longer than the model's window of 128"
    ):
        ours.loglikelihood(beyond)


def rolling(*texts: str) -> list[Any]:
    from lm_eval.api.instance import Instance

    return [Instance("loglikelihood_rolling", {}, (text,), 0) for text in texts]


def test_rolling_log_likelihoods_agree_where_the_tokenizer_adds_no_bos(tmp_path: Path) -> None:
    from lm_eval.models.huggingface import HFLM

    from evalengine.lm_eval.model import EvalengineLM

    path = tiny_models.save(tmp_path / "gpt2", "gpt2", window=128)
    requests = rolling(LONG, "yes", LONG[:300])
    with reference.quiet():
        expected = HFLM(pretrained=str(path), device="cpu", batch_size=4).loglikelihood_rolling(requests)
    got = EvalengineLM(pretrained=str(path), device="cpu").loglikelihood_rolling(requests)
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_a_rolling_log_likelihood_has_one_bos(checkpoint: Path, models: tuple[Any, Any]) -> None:
    """By transformers: every token of the text is predicted once, the first after BOS. lm-eval has BOS predict BOS."""
    import torch
    from transformers import AutoModelForCausalLM

    tokenizer = tiny_models.tokenizer("sentencepiece_like")
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    for text in ("yes", LONG[:250]):
        ids = tokenizer(text, add_special_tokens=False).input_ids
        assert len(ids) < 128
        with torch.no_grad():
            logprob = model(torch.tensor([[tokenizer.bos_token_id, *ids]])).logits[0].log_softmax(-1)
        expected = sum(float(logprob[i, token]) for i, token in enumerate(ids))
        got = models[0].loglikelihood_rolling(rolling(text, f"<s>{text}"))
        np.testing.assert_allclose(got[0], expected, rtol=0, atol=1e-3)
        stated = tokenizer(f"<s>{text}", add_special_tokens=False).input_ids[1:]
        with torch.no_grad():
            logprob = model(torch.tensor([[tokenizer.bos_token_id, *stated]])).logits[0].log_softmax(-1)
        expected = sum(float(logprob[i, token]) for i, token in enumerate(stated))
        np.testing.assert_allclose(got[1], expected, rtol=0, atol=1e-3)


def test_scores_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    """lm-eval takes the first NaN of an item for the model's answer."""
    from lm_eval.api.instance import Instance
    from safetensors.torch import load_file, save_file

    from evalengine.lm_eval.model import EvalengineLM

    path = tiny_models.save(tmp_path / "large", "llama")
    tensors = load_file(path / "model.safetensors")
    tensors["lm_head.weight"] *= 60_000 / tensors["lm_head.weight"].abs().max()  # logits beyond float16
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    requests = [Instance("loglikelihood", {}, ("The sun", choice), 0) for choice in (" rises", " sets")]
    scores = EvalengineLM(pretrained=str(path), device="cpu", dtype="float32").loglikelihood(requests)
    assert np.isfinite([loglik for loglik, _ in scores]).all()
    with pytest.raises(UserError, match=r"gives NaN or infinite scores: .* dtype=float32"):
        EvalengineLM(pretrained=str(path), device="cpu", dtype="float16").loglikelihood(requests)


def test_generation_is_refused_in_one_sentence(models: tuple[Any, Any]) -> None:
    with pytest.raises(UserError, match="does not generate text"):
        models[0].generate_until([])


def test_unknown_settings_are_refused(checkpoint: Path) -> None:
    from evalengine.lm_eval.model import EvalengineLM

    with pytest.raises(UserError, match="no nonsense"):
        EvalengineLM(pretrained=str(checkpoint), nonsense=1)
    with pytest.raises(UserError, match="no backend=jax"):
        EvalengineLM(pretrained=str(checkpoint), backend="jax")
    with pytest.raises(UserError, match="no dtype=int8: give float32, bfloat16, float16"):
        EvalengineLM(pretrained=str(checkpoint), dtype="int8")
    for wrong in ("many", 0):
        with pytest.raises(UserError, match=f"must be a number of at least 1, not {wrong}"):
            EvalengineLM(pretrained=str(checkpoint), batch_tokens=wrong)


def test_tasks_of_lm_eval_become_benchmarks(
    small_world: Path,
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    models: tuple[Any, Any],
) -> None:
    """The stored scores are lm-eval's own of the same task, item by item."""
    from evalengine import load
    from evalengine.lm_eval.tasks import task_items

    loaded = reference.tasks(small_world / "bench", ["arc_easy", "winogrande"])
    sets = [task_items(reference.TASK_OF[name], task, None, 0, None) for name, task in loaded.items()]
    monkeypatch.setattr("evalengine.lm_eval.tasks.load_tasks", lambda names, **kwargs: sets)
    args = [
        "score",
        str(checkpoint),
        "--lm-eval-tasks",
        "arc_easy,winogrande",
        "--out",
        str(tmp_path / "s"),
        "--device",
        "cpu",
    ]
    assert main(args) == 0
    table = load(tmp_path / "s").to_pylist()
    assert {row["benchmark"] for row in table} == {"arc_easy", "winogrande"}
    for name, task in loaded.items():
        expected = reference.scores(task, models[1])
        rows = [row for row in table if row["benchmark"] == name]
        assert len(rows) == len(expected) > 10
        for row, score in zip(rows, expected, strict=True):
            np.testing.assert_allclose(row["loglik"], score.loglik, rtol=0, atol=1e-3)
            assert float(np.argmax(row["loglik"]) == row["gold"]) == score.acc


def own_task(folder: Path, rows: dict[str, list[dict[str, Any]]], **config: Any) -> Any:
    """A task manager that knows one task, `own`, over local rows by split; and nothing of lm-eval's."""
    import yaml
    from lm_eval.tasks import TaskManager

    folder.mkdir(exist_ok=True)
    files = {}
    for split, content in rows.items():
        files[split] = str(folder / f"{split}.jsonl")
        Path(files[split]).write_text("".join(json.dumps(row) + "\n" for row in content))
    task = {
        "task": "own",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": files, "cache_dir": str(folder / "cache")},
        "output_type": "multiple_choice",
        "doc_to_text": "Q: {{question}}\nA:",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "gold",
        "metric_list": [{"metric": "acc"}],
        **{f"{split}_split": split for split in rows if split != "train"},
        **config,
    }
    if "train" in rows:
        task["training_split"] = "train"
    (folder / "own.yaml").write_text(yaml.safe_dump(task))
    return TaskManager(include_path=str(folder), include_defaults=False)


def questions(*numbers: int, **more: Any) -> list[dict[str, Any]]:
    return [
        {"question": f"what is {i}?", "choices": [f"the {i}", f"a {i}", f"no {i}"], "gold": i % 3, **more}
        for i in numbers
    ]


def examples(context: str) -> list[str]:
    return context.split("\n\n")[:-1]


def check_no_item_is_its_own_example(items: Any, count: int) -> None:
    for item in items.items:
        asked = item.contexts[0].split("\n\n")[-1]
        assert len(set(examples(item.contexts[0]))) == count
        assert not any(example.startswith(asked) for example in examples(item.contexts[0]))


def test_examples_from_the_items_own_split_are_never_the_item(tmp_path: Path) -> None:
    """lm-eval draws them from the test split where there is no other, the item itself among them."""
    from evalengine.lm_eval.tasks import load_tasks

    manager = own_task(tmp_path / "t", {"test": questions(*range(6))}, num_fewshot=2)
    with reference.quiet():
        task = manager.load(["own"])["tasks"]["own"]
        task.set_fewshot_seed(seed=1234)
        task.build_all_requests()
        theirs = [r.contexts[0] for r in reference.requests(task)]
        [(items, _)] = load_tasks("own", manager=manager)
    asked = [context.split("\n\n")[-1] for context in theirs]
    leaks = [any(e.startswith(a) for e in examples(c)) for a, c in zip(asked, theirs, strict=True)]
    assert any(leaks) and not all(leaks), "the draw that this test is about"
    check_no_item_is_its_own_example(items, 2)
    for item, context, leak in zip(items.items, theirs, leaks, strict=True):
        assert (item.contexts[0] == context) != leak, "other draws stay lm-eval's own"


def test_examples_from_another_split_are_never_an_equal_item(tmp_path: Path) -> None:
    """Rows of the train split that are items too, by content and not by id; first_n takes the first."""
    from evalengine.lm_eval.tasks import load_tasks

    rows = {"test": questions(*range(5), id="test"), "train": questions(*range(8), id="train")}
    config: dict[str, Any] = {"fewshot_split": "train", "fewshot_config": {"sampler": "first_n"}}
    manager = own_task(tmp_path / "t", rows, num_fewshot=3, **config)
    with reference.quiet():
        [(items, _)] = load_tasks("own", manager=manager)
    check_no_item_is_its_own_example(items, 3)


def test_too_few_examples_are_one_sentence(tmp_path: Path) -> None:
    from evalengine.lm_eval.tasks import load_tasks

    manager = own_task(tmp_path / "t", {"test": questions(*range(3))})
    for count in (3, 9):
        with (
            reference.quiet(),
            pytest.raises(UserError, match=f"2 few-shot examples .* {count} are requested"),
        ):
            load_tasks("own", manager=manager, fewshot=count)


@pytest.mark.parametrize(("given", "shots"), [([], 2), (["--fewshot", "0"], 0), (["--fewshot", "1"], 1)])
def test_a_task_keeps_its_own_number_of_shots_unless_one_is_given(
    tmp_path: Path,
    checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
    given: list[str],
    shots: int,
) -> None:
    from evalengine import store
    from evalengine.lm_eval import tasks

    manager = own_task(
        tmp_path / "t", {"test": questions(*range(4)), "train": questions(*range(10, 15))}, num_fewshot=2
    )
    load_tasks, loaded = tasks.load_tasks, []

    def load(names: str, **options: Any) -> Any:
        loaded.extend(load_tasks(names, manager=manager, **options))
        return loaded

    monkeypatch.setattr(tasks, "load_tasks", load)
    out = tmp_path / "s"
    args = ["score", str(checkpoint), "--lm-eval-tasks", "own", "--out", str(out), "--device", "cpu", *given]
    assert main(args) == 0
    assert {len(examples(item.contexts[0])) for item in loaded[0][0].items} == {shots}
    assert store.read_metadata(store.paths(out)[0])["fewshot"] == str(shots)


def test_a_task_and_a_benchmark_of_one_name_never_share_a_file(
    small_world: Path,
    tmp_path: Path,
    checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from evalengine.lm_eval.tasks import task_items

    task = reference.tasks(small_world / "bench", ["copa"])["copa"]
    sets = [task_items("copa", task, None, 0, None)]
    monkeypatch.setattr("evalengine.lm_eval.tasks.load_tasks", lambda names, **kwargs: sets)
    out, own = tmp_path / "s", ("--benchmarks", "copa", "--data", str(small_world))
    given, tasks = (
        ("score", str(checkpoint), "--device", "cpu", "--out", str(out)),
        ("--lm-eval-tasks", "copa"),
    )
    assert main([*given, *own, *tasks]) == 1
    assert "copa is a benchmark and a task of lm-eval" in capsys.readouterr().err
    assert not out.exists()
    assert main([*given, *own]) == 0
    stored = (out / checkpoint.name / "copa.arrow").read_bytes()
    assert main([*given, *tasks]) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "holds the scores of the benchmark copa, not of lm-eval's task" in said
    assert (out / checkpoint.name / "copa.arrow").read_bytes() == stored
    assert main([*given, *tasks, "--fresh"]) == 0
    assert main([*given, *own]) == 1
    assert "holds the scores of lm-eval's task copa, not of the benchmark" in " ".join(
        capsys.readouterr().out.split()
    )


def test_no_items_are_refused(tmp_path: Path) -> None:
    from evalengine.lm_eval.tasks import load_tasks

    manager = own_task(tmp_path / "t", {"test": questions(1, 2, 3)})
    for limit in (0, -3):
        with pytest.raises(UserError, match=f"a limit of {limit} leaves nothing to score"):
            load_tasks("own", manager=manager, limit=limit)
    assert len(load_tasks("own", manager=manager, limit=2)[0][0].items) == 2


def test_tasks_that_are_no_multiple_choice_are_refused(small_world: Path) -> None:
    from evalengine.lm_eval.tasks import load_tasks

    class Manager:
        all_tasks: tuple[str, ...] = ("arc_easy",)

    with pytest.raises(UserError, match="no task 'nonsense'"):
        load_tasks("nonsense", manager=Manager())


@pytest.fixture(scope="module")
def inside() -> Iterator[None]:
    """lm-eval's own command in this process: it reads its thousands of tasks once, and logs as the others here do."""
    import lm_eval.utils
    from lm_eval.tasks.manager import TaskIndex

    one = functools.cache(lambda path: TaskIndex.build([path]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lm_eval.utils, "_LOGGING_CONFIGURED", True)
        merged = staticmethod(lambda paths: {k: v for path in paths for k, v in one(path).items()})
        patch.setattr("lm_eval.tasks.manager.TaskIndex", type("Read", (), {"build": merged}))
        patch.setattr(sys, "argv", sys.argv)  # the command sets it for lm-eval
        yield


def own_command(*arguments: object) -> subprocess.CompletedProcess[str]:
    run = [sys.executable, "-m", "evalengine", "lm-eval", *map(str, arguments)]
    return subprocess.run(run, capture_output=True, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})


def test_lm_evals_own_command_runs_on_this_engine(inside: None, tmp_path: Path, checkpoint: Path) -> None:
    (tmp_path / "own.jsonl").write_text(
        "".join(
            json.dumps({"q": f"The sun is {i}", "c": [" up", " down"], "gold": i % 2}) + "\n"
            for i in range(4)
        )
    )
    (tmp_path / "own.yaml").write_text(
        json.dumps(
            {
                "task": "own",
                "dataset_path": "json",
                "dataset_kwargs": {"data_files": {"test": str(tmp_path / "own.jsonl")}},
                "test_split": "test",
                "output_type": "multiple_choice",
                "doc_to_text": "{{q}}",
                "doc_to_choice": "{{c}}",
                "doc_to_target": "gold",
                "metric_list": [{"metric": "acc"}],
            }
        )
    )
    # no --device: lm-eval says cuda:0
    given = (
        "--model",
        "evalengine",
        "--tasks",
        "own",
        "--include_path",
        tmp_path,
    )
    given += ("--model_args", f"pretrained={checkpoint}", "--output_path", tmp_path / "out")
    assert main(["lm-eval", *map(str, given)]) == 0
    (results,) = (tmp_path / "out").rglob("results*.json")
    assert 0 <= json.loads(results.read_text())["results"]["own"]["acc,none"] <= 1


def test_without_a_network_lm_evals_own_command_says_so_in_one_sentence(checkpoint: Path) -> None:
    """Where its tasks' data cannot be had."""
    given = ("--model", "evalengine", "--tasks", "arc_easy", "--model_args", f"pretrained={checkpoint}")
    done = own_command(*given)
    says = "evalengine: lm-eval cannot read what it needs (Couldn't reach 'allenai/ai2_arc'"
    assert done.returncode == 1 and says in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("task", "model_args", "says"),
    [
        ("arc_easy", "pretrained=/nowhere/none", "no such checkpoint"),
        ("nonsense", "pretrained={}", "lm-eval stopped: ValueError: Tasks not found: nonsense"),
        ("arc_easy", "dtype=float32", "--model_args names no checkpoint: add pretrained=DIR"),
    ],
)
def test_what_stops_lm_evals_own_command_is_one_sentence(
    checkpoint: Path,
    task: str,
    model_args: str,
    says: str,
    inside: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = ("--model", "evalengine", "--tasks", task, "--model_args", model_args.format(checkpoint))
    assert main(["lm-eval", *given]) == 1
    said = capsys.readouterr().err
    assert f"evalengine: {says}" in said and "Traceback" not in said


def test_the_help_is_lm_evals_own(inside: None, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["lm-eval", "run", "--help"])
    assert not ended.value.code and "--model" in capsys.readouterr().out
