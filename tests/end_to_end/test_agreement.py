"""Agreement with lm-evaluation-harness 0.4.13, run for real: its own tasks, its own HF backend, the same checkpoint.

Every per-choice log-likelihood within 1e-3, every argmax flag, and acc and acc_norm exactly, on all 20 benchmarks in their
`lm_eval` variant.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lm_eval_reference
import tiny_models
from evalengine import store
from evalengine.analysis.data.items import read_store
from evalengine.cli import main
from evalengine.plan.encoding import Encoder

CASES = [
    ("llama", "sentencepiece_like"),
    ("llama", "byte_level"),
    ("gpt2", "byte_level"),
    ("qwen2", "byte_level"),
    ("gemma2", "sentencepiece_like"),
    ("gpt_neox", "byte_level"),
    ("opt", "sentencepiece_like"),
]
LIMIT = 6


@pytest.fixture(scope="session")
def few_items(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the first items of every benchmark: real ones where EVALENGINE_DATA is set, else the embedded world's."""
    import os

    given = os.environ.get("EVALENGINE_DATA")
    source = Path(given) / "bench" if given else request.getfixturevalue("small_world") / "bench"
    folder = tmp_path_factory.mktemp("few")
    for path in source.glob("*.jsonl"):
        # short items first: the tiny tokenizers make several tokens of every word, and the peer refuses long choices
        lines = sorted(path.read_text(encoding="utf-8").splitlines(), key=len)[: 8 * LIMIT : 8]
        (folder / path.name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def check(checkpoint: Path, data: Path, out: Path, tasks: dict[str, Any]) -> float:
    """Scores with both and compares; returns the largest difference."""
    from lm_eval.models.huggingface import HFLM

    command = [
        "score",
        str(checkpoint),
        "--data",
        str(data),
        "--variant",
        "lm_eval",
        "--out",
        str(out),
        "--dtype",
        "float32",
    ]
    assert main(command) == 0
    model = HFLM(pretrained=str(checkpoint), batch_size=4, dtype="float32", device="cpu")
    ours = {
        metric: {b.name: b.correct_KI[0] for b in read_store(out, metric).benchmarks}
        for metric in ("acc", "acc_norm")
    }
    worst = 0.0
    for name, task in tasks.items():
        table = store.read(out / checkpoint.name / f"{name}.arrow")
        reference = lm_eval_reference.scores(task, model)
        assert len(table) == len(reference)
        for loglik, greedy, score in zip(
            table["loglik"].to_pylist(), table["greedy"].to_pylist(), reference, strict=True
        ):
            worst = max(worst, float(np.abs(np.subtract(loglik, score.loglik)).max()))
            assert tuple(greedy) == score.greedy
        assert ours["acc"][name].tolist() == [s.acc for s in reference], name
        if reference[0].acc_norm is not None:
            assert ours["acc_norm"][name].tolist() == [s.acc_norm for s in reference], name
    assert worst < 1e-3
    return worst


@pytest.mark.slow
@pytest.mark.parametrize(("architecture", "kind"), CASES)
def test_all_twenty_benchmarks_agree(architecture: str, kind: str, few_items: Path, tmp_path: Path) -> None:
    checkpoint = tiny_models.save(tmp_path / "tiny-model-pt", architecture, kind, window=1024)
    check(checkpoint, few_items, tmp_path / "scores", lm_eval_reference.tasks(few_items))


@pytest.mark.slow
def test_items_longer_than_the_window_agree(few_items: Path, tmp_path: Path) -> None:
    checkpoint = tiny_models.save(tmp_path / "short-window-pt", "llama", "byte_level", window=200)
    names = ["boolq", "rte", "qnli", "commonsense_qa", "multirc"]
    tasks = lm_eval_reference.tasks(few_items, names)
    few = tmp_path / "few"
    few.mkdir()
    for name in names:
        (few / f"{name}.jsonl").write_bytes((few_items / f"{name}.jsonl").read_bytes())
    check(checkpoint, few, tmp_path / "scores", tasks)


@pytest.mark.slow
def test_a_choice_longer_than_the_window_is_refused_where_the_reference_stops(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The longest choice fills the window: one token of context is left, and both agree. One token less: neither scores it."""
    from lm_eval.models.huggingface import HFLM

    few = tmp_path / "few"
    few.mkdir()
    long = "the elephant broke the glass because it fell off the table in the sun and the dog rises slowly"
    item = {"premise": "The glass broke.", "choice1": long, "choice2": "the dog.", "question": "cause"}
    (few / "copa.jsonl").write_text(json.dumps(item | {"idx": 7, "label": 0}) + "\n", encoding="utf-8")
    tasks = lm_eval_reference.tasks(few, ["copa"])
    (request,) = lm_eval_reference.requests(tasks["copa"])
    tokenizer = tiny_models.tokenizer("byte_level")
    ((whole, start),) = Encoder(tokenizer, 512).pairs([(request.contexts[0], request.continuations[0])])
    fits = tiny_models.save(tmp_path / "fits-pt", "llama", window=len(whole) - start)
    check(fits, few, tmp_path / "scores", tasks)
    short = tiny_models.save(tmp_path / "short-pt", "llama", window=len(whole) - start - 1)
    model = HFLM(pretrained=str(short), batch_size=4, dtype="float32", device="cpu")
    with pytest.raises(AssertionError):
        lm_eval_reference.scores(tasks["copa"], model)
    capsys.readouterr()
    command = ["score", short, "--data", few, "--variant", "lm_eval", "--out", tmp_path / "scores"]
    assert main([*map(str, command), "--benchmarks", "copa"]) == 1
    said = f"item 7 of copa has a choice of {len(whole) - start} tokens, and the model's window is {len(whole) - start - 1}"
    assert said in capsys.readouterr().out
    assert not (tmp_path / "scores" / "short-pt").exists()
