"""What the live table of a destination holds, by its landing, and which of its rows stand at the source."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from etl_dagster.arrow.changelog import changelog_fields, changes_of_rows
from etl_dagster.arrow.changes import cdc_fields, lsn_parts, select_changes
from etl_dagster.arrow.compaction import compact, key_codes
from etl_dagster.arrow.fixed import array_of
from etl_dagster.arrow.types import arrow_schema
from etl_dagster.model import CHANGE_TYPE_COLUMN, LSN_COLUMN, ChangeKind, ChangeSet, ChangeType, Landing, TableSchema


def landed_schema(table: TableSchema) -> pa.Schema:
    """Arrow schema of the live table: the source's columns, then the CDC columns."""
    if table.landing is Landing.CHANGELOG:
        return pa.schema(changelog_fields(table))
    return pa.schema([*arrow_schema(table), *cdc_fields()])


def present_rows(table: TableSchema, rows: pa.RecordBatchReader) -> pa.RecordBatchReader:
    """The rows that stand at the source, by the table's own columns.

    Args:
        rows: What `Destination.read_table` gives, in any order. A changelog is read whole into memory.
    """
    schema = arrow_schema(table)
    if table.landing is Landing.CHANGELOG:
        return _fold(table, rows.read_all()).cast(schema).to_reader()
    return pa.RecordBatchReader.from_batches(schema, _standing(table, rows))


def _standing(table: TableSchema, rows: pa.RecordBatchReader) -> Iterator[pa.RecordBatch]:
    names = [column.name for column in table.columns]
    for batch in rows:
        kept = batch
        if table.landing is Landing.SOFT_DELETE:
            kept = batch.filter(pc.not_equal(batch.column(CHANGE_TYPE_COLUMN).cast(pa.string()), ChangeType.DELETE))
        yield kept.select(names).cast(arrow_schema(table))


def _fold(table: TableSchema, rows: pa.Table) -> pa.Table:
    changes = changes_of_rows(table, _in_order(rows))
    truncates = np.flatnonzero(changes.kind == ChangeKind.TRUNCATE)
    if len(truncates):
        changes = select_changes(changes, np.arange(len(changes)) > truncates[-1])
    return compact([changes]).upserts if table.key else _replayed(changes)


def _in_order(rows: pa.Table) -> pa.RecordBatch:
    """The rows of a changelog in commit order: a copy first, and the departure of a moved row before its arrival."""
    batch = _one_batch(rows)
    types = batch.column(CHANGE_TYPE_COLUMN).cast(pa.string())
    copied, deleted = (pc.equal(types, type_).to_numpy(zero_copy_only=False) for type_ in _FIRST)
    lsn, ordinal = lsn_parts(batch.column(LSN_COLUMN))
    return batch.take(array_of(np.lexsort((~deleted, ordinal, lsn, ~copied))))


_FIRST = (ChangeType.COPY.value, ChangeType.DELETE.value)


def _one_batch(rows: pa.Table) -> pa.RecordBatch:
    columns = [pa.concat_arrays(column.chunks) if column.num_chunks else column.combine_chunks() for column in rows]
    return pa.RecordBatch.from_arrays(columns, schema=rows.schema)


def _replayed(changes: ChangeSet) -> pa.Table:
    """What is left of a table without key, whose rows are told apart by nothing but their values."""
    rows, size = _filled_rows(changes), len(changes)
    moved = np.zeros(size, np.bool_) if changes.moved is None else changes.moved
    old = rows if changes.old_keys is None else pa.Table.from_batches([changes.old_keys]).cast(rows.schema)
    codes, _ = key_codes(pa.concat_tables([rows, old]))
    places: dict[int, list[int]] = {}
    for i, (own, before) in enumerate(zip(codes[:size].tolist(), codes[size:].tolist(), strict=True)):
        deletes = changes.kind[i] == ChangeKind.DELETE
        gone = places.get(before if moved[i] else own) if moved[i] or deletes else None
        if gone:
            gone.pop()
        if not deletes:
            places.setdefault(own, []).append(i)
    left = sorted(i for found in places.values() for i in found)
    return rows.take(array_of(np.array(left, np.int64)))


def _filled_rows(changes: ChangeSet) -> pa.Table:
    """The rows with values that an update left out taken from the row that it replaced."""
    columns = list(changes.rows.columns)
    if changes.old_keys is not None:
        for place, mask in changes.unchanged.items():
            both = pa.concat_arrays([columns[place], changes.old_keys.column(place)])
            columns[place] = both.take(array_of(np.arange(len(mask)) + mask * len(mask)))
    return pa.Table.from_arrays(columns, schema=changes.rows.schema)
