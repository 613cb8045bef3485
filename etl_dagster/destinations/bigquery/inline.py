"""Rows that travel within a query: as text of JSON, one string per value, which SQL takes apart again."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from etl_dagster.arrow.fixed import array_of
from etl_dagster.arrow.printing import hex_digits, json_strings, plain_digits
from etl_dagster.destinations.bigquery.naming import quoted
from etl_dagster.destinations.bigquery.types import NativeType
from etl_dagster.errors import InternalError

_Test = Callable[[pa.DataType], bool]


def inline_rows(table: pa.Table) -> str:
    """Encoded columns as text of JSON: an array of rows, which are arrays of strings and nulls."""
    rows = [_row_texts(batch) for batch in table.combine_chunks().to_batches()]
    whole = [f"{pc.binary_join(_one_list(each), ',')[0]}" for each in rows if len(each)]
    return f"[{','.join(whole)}]"


def _one_list(values: pa.Array) -> pa.ListArray:
    return pa.ListArray.from_arrays(array_of(np.array([0, len(values)], np.int32)), values)


def _row_texts(batch: pa.RecordBatch) -> pa.Array:
    values = [json_strings(_texts(column)).fill_null("null") for column in batch.columns]
    return pc.binary_join_element_wise("[", pc.binary_join_element_wise(*values, ","), "]", "")


def inline_source(parameter: str, fields: Sequence[tuple[str, NativeType]]) -> str:
    """SQL of a relation with the rows that a STRING parameter holds, by their staged types.

    Args:
        fields: Name and type of every column; all of the types can travel so.
    """
    columns = [f"{_unpacked(native, i)} AS {quoted(name)}" for i, (name, native) in enumerate(fields)]
    rows = f"SELECT JSON_VALUE_ARRAY(r) AS v FROM UNNEST(JSON_QUERY_ARRAY(@{parameter})) AS r"
    return f"(SELECT {', '.join(columns)} FROM ({rows}))"


def _unpacked(native: NativeType, place: int) -> str:
    sql = native.inline(f"v[OFFSET({place})]")
    if sql is None:
        raise InternalError(f"{native.staged} cannot travel within a query", hint="Report this")
    return sql


def _texts(values: pa.Array) -> pa.Array:
    """What `NativeType.inline` reads."""
    convert = next((convert for test, convert in _TEXTS if test(values.type)), None)
    return (values if convert is None else convert(values)).cast(pa.string())


def _days(values: pa.Array) -> pa.Array:
    return values.cast(pa.int32())


def _microseconds(values: pa.Array) -> pa.Array:
    return values.cast(pa.int64())


def _decimals(values: pa.Array) -> pa.Array:
    return plain_digits(values.cast(pa.string()))


_TEXTS: tuple[tuple[_Test, Callable[[pa.Array], pa.Array]], ...] = (
    (pa.types.is_binary, hex_digits),
    (pa.types.is_date32, _days),
    (pa.types.is_time64, _microseconds),
    (pa.types.is_timestamp, _microseconds),
    (pa.types.is_decimal, _decimals),
)
