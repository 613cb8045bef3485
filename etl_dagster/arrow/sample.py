"""Which row an error is about, told by its key: ``… (row with id = 42)``. Other values never get into a message."""

from __future__ import annotations

from collections.abc import Callable
from uuid import UUID

import pyarrow as pa

from etl_dagster.arrow.decode import read_column
from etl_dagster.errors import ValueUnrepresentable
from etl_dagster.model import Column, TableSchema
from etl_dagster.pgwire import Fields

_LONGEST = 60  # characters of a key column that are shown
_UNTOLD = "?"


def tell_row(
    error: ValueUnrepresentable, table: TableSchema, fields_of: Callable[[Column], tuple[Fields, bool]]
) -> None:
    """Add to an error the table and, where it has a key, the key of the row that the error is about.

    Args:
        fields_of: Values of a key column, for the rows that were being decoded, and whether they are text.
    """
    error.table = str(table.id)
    if error.column in {column.name for column in table.key}:
        error.hint = "Values of a key are never replaced: choose `text` for the column, or correct them at the source"
    if error.row is not None and table.key:
        values = [f"{column.name} = {_value(column, *fields_of(column), error.row)}" for column in table.key]
        error.message += f" (row with {', '.join(values)})"


def _value(column: Column, fields: Fields, text: bool, row: int) -> str:
    one = Fields(fields.data, fields.starts[row : row + 1], fields.lengths[row : row + 1])
    try:
        shown = _printed(read_column(column, one, text=text))
    except (ValueUnrepresentable, OverflowError, ValueError):  # the key itself may be what cannot be held
        return _UNTOLD
    return shown if len(shown) <= _LONGEST else f"{shown[:_LONGEST]}…"


def _printed(array: pa.Array) -> str:
    storage = array.storage if isinstance(array, pa.ExtensionArray) else array
    value = storage[0].as_py()
    if isinstance(value, bytes):
        return str(UUID(bytes=value)) if pa.types.is_fixed_size_binary(storage.type) else f"\\x{value.hex()}"
    return "NULL" if value is None else str(value)
