"""The destination contract over one BigQuery dataset."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta

import pyarrow as pa

from etl_dagster.arrow.landing import landed_schema
from etl_dagster.destinations.base import Capabilities, ChunkRows, CopyResult, Destination, WriteResult
from etl_dagster.destinations.bigquery.batch import BatchWriter
from etl_dagster.destinations.bigquery.chunks import ChunkWriter
from etl_dagster.destinations.bigquery.client import Client, require_bigquery
from etl_dagster.destinations.bigquery.config import BigQueryConfig
from etl_dagster.destinations.bigquery.encoding import decode
from etl_dagster.destinations.bigquery.finish import Finish, Undecided
from etl_dagster.destinations.bigquery.layout import Field, Layout, layout_ddl, layout_of, partitioning
from etl_dagster.destinations.bigquery.ledger import Ledger
from etl_dagster.destinations.bigquery.live import Context
from etl_dagster.destinations.bigquery.logs import creation, read_raw
from etl_dagster.destinations.bigquery.naming import INTERNAL, Names, bare, quoted
from etl_dagster.destinations.bigquery.slices import SliceFinish
from etl_dagster.destinations.bigquery.stage import Stage
from etl_dagster.destinations.bigquery.staging import cdc_names, columns_of, converts, leftovers
from etl_dagster.destinations.bigquery.state import (
    COPY,
    SNAPSHOT,
    Change,
    CopyBody,
    Entry,
    LogBody,
    held_key,
    new_token,
    table_key,
)
from etl_dagster.destinations.bigquery.swap import swap, table_body
from etl_dagster.destinations.bigquery.types import CDC_TYPES, NativeType, native_type
from etl_dagster.destinations.registry import DestinationPlugin
from etl_dagster.errors import DestinationError
from etl_dagster.model import (
    ZERO_LSN,
    CheckResult,
    CopyTarget,
    EventBatch,
    Lsn,
    RawChanges,
    Route,
    TableId,
    TableSchema,
    ValueLimits,
)

# A merge reads the live table, so that few large pieces are better; a piece is held in memory twice.
PIECE_BYTES = 64 * 1024 * 1024
# Load jobs run at Google: more of them at once cost this machine little.
CONCURRENT_COPIES = 8
# A table may be loaded 1,500 times a day, failed jobs included.
MOST_CHUNKS = 1000
# Longer than any operation takes.
LEFTOVER_AGE = timedelta(days=1)
CHUNK_BYTES = 256 * 1024 * 1024


class BigQueryDestination(Destination):
    """Tables in one dataset, brought in by load jobs and transactions; see `etl_dagster.destinations.base`."""

    def __init__(self, config: BigQueryConfig) -> None:
        require_bigquery()
        self.config = config
        self.capabilities = Capabilities(
            concurrent_copies=CONCURRENT_COPIES,
            atomic_batches=False,
            survives_process=True,
            piece_bytes=PIECE_BYTES,
            chunk_bytes=CHUNK_BYTES,
            most_chunks=MOST_CHUNKS,
            batch_seconds=config.batch_seconds,
            limits=ValueLimits(exact_json=config.json_ == "native"),
            json_text=config.json_ == "string",
        )
        self._names = Names(config)
        self._open: Context | None = None
        self._swept = False

    # -- life ---------------------------------------------------------------------------------------------------------

    def startup(self, owner: str = "") -> None:
        client = Client(self.config) if self._open is None else self._open.client
        client.ensure_dataset()
        ledger = Ledger(client, self._names, owner)
        ledger.open()
        self._open = Context(client, ledger, self._names, self.config)
        self._swept = False

    def shutdown(self) -> None:
        if self._open is not None:
            self._open.client.close()
            self._open = None

    @property
    def _context(self) -> Context:
        if self._open is None:
            raise DestinationError("The destination was not started", hint="Call startup first")
        return self._open

    @property
    def _ledger(self) -> Ledger:
        return self._context.ledger

    def _settle(self, routes: Mapping[TableId, Route]) -> None:
        """Finish what a process that was killed had begun with tables that changes are about to go to."""
        for copy_id, (_, copy) in self._ledger.copies().items():
            route = routes.get(copy.table)
            if copy.swapping is not None and route is not None and not route.held:
                # The process that began it may only be slow: from here on it can change nothing any more.
                self._ledger.commit(Change(), doing="take a copy over", table=copy.table)
                swap(self._context, copy_id, copy)

    def _sweep(self) -> None:
        """Remove what nobody knows of, unless some process may just have made it; who only looks does not."""
        if self._swept:
            return
        self._swept = True
        client, used = self._context.client, self._ledger.tokens()
        for name in client.old_tables(f"{INTERNAL}{self._ledger.prefix}", LEFTOVER_AGE):
            own = name.removeprefix(INTERNAL)
            if not self._ledger.is_state(own) and own.rpartition("_")[2] not in used:
                client.drop_table(bare(self._names.internal(own)))

    def check(self, tables: Mapping[TableId, int]) -> Iterator[CheckResult]:
        from etl_dagster.destinations.bigquery.check import check

        return check(self.config, tables)

    # -- what there is ------------------------------------------------------------------------------------------------

    def positions(self) -> Mapping[TableId, Lsn]:
        existing = self._context.client.table_names()
        return {table: lsn for table, lsn in self._ledger.tables().items() if self._names.table_name(table) in existing}

    def copies(self) -> Mapping[str, Lsn]:
        return {copy_id: lsn for copy_id, (lsn, copy) in self._ledger.copies().items() if copy.finished_rows is None}

    def holds(self) -> Mapping[TableId, Lsn]:
        return {table: lsn for table, (lsn, _) in self._ledger.held().items()}

    def row_count(self, table: TableId) -> int | None:
        known = self._ledger.entry(table_key(table)) is not None
        return self._context.client.rows(bare(self._names.live(table))) if known else None

    # -- copies -------------------------------------------------------------------------------------------------------

    def truncate_table(self, target: TableSchema | CopyTarget) -> None:
        with self._ledger.alone():
            self._sweep()
            if isinstance(target, CopyTarget):
                if target.copy_id not in self._ledger.copies():
                    self._begin_copy(target)
            elif self._ledger.entry(table_key(target.id)) is not None:
                change = Change(statements=[f"TRUNCATE TABLE {self._names.live(target.id)}"])
                self._ledger.commit(change, doing="truncate a table", table=target.id)
            else:
                self._create_live(target)

    def _begin_copy(self, target: CopyTarget) -> None:
        table = target.table
        self._ledger.require_admissible(table)
        body = CopyBody(table=table.id, token=new_token(), begun=self._ledger.begun)
        change = self._forgetting(table.id)
        change.add(self._ledger.own_table(table.id))
        change.state[COPY, target.copy_id] = Entry(ZERO_LSN, body)
        staging, fields = self._ledger.staging(body), columns_of(table, self._context, staged=True)
        layout = Layout() if target.slices or converts(table, self._context) else self._layout(table)
        change.ddl += [self._creation(staging, fields, layout, table), creation(self._ledger.log(body))]
        self._ledger.commit(change, doing="begin a copy", table=table.id)
        self._ledger.learn_owner(table.id)

    def _create_live(self, table: TableSchema) -> None:
        self._ledger.require_admissible(table)
        layout = self._layout(table)
        change = self._ledger.own_table(table.id)
        fields = columns_of(table, self._context, staged=False)
        change.ddl.append(self._creation(self._names.live(table.id), fields, layout, table))
        partitioned = partitioning(layout, table, self._names, self.config)
        body = table_body(table, layout, partitioned).model_copy(update={"begun": self._ledger.begun})
        change.state[table_key(table.id)] = Entry(ZERO_LSN, body)
        self._ledger.commit(change, doing="create a table", table=table.id)
        self._ledger.learn_owner(table.id)

    def _layout(self, table: TableSchema) -> Layout:
        return layout_of(table, self._names, self.config)

    def _creation(self, ref: str, fields: list[Field], layout: Layout, table: TableSchema) -> str:
        columns = ", ".join(f"{quoted(each.name)} {each.type}" for each in fields)
        clauses = layout_ddl(layout, partitioning(layout, table, self._names, self.config))
        return f"CREATE TABLE IF NOT EXISTS {ref} ({columns}) {clauses}"

    def _forgetting(self, table: TableId) -> Change:
        """The change that makes copies and the held log of a table go."""
        change = Change()
        for copy_id, (_, copy) in self._ledger.copies().items():
            if copy.table == table:
                change.state[COPY, copy_id] = None
                change.state |= {(SNAPSHOT, f"{copy_id}/{each}"): None for each in self._ledger.snapshots(copy_id)}
                change.afterwards += leftovers(self._context, copy)
        if (held := self._ledger.held().get(table)) is not None:
            change.state[held_key(table)] = None
            change.afterwards.append(f"DROP TABLE IF EXISTS {self._ledger.log(held[1])}")
        return change

    def write_table_rows(self, target: CopyTarget, chunk: ChunkRows) -> int:
        return ChunkWriter(self._context, target).write(chunk)

    def finish_copy(self, target: CopyTarget, position: Lsn) -> CopyResult:
        with self._ledger.alone():
            try:
                rows = self._finish(target).run(position)
            except Undecided as undecided:
                return CopyResult(rows=None, undecided=undecided.keys, usage=self._usage())
        return CopyResult(rows=rows, usage=self._usage())

    def _finish(self, target: CopyTarget) -> Finish | SliceFinish:
        if target.slices:
            return SliceFinish(self._context, target)
        return Finish(self._context, target, PIECE_BYTES)

    def _usage(self) -> Mapping[str, int]:
        return self._context.client.take_usage().as_mapping()

    # -- the stream ---------------------------------------------------------------------------------------------------

    def write_events(self, batch: EventBatch) -> WriteResult:
        with self._ledger.alone(), Stage(self._context.client, self._ledger, self.config) as stage:
            self._sweep()
            self._settle(batch.routes)
            writer = BatchWriter(self._context, stage, batch.routes)
            writer.run(batch)
        return WriteResult(position=batch.position, changes=writer.changes, usage=self._usage())

    # -- held tables --------------------------------------------------------------------------------------------------

    def hold_table(self, table: TableSchema) -> None:
        key = held_key(table.id)
        with self._ledger.alone():
            if self._ledger.entry(key) is None:
                body = LogBody(token=new_token(), begun=self._ledger.begun)
                change = Change(state={key: Entry(ZERO_LSN, body)}, ddl=[creation(self._ledger.log(body))])
                self._ledger.commit(change, doing="hold a table", table=table.id)

    def read_held(self, table: TableSchema) -> Iterator[RawChanges]:
        found = self._ledger.held().get(table.id)
        if found is not None:
            yield from read_raw(self._context.client, self._ledger.log(found[1]), table.id, found[1].pieces)

    def release_table(self, table: TableId) -> None:
        found = self._ledger.held().get(table)
        if found is not None:
            afterwards = [f"DROP TABLE IF EXISTS {self._ledger.log(found[1])}"]
            change = Change(state={held_key(table): None}, afterwards=afterwards)
            self._ledger.commit(change, doing="release a table", table=table)

    def drop_table(self, table: TableId) -> None:
        with self._ledger.alone():
            change = self._forgetting(table)
            change.add(self._ledger.disown_table(table))
            if self._ledger.entry(table_key(table)) is not None:
                change.state[table_key(table)] = None
                change.afterwards.append(f"DROP TABLE IF EXISTS {self._names.live(table)}")
            self._ledger.commit(change, doing="drop a table", table=table)
            self._ledger.forget_owner(table)

    # -- reading ------------------------------------------------------------------------------------------------------

    def read_table(self, table: TableSchema) -> pa.RecordBatchReader:
        schema = landed_schema(table)
        types = [native_type(column, self.config) for column in table.columns]
        types += [CDC_TYPES[name] for name in cdc_names(table)]
        chosen = ", ".join(
            f"{type_.selected(f't.{quoted(self._names.column(name))}')} AS c{i}"
            for i, (name, type_) in enumerate(zip(schema.names, types, strict=True))
        )
        sql = f"SELECT {chosen} FROM {self._names.live(table.id)} AS t"
        found = self._context.client.read(sql, doing="read a table", table=str(table.id))
        return pa.RecordBatchReader.from_batches(schema, _decoded(found, schema, types))


def _decoded(
    batches: Iterator[pa.RecordBatch], schema: pa.Schema, types: Sequence[NativeType]
) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        rows = zip(batch.columns, schema, types, strict=True)
        arrays = [decode(values, field.type, type_) for values, field, type_ in rows]
        yield pa.RecordBatch.from_arrays(arrays, schema=schema)


PLUGIN = DestinationPlugin(config=BigQueryConfig, factory=BigQueryDestination)
