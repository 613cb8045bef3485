"""Changes as the rows of a changelog, and the way back.

A row is the table's columns and the CDC columns. An update that moves its row to another key is two rows with the same
``_LSN``: a delete, with nothing but the identity columns, and an update.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from etl_dagster.arrow.changes import cdc_columns, cdc_fields, lsn_parts
from etl_dagster.arrow.fixed import array_of
from etl_dagster.arrow.taking import taking
from etl_dagster.arrow.types import arrow_schema
from etl_dagster.model import (
    CHANGE_TYPE_COLUMN,
    LSN_COLUMN,
    TIMESTAMP_COLUMN,
    UNCHANGED_COLUMN,
    ChangeKind,
    ChangeSet,
    ChangeType,
    TableSchema,
)

_UNCHANGED_FIELD = pa.field(UNCHANGED_COLUMN, pa.list_(pa.string()))
_KINDS = {
    ChangeType.COPY: ChangeKind.INSERT,
    ChangeType.INSERT: ChangeKind.INSERT,
    ChangeType.UPDATE: ChangeKind.UPDATE,
    ChangeType.DELETE: ChangeKind.DELETE,
    ChangeType.TRUNCATE: ChangeKind.TRUNCATE,
}

_Ints = npt.NDArray[np.int64]
_Bools = npt.NDArray[np.bool_]


def changelog_fields(table: TableSchema) -> list[pa.Field]:
    """Arrow fields of a table that lands as a changelog: its columns and the four CDC columns."""
    return [*arrow_schema(table), *cdc_fields(), _UNCHANGED_FIELD]


def changelog_rows(changes: ChangeSet) -> pa.RecordBatch:
    """The rows to append for changes, in their order."""
    size = len(changes)
    moved = np.zeros(size, np.bool_) if changes.moved is None else changes.moved
    # The row of every change, and in front of one that moved another for its departure.
    change = np.repeat(np.arange(size), 1 + moved)
    departs = np.zeros(len(change), np.bool_)
    departs[:-1] = change[1:] == change[:-1]
    kind = np.where(departs, np.int8(ChangeKind.DELETE), changes.kind[change])
    cdc = cdc_columns(kind, changes.lsn[change], changes.ordinal[change], changes.timestamp[change])
    arrays = [
        *_table_columns(changes, change, departs),
        cdc[0].dictionary_decode(),
        *cdc[1:],
        _unchanged_names(changes, change, departs),
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=pa.schema(changelog_fields(changes.table)))


def _table_columns(changes: ChangeSet, change: _Ints, departs: _Bools) -> list[pa.Array]:
    if changes.old_keys is None or not departs.any():
        return list(changes.rows.columns)
    index = taking(change, ~departs)
    columns = [column.take(index) for column in changes.rows.columns]
    both = np.where(departs, len(changes) + change, change)
    for nth, place in enumerate(changes.table.identity_indexes):
        now, before = changes.rows.column(place), changes.old_keys.column(nth)
        columns[place] = pa.concat_arrays([now, before.cast(now.type)]).take(array_of(both))
    return columns


def _unchanged_names(changes: ChangeSet, change: _Ints, departs: _Bools) -> pa.Array:
    if not changes.unchanged:
        return pa.nulls(len(change), _UNCHANGED_FIELD.type)
    places = sorted(changes.unchanged)
    masks = np.column_stack([changes.unchanged[place][change] & ~departs for place in places])
    names = pa.array([changes.table.columns[place].name for place in places], pa.string())
    offsets = np.zeros(len(change) + 1, np.int32)
    np.cumsum(masks.sum(axis=1), out=offsets[1:])
    chosen = names.take(array_of(np.nonzero(masks)[1]))
    lists = pa.ListArray.from_arrays(array_of(offsets), chosen)
    return lists.take(taking(np.arange(len(change)), np.any(masks, axis=1)))


def changes_of_rows(table: TableSchema, rows: pa.RecordBatch) -> ChangeSet:
    """The changes that rows of a changelog stand for, in the order of the rows; those of a copy are inserts.

    The two rows of a move, which have to follow one another, are one update again.
    """
    kind = _kinds(rows.column(CHANGE_TYPE_COLUMN))
    lsn, ordinal = lsn_parts(rows.column(LSN_COLUMN))
    departs = _departures(kind, lsn, ordinal)
    kept = np.flatnonzero(~departs)
    moved = np.concatenate([np.zeros(1, np.bool_), departs])[kept]
    values = rows.select([column.name for column in table.columns])
    old = values.select(list(table.identity_indexes)).take(taking(kept - 1, moved)) if moved.any() else None
    return ChangeSet(
        table=table,
        rows=values.take(array_of(kept)).cast(arrow_schema(table)),
        kind=kind[kept],
        lsn=lsn[kept],
        ordinal=ordinal[kept],
        timestamp=rows.column(TIMESTAMP_COLUMN).view(pa.int64()).to_numpy(zero_copy_only=False)[kept],
        unchanged=_unchanged_masks(table, rows.column(UNCHANGED_COLUMN).take(array_of(kept))),
        moved=moved if old is not None else None,
        old_keys=old,
    )


def _kinds(change_types: pa.Array) -> npt.NDArray[np.int8]:
    names = pa.array([type_.value for type_ in _KINDS], pa.string())
    places = pc.index_in(change_types.cast(pa.string()), names).to_numpy()
    kinds: npt.NDArray[np.int8] = np.array(list(_KINDS.values()), np.int8)[places]
    return kinds


def _departures(kind: npt.NDArray[np.int8], lsn: npt.NDArray[np.uint64], ordinal: _Ints) -> _Bools:
    """The deletes whose row goes on, under another key, in the row that follows."""
    departs = np.zeros(len(kind), np.bool_)
    same = (lsn[1:] == lsn[:-1]) & (ordinal[1:] == ordinal[:-1])
    departs[:-1] = same & (kind[:-1] == ChangeKind.DELETE) & (kind[1:] == ChangeKind.UPDATE)
    return departs


def _unchanged_masks(table: TableSchema, names: pa.Array) -> dict[int, _Bools]:
    owners, found = pc.list_parent_indices(names).to_numpy(), pc.list_flatten(names)
    masks: dict[int, _Bools] = {}
    for name in pc.unique(found).to_pylist():
        place = next((i for i, column in enumerate(table.columns) if column.name == name), None)
        if place is not None:  # a column that is gone, or had another name then
            masks[place] = np.zeros(len(names), np.bool_)
            masks[place][owners[pc.equal(found, name).to_numpy(zero_copy_only=False)]] = True
    return masks
