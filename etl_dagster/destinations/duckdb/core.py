"""The destination contract over one DuckDB file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import pyarrow as pa

from etl_dagster.arrow.changes import lsn_number
from etl_dagster.arrow.landing import landed_schema
from etl_dagster.arrow.types import arrow_schema
from etl_dagster.destinations.base import Capabilities, ChunkRows, CopyResult, Destination, WriteResult
from etl_dagster.destinations.duckdb.batch import BatchWriter
from etl_dagster.destinations.duckdb.client import Client, Feed, Session, translated
from etl_dagster.destinations.duckdb.config import DuckDbConfig
from etl_dagster.destinations.duckdb.encoding import decode, encode_batch, encoded_schema, quoted
from etl_dagster.destinations.duckdb.finish import Finish, Undecided
from etl_dagster.destinations.duckdb.held import HeldLogs, read
from etl_dagster.destinations.duckdb.ledger import Ledger, live_name, reread_name, staging_name
from etl_dagster.destinations.duckdb.sharing import SharedFile
from etl_dagster.destinations.duckdb.slices import SliceFinish
from etl_dagster.destinations.registry import DestinationPlugin
from etl_dagster.errors import DestinationError
from etl_dagster.model import (
    CDC_COLUMNS,
    ChangeType,
    CopyTarget,
    EventBatch,
    Lsn,
    RawChanges,
    TableId,
    TableSchema,
)

# A merge holds its piece twice: as Arrow and as DuckDB's row groups.
PIECE_BYTES = 32 * 1024 * 1024
CONCURRENT_COPIES = 8


class DuckDbDestination(Destination):
    """Tables as ``schema.table`` in one DuckDB file, without indexes; see `etl_dagster.destinations.base`."""

    capabilities = Capabilities(
        concurrent_copies=CONCURRENT_COPIES, atomic_batches=True, survives_process=True, piece_bytes=PIECE_BYTES
    )

    def __init__(self, config: DuckDbConfig) -> None:
        self.config = config
        self._file = SharedFile(config)
        self._owner = ""

    def startup(self, owner: str = "") -> None:
        self._owner = owner
        self._file.start(owner)
        with self._file.use() as opened, translated("create its own tables"), opened.main.transaction():
            Ledger(opened.main).create()

    def rest(self, *, idle: bool) -> None:
        self._file.rest(idle=idle)

    def shutdown(self) -> None:
        self._file.stop()

    def positions(self) -> Mapping[TableId, Lsn]:
        with self._file.use() as opened, translated("read the watermarks"):
            ledger = Ledger(opened.main)
            strangers = ledger.strangers(self._owner)
            return {table: lsn for table, lsn in ledger.present_watermarks().items() if table not in strangers}

    def copies(self) -> Mapping[str, Lsn]:
        with self._file.use() as opened, translated("read the copies"):
            ledger = Ledger(opened.main)
            strangers = ledger.strangers(self._owner)
            known = [each for each in ledger.copies().values() if each.table not in strangers]
        return {each.copy_id: each.lsn for each in known if each.finished_rows is None}

    def truncate_table(self, target: TableSchema | CopyTarget) -> None:
        table = target.table if isinstance(target, CopyTarget) else target
        with self._changing("truncate a table", table.id) as session:
            ledger = Ledger(session)
            if isinstance(target, CopyTarget):
                self._begin_copy(session, target)
            elif ledger.watermark(target.id) is not None:
                session.run(f"TRUNCATE {live_name(target.id)}")
            else:
                ledger.create_live(target, self._owner)

    def _begin_copy(self, session: Session, target: CopyTarget) -> None:
        ledger = Ledger(session)
        if ledger.find_copy(target.copy_id) is None:
            ledger.begin_copy(target, self._owner)
            HeldLogs(session, self._owner).release(target.table.id)

    def write_table_rows(self, target: CopyTarget, chunk: ChunkRows) -> int:
        table = str(target.table.id)
        with (
            self._file.use(staging=True) as opened,
            opened.widening(),
            translated("stage a chunk", table),
            opened.session() as session,
        ):
            ledger = Ledger(session)
            copy = ledger.copy(target)
            staged = ledger.chunk_rows(target.copy_id, chunk.chunk_id)
            if staged is not None:
                return staged
            if copy.finished_rows is not None:
                raise DestinationError(f"copy {target.copy_id} is finished", hint="Start the copy of the table again")
            with opened.one_wide_at_a_time(len(target.table.columns)), opened.single_threaded():
                return _stage(session, target, chunk)

    def write_events(self, batch: EventBatch) -> WriteResult:
        with (
            self._file.use() as opened,
            opened.widening(),
            translated("apply a batch"),
            opened.main.transaction(),
        ):
            writer = BatchWriter(opened, opened.main, self._owner, batch.routes)
            writer.run(batch)
        return WriteResult(position=batch.position, changes=writer.changes)

    def finish_copy(self, target: CopyTarget, position: Lsn) -> CopyResult:
        try:
            table = str(target.table.id)
            with self._file.use() as opened, opened.widening(), translated("finish a copy", table):
                if target.slices:
                    with opened.main.transaction():
                        return CopyResult(rows=SliceFinish(opened.main, opened, target).run(position))
                finish = Finish(opened.main, opened, target, PIECE_BYTES)
                with opened.main.transaction():
                    finished = finish.merge(position)
                if finished is not None:
                    return CopyResult(rows=finished)
                with opened.main.transaction():
                    return CopyResult(rows=finish.swap(position))
        except Undecided as undecided:
            return CopyResult(rows=None, undecided=undecided.keys)

    def hold_table(self, table: TableSchema) -> None:
        with self._changing("hold a table", table.id) as session:
            HeldLogs(session, self._owner).begin(table.id)

    def holds(self) -> Mapping[TableId, Lsn]:
        with self._file.use() as opened, translated("read the held logs"):
            return {table: log.lsn for table, log in HeldLogs(opened.main, self._owner).all().items()}

    def read_held(self, table: TableSchema) -> Iterator[RawChanges]:
        with (
            self._file.use() as opened,
            translated("read a held log", str(table.id)),
            opened.session() as session,
        ):
            log = HeldLogs(session, self._owner).all().get(table.id)
            if log is not None:
                yield from read(session, log)

    def release_table(self, table: TableId) -> None:
        with self._changing("release a table", table) as session:
            HeldLogs(session, self._owner).release(table)

    def drop_table(self, table: TableId) -> None:
        with self._changing("drop a table", table) as session:
            ledger = Ledger(session)
            ledger.forget_copies(table)
            session.run(f"DROP TABLE IF EXISTS {live_name(table)}")
            ledger.forget_watermark(table)
            ledger.forget_schema(table)
            HeldLogs(session, self._owner).release(table)
            ledger.disown(table)

    def row_count(self, table: TableId) -> int | None:
        with self._file.use() as opened, translated("count a table", str(table)):
            known = Ledger(opened.main).watermark(table) is not None
            return int(opened.main.rows(f"SELECT count(*) FROM {live_name(table)}")[0][0]) if known else None

    def read_table(self, table: TableSchema) -> pa.RecordBatchReader:
        schema = landed_schema(table)
        rows = self._rows(table, schema)
        # Once begun, a reader that nobody reads ends its use of the file when it is collected.
        next(rows)
        return pa.RecordBatchReader.from_batches(schema, rows)

    def _rows(self, table: TableSchema, schema: pa.Schema) -> Iterator[pa.RecordBatch | None]:
        """None once they can be read, then the rows of a live table."""
        columns = ", ".join(quoted(field.name) for field in schema)
        with self._file.use() as opened, opened.session() as session:
            with opened.widening(), translated("read a table", str(table.id)):
                found = session.reader(f"SELECT {columns} FROM {live_name(table.id)}")
            yield None
            for batch in found:
                yield decode(batch, schema)

    @contextmanager
    def _changing(self, doing: str, table: TableId) -> Iterator[Session]:
        """A transaction that concerns one table."""
        with self._file.use() as opened, translated(doing, str(table)), opened.main.transaction():
            yield opened.main

    @property
    def _client(self) -> Client | None:
        return self._file.client


def _stage(session: Session, target: CopyTarget, chunk: ChunkRows) -> int:
    schema = encoded_schema(arrow_schema(target.table), [f"c{i}" for i in range(len(target.table.columns))])
    feed = Feed(schema, (encode_batch(batch, schema) for batch in chunk.batches))
    with feed.own_errors(), session.transaction(), session.bound(etl_rows=feed.reader):
        if chunk.reread and not target.slices:
            session.run(f"INSERT INTO {reread_name(target.copy_id)} SELECT *, {int(chunk.seen_lsn)} FROM etl_rows")
        else:
            columns = ", ".join(map(quoted, [*arrow_schema(target.table).names, *CDC_COLUMNS]))
            cdc = [ChangeType.COPY.value, lsn_number(chunk.seen_lsn), chunk.taken_at]
            session.run(f"INSERT INTO {staging_name(target)} ({columns}) SELECT *, ?, ?, ? FROM etl_rows", cdc)
        Ledger(session).add_chunk(target.copy_id, chunk, feed.rows)
    return feed.rows


PLUGIN = DestinationPlugin(config=DuckDbConfig, factory=DuckDbDestination)
