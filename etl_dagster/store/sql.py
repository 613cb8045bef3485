"""The store in SQL that SQLite and Postgres both speak; what differs between them is how a transaction is run.

Statements name their tables ``{s}table``, where ``{s}`` stands for the schema, and mark parameters with ``?``.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, TypeVar

from etl_dagster.errors import StateError
from etl_dagster.model import Lsn, RangePlan, TableId, TableSchema
from etl_dagster.store.base import (
    HISTORY_LENGTH,
    ChunkRecord,
    Request,
    SchemaVersion,
    SlotRecord,
    Store,
    TableMapping,
    TableRecord,
)
from etl_dagster.store.records import Record, decode, encode, finished

T = TypeVar("T")

# The statements that lead from each version of the tables to the next; never changed once released, only added to.
MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        """CREATE TABLE {s}slots (
            pipeline text NOT NULL PRIMARY KEY, body text NOT NULL)""",
        """CREATE TABLE {s}table_records (
            pipeline text NOT NULL, table_schema text NOT NULL, table_name text NOT NULL, revision bigint NOT NULL,
            body text NOT NULL, PRIMARY KEY (pipeline, table_schema, table_name, revision))""",
        """CREATE TABLE {s}chunks (
            pipeline text NOT NULL, copy_id text NOT NULL, chunk_id text NOT NULL, place bigint NOT NULL,
            table_schema text NOT NULL, table_name text NOT NULL, body text NOT NULL,
            PRIMARY KEY (pipeline, copy_id, chunk_id))""",
        """CREATE TABLE {s}mappings (
            pipeline text NOT NULL, table_schema text NOT NULL, table_name text NOT NULL, body text NOT NULL,
            PRIMARY KEY (pipeline, table_schema, table_name))""",
        """CREATE TABLE {s}schema_versions (
            pipeline text NOT NULL, table_schema text NOT NULL, table_name text NOT NULL, version bigint NOT NULL,
            body text NOT NULL, PRIMARY KEY (pipeline, table_schema, table_name, version))""",
    ),
    (
        """CREATE TABLE {s}requests (
            pipeline text NOT NULL, request_id text NOT NULL, place bigint NOT NULL, body text NOT NULL,
            PRIMARY KEY (pipeline, request_id))""",
        """CREATE TABLE {s}range_plans (
            pipeline text NOT NULL, table_schema text NOT NULL, table_name text NOT NULL, body text NOT NULL,
            PRIMARY KEY (pipeline, table_schema, table_name))""",
    ),
)

_CREATE_VERSION = "CREATE TABLE IF NOT EXISTS {s}store_version (version bigint NOT NULL)"
_VERSION = "SELECT coalesce(max(version), 0) FROM {s}store_version"
_ADD_VERSION = "INSERT INTO {s}store_version VALUES (?)"

_SLOT = "SELECT body FROM {s}slots WHERE pipeline = ?"
_SAVE_SLOT = "INSERT INTO {s}slots VALUES (?, ?) ON CONFLICT (pipeline) DO UPDATE SET body = excluded.body"
_FORGET_SLOT = "DELETE FROM {s}slots WHERE pipeline = ?"

_TABLES = """SELECT r.body FROM {s}table_records r WHERE r.pipeline = ? AND r.revision = (
    SELECT max(n.revision) FROM {s}table_records n
    WHERE n.pipeline = r.pipeline AND n.table_schema = r.table_schema AND n.table_name = r.table_name)"""
_HISTORY = """SELECT body, revision FROM {s}table_records
    WHERE pipeline = ? AND table_schema = ? AND table_name = ? ORDER BY revision"""
_NEWEST_RECORD = """SELECT body, revision FROM {s}table_records
    WHERE pipeline = ? AND table_schema = ? AND table_name = ? ORDER BY revision DESC LIMIT 1"""
_ADD_RECORD = "INSERT INTO {s}table_records VALUES (?, ?, ?, ?, ?)"
_TRIM_HISTORY = """DELETE FROM {s}table_records
    WHERE pipeline = ? AND table_schema = ? AND table_name = ? AND revision <= ?"""

_CHUNKS = "SELECT body FROM {s}chunks WHERE pipeline = ? AND copy_id = ? ORDER BY place"
_CHUNK = "SELECT body FROM {s}chunks WHERE pipeline = ? AND copy_id = ? AND chunk_id = ?"
_LAST_PLACE = "SELECT coalesce(max(place), 0) FROM {s}chunks WHERE pipeline = ? AND copy_id = ?"
_ADD_CHUNK = "INSERT INTO {s}chunks VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (pipeline, copy_id, chunk_id) DO NOTHING"
_SAVE_CHUNK = "UPDATE {s}chunks SET body = ? WHERE pipeline = ? AND copy_id = ? AND chunk_id = ?"
_FORGET_COPIES = """DELETE FROM {s}chunks
    WHERE pipeline = ? AND table_schema = ? AND table_name = ? AND copy_id <> ?"""

_REQUESTS = "SELECT body FROM {s}requests WHERE pipeline = ? ORDER BY place"
_LAST_REQUEST = "SELECT coalesce(max(place), 0) FROM {s}requests WHERE pipeline = ?"
_ADD_REQUEST = "INSERT INTO {s}requests VALUES (?, ?, ?, ?) ON CONFLICT (pipeline, request_id) DO NOTHING"
_REMOVE_REQUEST = "DELETE FROM {s}requests WHERE pipeline = ? AND request_id = ?"

_RANGE_PLAN = "SELECT body FROM {s}range_plans WHERE pipeline = ? AND table_schema = ? AND table_name = ?"
_SAVE_RANGE_PLAN = """INSERT INTO {s}range_plans VALUES (?, ?, ?, ?)
    ON CONFLICT (pipeline, table_schema, table_name) DO UPDATE SET body = excluded.body"""

_MAPPING = "SELECT body FROM {s}mappings WHERE pipeline = ? AND table_schema = ? AND table_name = ?"
_SAVE_MAPPING = """INSERT INTO {s}mappings VALUES (?, ?, ?, ?)
    ON CONFLICT (pipeline, table_schema, table_name) DO UPDATE SET body = excluded.body"""

_SCHEMAS = """SELECT v.body FROM {s}schema_versions v WHERE v.pipeline = ? AND v.version = (
    SELECT max(n.version) FROM {s}schema_versions n
    WHERE n.pipeline = v.pipeline AND n.table_schema = v.table_schema AND n.table_name = v.table_name)"""
_VERSIONS = """SELECT body FROM {s}schema_versions
    WHERE pipeline = ? AND table_schema = ? AND table_name = ? ORDER BY version"""
_NEWEST_SCHEMA = """SELECT body FROM {s}schema_versions
    WHERE pipeline = ? AND table_schema = ? AND table_name = ? ORDER BY version DESC LIMIT 1"""
_ADD_SCHEMA = "INSERT INTO {s}schema_versions VALUES (?, ?, ?, ?, ?)"


class Transaction(Protocol):
    """An open transaction that runs statements."""

    def run(self, statement: str, *parameters: object) -> Sequence[tuple[Any, ...]]:
        """Run one statement and return its rows."""
        ...

    def run_many(self, statement: str, rows: Iterable[Sequence[object]]) -> None:
        """Run one statement for each row of parameters."""
        ...


def migrate(transaction: Transaction, where: str) -> None:
    """Bring the tables to this version's; the caller holds the lock that keeps others from doing the same.

    Raises:
        StateError: A newer version has been here.
    """
    transaction.run(_CREATE_VERSION)
    ((found,),) = transaction.run(_VERSION)
    if found > len(MIGRATIONS):
        raise StateError(
            f"{where} has tables of version {found}, this etl-dagster knows version {len(MIGRATIONS)}",
            hint="Upgrade this installation, or point `store` somewhere else",
        )
    for version, statements in enumerate(MIGRATIONS[found:], start=found + 1):
        for statement in statements:
            transaction.run(statement)
        transaction.run(_ADD_VERSION, version)


class SqlStore(Store):
    """The contract in SQL; a subclass runs the transactions."""

    def __init__(self, pipeline: str) -> None:
        self._pipeline = pipeline

    @abstractmethod
    def _read(self, work: Callable[[Transaction], T]) -> T:
        """Run ``work`` in a transaction that only reads."""

    @abstractmethod
    def _write(self, work: Callable[[Transaction], T]) -> T:
        """Run ``work`` in a transaction that no other writer of this pipeline runs beside; durable on return.

        Where a lost connection leaves the outcome unknown, ``work`` is run again: all work here may be repeated.
        """

    def slot(self) -> SlotRecord | None:
        return _first(SlotRecord, self._rows(_SLOT))

    def save_slot(self, record: SlotRecord | None) -> None:
        if record is None:
            self._write(lambda on: on.run(_FORGET_SLOT, self._pipeline))
        else:
            self._write(lambda on: on.run(_SAVE_SLOT, self._pipeline, encode(record)))

    def tables(self) -> dict[TableId, TableRecord]:
        return {record.table: record for record in _all(TableRecord, self._rows(_TABLES))}

    def save_table(self, record: TableRecord) -> None:
        self._write(lambda on: self._add_record(on, record))

    def history(self, table: TableId) -> Sequence[TableRecord]:
        return _all(TableRecord, self._rows(_HISTORY, *table))

    def chunks(self, copy_id: str) -> Sequence[ChunkRecord]:
        return _all(ChunkRecord, self._rows(_CHUNKS, copy_id))

    def add_chunks(self, table: TableId, copy_id: str, chunks: Sequence[ChunkRecord]) -> None:
        self._write(lambda on: self._plan(on, table, copy_id, chunks))

    def finish_chunk(self, copy_id: str, chunk: ChunkRecord) -> None:
        self._write(lambda on: self._finish(on, copy_id, chunk))

    def requests(self) -> Sequence[Request]:
        return _all(Request, self._rows(_REQUESTS))

    def add_request(self, request: Request) -> None:
        self._write(lambda on: self._ask(on, request))

    def remove_requests(self, request_ids: Sequence[str]) -> None:
        rows = [(self._pipeline, request_id) for request_id in request_ids]
        self._write(lambda on: on.run_many(_REMOVE_REQUEST, rows))

    def range_plan(self, table: TableId) -> RangePlan | None:
        return _first(RangePlan, self._rows(_RANGE_PLAN, *table))

    def save_range_plan(self, table: TableId, plan: RangePlan) -> None:
        self._write(lambda on: on.run(_SAVE_RANGE_PLAN, self._pipeline, *table, encode(plan)))

    def mapping(self, table: TableId) -> TableMapping | None:
        return _first(TableMapping, self._rows(_MAPPING, *table))

    def save_mapping(self, mapping: TableMapping) -> None:
        self._write(lambda on: on.run(_SAVE_MAPPING, self._pipeline, *mapping.table, encode(mapping)))

    def schema(self, table: TableId) -> SchemaVersion | None:
        return _first(SchemaVersion, self._rows(_NEWEST_SCHEMA, *table))

    def schemas(self) -> dict[TableId, SchemaVersion]:
        return {version.schema_.id: version for version in _all(SchemaVersion, self._rows(_SCHEMAS))}

    def save_schema(self, schema: TableSchema, lsn: Lsn) -> SchemaVersion:
        return self._write(lambda on: self._add_schema(on, schema, lsn))

    def versions(self, table: TableId) -> Sequence[SchemaVersion]:
        return _all(SchemaVersion, self._rows(_VERSIONS, *table))

    def _rows(self, statement: str, *parameters: str) -> Sequence[tuple[Any, ...]]:
        return self._read(lambda on: on.run(statement, self._pipeline, *parameters))

    def _add_record(self, on: Transaction, record: TableRecord) -> None:
        body = encode(record)
        newest = on.run(_NEWEST_RECORD, self._pipeline, *record.table)
        former, revision = newest[0] if newest else (None, 0)
        if body != former:
            on.run(_ADD_RECORD, self._pipeline, *record.table, revision + 1, body)
            on.run(_TRIM_HISTORY, self._pipeline, *record.table, revision + 1 - HISTORY_LENGTH)
        on.run(_FORGET_COPIES, self._pipeline, *record.table, record.copy_id or "")

    def _ask(self, on: Transaction, request: Request) -> None:
        ((last,),) = on.run(_LAST_REQUEST, self._pipeline)
        on.run(_ADD_REQUEST, self._pipeline, request.request_id, last + 1, encode(request))

    def _plan(self, on: Transaction, table: TableId, copy_id: str, chunks: Sequence[ChunkRecord]) -> None:
        ((last,),) = on.run(_LAST_PLACE, self._pipeline, copy_id)
        rows = (
            (self._pipeline, copy_id, chunk.chunk_id, place, *table, encode(chunk))
            for place, chunk in enumerate(chunks, start=last + 1)
        )
        on.run_many(_ADD_CHUNK, rows)

    def _finish(self, on: Transaction, copy_id: str, chunk: ChunkRecord) -> None:
        key = (self._pipeline, copy_id, chunk.chunk_id)
        planned = _first(ChunkRecord, on.run(_CHUNK, *key))
        on.run(_SAVE_CHUNK, encode(finished(planned, chunk, copy_id)), *key)

    def _add_schema(self, on: Transaction, schema: TableSchema, lsn: Lsn) -> SchemaVersion:
        newest = _first(SchemaVersion, on.run(_NEWEST_SCHEMA, self._pipeline, *schema.id))
        if newest is not None and newest.schema_ == schema:
            return newest
        added = SchemaVersion(version=newest.version + 1 if newest else 1, lsn=lsn, schema=schema)
        on.run(_ADD_SCHEMA, self._pipeline, *schema.id, added.version, encode(added))
        return added


def _all(kind: type[Record], rows: Sequence[tuple[Any, ...]]) -> Sequence[Record]:
    return tuple(decode(kind, row[0]) for row in rows)


def _first(kind: type[Record], rows: Sequence[tuple[Any, ...]]) -> Record | None:
    return decode(kind, rows[0][0]) if rows else None
