"""List arrays, rebuilt around other values."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from etl_dagster.arrow.fixed import array_of


def map_list(array: pa.ListArray, change: Callable[[pa.Array], pa.Array], type_: pa.DataType) -> pa.Array:
    """The same lists with every value changed, as lists of type ``type_``."""
    if array.offset or array.null_count:
        # A list array can be rebuilt around new values only when it starts at 0; taking the rows copies them so.
        array = array.take(array_of(np.arange(len(array))))
    mask = array.is_null() if array.null_count else None
    return pa.ListArray.from_arrays(array.offsets, change(array.values), type=type_, mask=mask)


def join_list(array: pa.ListArray, texts: Callable[[pa.Array], pa.Array], begin: str, end: str) -> pa.Array:
    """The text of every list: that of its values, which must not be null, between commas."""
    values = texts(array.flatten())
    lengths = pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False)
    offsets = np.zeros(len(array) + 1, np.int32)
    np.cumsum(lengths, out=offsets[1:])
    joined = pc.binary_join(pa.ListArray.from_arrays(array_of(offsets), values), ",")
    text = pc.binary_join_element_wise(begin, joined, end, "")
    return pc.if_else(array.is_valid(), text, pa.scalar(None, pa.string()))
