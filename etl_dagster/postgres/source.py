"""`PostgresSource`: all that the engine needs of a source, over one set of connections."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial

import pyarrow as pa
from psycopg import sql

from etl_dagster.errors import ErrorKind, PublicationError, SlotError
from etl_dagster.model import ChunkPlan, Column, Lsn, Slice, TableId, TableSchema
from etl_dagster.postgres import (
    catalog,
    chunks,
    heaps,
    locks,
    partitions,
    planning,
    publication,
    ranges,
    slots,
    timelines,
    windows,
)
from etl_dagster.postgres.config import SourceConfig
from etl_dagster.postgres.copy_out import CopyOut
from etl_dagster.postgres.sessions import Connection, Purpose, Sessions, abandon, fetch_one, is_cut_off

_IDENTITY = """
SELECT (SELECT system_identifier::text FROM pg_control_system()), current_setting('server_version_num')::int,
       pg_is_in_recovery()
"""
# Flushed and inserted; on a standby both are what it has replayed.
_ENDS = """
SELECT pg_last_wal_replay_lsn() - '0/0'::pg_lsn, pg_last_wal_replay_lsn() - '0/0'::pg_lsn WHERE pg_is_in_recovery()
UNION ALL
SELECT pg_current_wal_flush_lsn() - '0/0'::pg_lsn, pg_current_wal_insert_lsn() - '0/0'::pg_lsn
WHERE NOT pg_is_in_recovery()
"""
_PAGE = 8192
# A commit that has written WAL flushes all WAL before it; a transactional message is the least that writes some.
_MESSAGE = """
SELECT set_config('synchronous_commit', 'local', true), pg_logical_emit_message(true, 'etl-dagster', '')
WHERE NOT pg_is_in_recovery()
"""
_IMPATIENT = "SET LOCAL lock_timeout = '1s'"


@dataclass(frozen=True, slots=True)
class SourceIdentity:
    """Which server this is, and on which timeline, if it is no standby."""

    system_id: str
    version: int
    in_recovery: bool
    timeline: int | None


class PostgresSource:
    """A Postgres database, its publication and its slot; implements `etl_dagster.replication.ports.Source`.

    Opens connections when it needs them, reopens what broke, and may be used from any thread.

    Args:
        through_libpq: Read every COPY through libpq, as over TLS.
    """

    def __init__(self, config: SourceConfig, *, through_libpq: bool = False) -> None:
        self.config = config
        self._sessions = Sessions(config.connection)
        self._through_libpq = through_libpq
        self._fence: Connection | None = None
        self._wire = windows.Wire()

    def identify(self) -> SourceIdentity:
        with self._sessions.ordinary("cannot identify the server") as connection:
            system_id, version, in_recovery = fetch_one(connection, _IDENTITY)
            (timeline,) = fetch_one(connection, timelines.CURRENT)
        return SourceIdentity(system_id, version, in_recovery, None if timeline is None else int(timeline, 16))

    def left_timeline(self, timeline: int) -> Lsn | None:
        current = self.identify().timeline
        return None if current is None else timelines.left_timeline(self.config.connection, current, timeline)

    def close(self) -> None:
        self._sessions.close()

    @contextmanager
    def fence(self) -> Iterator[None]:
        with self._sessions.lend(Purpose.FENCE, "cannot take the pipeline's lock") as connection:
            locks.take_fence(connection, self._slot)
            self._fence = connection
            try:
                yield
            finally:
                self._fence = None
                locks.release_fence(connection, self._slot)
                abandon(connection)

    def is_fence_held(self) -> bool:
        """Whether any process runs the pipeline right now."""
        with self._sessions.ordinary("cannot inspect the pipeline's lock") as connection:
            return locks.is_fence_held(connection, self._slot)

    def check_fence(self) -> None:
        """Raise when the fence that is held has been lost with its connection.

        Raises:
            StateError: Another process may run the pipeline by now.
        """
        fence = self._fence
        if fence is not None and is_cut_off(fence):
            raise locks.fence_lost(self._slot)

    def current_position(self) -> Lsn:
        return self._ends()[0]

    def inserted_position(self) -> Lsn:
        return self._ends()[1]

    def _ends(self) -> tuple[Lsn, Lsn]:
        with self._sessions.ordinary("cannot read the WAL position") as connection:
            flushed, inserted = fetch_one(connection, _ENDS)
        return Lsn(flushed), Lsn(inserted)

    def _is_torn(self) -> bool:
        """Whether the flushed WAL may end within a record, whose rest a look into the slot would wait for.

        The server flushes whole pages of a transaction that is open, and what is left over when the next one commits,
        or after 15 s.
        """
        flushed, inserted = self._ends()
        return flushed % _PAGE == 0 and flushed < inserted

    def flush_wal(self) -> None:
        self._write_message("cannot flush the WAL")

    def heartbeat(self) -> None:
        self._write_message("cannot write a heartbeat into the WAL")

    def _write_message(self, doing: str) -> None:
        with self._sessions.ordinary(doing) as connection, connection.transaction():
            connection.execute(_MESSAGE)

    def prepare_publication(self, *, patient: bool = True) -> None:
        with self._sessions.ordinary(f"cannot prepare publication {self._publication}") as connection:
            slots.prepare_failover(connection, self.config)
            with nullcontext() if patient else connection.transaction():
                if not patient:
                    connection.execute(_IMPATIENT)
                publication.prepare(connection, self.config.publication)

    def tables(self) -> dict[TableId, TableSchema]:
        doing = f"cannot read the tables of publication {self._publication}"
        with self._sessions.ordinary(doing) as connection, connection.transaction():
            # The server looks into each table for this; who alters one for long must not hold up all the others.
            connection.execute(_IMPATIENT)
            return catalog.published_tables(connection, self._publication)

    def describe(self, table: TableSchema) -> TableSchema | None:
        doing = f"cannot read table {table.id} in the catalogue"
        with self._sessions.ordinary(doing) as connection, connection.transaction():
            connection.execute(_IMPATIENT)
            return catalog.current_table(connection, self._publication, table)

    def files(self, tables: Sequence[TableSchema]) -> dict[TableId, list[partitions.RelationFile]]:
        with self._sessions.ordinary("cannot read the files of the source's tables") as connection:
            return partitions.heap_files(connection, tables)

    def foreseen_tables(self) -> dict[TableId, TableSchema]:
        """The published tables; before the publication is made, those that it is going to hold. Writes nothing."""
        with self._sessions.ordinary(f"cannot read the tables of publication {self._publication}") as connection:
            wanted = self.config.publication
            if not wanted.create or publication.read_publication(connection, wanted.name) is not None:
                return catalog.published_tables(connection, wanted.name)
            return catalog.named_tables(connection, publication.wanted_tables(connection, wanted))

    def slot(self) -> slots.SlotStatus | None:
        with self._sessions.ordinary(f"cannot inspect slot {self._slot}") as connection:
            return slots.read_slot(connection, self._slot)

    def create_slot(self) -> Lsn:
        self.check_fence()
        with self._slot_session(f"cannot create slot {self._slot}") as connection:
            return slots.create_slot(connection, self._slot, failover=self.config.slot.failover)

    def advance_slot(self, position: Lsn) -> None:
        self.check_fence()
        with self._slot_session(f"cannot advance slot {self._slot}") as connection:
            slots.advance_slot(connection, self._slot, position)

    def drop_slot(self) -> None:
        with self._slot_session(f"cannot drop slot {self._slot}") as connection:
            slots.drop_slot(connection, self._slot)

    def wait_until_free(self, timeout: float) -> None:
        """Return once no client holds the slot.

        Raises:
            SlotError: The slot is missing or lost, or still busy after ``timeout`` seconds.
        """
        with self._slot_session(f"cannot inspect slot {self._slot}") as connection:
            slots.wait_until_free(connection, self._slot, timeout)

    def window(
        self,
        schemas: Mapping[int, TableSchema],
        upto: Lsn,
        max_changes: int,
        after: Lsn | None = None,
        *,
        look: windows.Look | None = None,
        held: Collection[int] = (),
    ) -> windows.Window:
        self.check_fence()
        if self._is_torn():
            self.flush_wal()
        return windows.Window(
            lend=lambda: self._slot_session(f"cannot read slot {self._slot}"),
            start=lambda connection: self._start(connection, f"cannot read slot {self._slot}"),
            names=(self._slot, self._publication),
            schemas=schemas,
            upto=upto,
            max_changes=max_changes,
            after=after,
            wire=self._wire,
            look=look,
            held=held,
        )

    def has_changes(self, upto: Lsn) -> bool:
        """Whether the slot holds a change of a published table up to there.

        A slot that is being read counts as yes, and so does one that cannot be read since the publication is younger.
        """
        try:
            with self._slot_session(f"cannot look into slot {self._slot}") as connection:
                return windows.has_changes(connection, self._slot, self._publication, upto)
        except SlotError as error:
            if error.kind is ErrorKind.SLOT_BUSY:
                return True
            raise
        except PublicationError:
            if self._has_publication():
                return True
            raise

    def _has_publication(self) -> bool:
        with self._sessions.ordinary(f"cannot inspect publication {self._publication}") as connection:
            return publication.read_publication(connection, self._publication) is not None

    def writers(self, tables: Sequence[TableSchema]) -> list[locks.Writer]:
        with self._sessions.ordinary("cannot read the locks of the source") as connection:
            return locks.writers(connection, tables)

    def plan_chunks(
        self, table: TableSchema, chunk_bytes: int, slices: Sequence[Slice] = (), most: int = 0
    ) -> list[ChunkPlan]:
        with self._sessions.ordinary(f"cannot measure table {table.id}", table=str(table.id)) as connection:
            return planning.plan_chunks(connection, table, chunk_bytes, slices, most)

    def table_bytes(self, tables: Sequence[TableSchema]) -> dict[TableId, int]:
        """Bytes of each table's heaps and large values; of a partitioned one those of all its partitions."""
        with self._sessions.ordinary("cannot measure the source's tables") as connection, connection.transaction():
            connection.execute(_IMPATIENT)
            return heaps.table_bytes(connection, tables)

    def plan_ranges(self, table: TableSchema, column: Column, rows: int, after: str | None = None) -> list[str]:
        with self._sessions.ordinary(f"cannot measure table {table.id}", table=str(table.id)) as connection:
            return ranges.plan_ranges(connection, table, column, rows, after)

    @contextmanager
    def read_chunk(self, table: TableSchema, plan: ChunkPlan) -> Iterator[chunks.ChunkReader]:
        with (
            self._copying(table) as (connection, start),
            chunks.read_chunk(connection, table, plan, start) as reader,
        ):
            yield reader

    @contextmanager
    def read_keys(self, table: TableSchema, keys: pa.Table) -> Iterator[chunks.ChunkReader]:
        with self._copying(table) as (connection, start), chunks.read_keys(connection, table, keys, start) as reader:
            yield reader

    @contextmanager
    def _copying(self, table: TableSchema) -> Iterator[tuple[Connection, chunks.StartCopy]]:
        doing = f"cannot copy table {table.id}"
        with self._sessions.lend(Purpose.COPY, doing, table=str(table.id)) as connection:
            yield connection, self._start(connection, doing, table=str(table.id))

    @contextmanager
    def _slot_session(self, doing: str) -> Iterator[Connection]:
        try:
            with self._sessions.lend(Purpose.SLOT, doing) as connection:
                yield connection
        except SlotError as error:
            if error.kind is not ErrorKind.SLOT_BUSY:
                raise
            with self._sessions.ordinary(doing) as connection:
                raise slots.busy(connection, self._slot) from error

    def _start(
        self, connection: Connection, doing: str, *, table: str | None = None
    ) -> Callable[[sql.Composable], CopyOut]:
        return partial(
            CopyOut,
            connection,
            doing=doing,
            secrets=self.config.connection.secrets(),
            through_libpq=self._through_libpq,
            table=table,
        )

    @property
    def _slot(self) -> str:
        return self.config.slot.name

    @property
    def _publication(self) -> str:
        return self.config.publication.name
