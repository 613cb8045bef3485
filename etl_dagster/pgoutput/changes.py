"""Changes of one relation become a `ChangeSet`."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from etl_dagster.arrow import binary_array, read_column, reads_text
from etl_dagster.arrow.sample import tell_row
from etl_dagster.arrow.taking import taking
from etl_dagster.errors import InternalError, ValueUnrepresentable
from etl_dagster.model import ChangeKind, ChangeSet, Column, Landing, TableSchema
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

_Rows = npt.NDArray[np.intp]


class TextNotGiven(InternalError):
    """Values came in binary of which only the text can be read."""


def read_changes(
    binding: Binding,
    messages: Messages,
    text: Messages | None,
    markers: Bytes,
    places: Places,
    rows: _Rows,
    replaced: Counter[str],
) -> ChangeSet:
    """Read the changes at ``rows`` of the messages, all of the relation of ``binding``.

    Raises:
        ValueUnrepresentable: Values that the table's Arrow types cannot hold.
        ProtocolError: The bytes are not those of a change.
        TextNotGiven: ``text`` is needed.
    """
    table = binding.readable
    assert table is not None
    reader = _Reader(binding, table, messages[rows], None if text is None else text[rows], markers, replaced)
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
            xid=places.xid(rows) if table.landing is Landing.CHANGELOG else None,
        )
    except ValueUnrepresentable as error:
        tell_row(error, table, reader.fields_of)
        raise


def with_truncates(changes: ChangeSet, places: Places, rows: _Rows, truncates: _Rows) -> ChangeSet:
    """The changes at ``rows`` of the messages, with a row of nothing but NULL for each truncate among them."""
    every = np.concatenate((rows, truncates))
    order = np.argsort(every, kind="stable")
    every = every[order]
    index = taking(order, order < len(rows))

    def spread(values: npt.NDArray[Any], filler: int) -> npt.NDArray[Any]:
        return np.concatenate((values, np.full(len(truncates), filler, values.dtype)))[order]

    return ChangeSet(
        table=changes.table,
        rows=changes.rows.take(index),
        kind=spread(changes.kind, ChangeKind.TRUNCATE),
        lsn=places.lsn(every),
        ordinal=places.ordinal(every),
        timestamp=places.timestamp(every),
        unchanged={column: spread(mask, False) for column, mask in changes.unchanged.items()},
        moved=None if changes.moved is None else spread(changes.moved, False),
        old_keys=None if changes.old_keys is None else changes.old_keys.take(index),
        xid=places.xid(every),
    )


class _Reader:
    """Changes of one relation, in binary and, where a column needs it, in text."""

    def __init__(
        self,
        binding: Binding,
        table: TableSchema,
        messages: Messages,
        text: Messages | None,
        markers: Bytes,
        replaced: Counter[str],
    ) -> None:
        columns = len(binding.relation.columns)
        self.tags = messages.tags
        self._binding = binding
        self._table = table
        self._replaced = replaced
        self._columns = list(zip(table.columns, binding.places, strict=True))
        self._binary = read_tuples(messages, markers, columns)
        needs_text = text is not None and bool(binding.text_places)
        self._text = read_tuples(text, markers, columns) if text is not None and needs_text else self._binary
        self._narrow = self._narrow_deletes(markers)

    def rows(self) -> pa.RecordBatch:
        arrays = [self._column(index) for index in range(len(self._columns))]
        return pa.RecordBatch.from_arrays(arrays, schema=self._binding.schema)

    def unchanged(self) -> dict[int, Mask]:
        masks = {}
        for index, (_, place) in enumerate(self._columns):
            values = self._binary.new[place]
            if not values.plain and (mask := values.kinds == UNCHANGED).any():
                masks[index] = mask
        return masks

    def moves(self) -> tuple[Mask | None, pa.RecordBatch | None]:
        """Which updates changed the key (without a key: came with their old row), and what they were before."""
        identity = [self._columns[index] for index in self._table.identity_indexes]
        changed = self._key_changes()
        if changed is None:
            return None, None
        moved = np.zeros(len(self.tags), np.bool_)
        moved[self._binary.old_rows[changed]] = True
        arrays = [self._old_value(column, place, changed) for column, place in identity]
        fields = [self._binding.schema.field(index) for index in self._table.identity_indexes]
        return moved, pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields))

    def fields_of(self, column: Column) -> tuple[Fields, bool]:
        """The values of a column after the changes, and whether they are text."""
        values = self._tuples_of(column).new[self._columns[self._table.columns.index(column)][1]]
        return values.fields, not values.plain and bool((values.kinds == TEXT).any())

    def _narrow_deletes(self, markers: Bytes) -> Mask | None:
        """Deletes that came with their whole row, of which only the identity is told; None when there are none."""
        if self._table.landing is Landing.CHANGELOG:
            return None
        whole: Mask = (self.tags == DELETE) & (markers == OLD)
        return whole if whole.any() else None

    def _key_changes(self) -> Mask | None:
        """Of the updates that came with an old row or key, those whose key differs; None when none does."""
        if not self._binary.old:
            return None
        if not self._table.key:
            return np.ones(len(self._binary.old_rows), np.bool_)
        changed = np.zeros(len(self._binary.old_rows), np.bool_)
        for index in self._table.key_indexes:
            _, place = self._columns[index]
            new = self._binary.new[place].at(self._binary.old_rows)
            changed |= ~_same(new.fields, self._binary.old[place].fields)
        return changed if changed.any() else None

    def _old_value(self, column: Column, place: int, changed: Mask) -> pa.Array:
        tuples = self._tuples_of(column)
        old, new = tuples.old[place], tuples.new[place]
        rows = tuples.old_rows[changed]
        starts = new.fields.starts.copy()
        lengths = np.full(len(starts), -1, np.int32)
        kinds = np.zeros(len(starts), np.uint8)
        starts[rows], lengths[rows] = old.fields.starts[changed], old.fields.lengths[changed]
        kinds[rows] = old.kinds[changed]
        values = Values(Fields(old.fields.data, starts, lengths), kinds, plain=False)
        return self._decode(column, values, Counter())  # what the policy replaces is counted where it is new

    def _column(self, index: int) -> pa.Array:
        column, place = self._columns[index]
        values = self._tuples_of(column).new[place]
        if self._narrow is not None and index not in self._table.identity_indexes:
            values = values.without(self._narrow)
        return self._decode(column, values, self._replaced)

    def _tuples_of(self, column: Column) -> Tuples:
        return self._text if reads_text(column) else self._binary

    def _decode(self, column: Column, values: Values, replaced: Counter[str]) -> pa.Array:
        if reads_text(column):
            self._check_text(column, values)
            return read_column(column, values.fields, text=True, replaced=replaced)
        in_text = None if values.plain else values.kinds == TEXT
        if in_text is None or not in_text.any():
            return read_column(column, values.fields, replaced=replaced)
        texts = read_column(column, values.without(~in_text).fields, text=True, replaced=replaced)
        if not (values.kinds == BINARY).any():
            return texts
        # Held messages may come from windows read in binary and from windows read as text.
        rest = read_column(column, values.without(in_text).fields, replaced=replaced)
        places = np.arange(len(in_text)) + np.where(in_text, 0, len(in_text))
        return pa.concat_arrays([texts, rest]).take(pa.array(places))

    def _check_text(self, column: Column, values: Values) -> None:
        if (values.kinds == BINARY).any():
            raise TextNotGiven(
                f"Column {column.name!r} of type {column.type.name} is read as text, which was not given",
                table=str(self._table.id),
            )


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
