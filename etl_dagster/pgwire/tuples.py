"""Rows of a binary COPY, taken apart column by column for all rows at once.

Reading one word of every row costs as much as reading the twenty bytes around it. So columns that stand beside each
other and have one width in all rows, as those of most types do, are read together, lengths and values. Which do is
guessed from the first row, the last and one between, and checked.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import numpy as np
import numpy.typing as npt

from etl_dagster.errors import ProtocolError
from etl_dagster.pgwire.frames import Frames
from etl_dagster.pgwire.gather import Bytes, Positions, gather

_FIXED_WIDTHS = frozenset((1, 2, 4, 8, 16))
_LENGTH = 4
_SENT = np.dtype(">i4")
_Lengths = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Fields:
    """One value per row: ``lengths`` is -1 for NULL, and then ``starts`` is any position inside the buffer.

    ``data`` ends in at least `etl_dagster.pgwire.gather.PADDING` bytes behind the last value. ``together`` holds
    the same values as rows of an array, where they were read so.
    """

    data: Bytes
    starts: Positions
    lengths: _Lengths
    together: Bytes | None = None

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def present(self) -> npt.NDArray[np.bool_]:
        """Where the value is not NULL."""
        return self.lengths >= 0

    def words(self, dtype: npt.DTypeLike, offset: int = 0) -> npt.NDArray[Any]:
        """The big-endian integers ``offset`` bytes behind the beginning of each value; anything where it is shorter."""
        if self.together is None:
            return gather(self.data, self.starts + offset if offset else self.starts, dtype)
        return _column(self.together, offset, np.dtype(dtype).newbyteorder(">")).astype(dtype)


def split_copy_rows(frames: Frames, columns: int) -> list[Fields]:
    """Take every tuple apart into its fields, one `Fields` per column.

    Raises:
        ProtocolError: A tuple has another number of fields, or its fields do not fill it exactly.
    """
    check(frames.ends - frames.starts >= 2, frames.starts, frames.ends, 2, "Tuple is cut off")
    counts = gather(frames.data, frames.starts, np.int16)
    if not (counts == columns).all():
        row = int(np.argmax(counts != columns))
        raise ProtocolError("Tuple's field count", offset=int(frames.starts[row]), need=columns, have=int(counts[row]))
    at = frames.starts + 2
    widths = _widths(frames, columns)
    fields: list[Fields] = []
    while len(fields) < columns:
        beside, at, lengths = _read_together(frames, at, widths[len(fields) :])
        fields += beside
        if len(fields) < columns:
            one, at = _read_one(frames, at, gather(frames.data, at, np.int32) if lengths is None else lengths)
            fields.append(one)
    check(at == frames.ends, at, frames.ends, 0, "Tuple goes on behind its last field")
    return fields


def _read_one(frames: Frames, at: Positions, lengths: _Lengths) -> tuple[Fields, Positions]:
    """The fields with these lengths, and where the next ones are."""
    starts = at + _LENGTH
    # A negative length other than -1 is caught by the step: as an unsigned number it leads out of the tuple.
    at = starts + (lengths + 1).view(np.uint32) - 1
    at += lengths == -1
    check(at <= frames.ends, starts, frames.ends, lengths, "Field is cut off")
    return Fields(frames.data, starts, lengths), at


def _read_together(
    frames: Frames, at: Positions, widths: Sequence[int | None]
) -> tuple[list[Fields], Positions, _Lengths | None]:
    """The fields of the columns that do have the widths in front, where the next ones are, and maybe their lengths."""
    fixed = [width for width in takewhile(lambda width: width is not None, widths) if width is not None]
    size = sum(fixed) + _LENGTH * len(fixed) + (_LENGTH if len(fixed) < len(widths) else 0)
    if not fixed or int(at.max()) + size > len(frames.data):
        return [], at, None
    rows: npt.NDArray[Any] = np.ndarray((len(frames.data) - size + 1,), f"S{size}", buffer=frames.data, strides=(1,))
    together: Bytes = rows[at].view(np.uint8).reshape(len(at), size)
    fields: list[Fields] = []
    place = 0
    for width in fixed:
        if not (_column(together, place, np.dtype(np.int32)) == _as_sent(width)).all():
            break
        place += _LENGTH
        lengths = np.full(len(at), width, np.int32)
        fields.append(Fields(frames.data, at + place, lengths, together[:, place : place + width]))
        place += width
    behind = at + place
    if not (behind <= frames.ends).all():
        return [], at, None
    return fields, behind, _column(together, place, _SENT).astype(np.int32) if place < size else None


def _column(rows: Bytes, offset: int, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    found: npt.NDArray[Any] = rows[:, offset : offset + dtype.itemsize].view(dtype)[:, 0]
    return found


def _as_sent(length: int) -> int:
    return int.from_bytes(length.to_bytes(_LENGTH, "big"), sys.byteorder)


def _widths(frames: Frames, columns: int) -> list[int | None]:
    """The width that each column may have in all rows; None where it varies."""
    if len(frames) == 0:
        return [None] * columns
    rows = [_lengths_of(frames, row, columns) for row in (0, len(frames) // 2, len(frames) - 1)]
    return [
        lengths[0] if lengths[0] in _FIXED_WIDTHS and len(set(lengths)) == 1 else None
        for lengths in zip(*rows, strict=True)
    ]


def _lengths_of(frames: Frames, row: int, columns: int) -> list[int]:
    """Lengths of one row's fields; where it is damaged, of no use."""
    found = []
    data = frames.data[int(frames.starts[row]) + 2 : int(frames.ends[row])].data
    for _ in range(columns):
        length = int.from_bytes(data[:_LENGTH], "big", signed=True)
        found.append(length)
        data = data[_LENGTH + max(length, 0) :]
    return found


def check(
    good: npt.NDArray[np.bool_], at: Positions, ends: Positions, need: int | npt.NDArray[np.int32], message: str
) -> None:
    """Raise the one error for bytes that break the protocol, for the first row that does."""
    if good.all():
        return
    row = int(np.argmin(good))
    needed = need if isinstance(need, int) else int(need[row])
    raise ProtocolError(message, offset=int(at[row]), need=needed, have=int(ends[row] - at[row]))
