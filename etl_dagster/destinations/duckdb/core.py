"""The destination contract over one DuckDB file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from etl_dagster.arrow.changes import (
    change_schema,
    from_record_batch,
    lsn_number,
    select_changes,
    to_record_batch,
)
from etl_dagster.arrow.compaction import Unresolved, compact
from etl_dagster.arrow.types import arrow_schema
from etl_dagster.destinations.base import Capabilities, ChunkRows, CopyResult, Destination, WriteResult
from etl_dagster.destinations.duckdb.client import Client, Feed, Session, connect, translated
from etl_dagster.destinations.duckdb.config import DuckDbConfig
from etl_dagster.destinations.duckdb.encoding import decode, encode, encode_batch, encoded_schema, quoted
from etl_dagster.destinations.duckdb.ledger import (
    CopyState,
    Ledger,
    live_name,
    live_schema,
    log_name,
    require_copy,
    reread_name,
    staging_name,
)
from etl_dagster.destinations.duckdb.merge import Merge, bound_key_names, key_match
from etl_dagster.destinations.registry import DestinationPlugin
from etl_dagster.errors import DestinationError, TableError
from etl_dagster.model import (
    ZERO_LSN,
    ChangeSet,
    ChangeType,
    CopyTarget,
    EventBatch,
    Lsn,
    Route,
    TableEvents,
    TableId,
    TableSchema,
)

# A merge holds its piece twice: as Arrow and as DuckDB's row groups.
PIECE_BYTES = 32 * 1024 * 1024
CONCURRENT_COPIES = 8


class DuckDbDestination(Destination):
    """Tables mirrored as ``schema.table`` in one DuckDB file, without indexes; see `etl_dagster.destinations.base`."""

    capabilities = Capabilities(
        concurrent_copies=CONCURRENT_COPIES, atomic_batches=True, survives_process=True, piece_bytes=PIECE_BYTES
    )

    def __init__(self, config: DuckDbConfig) -> None:
        self.config = config
        self._client: Client | None = None
        self._main: Session | None = None
        self._owner = ""

    def startup(self, owner: str = "") -> None:
        self._owner = owner
        if self._client is not None:
            return
        self._client = connect(self.config)
        self._main = self._client.open_session()
        with translated("create its own tables"), self._main.transaction():
            Ledger(self._main).create()

    def shutdown(self) -> None:
        if self._client is not None:
            self._session.close()
            self._client.close()
        self._client = self._main = None

    def positions(self) -> Mapping[TableId, Lsn]:
        with translated("read the watermarks"):
            ledger = Ledger(self._session)
            strangers = ledger.strangers(self._owner)
            return {table: lsn for table, lsn in ledger.watermarks().items() if table not in strangers}

    def copies(self) -> Mapping[str, Lsn]:
        with translated("read the copies"):
            ledger = Ledger(self._session)
            strangers = ledger.strangers(self._owner)
            known = [each for each in ledger.copies().values() if each.table not in strangers]
        return {each.copy_id: each.lsn for each in known if each.finished_rows is None}

    def truncate_table(self, target: TableSchema | CopyTarget) -> None:
        table = target.table if isinstance(target, CopyTarget) else target
        with translated("truncate a table", str(table.id)), self._session.transaction():
            ledger = Ledger(self._session)
            if isinstance(target, CopyTarget):
                ledger.begin_copy(target, self._owner)
            elif target.id in ledger.watermarks():
                self._session.run(f"TRUNCATE {live_name(target.id)}")
            else:
                ledger.create_live(target, self._owner)

    def write_table_rows(self, target: CopyTarget, chunk: ChunkRows) -> int:
        opened, table = self._opened, str(target.table.id)
        with opened.widening(), translated("stage a chunk", table), opened.session() as session:
            ledger = Ledger(session)
            copy = ledger.copy(target)
            staged = ledger.chunk_rows(target.copy_id, chunk.chunk_id)
            if staged is not None:
                return staged
            if copy.finished_rows is not None:
                raise DestinationError(f"copy {target.copy_id} is finished", hint="Start the copy of the table again")
            with self._opened.one_wide_at_a_time(len(target.table.columns)), self._opened.single_threaded():
                return _stage(session, target, chunk)

    def write_events(self, batch: EventBatch) -> WriteResult:
        with self._opened.widening(), translated("apply a batch"), self._session.transaction():
            writer = _BatchWriter(self._opened, self._session, batch.routes)
            for piece in batch:
                for events in piece:
                    writer.apply(events)
            writer.finish(batch.position)
        return WriteResult(position=batch.position, changes=writer.changes)

    def finish_copy(self, target: CopyTarget, position: Lsn) -> CopyResult:
        try:
            table = str(target.table.id)
            with self._opened.widening(), translated("finish a copy", table), self._session.transaction():
                return CopyResult(rows=_Finish(self._session, self._opened, target).run(position))
        except _Undecided as undecided:
            return CopyResult(rows=None, undecided=undecided.keys)

    def drop_table(self, table: TableId) -> None:
        with translated("drop a table", str(table)), self._session.transaction():
            ledger = Ledger(self._session)
            ledger.forget_copies(table)
            self._session.run(f"DROP TABLE IF EXISTS {live_name(table)}")
            ledger.forget_watermark(table)
            ledger.disown(table)

    def row_count(self, table: TableId) -> int | None:
        with translated("count a table", str(table)):
            known = table in Ledger(self._session).watermarks()
            return int(self._session.rows(f"SELECT count(*) FROM {live_name(table)}")[0][0]) if known else None

    def read_table(self, table: TableSchema) -> pa.RecordBatchReader:
        schema = live_schema(table)
        columns = ", ".join(quoted(field.name) for field in schema)
        session = self._opened.open_session()
        with translated("read a table", str(table.id)):
            found = session.reader(f"SELECT {columns} FROM {live_name(table.id)}")
        return pa.RecordBatchReader.from_batches(schema, _decoded(session, found, schema))

    @property
    def _opened(self) -> Client:
        if self._client is None:
            raise DestinationError("The DuckDB destination is not started", hint="Call startup() first")
        return self._client

    @property
    def _session(self) -> Session:
        if self._main is None:
            raise DestinationError("The DuckDB destination is not started", hint="Call startup() first")
        return self._main


def _decoded(session: Session, found: pa.RecordBatchReader, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    try:
        for batch in found:
            yield decode(batch, schema)
    finally:
        session.close()


def _stage(session: Session, target: CopyTarget, chunk: ChunkRows) -> int:
    schema = encoded_schema(arrow_schema(target.table), [f"c{i}" for i in range(len(target.table.columns))])
    feed = Feed(schema, (encode_batch(batch, schema) for batch in chunk.batches))
    with feed.own_errors(), session.transaction(), session.bound(etl_rows=feed.reader):
        if chunk.reread:
            session.run(f"INSERT INTO {reread_name(target.copy_id)} SELECT *, {int(chunk.seen_lsn)} FROM etl_rows")
        else:
            columns = ", ".join(quoted(field.name) for field in live_schema(target.table))
            cdc = [ChangeType.COPY.value, lsn_number(chunk.seen_lsn), chunk.taken_at]
            session.run(f"INSERT INTO {staging_name(target)} ({columns}) SELECT *, ?, ?, ? FROM etl_rows", cdc)
        Ledger(session).add_chunk(target.copy_id, chunk, feed.rows)
    return feed.rows


@dataclass(frozen=True, slots=True)
class _Places:
    """Where the changes of one table go; watermarks of places they do not go to are None."""

    live: Lsn | None
    log: CopyState | None


class _BatchWriter:
    """Applies the pieces of one batch within the caller's transaction."""

    def __init__(self, client: Client, session: Session, routes: Mapping[TableId, Route]) -> None:
        self._client = client
        self._session = session
        self._ledger = Ledger(session)
        live, copies = self._ledger.watermarks(), self._ledger.copies()
        self._places = {table: _places(table, route, live, copies) for table, route in routes.items()}
        self._merges: dict[TableId, Merge] = {}
        self.changes = dict.fromkeys(routes, 0)

    def apply(self, events: TableEvents) -> None:
        table = events.table.id
        places = self._places[table]
        self._client.make_room(len(events.table.columns))
        with translated("apply changes", str(table)):
            live = 0 if places.live is None else self._apply_live(events, places.live)
            log = 0 if places.log is None else self._append_log(events, places.log)
        self.changes[table] += max(live, log)

    def _apply_live(self, events: TableEvents, watermark: Lsn) -> int:
        table = events.table
        if table.id not in self._merges:
            self._merges[table.id] = Merge(self._session, table, live_name(table.id), number=len(self._merges))
        merge = self._merges[table.id]
        if events.truncated_at is not None and events.truncated_at >= watermark:
            merge.truncate()
        changes = _beyond(events, watermark)
        if changes and merge.add(compact(changes)) is not None:
            raise _missing_row(table.id)
        return sum(map(len, changes))

    def finish(self, position: Lsn) -> None:
        """Bring everything into the live tables and raise the watermarks."""
        for table, merge in self._merges.items():
            with translated("merge changes", str(table)):
                merge.finish()
        self._raise_watermarks(position)

    def _append_log(self, events: TableEvents, copy: CopyState) -> int:
        if events.truncated_at is not None and events.truncated_at >= copy.lsn:
            self._ledger.truncate_copy(copy.copy_id)
        changes = _beyond(events, copy.lsn)
        if changes:
            flat = pa.Table.from_batches([to_record_batch(part) for part in changes])
            with self._session.bound(etl_rows=encode(flat, flat.column_names)):
                self._session.run(f"INSERT INTO {log_name(copy.copy_id)} SELECT * FROM etl_rows")
        return sum(map(len, changes))

    def _raise_watermarks(self, position: Lsn) -> None:
        live = [table for table, places in self._places.items() if places.live is not None]
        copies = [places.log.copy_id for places in self._places.values() if places.log is not None]
        self._ledger.raise_watermarks(live, copies, position)


