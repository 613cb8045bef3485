"""Our description of tables and parameters as Google's client takes it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from etl_dagster.destinations.bigquery.config import TimePartition
from etl_dagster.destinations.bigquery.layout import Field, Layout
from etl_dagster.errors import InternalError

if TYPE_CHECKING:
    from google.cloud import bigquery

_MILLISECONDS_A_DAY = 86_400_000
_ARRAY = re.compile(r"ARRAY<(.+)>")
_TYPE = re.compile(r"([A-Z0-9]+)(?:\((\d+)(?:, *(\d+))?\))?")
# The API's own names; it takes SQL's only at some places.
_API_NAMES = {"INT64": "INTEGER", "FLOAT64": "FLOAT", "BOOL": "BOOLEAN"}
_PARAMETER_TYPES: dict[type, str] = {str: "STRING", bytes: "BYTES", bool: "BOOL", int: "INT64", float: "FLOAT64"}


def schema_of(fields: Sequence[Field]) -> list[bigquery.SchemaField]:
    return [_schema_field(field) for field in fields]


def _schema_field(field: Field) -> bigquery.SchemaField:
    from google.cloud import bigquery

    array = _ARRAY.fullmatch(field.type)
    found = _TYPE.fullmatch(array[1] if array else field.type)
    if found is None:
        raise InternalError(f"BigQuery's type {field.type} of a column is not understood", hint="Report this")
    name, first, second = found.groups()
    digits: dict[str, Any] = {}
    if first is not None and name in {"NUMERIC", "BIGNUMERIC"}:
        digits = {"precision": int(first), "scale": int(second or 0)}
    elif first is not None:
        digits = {"max_length": int(first)}
    mode = "REPEATED" if array else "NULLABLE"
    return bigquery.SchemaField(field.name, _API_NAMES.get(name, name), mode=mode, **digits)


def table_of(ref: str, fields: Sequence[Field], layout: Layout) -> bigquery.Table:
    from google.cloud import bigquery

    table = bigquery.Table(ref, schema=schema_of(fields))
    table.labels = dict(layout.labels)
    table.clustering_fields = list(layout.cluster_by) or None
    if layout.expires_seconds is not None:
        table.expires = datetime.now(UTC) + timedelta(seconds=layout.expires_seconds)
    elif layout.expiration_days is not None and not isinstance(layout.partition_by, TimePartition):
        table.expires = datetime.now(UTC) + timedelta(days=layout.expiration_days)
    _partition(table, layout)
    return table


def _partition(table: bigquery.Table, layout: Layout) -> None:
    from google.cloud import bigquery

    by = layout.partition_by
    if isinstance(by, TimePartition):
        days = layout.expiration_days
        kept = None if days is None else int(days * _MILLISECONDS_A_DAY)
        table.time_partitioning = bigquery.TimePartitioning(by.granularity.upper(), field=by.column, expiration_ms=kept)
    elif by is not None:
        ranges = bigquery.PartitionRange(by.start, by.end, by.interval)
        table.range_partitioning = bigquery.RangePartitioning(ranges, field=by.column)


def parameters_of(parameters: Mapping[str, object]) -> list[Any]:
    return [_parameter(name, value) for name, value in parameters.items()]


def _parameter(name: str, value: Any) -> Any:
    from google.cloud import bigquery

    if isinstance(value, list | tuple):
        element = type(value[0]) if value else str
        return bigquery.ArrayQueryParameter(name, _PARAMETER_TYPES[element], list(value))
    return bigquery.ScalarQueryParameter(name, _PARAMETER_TYPES[type(value)], value)
