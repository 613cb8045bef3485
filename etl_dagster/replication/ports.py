"""What the engine needs of a source; `etl_dagster.postgres.PostgresSource` provides it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from typing import Protocol

import pyarrow as pa

from etl_dagster.model import ChunkPlan, Column, Lsn, Slice, TableEvents, TableId, TableSchema


class SourceIdentity(Protocol):
    """Which server this is."""

    @property
    def system_id(self) -> str: ...
    @property
    def version(self) -> int: ...
    @property
    def in_recovery(self) -> bool: ...
    @property
    def timeline(self) -> int | None:
        """Another number after a failover or a restore; None on a standby, which may change it unseen."""
        ...


class SlotStatus(Protocol):
    """What ``pg_replication_slots`` says of our slot.

    ``lost`` is set when the server has removed WAL that the slot needed; ``retained_bytes`` is the WAL that the
    slot keeps back.
    """

    @property
    def name(self) -> str: ...
    @property
    def active_pid(self) -> int | None: ...
    @property
    def confirmed(self) -> Lsn: ...
    @property
    def restart(self) -> Lsn: ...
    @property
    def lost(self) -> bool: ...
    @property
    def retained_bytes(self) -> int: ...


class Writer(Protocol):
    """A transaction that holds a write lock on a table: what a copy's barrier waits for."""

    @property
    def virtual_transaction(self) -> str: ...
    @property
    def table(self) -> TableId: ...
    @property
    def pid(self) -> int | None: ...
    @property
    def application(self) -> str: ...
    @property
    def since(self) -> datetime | None: ...
    @property
    def age(self) -> float | None:
        """Seconds since then, by the server's clock."""
        ...

    @property
    def state(self) -> str:
        """Such as "active", "idle in transaction" or "prepared"; empty when unknown."""
        ...


class RelationFile(Protocol):
    """One heap of a table: its own, or that of a leaf partition.

    ``attachment`` is another text after a partition was detached and attached again; of a table's own heap it tells
    when each column was last altered. ``born_partition``: it was created as a partition, so that all its rows have
    passed through the stream; one that was attached later may have brought rows along.
    """

    @property
    def relation(self) -> int: ...
    @property
    def filenode(self) -> int: ...
    @property
    def attachment(self) -> str: ...
    @property
    def born_partition(self) -> bool: ...


# Asked with a schema that the stream contradicts: the schema that the catalogue has for the table now, or None when the
# table has to be copied again whatever it is.
Look = Callable[[TableSchema], TableSchema | None]


class Window(Protocol):
    """One bounded read of the slot: whole transactions, decoded, in pieces.

    Iterate once; the properties are valid afterwards. ``position`` is where the next window begins and may lie past
    the last change. ``drifted`` names tables whose schema in the stream is no longer the one given, with what
    differs; from there on their changes are left out. ``evolved`` holds the newest schema of tables that changed theirs
    in a way that can be followed. ``replaced`` counts, by table and column, values that the policy replaced.
    """

    def __iter__(self) -> Iterator[Sequence[TableEvents]]: ...
    @property
    def position(self) -> Lsn: ...
    @property
    def changes(self) -> int: ...
    @property
    def transactions(self) -> int: ...
    @property
    def bytes(self) -> int: ...
    @property
    def reread_bytes(self) -> int:
        """WAL that every window reads again, between the slot's restart and confirmed positions."""
        ...

    @property
    def newest_commit(self) -> datetime | None: ...
    @property
    def complete(self) -> bool:
        """The window reached the position that was asked for, not only its limit of changes."""
        ...

    @property
    def drifted(self) -> Mapping[TableId, str]: ...
    @property
    def evolved(self) -> Mapping[TableId, TableSchema]: ...
    @property
    def replaced(self) -> Mapping[TableId, Mapping[str, int]]: ...


class ChunkReader(Protocol):
    """Rows of one chunk under its own snapshot."""

    @property
    def seen_lsn(self) -> Lsn:
        """WAL insert position right after the snapshot was taken."""
        ...

    @property
    def taken_at(self) -> datetime: ...
    @property
    def snapshot(self) -> str:
        """As ``pg_current_snapshot()`` prints it."""
        ...

    @property
    def replaced(self) -> Mapping[str, int]:
        """Values that the policy replaced, by column; valid after the iteration."""
        ...

    @property
    def filenode(self) -> int:
        """File that was read, 0 when rows were read by key; valid after the iteration."""
        ...

    @property
    def has_its_names(self) -> bool:
        """The columns were called as the table's schema says when they were read; valid after the iteration."""
        ...

    def __iter__(self) -> Iterator[pa.RecordBatch]: ...


