"""From the fields of one column to an Arrow array."""

from __future__ import annotations

from collections import Counter

import pyarrow as pa

from etl_dagster.arrow.arrays import split_elements
from etl_dagster.arrow.fixed import validity
from etl_dagster.arrow.parsing import parse, split_array_texts
from etl_dagster.arrow.text import utf8_array
from etl_dagster.arrow.types import arrow_type, element_type, has_binary_decoder, type_facts
from etl_dagster.errors import InternalError
from etl_dagster.model import Column, PgType
from etl_dagster.pgwire import Fields


def read_column(
    column: Column, fields: Fields, *, text: bool = False, replaced: Counter[str] | None = None
) -> pa.Array:
    """Decode one column under its value policy.

    Args:
        fields: Its values in the server's binary format.
        text: The values are the server's text instead.
        replaced: Counts, by name of the column, values that the policy replaced.

    Raises:
        ProtocolError: Bytes that are no value of the type.
        ValueUnrepresentable: Values that the Arrow type cannot hold, and the policy says to fail.
    """
    return decode_column(column.type, fields, text=text, column=column.name)


def decode_column(type_: PgType, fields: Fields, *, text: bool = False, column: str = "") -> pa.Array:
    """Decode one column.

    Args:
        type_: Its type; the result has the type `arrow_type` gives for it.
        fields: Its values in the server's binary format.
        text: The values are the server's text instead.
        column: Its name, for messages.

    Raises:
        ProtocolError: Bytes that are no value of the type.
        ValueUnrepresentable: Values that the Arrow type cannot hold.
    """
    target = arrow_type(type_)
    if text:
        return _from_text(type_, target, utf8_array(fields, column), column)
    if not has_binary_decoder(type_):
        raise InternalError(f"Column {column!r} of type {type_.name} has no binary decoder; fetch it as text")
    element = element_type(type_)
    if element is not None:
        return _decode_list(element, target, fields, column)
    facts = type_facts(type_)
    assert facts is not None
    return facts.decode(fields, target, column)


def _from_text(type_: PgType, target: pa.DataType, texts: pa.Array, column: str) -> pa.Array:
    element = element_type(type_) if has_binary_decoder(type_) else None
    if element is None:
        return parse(texts, target, column)
    offsets, elements = split_array_texts(texts, column)
    values = _from_text(element, target.value_type, elements, column)
    return pa.ListArray.from_arrays(offsets, values, type=target)


def _decode_list(element: PgType, target: pa.DataType, fields: Fields, column: str) -> pa.Array:
    offsets, elements = split_elements(fields, column)
    values = decode_column(element, elements, column=column)
    return pa.Array.from_buffers(target, len(fields), [validity(fields), pa.py_buffer(offsets)], children=[values])
