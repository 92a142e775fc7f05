"""The closing table's accuracy against a plain loop."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from evalengine.outcomes import accuracy


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
