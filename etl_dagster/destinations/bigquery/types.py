"""The one table of types: what an Arrow type is in BigQuery, and the SQL between the forms that a value takes.

A value is *staged* as a type that Parquet can carry, and lives as its *native* type. Where the two differ, or where a
value travels as text within a query or comes back by one, the row of its type says how.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import pyarrow as pa

from etl_dagster.arrow.changes import LSN_TYPE
from etl_dagster.arrow.types import column_type
from etl_dagster.destinations.bigquery.config import BigQueryConfig
from etl_dagster.errors import InternalError
from etl_dagster.model import (
    CHANGE_TYPE_COLUMN,
    LSN_COLUMN,
    TIMESTAMP_COLUMN,
    UNCHANGED_COLUMN,
    Column,
    ValuePolicy,
)

# What NUMERIC and BIGNUMERIC hold before and behind the point.
_NUMERIC_WHOLE, _NUMERIC_SCALE = 29, 9
_BIGNUMERIC_WHOLE, _BIGNUMERIC_SCALE = 38, 38
# A commit LSN times 2^32 has as many digits as NUMERIC has before the point.
_LSN_DIGITS = 29


@dataclass(frozen=True, slots=True)
class NativeType:
    """A column's type in BigQuery; SQL is written with ``{0}`` for the expression that it is about.

    Attributes:
        native: DDL type in a live table.
        staged: DDL type where rows are staged, which Parquet can carry; the same when there is nothing to convert.
        carried: Arrow type of staged values.
        parses: Staged to native.
        prints: Native to staged.
        compares: Native to what is equal when the values are: NaN to itself, -0 to 0.
        unpacks: Text within a query to staged; None: a value cannot travel so.
        drops_nulls: NULL elements of an array are left out; otherwise they are refused.
    """

    native: str
    staged: str
    carried: pa.DataType
    parses: str = "{0}"
    prints: str = "{0}"
    compares: str = "{0}"
    unpacks: str | None = "{0}"
    drops_nulls: bool = False

    def from_staged(self, sql: str) -> str:
        """The native value of a staged one."""
        return self.parses.format(sql)

    def to_staged(self, sql: str) -> str:
        """The staged value of a native one."""
        return self.prints.format(sql)

    def selected(self, sql: str) -> str:
        """What a query returns of a native value."""
        return self.prints.format(sql)

    def comparable(self, sql: str) -> str:
        """What tells native values apart, and can be grouped and partitioned by."""
        return self.compares.format(sql)

    def inline(self, sql: str) -> str | None:
        """The staged value of a text that `inline_rows` made; None when it cannot travel so."""
        return None if self.unpacks is None else self.unpacks.format(sql)

    @property
    def null(self) -> str:
        """NULL of the native type: by itself it would be one of INT64."""
        return _null(self.native)

    @property
    def staged_null(self) -> str:
        """NULL of the staged type."""
        return _null(self.staged)

    @property
    def is_array(self) -> bool:
        return self.native.startswith("ARRAY<")


def _null(type_: str) -> str:
    return f"CAST(NULL AS {_PARAMETERS.sub('', type_)})"


def _same(name: str, carried: pa.DataType, unpacks: str | None = "{0}", compares: str = "{0}") -> NativeType:
    return NativeType(name, name, carried, compares=compares, unpacks=unpacks)


_BOOL = _same("BOOL", pa.bool_(), "CAST({0} AS BOOL)")
_INT64 = _same("INT64", pa.int64(), "CAST({0} AS INT64)")
# CAST prints every NaN alike; adding 0 makes 0 of -0.
_FLOAT64 = _same("FLOAT64", pa.float64(), "CAST({0} AS FLOAT64)", "CAST({0} + 0 AS STRING)")
_STRING = _same("STRING", pa.string())
_BYTES = _same("BYTES", pa.binary(), "FROM_HEX({0})")
_DATE = _same("DATE", pa.date32(), "DATE_FROM_UNIX_DATE(CAST({0} AS INT64))")
_TIME = _same("TIME", pa.time64("us"), "TIME(TIMESTAMP_MICROS(CAST({0} AS INT64)))")
_DATETIME = _same("DATETIME", pa.timestamp("us"), "DATETIME(TIMESTAMP_MICROS(CAST({0} AS INT64)))")
_TIMESTAMP = _same("TIMESTAMP", pa.timestamp("us", "UTC"), "TIMESTAMP_MICROS(CAST({0} AS INT64))")
# By default PARSE_JSON refuses numbers that are not what it prints itself, which one in a thousand ordinary decimals is
# not (0.915908). What a double does not hold does not get here: see `ValueLimits.exact_json`.
# TO_JSON_STRING makes 'null' of NULL.
_PRINTED = "IF({0} IS NULL, NULL, TO_JSON_STRING({0}))"
_JSON = NativeType("JSON", "STRING", pa.string(), "PARSE_JSON({0}, wide_number_mode=>'round')", _PRINTED, _PRINTED)


def _decimal(type_: pa.DataType) -> NativeType:
    precision, scale = type_.precision, type_.scale
    if precision - scale <= _NUMERIC_WHOLE and scale <= _NUMERIC_SCALE:
        return _same(f"NUMERIC({precision}, {scale})", type_, "CAST({0} AS NUMERIC)")
    if precision - scale <= _BIGNUMERIC_WHOLE and scale <= _BIGNUMERIC_SCALE:
        return _same(f"BIGNUMERIC({precision}, {scale})", type_, None)
    return _STRING


_PARAMETERS = re.compile(r"\([^)]*\)")
_Test = Callable[[pa.DataType], bool]

# One row per Arrow type that is no list: how to tell it, and what it is here.
_TYPES: tuple[tuple[_Test, Callable[[pa.DataType], NativeType]], ...] = (
    (pa.types.is_boolean, lambda _: _BOOL),
    (pa.types.is_int16, lambda _: _INT64),
    (pa.types.is_int32, lambda _: _INT64),
    (pa.types.is_int64, lambda _: _INT64),
    (pa.types.is_uint32, lambda _: _INT64),
    (pa.types.is_float32, lambda _: _FLOAT64),
    (pa.types.is_float64, lambda _: _FLOAT64),
    (pa.types.is_decimal, _decimal),
    (pa.types.is_string, lambda _: _STRING),
    (pa.types.is_binary, lambda _: _BYTES),
    (pa.types.is_date32, lambda _: _DATE),
    (pa.types.is_time64, lambda _: _TIME),
    (pa.types.is_timestamp, lambda type_: _TIMESTAMP if type_.tz else _DATETIME),
    (pa.types.is_interval, lambda _: _STRING),  # in the canonical form, which CAST(... AS INTERVAL) reads
    (lambda type_: isinstance(type_, pa.UuidType), lambda _: _STRING),
    (lambda type_: isinstance(type_, pa.JsonType), lambda _: _JSON),
)

CDC_TYPES: Mapping[str, NativeType] = {
    CHANGE_TYPE_COLUMN: _STRING,
    LSN_COLUMN: _decimal(pa.decimal128(_LSN_DIGITS, LSN_TYPE.scale)),
    TIMESTAMP_COLUMN: _TIMESTAMP,
    UNCHANGED_COLUMN: _JSON,
}


def native_type(column: Column, config: BigQueryConfig) -> NativeType:
    """The type of a column in BigQuery."""
    type_ = column_type(column)
    if pa.types.is_list(type_) and config.arrays == "repeated" and column.key_ordinal is None:
        return _array(type_.value_type, drops_nulls=column.values in (ValuePolicy.NULL, ValuePolicy.CLAMP))
    found = _JSON if pa.types.is_list(type_) else plain_type(type_)
    # Keys have to be comparable, which JSON is not.
    plain = column.key_ordinal is not None or (config.json_ == "string" and not pa.types.is_list(type_))
    return _STRING if found is _JSON and plain else found


def _array(element: pa.DataType, *, drops_nulls: bool) -> NativeType:
    found = plain_type(element)
    if found is _JSON:
        found = _STRING  # an array cannot be staged as one of another type
    array = _same(f"ARRAY<{found.native}>", pa.list_(found.carried), None, "TO_JSON_STRING({0})")
    return replace(array, drops_nulls=drops_nulls)


def plain_type(type_: pa.DataType) -> NativeType:
    """The type of what has this Arrow type, which is no list, outside of keys."""
    for test, row in _TYPES:
        if test(type_):
            return row(type_)
    raise InternalError(f"The Arrow type {type_} has no BigQuery type", hint="Report this")
