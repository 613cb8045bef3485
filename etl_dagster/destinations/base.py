"""The contract between the engine and a destination.

Facts are data (`Capabilities`); behaviour is few methods. The same test suite
(`etl_dagster.testing.destination_contract`) holds every destination to what is written here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime

import pyarrow as pa

from etl_dagster.model import CheckResult, CopyTarget, EventBatch, Lsn, RawChanges, TableId, TableSchema, ValueLimits


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a destination can do; the engine and the tests ask this, never the class.

    Attributes:
        concurrent_copies: How many `write_table_rows` calls may run at once.
        atomic_batches: A batch over several tables becomes visible at one instant.
        survives_process: What was written is there after the process has ended.
        piece_bytes: Arrow bytes of one piece of an `EventBatch` that suit it best.
        chunk_bytes: Heap bytes of a chunk of a copy that suit it best; 0 when any do.
        most_chunks: Chunks that one copy may have; 0 when any number.
        batch_seconds: How far apart batches should be once the stream has been caught up with, since each costs
            however little it brings.
        json_text: JSON comes back as the text that it went; otherwise as a text of the same value.
        limits: What of the values that Arrow holds it cannot hold; such values never reach it, since they are treated
            as the column's `ValuePolicy` says when they are decoded.
    """

    concurrent_copies: int = 1
    atomic_batches: bool = False
    survives_process: bool = True
    piece_bytes: int = 64 * 1024 * 1024
    chunk_bytes: int = 0
    most_chunks: int = 0
    batch_seconds: float = 0.0
    json_text: bool = True
    limits: ValueLimits | None = None


@dataclass(frozen=True, slots=True)
class ChunkRows:
    """One chunk of a copy: the rows that one snapshot saw in one range of the table.

    Attributes:
        chunk_id: Unique within the copy.
        seen_lsn: Every transaction whose commit starts before it is in the snapshot. What ``_LSN`` of its rows shows.
        taken_at: When the snapshot was taken; what ``_TIMESTAMP`` of its rows shows.
        reread: The chunk holds keys that `Destination.finish_copy` could not decide, read again.
        snapshot: The snapshot as ``pg_current_snapshot()`` prints it; a changelog needs it.
        batches: Rows by the Arrow schema of the table; may be consumed once.
    """

    chunk_id: str
    seen_lsn: Lsn
    taken_at: datetime
    batches: Iterable[pa.RecordBatch]
    reread: bool = False
    snapshot: str = ""


@dataclass(frozen=True, slots=True)
class CopyResult:
    """What `Destination.finish_copy` did.

    Attributes:
        rows: Rows in the table after the swap; None when the swap has to wait for ``undecided``.
        undecided: Keys (the key columns, in key order) to read again, because their unchanged TOAST values stand
            neither in the log nor in the staged rows, or because nobody knows whether the source has them; None when
            the copy is finished.
        usage: What it took, and the chunks before it, as in `WriteResult`.
    """

    rows: int | None
    undecided: pa.Table | None = None
    usage: Mapping[str, int] = field(default_factory=dict, compare=False)


@dataclass(frozen=True, slots=True)
class WriteResult:
    """What `Destination.write_events` did.

    Attributes:
        position: The batch's position, now the watermark of its tables.
        changes: Changes applied per table (those that a watermark already covered are not counted).
        usage: What it took, by name with the unit at its end (``bytes_billed``, ``slot_ms``), where the destination
            bills for work.
    """

    position: Lsn
    changes: Mapping[TableId, int]
    usage: Mapping[str, int] = field(default_factory=dict, compare=False)


