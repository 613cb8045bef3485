"""Our description of columns and parameters as Google's client takes it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from etl_dagster.destinations.bigquery.layout import Field
from etl_dagster.errors import InternalError

if TYPE_CHECKING:
    from google.cloud import bigquery

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


def parameters_of(parameters: Mapping[str, object]) -> list[Any]:
    return [_parameter(name, value) for name, value in parameters.items()]


def _parameter(name: str, value: Any) -> Any:
    from google.cloud import bigquery

    if isinstance(value, list | tuple):
        element = type(value[0]) if value else str
        return bigquery.ArrayQueryParameter(name, _PARAMETER_TYPES[element], list(value))
    return bigquery.ScalarQueryParameter(name, _PARAMETER_TYPES[type(value)], value)
