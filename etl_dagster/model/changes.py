"""Changes in columnar form: what leaves the decoder, is compacted, and lands in a destination.

A `ChangeSet` holds changes of one table in commit order, one array entry per change. ``(lsn, ordinal)`` orders
them: ``lsn`` is the start of the commit record of their transaction, ``ordinal`` their place within it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from etl_dagster.model.lsn import Lsn
from etl_dagster.model.slices import Slice
from etl_dagster.model.table import TableId, TableSchema

# Columns that every destination adds to a table, after the source's own.
CHANGE_TYPE_COLUMN = "_CHANGE_TYPE"  # text: how the row got its present state, a `ChangeType`
LSN_COLUMN = "_LSN"  # decimal(38, 0): commit LSN * 2^32 + place in the transaction; sorts in commit order
TIMESTAMP_COLUMN = "_TIMESTAMP"  # timestamp[us, UTC]: commit time at the source; snapshot time of a copied row
CDC_COLUMNS = (CHANGE_TYPE_COLUMN, LSN_COLUMN, TIMESTAMP_COLUMN)
# One more in tables that keep a changelog: list of text, names of the columns whose value the source left out because
# it had not changed (TOAST), so that their NULL means nothing; NULL when there are none.
UNCHANGED_COLUMN = "_UNCHANGED"


class ChangeKind(IntEnum):
    """Values of `ChangeSet.kind`."""

    INSERT = 1
    UPDATE = 2
    DELETE = 3
    TRUNCATE = 4  # in a changelog only: a row of nothing but NULL


class ChangeType(StrEnum):
    """Values of the column ``_CHANGE_TYPE``."""

    COPY = "copy"
    INSERT = "insert"
    UPDATE = "update"
    DELETE = "delete"
    TRUNCATE = "truncate"


@dataclass(frozen=True, slots=True)
class ChangeSet:
    """Changes of one table in commit order, n entries each.

    Attributes:
        table: The schema that the changes were read by.
        rows: The table's columns (Arrow schema of `etl_dagster.arrow.arrow_schema`). A delete fills only the identity
            columns, and in a table that lands as a changelog whatever the source sent; the others are null.
        kind: int8, `ChangeKind`.
        lsn: uint64, start of the commit record.
        ordinal: int64, place within the transaction, growing.
        timestamp: int64, commit time, microseconds since 1970-01-01 UTC.
        unchanged: For each column (by position) that has any, a bool mask of the updates that left a TOASTed value
            as it was, so that it was not sent; ``rows`` is null there and the null means nothing.
        moved: bool mask of updates that changed the key (without a key: that came with their old row); None when there
            is none.
        old_keys: Identity columns (`TableSchema.identity_indexes`) as they were before; meaningful where ``moved`` is
            set. None when ``moved`` is None.
        xid: uint32, low half of the id of their transaction; None where nobody needs it.
    """

    table: TableSchema
    rows: pa.RecordBatch
    kind: npt.NDArray[np.int8]
    lsn: npt.NDArray[np.uint64]
    ordinal: npt.NDArray[np.int64]
    timestamp: npt.NDArray[np.int64]
    unchanged: Mapping[int, npt.NDArray[np.bool_]] = field(default_factory=dict)
    moved: npt.NDArray[np.bool_] | None = None
    old_keys: pa.RecordBatch | None = None
    xid: npt.NDArray[np.uint32] | None = None

    def __len__(self) -> int:
        return len(self.kind)

    @property
    def nbytes(self) -> int:
        """Approximate size in memory."""
        return int(self.rows.nbytes) + 32 * len(self)


@dataclass(frozen=True, slots=True)
class RawChanges:
    """Messages of the stream about one table as the source sent them, kept while the table is quarantined.

    n entries in the order of the stream. Kept raw, they outlive whatever was wrong with their values or their schema.

    Attributes:
        lsn: uint64, start of the commit record, as in `ChangeSet`; so are ``ordinal``, ``timestamp`` and ``xid``.
        message: ``pa.binary()``, a message of pgoutput: relation, insert, update, delete or truncate.
        text: ``pa.binary()``, the same messages with their values in text, null where nobody asked for them.
    """

    lsn: npt.NDArray[np.uint64]
    ordinal: npt.NDArray[np.int64]
    timestamp: npt.NDArray[np.int64]
    xid: npt.NDArray[np.uint32]
    message: pa.Array
    text: pa.Array

    def __len__(self) -> int:
        return len(self.lsn)


@dataclass(frozen=True, slots=True)
class CopyTarget:
    """The staging area of one copy of one table.

    Attributes:
        copy_id: Unique per copy, letters, digits and underscores only.
        slices: Only these are copied, into the live table; empty: the whole table is, and takes its place.
    """

    table: TableSchema
    copy_id: str
    slices: tuple[Slice, ...] = ()


@dataclass(frozen=True, slots=True)
class TableEvents:
    """What happened to one table within one piece of a batch.

    ``truncated_at`` is the commit LSN of the last truncate, ``truncated_time`` its commit time in microseconds since
    1970; the changes are those after it, since what came before is gone. Without a truncate, ``changes`` are all of the
    piece, in order. Where deleted rows are kept, what came before a truncate is told in an event of its own, before
    it. A table that lands as a changelog has its truncates among its changes instead (`ChangeKind.TRUNCATE`).

    ``table`` is the schema at the end of the piece, which may be newer than that of some of the changes, and may have
    changed without any. ``held`` are the messages of a table that is quarantined; then there is nothing else.
    """

    table: TableSchema
    changes: Sequence[ChangeSet] = ()
    truncated_at: Lsn | None = None
    truncated_time: int = 0
    held: RawChanges | None = None


@dataclass(frozen=True, slots=True)
class Route:
    """Where the changes of one table land: the live table, the log of a running copy, or both.

    ``held``: they are kept raw for a quarantined table, and nowhere else.
    """

    live: bool = True
    log: CopyTarget | None = None
    held: bool = False


class EventBatch:
    """One micro-batch: whole transactions, in pieces that fit in memory.

    Iterate once over the pieces, in order; each maps tables to their events. When the iteration has ended,
    ``position`` says how far the stream has been read: it is the watermark to set for every table in ``routes``,
    also for those with no change.
    """

    def __init__(
        self, pieces: Iterator[Sequence[TableEvents]], position: Callable[[], Lsn], routes: Mapping[TableId, Route]
    ) -> None:
        self._pieces = pieces
        self._position = position
        self.routes = routes

    def __iter__(self) -> Iterator[Sequence[TableEvents]]:
        return self._pieces

    @property
    def position(self) -> Lsn:
        """Position after the last whole transaction; valid once the pieces are consumed."""
        return self._position()