class Destination(ABC):
    """A place that tables are replicated into.

    Every table keeps the source's columns plus ``_CHANGE_TYPE``, ``_LSN`` and ``_TIMESTAMP``, and a watermark: the
    position up to which the stream is in it.

    *Landing* (`TableSchema.landing`, fixed for the life of a live table). ``mirror``: one row per key, as it is now.
    ``soft_delete``: likewise, but a deleted row stays as it was, with ``_CHANGE_TYPE`` 'delete' and place and time of
    its deletion; so does, under its old key, a row that moved to another key; a truncate marks all rows; what is not
    known of such a row is null. ``changelog``: every change is a row, with
    `UNCHANGED_COLUMN` as fourth CDC column; an update of the key is a 'delete' of the old key (identity columns only)
    followed by an 'update', and a truncate a row of its own. Tables without a key can only land as a changelog.

    *Columns* are told apart by attnum. The table keeps those that the source has dropped, null from then on.

    *Durability*: when a method returns, its effect survives the end of the process and of the machine, if
    ``capabilities.survives_process``. *Duplicates*: every method may be called again with the same arguments after a
    crash at any instant and then changes nothing that it had done already. *Errors*: raises `DestinationError` (with
    ``table`` when one table is at fault) or `ValueUnrepresentable`, and then has changed nothing. *Concurrency*: calls
    of `write_table_rows` may run beside each other and beside any other method, as many as
    ``capabilities.concurrent_copies``; all other calls come from one thread at a time.
    """

    capabilities: Capabilities

    def startup(self, owner: str = "") -> None:
        """Open, create what the destination needs for itself, and reconcile what a crash left behind.

        Args:
            owner: The pipeline for which it is opened. A table belongs to the pipeline that copied it first: the others
                neither see it in `positions` and `copies` nor begin a copy of it, which raises `TableError`. So does a
                table of the same name that no pipeline made.
        """

    def rest(self, *, idle: bool) -> None:
        """Called between batches: a chance to let go of what other processes wait for; the next call takes it again.

        Does not raise: what goes wrong shows in the next call.

        Args:
            idle: There is nothing to do at present.
        """

    def shutdown(self) -> None:
        """Release everything; safe to call twice. The destination can be started again afterwards."""

    @abstractmethod
    def positions(self) -> Mapping[TableId, Lsn]:
        """Watermark of each live table of the owner that exists here."""

    @abstractmethod
    def copies(self) -> Mapping[str, Lsn]:
        """Watermark of the change log of each copy of the owner, by copy id, that has begun and not finished here."""

    @abstractmethod
    def truncate_table(self, target: TableSchema | CopyTarget) -> None:
        """Leave the table, or the staging area of a copy, existing and empty.

        For a `CopyTarget` this begins a copy: staging area and change log of this copy exist and are empty
        afterwards, and leftovers of other copies of the same table, and its held log, are gone. When this very copy has
        begun before, what it holds is kept (the call repeats one that a crash made uncertain). The live table is not
        touched. For a live table, readers see either the full or the empty table; its watermark stays.
        """

    @abstractmethod
    def write_table_rows(self, target: CopyTarget, chunk: ChunkRows) -> int:
        """Stage the rows of one chunk; all or nothing, and returns how many.

        Idempotent per ``chunk_id``: a chunk that is staged already is not staged again (its batches need not be
        consumed). A chunk of no rows is valid.
        """

    @abstractmethod
    def write_events(self, batch: EventBatch) -> WriteResult:
        """Apply one micro-batch.

        For each table in ``batch.routes``: changes whose commit starts before its watermark are dropped (one that
        starts right at it is new, since commits follow each other without a gap); the others go to the live table
        (when ``route.live`` and the table exists), merged to the last state per key, and, raw and in order, to the
        change log of ``route.log``; data and watermark become visible in one transaction. A truncate empties the live
        table, and makes the running copy forget its log and all its staged rows, also those of chunks that
        come later. An unchanged TOAST value keeps what the row has, also when the update moved the row to another
        key. An empty batch only raises watermarks.

        A live table follows its schema: when the table of an event has other columns than the live table's schema, then
        in the same transaction columns that it lacks are added (rows that exist get `Column.missing`; those of a
        changelog null), renamed ones renamed, and ones that are gone kept. If a column's new name belongs to one that
        the source has dropped before, that one gives way. An event whose changes are all covered by the watermark has
        no effect on the columns either; one that comes without changes has, unless the whole batch is covered. A
        schema older than the live table's (`TableSchema.natts`) is not followed; its changes are taken as if they had
        been made under the newer one. A column's declared type may be another one of the same Arrow type, from which
        nothing follows.
        The log of a running copy never follows: changes of a schema other than the copy's are left out of it, because
        the engine begins such a copy anew.

        For a table with ``route.held`` the messages are appended, raw and in order, to its held log; those that start
        before the held log's watermark are dropped.
        """

    @abstractmethod
    def finish_copy(self, target: CopyTarget, position: Lsn) -> CopyResult:
        """Make the copy the live table, in one transaction.

        Staged rows whose key is in the log give way to the last change in the log; the result takes the place of the
        live table, with ``position`` as its watermark; staging area and log go away. Where unchanged TOAST values can
        be found neither in the log nor in a staged row that is sure to be the same row, nothing is swapped and the keys
        are returned as ``undecided``: the engine reads them again (`ChunkRows.reread`) and calls again. Called again
        for a copy that was finished, it returns the row count and changes nothing.

        ``soft_delete``: rows of the former live table whose key is not in the result stay, in the columns that both
        have by the same types: those deleted before as they are, the others as deleted at ``position``. A deletion
        that the log and the former live table both have is kept as that table has it. Nothing stays of a former
        changelog, or when the key has changed. ``changelog``: the rows of the one chunk, then every change in the log
        whose transaction `ChunkRows.snapshot` did not see.

        *Slices* (``target.slices``; the table is live and not a changelog): the staged rows go into the live table,
        in one transaction, and its watermark stays. Rows whose key is in the log are as the live table has them; other
        staged rows take the place of live rows of their key, wherever those stand; a live row with the same values may
        stay as it is. Live rows of the slices (in `soft_delete`: that are not deleted) that are neither staged nor in
        the log are returned as ``undecided`` at first, since the source may have them elsewhere; once all of them have
        been read again, as one chunk, the rows that were found go in likewise, and the others are removed, or deleted
        at ``position``. Which rows lie in the slices, the values here decide. The live table follows the columns of
        ``target.table`` before, as with `write_events`. A truncate in the log empties all that was staged. Returns how
        many rows were staged and not read again.
        """

    @abstractmethod
    def hold_table(self, table: TableSchema) -> None:
        """Begin an empty held log for a table, with watermark 0; one that exists is kept as it is.

        Any table can be held, also one that cannot be copied here; every owner has held logs of its own.
        """

    @abstractmethod
    def holds(self) -> Mapping[TableId, Lsn]:
        """Watermark of each held log of the owner."""

    @abstractmethod
    def read_held(self, table: TableSchema) -> Iterator[RawChanges]:
        """What the held log of a table has, in the order of the stream, in pieces of bounded size."""

    @abstractmethod
    def release_table(self, table: TableId) -> None:
        """Remove the held log of a table; no error when there is none."""

    @abstractmethod
    def drop_table(self, table: TableId) -> None:
        """Remove the live table, its watermark, its held log and every copy of it; no error when there is none."""

    def check(self, tables: Mapping[TableId, int]) -> Iterator[CheckResult]:
        """Look at what the destination needs, one thing after the other, without changing anything.

        Works on a destination that was not started. Does not raise: what is wrong is a result. One that says nothing is
        started instead, to see whether it can be.

        Args:
            tables: The tables that will be replicated, with their bytes at the source, for an estimate of the cost.
        """
        return iter(())

    def row_count(self, table: TableId) -> int | None:
        """Rows of a live table, where the destination knows them without reading the table."""
        return None

    @abstractmethod
    def read_table(self, table: TableSchema) -> pa.RecordBatchReader:
        """The live table's rows: the source's columns by their Arrow types, then the CDC columns of its landing.

        Rows of ``soft_delete`` that are deleted are among them.
        """