class Source(Protocol):
    """A Postgres database that is replicated from. Methods raise `SourceError` and its kin.

    All methods may be called from any thread; reads of different chunks run beside each other.
    """

    def identify(self) -> SourceIdentity: ...

    def left_timeline(self, timeline: int) -> Lsn | None:
        """Where the server's history went on from that timeline to the next one; None when it has never been on it."""
        ...

    def close(self) -> None: ...

    def fence(self) -> AbstractContextManager[None]:
        """Hold the pipeline for this process; raises at once when another process holds it."""
        ...

    def current_position(self) -> Lsn:
        """Flushed end of the WAL; on a standby its replayed end."""
        ...

    def inserted_position(self) -> Lsn:
        """End of the WAL, flushed or not: all that is committed lies before it; on a standby its replayed end."""
        ...

    def flush_wal(self) -> None:
        """Make the server flush what it has inserted, so that `current_position` reaches it; nothing on a standby.

        A commit without a transaction id leaves WAL that only its next flush makes readable.
        """
        ...

    def prepare_publication(self, *, patient: bool = True) -> None:
        """Create the publication, or bring its tables up to date, where the config says so; else check it.

        Where standbys are to keep a copy of the slot, one that exists is switched to that too.

        Args:
            patient: Wait for locks as long as is set; else raise `SourceLocked` after a second.
        """
        ...

    def tables(self) -> dict[TableId, TableSchema]:
        """The published tables as the catalogue has them now."""
        ...

    def describe(self, table: TableSchema) -> TableSchema | None:
        """The table of the same OID as the catalogue has it now, but for its row filter.

        None when it is gone, or when it has a new column in which older rows may have values that nobody can tell.
        Raises `SourceLocked` where somebody's lock hides it.
        """
        ...

    def files(self, tables: Sequence[TableSchema]) -> Mapping[TableId, Sequence[RelationFile]]:
        """The heaps of each table, by relation OID; tables that are gone are left out."""
        ...

    def heartbeat(self) -> None:
        """Write a logical message into the WAL, so that positions move; nothing on a standby."""
        ...

    def slot(self) -> SlotStatus | None: ...

    def create_slot(self) -> Lsn:
        """Create the logical slot; returns its start position."""
        ...

    def advance_slot(self, position: Lsn) -> None: ...

    def drop_slot(self) -> None: ...

    def window(
        self,
        schemas: Mapping[int, TableSchema],
        upto: Lsn,
        max_changes: int,
        after: Lsn | None = None,
        *,
        look: Look | None = None,
        held: Collection[int] = (),
    ) -> Window:
        """Read the slot from its confirmed position up to ``upto``, and no further than the transaction in which
        ``max_changes`` messages are reached. Does not move the slot.

        Args:
            look: Asked when the stream contradicts a schema; without it every contradiction is a drift.
            held: OIDs of tables whose messages are wanted raw.

        Iterating raises `SlotError` when the slot stands beyond ``after``, so that changes are lost."""
        ...

    def writers(self, tables: Sequence[TableSchema]) -> Sequence[Writer]:
        """Transactions, prepared ones too, that hold a write lock on any of the tables or their partitions."""
        ...

    def plan_chunks(
        self, table: TableSchema, chunk_bytes: int, slices: Sequence[Slice] = (), most: int = 0
    ) -> Sequence[ChunkPlan]:
        """Parts that together cover the table, or the slices of it, largest first.

        The last part of each relation, and of each slice without upper bound, is open-ended.

        Args:
            most: No more parts than this, which are larger then, or of several relations; 0 for any number.
        """
        ...

    def read_chunk(self, table: TableSchema, plan: ChunkPlan) -> AbstractContextManager[ChunkReader]:
        """Read one part under a snapshot of its own, honouring row filter and column list."""
        ...

    def plan_ranges(self, table: TableSchema, column: Column, rows: int, after: str | None = None) -> Sequence[str]:
        """Bounds that cut the table into ranges of the column with about so many rows each, at most `MAX_SLICES`.

        Args:
            after: Cut only what lies behind this bound, which is one already; it is not among the result.

        Returns:
            Lower bounds of all ranges but the first, ascending as the column's values are (texts by their bytes).
        """
        ...

    def read_keys(self, table: TableSchema, keys: pa.Table) -> AbstractContextManager[ChunkReader]:
        """Read the rows with these keys (columns in key order) under a snapshot of their own."""
        ...
