"""NumPy arrays and strings to Arrow and back over their memory: Arrow's own conversions import pandas, which costs 95 MB."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa


def array_of(values: np.ndarray) -> pa.Array:
    """One-dimensional numbers or bools as an Arrow array of the same type."""
    import pyarrow as pa

    packed = np.packbits(values, bitorder="little") if values.dtype == bool else np.ascontiguousarray(values)
    return pa.Array.from_buffers(
        pa.from_numpy_dtype(values.dtype), len(values), [None, pa.py_buffer(packed.tobytes())]
    )


def strings(values: Sequence[str]) -> pa.Array:
    """Strings as an Arrow array (int32 offsets, at most 2 GB of them)."""
    import pyarrow as pa

    encoded = [value.encode() for value in values]
    offset = np.cumsum([0, *map(len, encoded)]).astype(np.int32)
    buffers = [None, pa.py_buffer(offset.tobytes()), pa.py_buffer(b"".join(encoded))]
    return pa.Array.from_buffers(pa.string(), len(encoded), buffers)


def numbers(array: pa.Array) -> np.ndarray[Any, Any]:
    """The values of an Arrow array of numbers, without a copy where none is missing."""
    return array.to_numpy(zero_copy_only=False) if array.null_count else np.from_dlpack(array)
