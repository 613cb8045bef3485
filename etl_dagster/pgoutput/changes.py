"""Changes of one relation become a `ChangeSet`."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from etl_dagster.arrow import binary_array, decode_column, has_binary_decoder
from etl_dagster.errors import InternalError, ProtocolError, ValueUnrepresentable
from etl_dagster.model import ChangeKind, ChangeSet, Column, TableSchema
from etl_dagster.pgoutput.relations import Binding
from etl_dagster.pgoutput.transactions import Places
from etl_dagster.pgoutput.tuples import (
    BINARY,
    DELETE,
    OLD,
    TEXT,
    UNCHANGED,
    Bytes,
    Mask,
    Messages,
    Tuples,
    Values,
    read_tuples,
)
from etl_dagster.pgwire import Fields, gather

_KINDS = np.zeros(256, np.int8)
_KINDS[list(b"IUD")] = (ChangeKind.INSERT, ChangeKind.UPDATE, ChangeKind.DELETE)


def read_changes(
    binding: Binding,
    messages: Messages,
    text: Messages | None,
    markers: Bytes,
    places: Places,
    rows: npt.NDArray[np.intp],
) -> ChangeSet:
    """Read the changes at ``rows`` of the messages, all of the relation of ``binding``.

    Raises:
        ValueUnrepresentable: Values that the table's Arrow types cannot hold.
        ProtocolError: The bytes are not those of a change.
    """
    table = binding.readable
    assert table is not None
    reader = _Reader(binding, table, messages[rows], None if text is None else text[rows], markers)
    try:
        moved, old_keys = reader.moves()
        return ChangeSet(
            table=table,
            rows=reader.rows(),
            kind=_KINDS[reader.tags],
            lsn=places.lsn(rows),
            ordinal=places.ordinal(rows),
            timestamp=places.timestamp(rows),
            unchanged=reader.unchanged(),
            moved=moved,
            old_keys=old_keys,
        )
    except ValueUnrepresentable as error:
        error.table = str(table.id)
        raise


class _Reader:
    """Changes of one relation, in binary and, where a column needs it, in text."""

    def __init__(
        self, binding: Binding, table: TableSchema, messages: Messages, text: Messages | None, markers: Bytes
    ) -> None:
        columns = len(binding.relation.columns)
        self.tags = messages.tags
        self._binding = binding
        self._table = table
        self._columns = list(zip(table.columns, binding.places, strict=True))
        self._binary = read_tuples(messages, markers, columns)
        reads_text = text is not None and bool(binding.text_places)
        self._text = read_tuples(text, markers, columns) if text is not None and reads_text else self._binary
        self._whole_deletes = (self.tags == DELETE) & (markers == OLD)

    def rows(self) -> pa.RecordBatch:
        arrays = [self._column(column, place) for column, place in self._columns]
        return pa.RecordBatch.from_arrays(arrays, schema=self._binding.schema)

    def unchanged(self) -> dict[int, Mask]:
        masks = {}
        for index, (_, place) in enumerate(self._columns):
            values = self._binary.new[place]
            if not values.plain and (mask := values.kinds == UNCHANGED).any():
                masks[index] = mask
        return masks

    def moves(self) -> tuple[Mask | None, pa.RecordBatch | None]:
        """Which updates changed the key, and the keys they had before."""
        key = [self._columns[index] for index in self._table.key_indexes]
        changed = self._key_changes([place for _, place in key])
        if changed is None:
            return None, None
        moved = np.zeros(len(self.tags), np.bool_)
        moved[self._binary.old_rows[changed]] = True
        arrays = [self._old_key(column, place, changed) for column, place in key]
        fields = [self._binding.schema.field(index) for index in self._table.key_indexes]
        return moved, pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields))

    def _key_changes(self, places: list[int]) -> Mask | None:
        """Of the updates that came with an old row or key, those whose key differs; None when none does."""
        if not self._binary.old:
            return None
        changed = np.zeros(len(self._binary.old_rows), np.bool_)
        for place in places:
            new = _at(self._binary.new[place].fields, self._binary.old_rows)
            changed |= ~_same(new, self._binary.old[place].fields)
        return changed if changed.any() else None

    def _old_key(self, column: Column, place: int, changed: Mask) -> pa.Array:
        tuples = self._tuples_of(column)
        old, new = tuples.old[place], tuples.new[place]
        rows = tuples.old_rows[changed]
        starts = new.fields.starts.copy()
        lengths = np.full(len(starts), -1, np.int32)
        kinds = np.zeros(len(starts), np.uint8)
        starts[rows], lengths[rows] = old.fields.starts[changed], old.fields.lengths[changed]
        kinds[rows] = old.kinds[changed]
        return self._decode(column, Values(Fields(old.fields.data, starts, lengths), kinds, plain=False))

    def _column(self, column: Column, place: int) -> pa.Array:
        values = self._tuples_of(column).new[place]
        if column.key_ordinal is None and self._whole_deletes.any():
            values = values.without(self._whole_deletes)
        return self._decode(column, values)

    def _tuples_of(self, column: Column) -> Tuples:
        return self._binary if has_binary_decoder(column.type) else self._text

    def _decode(self, column: Column, values: Values) -> pa.Array:
        text = not values.plain and bool((values.kinds == TEXT).any())
        binary = values.plain or bool((values.kinds == BINARY).any())
        if text and binary:
            raise ProtocolError(f"Column {column.name!r} in two formats", offset=0, need=1, have=2)
        if has_binary_decoder(column.type):
            return decode_column(column.type, values.fields, text=text, column=column.name)
        if binary:
            raise InternalError(
                f"Column {column.name!r} of type {column.type.name} is read as text, which was not given",
                table=str(self._table.id),
            )
        return decode_column(column.type, values.fields, text=True, column=column.name)


def _at(fields: Fields, rows: npt.NDArray[np.intp]) -> Fields:
    return Fields(fields.data, fields.starts[rows], fields.lengths[rows])


def _same(left: Fields, right: Fields) -> Mask:
    """Where both have the same bytes, or both are NULL."""
    same: Mask = left.lengths == right.lengths
    if max(left.lengths.max(initial=0), right.lengths.max(initial=0)) <= 8:
        unused = np.where(left.lengths > 0, 8 * (8 - left.lengths), 64).astype(np.uint64)
        words = (gather(side.data, side.starts, np.uint64) >> unused for side in (left, right))
        same &= next(words) == next(words)
        return same
    equal = pc.equal(binary_array(left), binary_array(right)).fill_null(True)
    same &= equal.to_numpy(zero_copy_only=False)
    return same
