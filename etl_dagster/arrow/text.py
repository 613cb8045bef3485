"""Values of varying length: text, bytea, json."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from etl_dagster.arrow.fixed import primitive, refuse, require_width, wrong_length
from etl_dagster.pgwire import Fields

_INT32_MAX = 2**31 - 1
_JSONB_VERSION = 1


def binary_array(fields: Fields) -> pa.Array:
    """The bytes of every value.

    The whole buffer becomes one array whose even entries are the values and whose odd entries are what lies between
    them; Arrow's ``take`` then copies the values together at the speed of C.
    """
    rows = len(fields)
    wide = len(fields.data) > _INT32_MAX
    offsets = np.empty(2 * rows + 1, np.int64 if wide else np.int32)
    offsets[0:-1:2] = fields.starts
    offsets[1::2] = fields.starts + fields.lengths
    offsets[-1] = len(fields.data)
    places = np.arange(0, 2 * rows, 2, dtype=np.int64)
    all_bytes = pa.Array.from_buffers(
        pa.large_binary() if wide else pa.binary(),
        2 * rows,
        [None, pa.py_buffer(offsets), pa.py_buffer(fields.data)],
    )
    taken = all_bytes.take(primitive(fields, pa.int64(), places))
    return taken.cast(pa.binary()) if wide else taken


def utf8_array(fields: Fields) -> pa.Array:
    """The values as text; a server whose encoding is SQL_ASCII may send what is not UTF-8."""
    values = binary_array(fields)

    def nearest(rows: npt.NDArray[np.intp]) -> pa.Array:
        return pa.array([values[row].as_py().decode(errors="replace") for row in rows.tolist()], pa.utf8())

    try:
        return values.cast(pa.utf8())
    except pa.ArrowInvalid:
        refuse(np.array([_is_damaged(value) for value in values]), "text that is not valid UTF-8", nearest)
        raise


def _is_damaged(value: pa.Scalar) -> bool:
    if not value.is_valid:
        return False
    try:
        value.as_py().decode()
    except UnicodeDecodeError:
        return True
    return False


def decode_bytea(fields: Fields, type_: pa.DataType, column: str) -> pa.Array:
    return binary_array(fields)


def decode_text(fields: Fields, type_: pa.DataType, column: str) -> pa.Array:
    return utf8_array(fields)


def decode_json(fields: Fields, type_: pa.DataType, column: str) -> pa.Array:
    return _json(utf8_array(fields), type_)


def decode_jsonb(fields: Fields, type_: pa.DataType, column: str) -> pa.Array:
    present = fields.present
    if (empty := fields.lengths == 0).any():
        raise wrong_length(fields, int(np.argmax(empty)), 1, column)
    refuse(present & (fields.data[fields.starts] != _JSONB_VERSION), "jsonb of an unknown version")
    text = Fields(fields.data, fields.starts + present, fields.lengths - present.astype(np.int32))
    return _json(utf8_array(text), type_)


def _json(texts: pa.Array, type_: pa.DataType) -> pa.Array:
    return pa.ExtensionArray.from_storage(type_, texts) if isinstance(type_, pa.JsonType) else texts


def _single_chars() -> pa.Array:
    """What PostgreSQL 16 and later print for each byte of the type ``"char"``."""
    return pa.array([""] + [chr(code) if code < 128 else f"\\{code:03o}" for code in range(1, 256)], pa.utf8())


def single_char_texts(fields: Fields) -> pa.Array:
    """The type's text: up to PostgreSQL 15 a byte above 127 comes as it is, which is no text in UTF-8."""
    raw = (fields.lengths == 1) & (fields.data[fields.starts] > 127)
    if not raw.any():
        return utf8_array(fields)
    bytes_, texts = (
        Fields(fields.data, fields.starts, np.where(where, fields.lengths, np.int32(-1))) for where in (raw, ~raw)
    )
    return pc.coalesce(utf8_array(texts), decode_single_char(bytes_, pa.utf8(), ""))


def decode_single_char(fields: Fields, type_: pa.DataType, column: str) -> pa.Array:
    require_width(fields, 1, column)
    return pc.take(_single_chars(), primitive(fields, pa.uint8(), fields.data[fields.starts]))
