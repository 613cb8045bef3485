"""Rows and changes as plain Python values: the reference's view of columnar data.

A cell is an Arrow array of one value, so that every type and every infinity passes through unharmed. Columns go by
their attnum, which outlives their names.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal

import numpy as np
import pyarrow as pa

from etl_dagster.arrow.changes import LSN_TYPE, lsn_number
from etl_dagster.arrow.landing import landed_schema
from etl_dagster.model import ChangeKind, ChangeSet, ChangeType, Column, Landing, TableSchema

Key = tuple[object, ...]
# None: not known, since an update left it out as unchanged. A column that is not there is NULL.
Cells = dict[int, pa.Array | None]

_CHANGE_TYPES = {
    ChangeKind.INSERT: ChangeType.INSERT,
    ChangeKind.UPDATE: ChangeType.UPDATE,
    ChangeKind.DELETE: ChangeType.DELETE,
    ChangeKind.TRUNCATE: ChangeType.TRUNCATE,
}


@dataclass(frozen=True, slots=True)
class Row:
    """One row; ``unchanged`` names, in a changelog, the columns that were left out."""

    cells: Cells
    change_type: ChangeType
    lsn: int
    timestamp: int
    unchanged: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        return all(cell is not None for cell in self.cells.values())

    @property
    def deleted(self) -> bool:
        return self.change_type is ChangeType.DELETE

    def filled_from(self, other: Row) -> Row:
        """This row with its unknown cells taken from another one; those that it lacks are null."""
        pairs = [(attnum, other.cells[attnum] if cell is None else cell) for attnum, cell in self.cells.items()]
        return self.with_cells(dict(pairs))

    def with_cells(self, cells: Cells) -> Row:
        return replace(self, cells=cells)

    def known(self) -> Row:
        """This row with nulls for what is not known."""
        return self.with_cells({attnum: cell for attnum, cell in self.cells.items() if cell is not None})


@dataclass(frozen=True, slots=True)
class Change:
    """One change of one row; ``old_key`` differs from ``key`` when the row moved. Both are empty without a key.

    ``left`` is the row as deleted under its old key by this change, with cells for its identity only; None where the
    change leaves no key.
    """

    kind: ChangeKind
    lsn: int
    xid: int | None
    key: Key
    old_key: Key
    row: Row
    left: Row | None = field(default=None)

    def continues(self, before: Row) -> bool:
        """Whether what stood under the old key is this row; an insert begins a row of its own."""
        return self.kind is not ChangeKind.INSERT and not before.deleted


def key_of(cells: Sequence[pa.Array]) -> Key:
    return tuple(_comparable(cell) for cell in cells)


def _comparable(cell: pa.Array) -> object:
    scalar = cell[0].value if isinstance(cell, pa.ExtensionArray) else cell[0]
    return str(scalar) if pa.types.is_nested(cell.type) else scalar


def cells_of(batch: pa.RecordBatch) -> Iterator[tuple[pa.Array, ...]]:
    for i in range(batch.num_rows):
        yield tuple(column.slice(i, 1) for column in batch.columns)


def by_attnum(columns: Sequence[Column], cells: Sequence[pa.Array]) -> dict[int, pa.Array]:
    return {column.attnum: cell for column, cell in zip(columns, cells, strict=True)}


def changes_of(changes: ChangeSet) -> Iterator[Change]:
    """The changes one by one."""
    table = changes.table
    identity = [table.columns[index] for index in table.identity_indexes]
    old_keys = None if changes.old_keys is None else list(cells_of(changes.old_keys))
    for i, cells in enumerate(cells_of(changes.rows)):
        kind = ChangeKind(int(changes.kind[i]))
        moved = changes.moved is not None and bool(changes.moved[i])
        own = [cells[index] for index in table.identity_indexes]
        old = old_keys[i] if moved and old_keys is not None else own
        row = _row(changes, i, kind, by_attnum(table.columns, cells))
        deleted = replace(row, change_type=ChangeType.DELETE, unchanged=(), cells=by_attnum(identity, old))
        yield Change(
            kind=kind,
            lsn=int(changes.lsn[i]),
            xid=None if changes.xid is None else int(changes.xid[i]),
            key=key_of(own) if table.key else (),
            old_key=key_of(old) if table.key else (),
            row=row,
            left=deleted if moved or kind is ChangeKind.DELETE else None,
        )


def _row(changes: ChangeSet, i: int, kind: ChangeKind, cells: dict[int, pa.Array]) -> Row:
    left_out = [changes.table.columns[place] for place, mask in sorted(changes.unchanged.items()) if mask[i]]
    return Row(
        cells={**cells, **dict.fromkeys((column.attnum for column in left_out), None)},
        change_type=_CHANGE_TYPES[kind],
        lsn=lsn_number(int(changes.lsn[i]), int(changes.ordinal[i])),
        timestamp=int(changes.timestamp[i]),
        unchanged=tuple(column.name for column in left_out),
    )


def to_table(table: TableSchema, rows: Sequence[Row]) -> pa.Table:
    """Rows as the table's columns and the CDC columns."""
    schema = landed_schema(table)
    if not rows:
        return schema.empty_table()
    columns = [
        _column([row.cells.get(each.attnum) for row in rows], schema.field(i).type)
        for i, each in enumerate(table.columns)
    ]
    columns += [
        pa.array([row.change_type.value for row in rows]),
        pa.array([Decimal(row.lsn) for row in rows], LSN_TYPE),
        pa.array(np.array([row.timestamp for row in rows], np.int64)).view(pa.timestamp("us", "UTC")),
    ]
    if table.landing is Landing.CHANGELOG:
        columns.append(pa.array([list(row.unchanged) or None for row in rows], pa.list_(pa.string())))
    return pa.Table.from_arrays(columns, schema=schema)


def _column(cells: Sequence[pa.Array | None], type_: pa.DataType) -> pa.Array:
    return pa.concat_arrays([pa.nulls(1, type_) if cell is None else cell for cell in cells])
