"""Tuples of changes, taken apart column by column for all changes of one relation at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from etl_dagster.errors import ProtocolError
from etl_dagster.pgwire import Fields, check, gather

NULL, UNCHANGED, TEXT, BINARY = b"nutb"
INSERT, UPDATE, DELETE = b"IUD"
KEY, OLD, NEW = b"KON"

Bytes = npt.NDArray[np.uint8]
Positions = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
_HEAD = 6  # tag, relation, kind of the first tuple


@dataclass(frozen=True, slots=True)
class Messages:
    """Messages of the stream: where each begins (at its tag) and ends."""

    data: Bytes
    at: Positions
    ends: Positions
    tags: Bytes

    def __len__(self) -> int:
        return len(self.at)

    def __getitem__(self, rows: npt.NDArray[np.intp]) -> Messages:
        return Messages(self.data, self.at[rows], self.ends[rows], self.tags[rows])

    def body(self, row: int) -> bytes:
        """One message, from its tag on."""
        return self.data[int(self.at[row]) : int(self.ends[row])].tobytes()


@dataclass(frozen=True, slots=True)
class Values:
    """One column: the values, and per row the letter that says how it came.

    Where it came as NULL, or did not come (`UNCHANGED`), the field is NULL. ``plain``: all came in binary.
    """

    fields: Fields
    kinds: Bytes
    plain: bool

    def filled(self, rows: npt.NDArray[np.intp], source: Values) -> Values:
        """With what ``source`` has, row by row for ``rows``, wherever this column did not come."""
        wanted = (self.kinds[rows] == UNCHANGED) & source.fields.present
        if not wanted.any():
            return self
        targets = rows[wanted]
        starts, lengths, kinds = self.fields.starts.copy(), self.fields.lengths.copy(), self.kinds.copy()
        starts[targets] = source.fields.starts[wanted]
        lengths[targets] = source.fields.lengths[wanted]
        kinds[targets] = source.kinds[wanted]
        return Values(Fields(self.fields.data, starts, lengths), kinds, bool((kinds == BINARY).all()))

    def at(self, rows: npt.NDArray[np.intp]) -> Values:
        """Those of ``rows``."""
        fields = self.fields
        return Values(Fields(fields.data, fields.starts[rows], fields.lengths[rows]), self.kinds[rows], self.plain)

    def without(self, rows: Mask) -> Values:
        """With NULL in ``rows``."""
        lengths = np.where(rows, np.int32(-1), self.fields.lengths)
        return Values(Fields(self.fields.data, self.fields.starts, lengths), self.kinds, plain=False)


@dataclass(frozen=True, slots=True)
class Tuples:
    """Tuples of n changes of one relation.

    Attributes:
        new: Per column, the row after the change; for a delete, the row it names.
        old_rows: Which changes are updates that came with their old row or key.
        old: Per column, that old row or key, one entry per entry of ``old_rows``.
    """

    new: list[Values]
    old_rows: npt.NDArray[np.intp]
    old: list[Values]


def read_tuples(messages: Messages, markers: Bytes, columns: int) -> Tuples:
    """Take apart inserts, updates and deletes of a relation with so many columns.

    Raises:
        ProtocolError: A tuple has another number of columns, or its values do not fill it exactly.
    """
    data, ends = messages.data, messages.ends
    at = messages.at + _HEAD
    old_rows = np.flatnonzero((messages.tags == UPDATE) & (markers != NEW))
    old: list[Values] = []
    if len(old_rows):
        old, after = _walk(data, at[old_rows], ends[old_rows], columns)
        check((after < ends[old_rows]) & (data[after] == NEW), after, ends[old_rows], 1, "Update without new row")
        at[old_rows] = after + 1
    new, after = _walk(data, at, ends, columns)
    check(after == ends, after, ends, 0, "Change goes on behind its last column")
    filled = [values.filled(old_rows, source) for values, source in zip(new, old, strict=True)] if old else new
    return Tuples(filled, old_rows, old)


def _walk(data: Bytes, at: Positions, ends: Positions, columns: int) -> tuple[list[Values], Positions]:
    check(at + 2 <= ends, at, ends, 2, "Tuple is cut off")
    counts = gather(data, at, np.uint16)
    if not (counts == columns).all():
        row = int(np.argmax(counts != columns))
        raise ProtocolError("Tuple's column count", offset=int(at[row]), need=columns, have=int(counts[row]))
    at = at + 2
    found = []
    for _ in range(columns):
        values, at = _take_column(data, at, ends)
        found.append(values)
    return found, at


def _take_column(data: Bytes, at: Positions, ends: Positions) -> tuple[Values, Positions]:
    # One read of eight bytes holds the letter and, where there is one, the length.
    head: npt.NDArray[Any] = gather(data, at, np.int64)
    kinds = (head >> 56).astype(np.uint8)
    lengths = (head >> 24).astype(np.int32)
    starts = at + 5
    plain = bool((kinds == BINARY).all())
    # A negative length, read as an unsigned number, leads out of the message.
    after = starts + lengths.view(np.uint32)
    if not plain:
        sized = (kinds == BINARY) | (kinds == TEXT)
        _check_kinds(kinds, sized, at, ends)
        lengths = np.where(sized, lengths, np.int32(-1))
        after = np.where(sized, after, at + 1)
    check(after <= ends, at, ends, lengths, "Value is cut off")
    return Values(Fields(data, starts, lengths), kinds, plain), after


def _check_kinds(kinds: Bytes, sized: Mask, at: Positions, ends: Positions) -> None:
    check(at < ends, at, ends, 1, "Value is cut off")
    good = sized | (kinds == NULL) | (kinds == UNCHANGED)
    if not good.all():
        row = int(np.argmin(good))
        raise ProtocolError(f"Value of unknown kind {chr(kinds[row])!r}", offset=int(at[row]), need=1, have=1)
