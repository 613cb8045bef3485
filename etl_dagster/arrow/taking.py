"""Places to take rows from."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa


def taking(places: npt.NDArray[np.int64], valid: npt.NDArray[np.bool_]) -> pa.Array:
    """Indexes for Arrow's ``take``, null where there is nothing to take, so that the result is null there."""
    bits = None if valid.all() else pa.py_buffer(np.packbits(valid, bitorder="little"))
    return pa.Array.from_buffers(pa.int64(), len(places), [bits, pa.py_buffer(np.ascontiguousarray(places))])
