"""Arrow types and values as DuckDB has them, and back.

DuckDB reads Arrow itself; all that is left are the types it lacks: numbers of more than 38 digits travel as their
exact text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pyarrow as pa

from etl_dagster.arrow.lists import map_list
from etl_dagster.arrow.printing import plain_digits
from etl_dagster.errors import InternalError

_Test = Callable[[pa.DataType], bool]

# One row per Arrow type: how to tell it, and its DuckDB type.
_TYPES: tuple[tuple[_Test, Callable[[pa.DataType], str]], ...] = (
    (pa.types.is_boolean, lambda _: "BOOLEAN"),
    (pa.types.is_int8, lambda _: "TINYINT"),
    (pa.types.is_int16, lambda _: "SMALLINT"),
    (pa.types.is_int32, lambda _: "INTEGER"),
    (pa.types.is_int64, lambda _: "BIGINT"),
    (pa.types.is_uint8, lambda _: "UTINYINT"),
    (pa.types.is_uint16, lambda _: "USMALLINT"),
    (pa.types.is_uint32, lambda _: "UINTEGER"),
    (pa.types.is_uint64, lambda _: "UBIGINT"),
    (pa.types.is_float32, lambda _: "FLOAT"),
    (pa.types.is_float64, lambda _: "DOUBLE"),
    (pa.types.is_decimal128, lambda type_: f"DECIMAL({type_.precision},{type_.scale})"),
    (pa.types.is_decimal256, lambda _: "VARCHAR"),
    (pa.types.is_string, lambda _: "VARCHAR"),
    (pa.types.is_large_string, lambda _: "VARCHAR"),
    (pa.types.is_binary, lambda _: "BLOB"),
    (pa.types.is_large_binary, lambda _: "BLOB"),
    (pa.types.is_fixed_size_binary, lambda _: "BLOB"),
    (pa.types.is_date32, lambda _: "DATE"),
    (pa.types.is_time64, lambda _: "TIME"),
    (pa.types.is_timestamp, lambda type_: "TIMESTAMPTZ" if type_.tz else "TIMESTAMP"),
    (lambda type_: type_ == pa.month_day_nano_interval(), lambda _: "INTERVAL"),
    (lambda type_: isinstance(type_, pa.UuidType), lambda _: "UUID"),
    (lambda type_: isinstance(type_, pa.JsonType), lambda _: "JSON"),
    (pa.types.is_dictionary, lambda type_: duckdb_type(type_.value_type)),
    (pa.types.is_list, lambda type_: f"{duckdb_type(type_.value_type)}[]"),
    (pa.types.is_large_list, lambda type_: f"{duckdb_type(type_.value_type)}[]"),
)


def duckdb_type(type_: pa.DataType) -> str:
    """The DuckDB type of an Arrow type."""
    for test, name in _TYPES:
        if test(type_):
            return name(type_)
    raise InternalError(f"The Arrow type {type_} has no DuckDB type", hint="Report this")


def quoted(*names: str) -> str:
    """A possibly qualified identifier."""
    return ".".join('"' + name.replace('"', '""') + '"' for name in names)


def encode(table: pa.Table, names: Sequence[str]) -> pa.Table:
    """Arrow data that DuckDB can read, with these column names."""
    columns = [_encode_chunks(column) if _is_wide(column.type) else column for column in table.columns]
    return pa.Table.from_arrays(columns, names=list(names))


def encode_batch(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """Arrow data that DuckDB can read, by `encoded_schema`."""
    columns = [_encode(column) if _is_wide(column.type) else column for column in batch.columns]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def encoded_schema(schema: pa.Schema, names: Sequence[str]) -> pa.Schema:
    """The Arrow schema of encoded data, with these column names."""
    fields = zip(names, schema, strict=True)
    return pa.schema([pa.field(name, _encoded_type(field.type)) for name, field in fields])


def _is_wide(type_: pa.DataType) -> bool:
    return pa.types.is_decimal256(type_) or (pa.types.is_list(type_) and _is_wide(type_.value_type))


def _encoded_type(type_: pa.DataType) -> pa.DataType:
    if not _is_wide(type_):
        return type_
    return pa.list_(_encoded_type(type_.value_type)) if pa.types.is_list(type_) else pa.string()


def _encode_chunks(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return pa.chunked_array([_encode(chunk) for chunk in column.chunks], type=_encoded_type(column.type))


def _encode(array: pa.Array) -> pa.Array:
    if pa.types.is_list(array.type):
        return map_list(array, _encode, _encoded_type(array.type))
    return plain_digits(array.cast(pa.string()))


def decode(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """What DuckDB returned, by the exact Arrow types of ``schema``."""
    pairs = zip(batch.columns, schema, strict=True)
    return pa.RecordBatch.from_arrays([_decode(column, field.type) for column, field in pairs], schema=schema)


def _decode(array: pa.Array, type_: pa.DataType) -> pa.Array:
    if pa.types.is_list(type_):
        return map_list(array, lambda values: _decode(values, type_.value_type), type_)
    if array.type == type_:
        return array
    if isinstance(array, pa.ExtensionArray):
        array = array.storage  # bool arrives as the extension type bool8
    return array.cast(type_)
