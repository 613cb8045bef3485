"""Rows and changes as plain Python values: the reference's view of columnar data.

A cell is an Arrow array of one value, so that every type and every infinity passes through unharmed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal

import numpy as np
import pyarrow as pa

from etl_dagster.arrow.changes import LSN_TYPE, cdc_fields, lsn_number
from etl_dagster.arrow.types import arrow_schema
from etl_dagster.model import ChangeKind, ChangeSet, ChangeType, TableSchema

Key = tuple[object, ...]
_CHANGE_TYPE = {ChangeKind.INSERT: ChangeType.INSERT, ChangeKind.UPDATE: ChangeType.UPDATE}


@dataclass(frozen=True, slots=True)
class Row:
    """One row; a cell is None where an unchanged value is not known."""

    cells: tuple[pa.Array | None, ...]
    change_type: ChangeType
    lsn: int
    timestamp: int

    @property
    def complete(self) -> bool:
        return all(cell is not None for cell in self.cells)

    def filled_from(self, other: Row) -> Row:
        """This row with its unknown cells taken from another one."""
        pairs = zip(self.cells, other.cells, strict=True)
        return replace(self, cells=tuple(theirs if cell is None else cell for cell, theirs in pairs))


@dataclass(frozen=True, slots=True)
class Change:
    """One change of one row; ``old_key`` differs from ``key`` when the row moved."""

    kind: ChangeKind
    lsn: int
    key: Key
    old_key: Key
    row: Row


def key_of(cells: Sequence[pa.Array]) -> Key:
    return tuple(_comparable(cell) for cell in cells)


def _comparable(cell: pa.Array) -> object:
    scalar = cell[0].value if isinstance(cell, pa.ExtensionArray) else cell[0]
    return str(scalar) if pa.types.is_nested(cell.type) else scalar


def cells_of(batch: pa.RecordBatch) -> Iterator[tuple[pa.Array, ...]]:
    for i in range(batch.num_rows):
        yield tuple(column.slice(i, 1) for column in batch.columns)


def changes_of(changes: ChangeSet) -> Iterator[Change]:
    """The changes one by one."""
    old_keys = None if changes.old_keys is None else list(cells_of(changes.old_keys))
    for i, cells in enumerate(cells_of(changes.rows)):
        kind = ChangeKind(int(changes.kind[i]))
        key = key_of([cells[index] for index in changes.table.key_indexes])
        moved = old_keys is not None and changes.moved is not None and bool(changes.moved[i])
        unchanged = {column for column, mask in changes.unchanged.items() if mask[i]}
        row = Row(
            cells=tuple(None if column in unchanged else cell for column, cell in enumerate(cells)),
            change_type=_CHANGE_TYPE.get(kind, ChangeType.DELETE),
            lsn=lsn_number(int(changes.lsn[i]), int(changes.ordinal[i])),
            timestamp=int(changes.timestamp[i]),
        )
        old_key = key_of(old_keys[i]) if moved and old_keys is not None else key
        yield Change(kind, int(changes.lsn[i]), key, old_key, row)


def to_table(table: TableSchema, rows: Sequence[Row]) -> pa.Table:
    """Rows as the table's columns and the CDC columns."""
    fields = [*arrow_schema(table), *cdc_fields()]
    schema = pa.schema(fields)
    if not rows:
        return schema.empty_table()
    columns = [pa.concat_arrays([row.cells[i] for row in rows]) for i in range(len(table.columns))]
    stamps = pa.array(np.array([row.timestamp for row in rows], np.int64)).view(fields[-1].type)
    lsns = pa.array([Decimal(row.lsn) for row in rows], LSN_TYPE)
    cdc = [pa.array([row.change_type.value for row in rows]), lsns, stamps]
    return pa.Table.from_arrays([*columns, *cdc], schema=schema)
