"""Changes as one flat record batch, for logs and spills; changes under a later schema; the CDC columns.

Columns of the flat form are named by position, so no name of a user's column can collide with them::

    kind lsn ordinal timestamp unchanged moved xid | c0 c1 … cn | o0 … ok

``unchanged`` is a bitmask over the columns (bit ``i % 8`` of byte ``i // 8``), null where nothing is unchanged;
``o…`` are the old identity columns (`TableSchema.identity_indexes`), null where ``moved`` is not set.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from etl_dagster.arrow.decode import read_column
from etl_dagster.arrow.fixed import array_of, mask_of, words_of
from etl_dagster.arrow.taking import taking
from etl_dagster.arrow.types import arrow_schema, column_type
from etl_dagster.model import (
    CDC_COLUMNS,
    ZERO_LSN,
    ChangeKind,
    ChangeSet,
    ChangeType,
    Column,
    Landing,
    Lsn,
    RawChanges,
    TableEvents,
    TableSchema,
)
from etl_dagster.pgwire import Fields, padded

PREFIX = (
    pa.field("kind", pa.int8()),
    pa.field("lsn", pa.uint64()),
    pa.field("ordinal", pa.int64()),
    pa.field("timestamp", pa.int64()),
    pa.field("unchanged", pa.binary()),
    pa.field("moved", pa.bool_()),
    pa.field("xid", pa.uint32()),
)

# Holds the commit LSN (64 bits) and the ordinal (32 bits) of a change side by side: 29 digits.
LSN_TYPE = pa.decimal128(38, 0)
_ORDINAL_BITS = 32
_MAX_ORDINAL = (1 << _ORDINAL_BITS) - 1
# In the order of `ChangeKind`.
_CHANGE_TYPES = (ChangeType.INSERT, ChangeType.UPDATE, ChangeType.DELETE, ChangeType.TRUNCATE)

_Bools = npt.NDArray[np.bool_]


def cdc_fields() -> list[pa.Field]:
    """Arrow fields of the CDC columns."""
    types = (pa.string(), LSN_TYPE, pa.timestamp("us", "UTC"))
    return [pa.field(name, type_) for name, type_ in zip(CDC_COLUMNS, types, strict=True)]


def change_schema(table: TableSchema) -> pa.Schema:
    """Arrow schema of the flat form."""
    columns = arrow_schema(table)
    current = [pa.field(f"c{i}", field.type) for i, field in enumerate(columns)]
    old = [pa.field(f"o{i}", columns.field(index).type) for i, index in enumerate(table.identity_indexes)]
    return pa.schema([*PREFIX, *current, *old])


def to_record_batch(changes: ChangeSet) -> pa.RecordBatch:
    """The flat form of a change set."""
    schema = change_schema(changes.table)
    size = len(changes)
    moved = np.zeros(size, np.bool_) if changes.moved is None else changes.moved
    arrays = [array_of(changes.kind), array_of(changes.lsn), array_of(changes.ordinal), array_of(changes.timestamp)]
    xid = pa.nulls(size, pa.uint32()) if changes.xid is None else array_of(changes.xid)
    arrays += [_pack_unchanged(changes), mask_of(moved), xid, *changes.rows.columns]
    arrays += _old_keys(changes, moved, schema)
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _old_keys(changes: ChangeSet, moved: _Bools, schema: pa.Schema) -> list[pa.Array]:
    fields = list(schema)[len(PREFIX) + len(changes.table.columns) :]
    if changes.old_keys is None:
        return [pa.nulls(len(changes), field.type) for field in fields]
    # Whatever stands where nothing moved means nothing; one taken null keeps it out of the log.
    index = taking(np.arange(len(changes)), moved)
    return [column.take(index) for column in changes.old_keys.columns]


def _pack_unchanged(changes: ChangeSet) -> pa.Array:
    size, width = len(changes), (len(changes.table.columns) + 7) // 8
    if not changes.unchanged:
        return pa.nulls(size, pa.binary())
    bits = np.zeros((size, width), np.uint8)
    for column, mask in changes.unchanged.items():
        bits[:, column // 8] |= mask.astype(np.uint8) << np.uint8(column % 8)
    packed = pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), size, [None, pa.py_buffer(bits.tobytes())])
    index = taking(np.arange(size), np.any(bits, axis=1))
    return packed.take(index).cast(pa.binary())


def from_record_batch(table: TableSchema, batch: pa.RecordBatch) -> ChangeSet:
    """The change set of a flat form."""
    names = [column.name for column in table.columns]
    first, last = len(PREFIX), len(PREFIX) + len(names)
    kind, lsn, ordinal, timestamp = (batch.column(i).to_numpy() for i in range(4))
    moved = batch.column(5).to_numpy(zero_copy_only=False).astype(np.bool_)
    any_moved = bool(moved.any())
    old_keys = pa.RecordBatch.from_arrays(batch.columns[last:], names=[names[i] for i in table.identity_indexes])
    xid = batch.column(6)
    return ChangeSet(
        table=table,
        rows=pa.RecordBatch.from_arrays(batch.columns[first:last], schema=arrow_schema(table)),
        kind=kind,
        lsn=lsn,
        ordinal=ordinal,
        timestamp=timestamp,
        unchanged=_unpack_unchanged(batch.column(4), len(names)),
        moved=moved if any_moved else None,
        old_keys=old_keys if any_moved else None,
        xid=None if xid.null_count else xid.to_numpy(),
    )


def _unpack_unchanged(packed: pa.Array, columns: int) -> Mapping[int, _Bools]:
    present = np.flatnonzero(packed.is_valid().to_numpy(zero_copy_only=False))
    if not len(present):
        return {}
    width = (columns + 7) // 8
    bits = np.zeros((len(packed), width), np.uint8)
    bits[present] = np.frombuffer(b"".join(packed.drop_null().to_pylist()), np.uint8).reshape(-1, width)
    masks = {i: (bits[:, i // 8] >> np.uint8(i % 8) & 1).astype(np.bool_) for i in range(columns)}
    return {column: mask for column, mask in masks.items() if mask.any()}


def select_changes(changes: ChangeSet, mask: _Bools) -> ChangeSet:
    """The changes that a mask picks."""
    if mask.all():
        return changes
    unchanged = {column: values[mask] for column, values in changes.unchanged.items()}
    chosen = mask_of(mask)
    return ChangeSet(
        table=changes.table,
        rows=changes.rows.filter(chosen),
        kind=changes.kind[mask],
        lsn=changes.lsn[mask],
        ordinal=changes.ordinal[mask],
        timestamp=changes.timestamp[mask],
        unchanged={column: values for column, values in unchanged.items() if values.any()},
        moved=None if changes.moved is None else changes.moved[mask],
        old_keys=None if changes.old_keys is None else changes.old_keys.filter(chosen),
        xid=None if changes.xid is None else changes.xid[mask],
    )


def beyond(events: TableEvents, watermark: Lsn) -> list[ChangeSet]:
    """The changes that a watermark does not cover.

    A watermark is where the next commit may start, hence a change right at it is new.
    """
    if watermark == ZERO_LSN:
        return [part for part in events.changes if len(part)]
    parts = [select_changes(part, part.lsn >= watermark) for part in events.changes]
    return [part for part in parts if len(part)]


def adapt(changes: ChangeSet, table: TableSchema) -> ChangeSet:
    """The changes as if they had been made under a later schema of their table.

    Columns that are new have the value that rows older than the column have, and null in a changelog, which keeps
    what was said at the time; columns that are gone are left out.
    """
    if changes.table == table:
        return changes
    places = _places(changes.table.columns, table.columns)
    filled = (changes.kind == ChangeKind.INSERT) | (changes.kind == ChangeKind.UPDATE)
    if table.landing is Landing.CHANGELOG:
        filled = np.zeros(len(changes), np.bool_)
    arrays = _rearranged(changes.rows, places, table.columns, filled)
    return replace(
        changes,
        table=table,
        rows=pa.RecordBatch.from_arrays(arrays, schema=arrow_schema(table)),
        unchanged={
            i: changes.unchanged[at] for i, at in enumerate(places) if at is not None and at in changes.unchanged
        },
        old_keys=None if changes.old_keys is None else _adapted_keys(changes, changes.old_keys, table, filled),
    )


def _adapted_keys(changes: ChangeSet, old_keys: pa.RecordBatch, table: TableSchema, filled: _Bools) -> pa.RecordBatch:
    before = [changes.table.columns[i] for i in changes.table.identity_indexes]
    after = [table.columns[i] for i in table.identity_indexes]
    arrays = _rearranged(old_keys, _places(before, after), after, filled)
    return pa.RecordBatch.from_arrays(arrays, names=[column.name for column in after])


def _places(before: Sequence[Column], after: Sequence[Column]) -> list[int | None]:
    """Where each column stood before."""
    found = {column.attnum: place for place, column in enumerate(before)}
    return [found.get(column.attnum) for column in after]


def _rearranged(
    rows: pa.RecordBatch, places: Sequence[int | None], columns: Sequence[Column], filled: _Bools
) -> list[pa.Array]:
    pairs = zip(places, columns, strict=True)
    return [_new_column(column, filled) if at is None else rows.column(at) for at, column in pairs]


def _new_column(column: Column, filled: _Bools) -> pa.Array:
    if column.missing is None or not filled.any():
        return pa.nulls(len(filled), column_type(column))
    return missing_value(column).take(taking(np.zeros(len(filled), np.int64), filled))


def missing_value(column: Column) -> pa.Array:
    """`Column.missing` as an array of one value.

    Raises:
        ValueUnrepresentable: The column cannot hold the value, and its policy says to fail.
    """
    text = (column.missing or "").encode()
    length = -1 if column.missing is None else len(text)
    fields = Fields(padded(text), np.zeros(1, np.int64), np.array([length], np.int32))
    return read_column(column, fields, text=True)


def lsn_number(lsn: int, ordinal: int = 0) -> int:
    """A value of the column ``_LSN``: commit LSN times 2^32 plus ordinal, so that numeric order is commit order."""
    return (int(lsn) << _ORDINAL_BITS) | min(ordinal, _MAX_ORDINAL)


def lsn_numbers(lsn: npt.NDArray[np.uint64], ordinal: npt.NDArray[np.int64]) -> pa.Array:
    """Values of the column ``_LSN`` for many changes; see `lsn_number`."""
    halves = np.empty((len(lsn), 2), np.uint64)  # a decimal is 16 bytes, the lower half first
    halves[:, 0] = (lsn << np.uint64(_ORDINAL_BITS)) | np.minimum(ordinal, _MAX_ORDINAL).astype(np.uint64)
    halves[:, 1] = lsn >> np.uint64(64 - _ORDINAL_BITS)
    return pa.Array.from_buffers(LSN_TYPE, len(lsn), [None, pa.py_buffer(halves)])


def lsn_parts(numbers: pa.Array) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64]]:
    """Commit LSN and ordinal of values of the column ``_LSN``."""
    halves = words_of(numbers, np.dtype((np.uint64, 2)))
    low, high = halves[:, 0], halves[:, 1]
    lsn = (low >> np.uint64(_ORDINAL_BITS)) | (high << np.uint64(64 - _ORDINAL_BITS))
    return lsn, (low & np.uint64(_MAX_ORDINAL)).astype(np.int64)


def cdc_columns(
    kind: npt.NDArray[np.int8],
    lsn: npt.NDArray[np.uint64],
    ordinal: npt.NDArray[np.int64],
    timestamp: npt.NDArray[np.int64],
) -> list[pa.Array]:
    """The CDC columns of changes, in the order of `CDC_COLUMNS`; the change type is dictionary-encoded."""
    names = pa.array([name.value for name in _CHANGE_TYPES], pa.string())
    change_type = pa.DictionaryArray.from_arrays(array_of(kind - np.int8(ChangeKind.INSERT)), names)
    return [change_type, lsn_numbers(lsn, ordinal), array_of(timestamp).view(pa.timestamp("us", "UTC"))]


def same_columns(one: TableSchema, other: TableSchema) -> bool:
    """Whether rows of two schemas of a table are alike: the same columns under the same names, of the same types."""
    return _signature(one) == _signature(other)


def _signature(table: TableSchema) -> list[tuple[int, str, pa.DataType]]:
    return [(column.attnum, column.name, column_type(column)) for column in table.columns]


def select_raw(raw: RawChanges, mask: _Bools) -> RawChanges:
    """The messages that a mask picks."""
    if mask.all():
        return raw
    chosen = mask_of(mask)
    return RawChanges(
        lsn=raw.lsn[mask],
        ordinal=raw.ordinal[mask],
        timestamp=raw.timestamp[mask],
        xid=raw.xid[mask],
        message=raw.message.filter(chosen),
        text=raw.text.filter(chosen),
    )