def _places(table: TableId, route: Route, live: Mapping[TableId, Lsn], copies: dict[str, CopyState]) -> _Places:
    """Changes for the log of a copy that is finished go to the live table, which the copy has become."""
    log = require_copy(copies, route.log) if route.log is not None else None
    finished = log is not None and log.finished_rows is not None
    return _Places(
        live=live.get(table) if route.live or finished else None,
        log=None if finished else log,
    )


def _beyond(events: TableEvents, watermark: Lsn) -> list[ChangeSet]:
    """The changes that a watermark does not cover.

    A watermark is where the next commit may start, hence a change right at it is new.
    """
    if watermark == ZERO_LSN:
        return [part for part in events.changes if len(part)]
    parts = [select_changes(part, part.lsn >= watermark) for part in events.changes]
    return [part for part in parts if len(part)]


def _missing_row(table: TableId) -> TableError:
    return TableError(
        f"{table} lacks a row at the destination whose unchanged TOAST value is needed",
        hint="The destination was altered by someone else; copy the table again",
        table=str(table),
    )


class _Undecided(Exception):
    """Rolls the transaction back; carries the keys to read again."""

    def __init__(self, keys: pa.Table) -> None:
        super().__init__()
        self.keys = keys


class _Finish:
    """Makes one copy the live table, within the caller's transaction."""

    def __init__(self, session: Session, client: Client, target: CopyTarget) -> None:
        self._session = session
        self._client = client
        self._target = target
        self._table = target.table
        self._ledger = Ledger(session)

    def run(self, position: Lsn) -> int:
        copy = self._ledger.copy(self._target)
        if copy.finished_rows is not None:
            return copy.finished_rows
        self._client.make_room(len(self._table.columns))
        if copy.truncated:
            self._session.run(f"TRUNCATE {staging_name(self._target)}")
            self._session.run(f"TRUNCATE {reread_name(self._target.copy_id)}")
        self._merge_log()
        return self._swap(position)

    def _merge_log(self) -> None:
        log = log_name(self._target.copy_id)
        size, partial = self._session.rows(f"SELECT count(*), count(unchanged) FROM {log}")[0]
        if not size:
            return
        # A staged row serves a row that never moved; one that moved needs a row read after it had arrived.
        merge = Merge(
            self._session, self._table, staging_name(self._target), own_key=True, extra_donors=self._reread_donors
        )
        # Values are looked for in all of the log before anything is taken from a staged row.
        for changes in self._log_pieces(None if partial else PIECE_BYTES):
            undecided = merge.add(compact(changes))
            if undecided is not None:
                raise _Undecided(undecided)
        merge.finish()

    def _log_pieces(self, limit: int | None) -> Iterator[Sequence[ChangeSet]]:
        schema = change_schema(self._table)
        piece: list[ChangeSet] = []
        with self._client.session() as session:
            sql = f"SELECT * FROM {log_name(self._target.copy_id)} ORDER BY lsn, ordinal"
            for batch in session.reader(sql):
                piece.append(from_record_batch(self._table, decode(batch, schema)))
                if limit is not None and sum(part.nbytes for part in piece) >= limit:
                    yield piece
                    piece = []
        if piece:
            yield piece

    def _reread_donors(self, open_: Unresolved) -> str:
        values = ", ".join(f"x.c{i} AS v{i}" for i in open_.columns)
        positions = [f"c{i}" for i in self._table.key_indexes]
        condition = key_match("x", positions, "u", bound_key_names(self._table))
        return (
            f"SELECT u.r, x.seen_lsn AS age, {values} FROM etl_open AS u"
            f" JOIN {reread_name(self._target.copy_id)} AS x ON {condition} WHERE x.seen_lsn > u.origin"
        )

    def _swap(self, position: Lsn) -> int:
        live, staging = live_name(self._table.id), staging_name(self._target)
        rows = int(self._session.rows(f"SELECT count(*) FROM {staging}")[0][0])
        self._session.run(f"DROP TABLE IF EXISTS {live}")
        self._session.run(f"ALTER TABLE {staging} RENAME TO {quoted(self._table.id.name)}")
        self._ledger.set_watermark(self._table.id, position)
        self._ledger.finish_copy(self._target.copy_id, rows)
        return rows


PLUGIN = DestinationPlugin(config=DuckDbConfig, factory=DuckDbDestination)
