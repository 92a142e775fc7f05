"""Reading the store: item scores against NumPy and SciPy, calibration against a plain loop, and what is
refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import planted
import pyarrow as pa
import pytest
from scipy.special import log_softmax, softmax

from evalengine import store
from evalengine.analysis.data.items import read_store
from evalengine.analysis.statistics.calibration_error import (
    debiased_calibration_error,
    expected_calibration_error,
    reliability,
)
from evalengine.errors import UserError
from evalengine.store.metrics import answers, table_answers

WHO = {"checkpoint": "c", "scale": "1B", "mixture": "m", "stage": "pt", "benchmark": "rte", "category": "NLI"}


@pytest.fixture
def scored() -> tuple[pa.Table, np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    loglik = (rng.normal(size=(300, 4)) * 5 - 20).astype(np.float32)
    loglik[7] = -3.0  # all equal: the first index wins
    gold = rng.integers(0, 4, 300)
    chars = rng.integers(1, 30, (300, 4)).astype(np.int32)
    return planted.item_table(WHO, loglik, gold, chars=chars), loglik, gold, chars


@pytest.mark.parametrize("metric", ["acc", "acc_norm"])
def test_item_scores(scored, metric: str) -> None:
    table, loglik, gold, chars = scored
    found, read_gold = table_answers(table, metric)
    score = loglik.astype(np.float64) / (chars if metric == "acc_norm" else 1)
    p = softmax(score, axis=1)
    pick = score.astype(np.float32).argmax(axis=1)
    rows = np.arange(300)
    assert (read_gold == gold).all() and (found.pick == pick).all()
    assert found.pick[7] == pick[7]
    onehot = np.eye(4)[gold]
    expected = {
        "confidence": p[rows, pick],
        "p_gold": p[rows, gold],
        "margin": np.sort(p, axis=1)[:, -1] - np.sort(p, axis=1)[:, -2],
        "entropy": -(p * log_softmax(score, axis=1)).sum(axis=1),
        "brier": ((p - onehot) ** 2).sum(axis=1),
        "nll": -log_softmax(score, axis=1)[rows, gold],
    }
    for name, values in expected.items():
        np.testing.assert_allclose(getattr(found, name), values, rtol=2e-5, atol=2e-6)


def test_ragged_choices_and_unusable_items() -> None:
    lists = [[-1.0, -2.0], [-3.0, -1.0, -2.0], [float("nan"), -1.0], [-1.0, -1.0, -5.0, -9.0]]
    table = planted.item_table(WHO, np.zeros((4, 1), np.float32), np.array([0, 1, 0, 1]))
    table = table.set_column(
        table.schema.get_field_index("loglik"), "loglik", pa.array(lists, pa.list_(pa.float32()))
    )
    found, _ = table_answers(table, "acc")
    np.testing.assert_array_equal(found.pick, [0, 1, -1, 0])
    assert all(np.isnan(field[2]) for field in found[1:]) and np.isfinite(found.confidence[[0, 1, 3]]).all()
    assert found.confidence[0] == pytest.approx(1 / (1 + np.exp(-1)), abs=1e-6)


def test_items_without_choices_or_a_right_one() -> None:
    score_C = np.array([-1.0, -2.0, -4.0, -3.0, -np.inf, -1.0])
    found = answers(score_C, np.array([0, 2, 2, 4, 6, 6]), np.array([1, 0, -1, 0, 0]))
    np.testing.assert_array_equal(found.pick, [0, -1, 1, -1, -1])
    np.testing.assert_array_equal(np.isfinite(found.entropy), [True, False, True, False, False])
    np.testing.assert_array_equal(np.isfinite(found.p_gold), [True, False, False, False, False])
    assert len(answers(np.empty(0), np.zeros(1, int), np.empty(0, int)).pick) == 0


def test_reliability_bins_are_numpy_array_split_of_the_sorted_items() -> None:
    rng = np.random.default_rng(1)
    confidence = rng.uniform(0.2, 1, (2, 107)).astype(np.float32)
    correct = (rng.uniform(size=(2, 107)) < confidence).astype(np.uint8)
    curve = reliability(confidence, correct, 15)
    for k in range(2):
        parts = np.array_split(np.argsort(confidence[k], kind="stable"), 15)
        np.testing.assert_allclose(curve[k, :, 0], [len(part) / 107 for part in parts])
        np.testing.assert_allclose(curve[k, :, 1], [confidence[k, part].mean() for part in parts], rtol=1e-6)
        np.testing.assert_allclose(curve[k, :, 2], [correct[k, part].mean() for part in parts])
        ece = sum(len(p) / 107 * abs(correct[k, p].mean() - confidence[k, p].mean()) for p in parts)
        assert expected_calibration_error(curve)[k] == pytest.approx(ece, abs=1e-6)
    few = reliability(confidence[:, :4].copy(), correct[:, :4].copy(), 15)
    assert np.isfinite(expected_calibration_error(few)).all()


def test_the_order_of_items_of_equal_confidence_does_not_matter() -> None:
    """A bin holds all items of a confidence: against bins cut between groups of equal ones, and in 20 orders."""
    rng = np.random.default_rng(8)
    confidence = rng.choice([0.25, 0.3, 0.4, 0.55, 0.7, 0.9], 60, p=[0.3, 0.02, 0.28, 0.2, 0.1, 0.1])
    confidence = np.concatenate([confidence, rng.uniform(0.2, 1.0, 60)]).astype(np.float32)
    correct = (rng.uniform(size=120) < confidence).astype(np.uint8)
    curve = reliability(confidence[None], correct[None], 15)
    used = curve[0, :, 0] > 0
    ends = np.rint(120 * np.cumsum(curve[0, :, 0])).astype(int)[used]
    ordered = np.sort(confidence)
    assert all(ordered[end - 1] < ordered[end] for end in ends[:-1]) and ends[-1] == 120
    for k, (first, last) in zip(np.flatnonzero(used), zip([0, *ends[:-1]], ends, strict=True), strict=True):
        mine = (confidence >= ordered[first]) & (confidence <= ordered[last - 1])
        np.testing.assert_allclose(
            curve[0, k, 1:], [confidence[mine].mean(), correct[mine].mean()], rtol=1e-6
        )
    for _ in range(20):
        order = rng.permutation(120)
        again = reliability(confidence[order][None], correct[order][None], 15)
        np.testing.assert_allclose(again, curve, rtol=1e-12)
    one = reliability(np.full((2, 90), 0.5, np.float32), np.tile(correct[:90], (2, 1)), 15)
    error = correct[:90].mean() - 0.5
    np.testing.assert_allclose(expected_calibration_error(one), abs(error))
    square = error**2 - correct[:90].var(ddof=1) / 90
    found = debiased_calibration_error(one, np.array([90, 90]))
    np.testing.assert_allclose(found, np.sign(square) * np.sqrt(abs(square)))


def test_one_benchmark_in_two_categories_is_refused(tmp_path: Path) -> None:
    put(tmp_path, "a", simple(["i1", "i2"]))
    table = planted.item_table(
        {**WHO, "category": "Other"}, np.zeros((2, 2), np.float32), np.zeros(2), ["i1", "i2"]
    )
    put(tmp_path, "b", table)
    with pytest.raises(UserError, match=r"rte was scored with different categories: 'NLI' .a.; 'Other' .b."):
        read_store(tmp_path)


def put(folder: Path, checkpoint: str, table: pa.Table, **changed: str) -> None:
    store.write(folder / checkpoint / "rte.arrow", table, planted.metadata(**changed))


def simple(ids: list[str], gold: list[int] | None = None, checkpoint: str = "a") -> pa.Table:
    rng = np.random.default_rng(len(ids))
    loglik = rng.normal(size=(len(ids), 2)).astype(np.float32)
    chosen = np.array(gold) if gold is not None else np.array([int(i[1:]) % 2 for i in ids])
    return planted.item_table({**WHO, "checkpoint": checkpoint}, loglik, chosen, ids)


def renamed(table: pa.Table, benchmark: str) -> pa.Table:
    at = table.schema.get_field_index("benchmark")
    return table.set_column(
        at, table.schema.field(at), pa.array([benchmark] * len(table), table.schema.field(at).type)
    )


def test_a_copy_of_a_file_does_not_count_as_one_more_benchmark(tmp_path: Path) -> None:
    put(tmp_path, "a", simple(["i1", "i2"]))
    copy = tmp_path / "a" / "rte (copy).arrow"
    copy.write_bytes((tmp_path / "a" / "rte.arrow").read_bytes())
    for reader in (read_store, store.load):
        with pytest.raises(
            UserError, match=r"rte \(copy\)\.arrow holds scores of rte: give it that name, or"
        ):
            reader(tmp_path)
    copy.unlink()
    assert len(read_store(tmp_path).benchmarks) == 1


def test_checkpoints_that_lack_choices_are_refused(tmp_path: Path) -> None:
    """Fewer choices are easier; without its right one an item counted as wrong, as if its score were no number."""
    ids, who = ["i1", "i2", "i3"], {**WHO, "checkpoint": "a"}
    loglik, gold = np.random.default_rng(0).normal(size=(3, 3)).astype(np.float32), np.array([0, 1, 0])
    put(tmp_path, "a", planted.item_table(who, loglik, gold, ids))
    put(tmp_path, "b", planted.item_table({**who, "checkpoint": "b"}, loglik[:, :2], gold, ids))
    with pytest.raises(UserError, match="a and b disagree about the numbers of choices"):
        read_store(tmp_path)


@pytest.mark.parametrize(
    ("key", "shots", "said"),
    [
        ("default_score", "0", "its files name different default scores (acc, acc_norm); acc is taken"),
        ("seed", "0", ""),
        ("seed", "5", "scored with different seeds, so with other few-shot examples"),
        ("rows_hash", "5", "scored with different files of few-shot examples"),
        ("dtype", "0", "scored with different dtypes"),
    ],
)
def test_settings_that_change_scores_a_little_are_said(
    tmp_path: Path, key: str, shots: str, said: str
) -> None:
    values = ("acc", "acc_norm") if key == "default_score" else ("1", "2")
    for checkpoint, value in zip("ab", values, strict=True):
        put(tmp_path, checkpoint, simple(["i1", "i2"]), **{"fewshot": shots, key: value})
    notes = read_store(tmp_path).notes
    assert any(said in note for note in notes) if said else not notes


def test_items_in_another_order_are_paired_by_id(tmp_path: Path) -> None:
    table = simple(["i1", "i2", "i3"])
    put(tmp_path, "a", table)
    put(tmp_path, "b", table.take([2, 0, 1]))
    read = read_store(tmp_path).benchmarks[0]
    assert (read.correct_KI[0] == read.correct_KI[1]).all()
    assert (read.confidence_KI[0] == read.confidence_KI[1]).all()


def test_different_items_are_refused_by_name(tmp_path: Path) -> None:
    put(tmp_path, "a", simple(["i1", "i2", "i3"]))
    put(tmp_path, "b", simple(["i1", "i2", "i9"]))
    with pytest.raises(UserError, match=r"rte: a .*and b .*different items .*only b has i9, only a has i3"):
        read_store(tmp_path)


def test_disagreeing_answers_are_refused(tmp_path: Path) -> None:
    put(tmp_path, "a", simple(["i1", "i2"], [0, 1]))
    put(tmp_path, "b", simple(["i1", "i2"], [0, 0]))
    with pytest.raises(UserError, match="a and b disagree about the right choices"):
        read_store(tmp_path)


@pytest.mark.parametrize(
    ("key", "word"),
    [
        ("variant", "variants"),
        ("benchmark_version", "versions"),
        ("fewshot", "few-shot"),
        ("limit", "limits"),
    ],
)
def test_mixed_settings_are_refused(tmp_path: Path, key: str, word: str) -> None:
    put(tmp_path, "a", simple(["i1", "i2"]), **{key: "1"})
    put(tmp_path, "b", simple(["i1", "i2"]), **{key: "7"})
    with pytest.raises(UserError, match=rf"rte was scored with different .*{word}.*'1' .a.*'7' .b"):
        read_store(tmp_path)


@pytest.mark.parametrize(
    ("key", "what"),
    [("checkpoint_fingerprint", "weights"), ("tokenizer_hash", "a tokenizer"), ("identity", "a scale")],
)
def test_benchmarks_of_one_checkpoint_are_of_one_model(tmp_path: Path, key: str, what: str) -> None:
    table = simple(["i1", "i2", "i3"])
    put(tmp_path, "a", table, **{key: "old"})
    path, table = tmp_path / "a" / "boolq.arrow", renamed(table, "boolq")
    for value in ("old", ""):  # imported scores state nothing of it
        store.write(path, table, planted.metadata(**{key: value}))
        assert len(read_store(tmp_path).benchmarks) == 2
    store.write(path, table, planted.metadata(**{key: "new"}))
    with pytest.raises(
        UserError, match=rf"rte\.arrow was scored with {what}.* other benchmarks of a were not"
    ):
        read_store(tmp_path)


def test_missing_columns_for_a_metric(tmp_path: Path) -> None:
    put(tmp_path, "a", simple(["i1", "i2"]))
    with pytest.raises(UserError, match="without --pmi"):
        read_store(tmp_path, "acc_pmi")
    with pytest.raises(UserError, match="choose from acc, acc_norm"):
        read_store(tmp_path, "f1")


def test_empty_store_and_no_store(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no scores"):
        read_store(tmp_path)
    with pytest.raises(UserError, match="no score store"):
        read_store(tmp_path / "nowhere")
    (tmp_path / "formats").mkdir()
    with pytest.raises(UserError, match=r"holds only scores in answer formats .* without --formats first"):
        read_store(tmp_path)
