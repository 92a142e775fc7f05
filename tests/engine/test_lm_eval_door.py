"""lm-evaluation-harness on this engine: the same results as its own HF model; its tasks as benchmarks of ours."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lm_eval_reference as reference
import tiny_models
from evalengine import lm_eval_bench
from evalengine.cli import main
from evalengine.cli.lm_eval import FILE, LINE
from evalengine.errors import UserError


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.save(
        tmp_path_factory.mktemp("lm_eval") / "llama", "llama", "sentencepiece_like", window=128
    )


@pytest.fixture(scope="module")
def models(checkpoint: Path) -> tuple[Any, Any]:
    from lm_eval.models.huggingface import HFLM

    from evalengine.lm_eval_model import EvalengineLM

    ours = EvalengineLM(pretrained=str(checkpoint), device="cpu", batch_size=1)
    return ours, HFLM(pretrained=str(checkpoint), device="cpu", batch_size=4)


@pytest.mark.slow
def test_five_tasks_give_lm_evals_own_results(small_world: Path, models: tuple[Any, Any]) -> None:
    ours, theirs = (lm_eval_bench.evaluated(model, small_world / "bench", limit=8) for model in models)
    assert set(ours.loglik) == {reference.SOURCES[name].task for name in lm_eval_bench.TASKS}
    assert len(ours.metrics) >= 5
    of_metrics, of_loglik = lm_eval_bench.largest_differences(ours, theirs)
    assert of_metrics < 1e-3 and of_loglik < 1e-3


def test_log_likelihoods_and_rolling_ones_agree(models: tuple[Any, Any]) -> None:
    from lm_eval.api.instance import Instance

    long = "The sun rises in the east and sets in the west. " * 30  # several windows
    pairs = [
        ("The glass broke because", " xyz qq"),
        ("", "yes"),
        ("Which one, x", " C. bird "),
        (long.strip(), " xyz"),
        ("Which", " dog" * 3),
    ]
    requests = [Instance("loglikelihood", {}, pair, 0) for pair in pairs]
    rolling = [Instance("loglikelihood_rolling", {}, (text,), 0) for text in (long, "yes", long[:300])]
    ours, theirs = models
    with reference._quiet():
        expected, expected_rolling = theirs.loglikelihood(requests), theirs.loglikelihood_rolling(rolling)
    got = ours.loglikelihood(requests)
    np.testing.assert_allclose([a for a, _ in got], [a for a, _ in expected], rtol=0, atol=1e-3)
    assert [b for _, b in got] == [b for _, b in expected]
    np.testing.assert_allclose(ours.loglikelihood_rolling(rolling), expected_rolling, rtol=1e-5)


def test_generation_is_refused_in_one_sentence(models: tuple[Any, Any]) -> None:
    with pytest.raises(UserError, match="generates none"):
        models[0].generate_until([])


def test_unknown_settings_are_refused(checkpoint: Path) -> None:
    from evalengine.lm_eval_model import EvalengineLM

    with pytest.raises(UserError, match="no nonsense"):
        EvalengineLM(pretrained=str(checkpoint), nonsense=1)
    with pytest.raises(UserError, match="no backend=jax"):
        EvalengineLM(pretrained=str(checkpoint), backend="jax")


def test_tasks_of_lm_eval_become_benchmarks(
    small_world: Path,
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    models: tuple[Any, Any],
) -> None:
    """The stored scores are lm-eval's own of the same task, item by item."""
    from evalengine import load
    from evalengine.lm_eval_tasks import task_items

    loaded = reference.tasks(small_world / "bench", ["arc_easy", "winogrande"])
    sets = [task_items(reference.SOURCES[name].task, task, None, 0, None) for name, task in loaded.items()]
    monkeypatch.setattr("evalengine.lm_eval_tasks.load_tasks", lambda names, **kwargs: sets)
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


def test_tasks_that_are_no_multiple_choice_are_refused(small_world: Path) -> None:
    from evalengine.lm_eval_tasks import load_tasks

    class Manager:
        all_tasks: tuple[str, ...] = ("arc_easy",)

    with pytest.raises(UserError, match="no task 'nonsense'"):
        load_tasks("nonsense", manager=Manager())


def test_the_lm_eval_command_knows_the_model_once_registered(tmp_path: Path, checkpoint: Path) -> None:
    """The line that --register writes, in a folder that Python reads such lines from."""
    (tmp_path / FILE).write_text(LINE)
    start = (
        f"import sys, site; sys.orig_argv = ['python', '/bin/lm_eval']; site.addsitedir({str(tmp_path)!r}); "
    )
    ask = "from lm_eval.api.registry import get_model; print(get_model('evalengine').__name__, get_model('hf').__name__)"
    run = [sys.executable, "-c", start + ask]
    done = subprocess.run(run, capture_output=True, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    assert done.stdout.split() == ["EvalengineLM", "HFLM"], done.stderr
    other = start.replace("/bin/lm_eval", "/bin/other") + "print('lm_eval' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", other], capture_output=True, text=True)
    assert done.stdout.split() == ["False"], done.stderr
