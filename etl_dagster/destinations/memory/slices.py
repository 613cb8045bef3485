"""The end of a copy of slices: its staged rows go into the live table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from etl_dagster.arrow.changes import lsn_number
from etl_dagster.arrow.decode import read_column
from etl_dagster.arrow.types import arrow_type, column_type
from etl_dagster.destinations.admission import require_sliceable, slice_column
from etl_dagster.destinations.memory.copies import Copy
from etl_dagster.destinations.memory.rows import Key, Row
from etl_dagster.destinations.memory.tables import LiveTable, deleted
from etl_dagster.model import Column, CopyTarget, Landing, Lsn, Slice, ValuePolicy
from etl_dagster.pgwire import Fields, padded


def merge_slices(copy: Copy, target: CopyTarget, live: LiveTable, position: Lsn) -> list[Row]:
    """Bring the staged rows into the live table; returns the rows that cannot be decided, and then has done nothing."""
    require_sliceable(target.table)
    live.follow(target.table)
    require_sliceable(live.table)
    if copy.truncated:
        return []
    staged = {key: row for chunk in copy.in_order() for key, row in chunk.rows}
    logged = {key for change in copy.log for key in (change.key, change.old_key)}
    inside = _membership(target.slices, slice_column(live.table, target.slices))
    lost = {
        key: row
        for key, row in live.rows.items()
        if not row.deleted and inside(row) and key not in staged and key not in logged
    }
    if lost and not any(chunk.reread for chunk in copy.chunks.values()):
        return list(lost.values())
    for key, row in lost.items():
        _remove(live, key, row, position)
    live.rows |= {key: live.adapted(row, target.table) for key, row in staged.items() if key not in logged}
    return []


def staged_rows(copy: Copy) -> int:
    """How many rows were staged and not read again."""
    return 0 if copy.truncated else sum(len(chunk.rows) for chunk in copy.chunks.values() if not chunk.reread)


def _remove(live: LiveTable, key: Key, row: Row, position: Lsn) -> None:
    if live.table.landing is Landing.SOFT_DELETE:
        live.rows[key] = deleted(row, lsn_number(position))
    else:
        del live.rows[key]


def _membership(slices: Sequence[Slice], column: Column) -> Callable[[Row], bool]:
    """Whether a row of the live table lies in the slices."""
    bounds = [(_bound(each.lower, column), _bound(each.upper, column), each.nulls) for each in slices]

    def lies_within(row: Row) -> bool:
        value = _value(row.cells.get(column.attnum), column)
        if value is None:
            return any(nulls for _, _, nulls in bounds)
        return any((low is None or low <= value) and (high is None or value < high) for low, high, _ in bounds)

    return lies_within


def _bound(text: str | None, column: Column) -> Any:
    return None if text is None else _order(_read(text, column))


def _value(cell: pa.Array | None, column: Column) -> Any:
    """What is compared with the bounds; a moment that landed as text is read."""
    if cell is None or cell.null_count:
        return None
    return _order(_read(cell[0].as_py(), column) if column_type(column) != arrow_type(column.type) else cell)


def _read(text: str, column: Column) -> pa.Array:
    own = column.model_copy(update={"values": ValuePolicy.CLAMP})
    data = text.encode()
    return read_column(own, Fields(padded(data), np.zeros(1, np.int64), np.array([len(data)], np.int32)), text=True)


def _order(array: pa.Array) -> Any:
    """The one value of an array as Python orders it: texts by their code points, which is the order of their bytes."""
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    if pa.types.is_temporal(array.type):
        array = array.view(pa.int32() if pa.types.is_date(array.type) else pa.int64())
    return array[0].as_py()
