"""The closing table's accuracy against a plain loop."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from evalengine.store.metrics import accuracy


def test_accuracy_takes_the_first_of_equal_choices() -> None:
    rng = np.random.default_rng(0)
    logliks = [rng.integers(-4, 0, size=rng.integers(2, 6)).astype(np.float32).tolist() for _ in range(300)]
    gold = [int(rng.integers(len(row))) for row in logliks]
    table = pa.table(
        {"loglik": pa.array(logliks, pa.list_(pa.float32())), "gold": pa.array(gold, pa.int16())}
    )
    expected = np.mean([row.index(max(row)) == g for row, g in zip(logliks, gold, strict=True)])
    assert accuracy(table) == expected
    assert accuracy(table.slice(100, 50)) == np.mean(
        [row.index(max(row)) == g for row, g in zip(logliks[100:150], gold[100:150], strict=True)]
    )


def test_accuracy_is_by_the_benchmarks_own_score() -> None:
    fields = {"loglik": pa.array([[-3.0, -4.0]], pa.list_(pa.float32())), "gold": pa.array([1], pa.int16())}
    table = pa.table({**fields, "chars": pa.array([[1, 2]], pa.list_(pa.int32()))})
    assert accuracy(table) == 0.0
    assert accuracy(table.replace_schema_metadata({"default_score": "acc_norm"})) == 1.0
