"""Changes as one flat record batch, for logs and spills, and the CDC columns that destinations add.

Columns of the flat form are named by position, so no name of a user's column can collide with them::

    kind lsn ordinal timestamp unchanged moved | c0 c1 … cn | o0 … ok

``unchanged`` is a bitmask over the columns (bit ``i % 8`` of byte ``i // 8``), null where nothing is unchanged;
``o…`` are the old key columns in key order, null where ``moved`` is not set.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from etl_dagster.arrow.types import arrow_schema
from etl_dagster.model import CDC_COLUMNS, ChangeKind, ChangeSet, ChangeType, TableSchema

PREFIX = (
    pa.field("kind", pa.int8()),
    pa.field("lsn", pa.uint64()),
    pa.field("ordinal", pa.int64()),
    pa.field("timestamp", pa.int64()),
    pa.field("unchanged", pa.binary()),
    pa.field("moved", pa.bool_()),
)

# Holds the commit LSN (64 bits) and the ordinal (32 bits) of a change side by side: 29 digits.
LSN_TYPE = pa.decimal128(38, 0)
_ORDINAL_BITS = 32
_MAX_ORDINAL = (1 << _ORDINAL_BITS) - 1
_CHANGE_TYPES = (ChangeType.INSERT.value, ChangeType.UPDATE.value, ChangeType.DELETE.value)

_Bools = npt.NDArray[np.bool_]


def cdc_fields() -> list[pa.Field]:
    """Arrow fields of the CDC columns."""
    types = (pa.string(), LSN_TYPE, pa.timestamp("us", "UTC"))
    return [pa.field(name, type_) for name, type_ in zip(CDC_COLUMNS, types, strict=True)]


def change_schema(table: TableSchema) -> pa.Schema:
    """Arrow schema of the flat form."""
    columns = arrow_schema(table)
    current = [pa.field(f"c{i}", field.type) for i, field in enumerate(columns)]
    old = [pa.field(f"o{i}", columns.field(index).type) for i, index in enumerate(table.key_indexes)]
    return pa.schema([*PREFIX, *current, *old])


def to_record_batch(changes: ChangeSet) -> pa.RecordBatch:
    """The flat form of a change set."""
    schema = change_schema(changes.table)
    size = len(changes)
    moved = np.zeros(size, np.bool_) if changes.moved is None else changes.moved
    fixed = [changes.kind, changes.lsn, changes.ordinal, changes.timestamp]
    arrays = [pa.array(values) for values in fixed]
    arrays += [_pack_unchanged(changes), pa.array(moved), *changes.rows.columns]
    arrays += _old_keys(changes, moved, schema)
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _old_keys(changes: ChangeSet, moved: _Bools, schema: pa.Schema) -> list[pa.Array]:
    fields = list(schema)[len(PREFIX) + len(changes.table.columns) :]
    if changes.old_keys is None:
        return [pa.nulls(len(changes), field.type) for field in fields]
    # Whatever stands where nothing moved means nothing; one taken null keeps it out of the log.
    index = pa.array(np.arange(len(changes)), mask=~moved)
    return [column.take(index) for column in changes.old_keys.columns]


def _pack_unchanged(changes: ChangeSet) -> pa.Array:
    size, width = len(changes), (len(changes.table.columns) + 7) // 8
    if not changes.unchanged:
        return pa.nulls(size, pa.binary())
    bits = np.zeros((size, width), np.uint8)
    for column, mask in changes.unchanged.items():
        bits[:, column // 8] |= mask.astype(np.uint8) << np.uint8(column % 8)
    packed = pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), size, [None, pa.py_buffer(bits.tobytes())])
    index = pa.array(np.arange(size), mask=~bits.any(axis=1))
    return packed.take(index).cast(pa.binary())


def from_record_batch(table: TableSchema, batch: pa.RecordBatch) -> ChangeSet:
    """The change set of a flat form."""
    names = [column.name for column in table.columns]
    first, last = len(PREFIX), len(PREFIX) + len(names)
    kind, lsn, ordinal, timestamp = (batch.column(i).to_numpy() for i in range(4))
    moved = batch.column(5).to_numpy(zero_copy_only=False).astype(np.bool_)
    any_moved = bool(moved.any())
    old_keys = pa.RecordBatch.from_arrays(batch.columns[last:], names=[column.name for column in table.key])
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
    chosen = pa.array(mask)
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
    )


def lsn_number(lsn: int, ordinal: int = 0) -> int:
    """A value of the column ``_LSN``: commit LSN times 2^32 plus ordinal, so that numeric order is commit order."""
    return (int(lsn) << _ORDINAL_BITS) | min(ordinal, _MAX_ORDINAL)


def lsn_numbers(lsn: npt.NDArray[np.uint64], ordinal: npt.NDArray[np.int64]) -> pa.Array:
    """Values of the column ``_LSN`` for many changes; see `lsn_number`."""
    halves = np.empty((len(lsn), 2), np.uint64)  # a decimal is 16 bytes, the lower half first
    halves[:, 0] = (lsn << np.uint64(_ORDINAL_BITS)) | np.minimum(ordinal, _MAX_ORDINAL).astype(np.uint64)
    halves[:, 1] = lsn >> np.uint64(64 - _ORDINAL_BITS)
    return pa.Array.from_buffers(LSN_TYPE, len(lsn), [None, pa.py_buffer(halves)])


def cdc_columns(
    kind: npt.NDArray[np.int8],
    lsn: npt.NDArray[np.uint64],
    ordinal: npt.NDArray[np.int64],
    timestamp: npt.NDArray[np.int64],
) -> list[pa.Array]:
    """The CDC columns of changes, in the order of `CDC_COLUMNS`; the change type is dictionary-encoded."""
    change_type = pa.DictionaryArray.from_arrays(
        pa.array(kind - np.int8(ChangeKind.INSERT)), pa.array(_CHANGE_TYPES, pa.string())
    )
    return [change_type, lsn_numbers(lsn, ordinal), pa.array(timestamp).view(pa.timestamp("us", "UTC"))]
