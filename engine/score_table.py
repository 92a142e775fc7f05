"""Scores of a benchmark's sequences as the rows of the store."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from evalengine import store
from evalengine.arrow import array_of, strings
from evalengine.checkpoints import Checkpoint
from evalengine.errors import UserError
from evalengine.plan.encoding import Encoded, Scores

if TYPE_CHECKING:
    import pyarrow as pa

    from evalengine.benchmarks import ItemSet


def score_table(checkpoint: Checkpoint, items: ItemSet, encoded: Encoded, scores: Scores) -> pa.Table:
    """One row per item, in `store.schema()`. Raises UserError where a score is not finite."""
    import pyarrow as pa

    if not np.isfinite(scores.loglik).all():  # without context, too
        raise UserError(
            f"{checkpoint.name} gives NaN or infinite scores on {items.benchmark}: it is not stored; check its weights"
        )
    loglik_C = scores.loglik[encoded.sequence_C].astype(np.float32)
    n = len(encoded.item)
    choice_offset = array_of(encoded.choice_offset.astype(np.int32))

    def lists(values: np.ndarray) -> pa.Array:
        return pa.ListArray.from_arrays(choice_offset, array_of(values))

    uncond = None if encoded.uncond_C is None else scores.loglik[encoded.uncond_C].astype(np.float32)
    columns = [
        *(
            name(value, n)
            for value in (checkpoint.name, checkpoint.scale, checkpoint.mixture, checkpoint.stage)
        ),
        *(name(value, n) for value in (items.benchmark, items.category)),
        strings(encoded.item),
        array_of(encoded.gold),
        lists(loglik_C),
        lists(encoded.tokens_C),
        lists(encoded.chars_C),
        lists(encoded.bytes_C),
        lists(scores.greedy[encoded.sequence_C]),
        pa.nulls(n, pa.list_(pa.float32())) if uncond is None else lists(uncond),
    ]
    return pa.table(columns, schema=store.schema())


def name(value: str | None, n: int) -> pa.Array:
    """A column of n rows with one name."""
    import pyarrow as pa

    codes = pa.nulls(n, pa.int32()) if value is None else array_of(np.zeros(n, np.int32))
    return pa.DictionaryArray.from_arrays(codes, strings([] if value is None else [value]))


def relabelled(table: pa.Table, checkpoint: Checkpoint, category: str) -> pa.Table:
    """The scores of a checkpoint or benchmark that is described otherwise now; metadata as it was."""
    labels = {"scale": checkpoint.scale, "mixture": checkpoint.mixture, "stage": checkpoint.stage}
    for column, value in (labels | {"category": category}).items():
        at = table.schema.get_field_index(column)
        table = table.set_column(at, table.schema.field(at), name(value, len(table)))
    return table
