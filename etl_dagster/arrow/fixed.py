"""Values of fixed width: booleans, integers, floats, uuid."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from etl_dagster.errors import ProtocolError
from etl_dagster.pgwire import Fields

# Binary decoder of one type: the values, the Arrow type to give them, and the column's name for messages.
Decoder = Callable[[Fields, pa.DataType, str], pa.Array]
# The nearest values that an Arrow type can hold for the values at these places, null where there is none.
Nearest = Callable[[npt.NDArray[np.intp]], pa.Array]


class Misfits(Exception):
    """Values that cannot be held. What becomes of them is not for a decoder to say: see `decode`.

    Args:
        bad: Where they are.
        what: What they are.
        nearest: What comes nearest to them; None when nothing does.
        holder: What cannot hold them.
    """

    def __init__(
        self, bad: npt.NDArray[np.bool_], what: str, nearest: Nearest | None, holder: str = "its Arrow type"
    ) -> None:
        super().__init__(what)
        self.holder = holder
        self.bad = bad
        self.what = what
        self.nearest = nearest


def validity(fields: Fields) -> pa.Buffer | None:
    """Arrow validity bitmap; None when nothing is NULL."""
    return bitmap(fields.present)


def bitmap(present: npt.NDArray[np.bool_]) -> pa.Buffer | None:
    """Arrow validity bitmap over what is not NULL; None when nothing is."""
    return None if present.all() else pa.py_buffer(np.packbits(present, bitorder="little"))


def integers(fields: Fields, dtype: npt.DTypeLike, column: str) -> npt.NDArray[Any]:
    """The values as native integers, 0 where NULL; each must have exactly the width of ``dtype``."""
    some_null = require_width(fields, np.dtype(dtype).itemsize, column)
    values = fields.words(dtype)
    if some_null:
        values[fields.lengths < 0] = 0
    return values


def require_width(fields: Fields, width: int, column: str) -> bool:
    """Check that every value that is not NULL has ``width`` bytes; returns whether there is a NULL."""
    good = fields.lengths == width
    if good.all():
        return False
    good |= fields.lengths == -1
    if not good.all():
        row = int(np.argmin(good))
        raise wrong_length(fields, row, width, column)
    return True


def wrong_length(fields: Fields, row: int, need: int, column: str) -> ProtocolError:
    """The error for a value whose length does not fit its type."""
    offset, have = int(fields.starts[row]), int(fields.lengths[row])
    return ProtocolError(f"Value of column {column!r}", offset=offset, need=need, have=have)


def refuse(bad: npt.NDArray[np.bool_], what: str, nearest: Nearest | None = None) -> None:
    """Raise `Misfits` when any value is of a kind that the column's Arrow type cannot hold."""
    if bad.any():
        raise Misfits(bad, what, nearest)


def primitive(fields: Fields, type_: pa.DataType, values: npt.NDArray[Any]) -> pa.Array:
    """An Arrow array over ``values``, null where the field is."""
    return pa.Array.from_buffers(type_, len(fields), [validity(fields), pa.py_buffer(np.ascontiguousarray(values))])


def array_of(values: npt.NDArray[Any]) -> pa.Array:
    """An Arrow array over numbers; ``pa.array`` would import pandas, which takes most of a second."""
    return pa.Array.from_buffers(
        pa.from_numpy_dtype(values.dtype), len(values), [None, pa.py_buffer(np.ascontiguousarray(values))]
    )


def words_of(array: pa.Array, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """The values of an array of fixed width, without a copy; what stands where it is null means nothing.

    Its buffer may be missing, or longer than a whole number of values.
    """
    end = array.offset + len(array)
    return np.frombuffer(array.buffers()[1] or b"", dtype, count=end)[array.offset :] if end else np.empty(0, dtype)


def mask_of(values: npt.NDArray[np.bool_]) -> pa.Array:
    """An Arrow array over booleans."""
    bits = np.packbits(values, bitorder="little")
    return pa.Array.from_buffers(pa.bool_(), len(values), [None, pa.py_buffer(bits)])


def decode_bool(fields: Fields, type_: pa.DataType, column: str) -> pa.Array:
    require_width(fields, 1, column)
    values = (fields.words(np.uint8) != 0) & fields.present
    return primitive(fields, type_, np.packbits(values, bitorder="little"))


def decode_integer(dtype: npt.DTypeLike) -> Decoder:
    """Decoder for values that are the integers of Arrow's own representation, floats included."""

    def decode(fields: Fields, type_: pa.DataType, column: str) -> pa.Array:
        return primitive(fields, type_, integers(fields, dtype, column))

    return decode


def decode_uuid(fields: Fields, type_: pa.DataType, column: str) -> pa.Array:
    require_width(fields, 16, column)
    values = np.empty((len(fields), 2), ">u8")
    values[:, 0] = fields.words(np.uint64)
    values[:, 1] = fields.words(np.uint64, 8)
    values[fields.lengths < 0] = 0
    return pa.ExtensionArray.from_storage(type_, primitive(fields, pa.binary(16), values))
