"""Rows of a binary COPY, taken apart column by column for all rows at once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from etl_dagster.errors import ProtocolError
from etl_dagster.pgwire.frames import Frames
from etl_dagster.pgwire.gather import Bytes, Positions, gather


@dataclass(frozen=True, slots=True)
class Fields:
    """One value per row: ``lengths`` is -1 for NULL, and then ``starts`` is any position inside the buffer.

    ``data`` ends in at least `etl_dagster.pgwire.gather.PADDING` bytes behind the last value.
    """

    data: Bytes
    starts: Positions
    lengths: npt.NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def present(self) -> npt.NDArray[np.bool_]:
        """Where the value is not NULL."""
        return self.lengths >= 0


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
    fields = []
    for _ in range(columns):
        lengths = gather(frames.data, at, np.int32)
        starts = at + 4
        # A negative length other than -1 is caught by the step: as an unsigned number it leads out of the tuple.
        at = starts + (lengths + 1).view(np.uint32) - 1
        at += lengths == -1
        check(at <= frames.ends, starts, frames.ends, lengths, "Field is cut off")
        fields.append(Fields(frames.data, starts, lengths))
    check(at == frames.ends, at, frames.ends, 0, "Tuple goes on behind its last field")
    return fields


def check(
    good: npt.NDArray[np.bool_], at: Positions, ends: Positions, need: int | npt.NDArray[np.int32], message: str
) -> None:
    """Raise the one error for bytes that break the protocol, for the first row that does."""
    if good.all():
        return
    row = int(np.argmin(good))
    needed = need if isinstance(need, int) else int(need[row])
    raise ProtocolError(message, offset=int(at[row]), need=needed, have=int(ends[row] - at[row]))
