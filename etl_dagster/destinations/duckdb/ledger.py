"""What the destination remembers about its tables, in the schema ``_etl`` of the same database.

Living beside the data, it changes in the same transaction as the data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import pyarrow as pa

from etl_dagster.arrow.changes import change_schema
from etl_dagster.arrow.landing import landed_schema
from etl_dagster.arrow.types import arrow_schema
from etl_dagster.destinations.admission import copy_not_begun, fold_ascii, require_column_names, require_mergeable
from etl_dagster.destinations.base import ChunkRows
from etl_dagster.destinations.duckdb.client import Session
from etl_dagster.destinations.duckdb.encoding import duckdb_type, quoted
from etl_dagster.errors import TableError
from etl_dagster.model import CHANGE_TYPE_COLUMN, ChangeType, CopyTarget, Lsn, TableId, TableSchema

SCHEMA = "_etl"
_CREATE = """
CREATE SCHEMA IF NOT EXISTS _etl;
CREATE TABLE IF NOT EXISTS _etl.watermarks (schema_name VARCHAR, table_name VARCHAR, lsn UBIGINT);
CREATE TABLE IF NOT EXISTS _etl.copies
    (copy_id VARCHAR, schema_name VARCHAR, table_name VARCHAR, lsn UBIGINT, truncated BOOLEAN, finished_rows BIGINT,
     merged BOOLEAN);
CREATE TABLE IF NOT EXISTS _etl.chunks
    (copy_id VARCHAR, chunk_id VARCHAR, row_count BIGINT, seen_lsn UBIGINT, reread BOOLEAN, snapshot VARCHAR);
CREATE TABLE IF NOT EXISTS _etl.owners (schema_name VARCHAR, table_name VARCHAR, pipeline VARCHAR);
CREATE TABLE IF NOT EXISTS _etl.schemas (schema_name VARCHAR, table_name VARCHAR, definition VARCHAR);
CREATE TABLE IF NOT EXISTS _etl.held
    (schema_name VARCHAR, table_name VARCHAR, pipeline VARCHAR, lsn UBIGINT, log VARCHAR);
"""
_OF_TABLE = "WHERE schema_name = ? AND table_name = ?"
# Without parameters, for which DuckDB would import pandas, every time that a file is opened.
_IS_PRESENT = """
SELECT 1 FROM duckdb_columns()
WHERE database_name = current_database() AND schema_name = '_etl' AND table_name = 'copies' AND column_name = 'merged'
"""
_OTHER_PIPELINE = "Give one of the pipelines another file, or publish the table in one of them only"
_STRANGE_TABLE = "Rename or drop that table, or give the pipeline another file; then re-sync it"
_OTHER_FILE = "Give the file another name, or leave the schema out"
_CHANGE_TYPE = "ENUM (" + ", ".join(f"'{value}'" for value in ChangeType) + ")"


def live_name(table: TableId) -> str:
    return quoted(table.schema, table.name)


def staging_table(table: TableId, copy_id: str) -> str:
    """Where a copy is staged: in the schema of its table, since DuckDB renames tables only within their schema."""
    return f"{table.name}__etl_{copy_id}"


def staging_name(target: CopyTarget) -> str:
    return quoted(target.table.id.schema, staging_table(target.table.id, target.copy_id))


def log_name(copy_id: str) -> str:
    return quoted(SCHEMA, f"log_{copy_id}")


def reread_name(copy_id: str) -> str:
    return quoted(SCHEMA, f"reread_{copy_id}")


@dataclass(frozen=True, slots=True)
class CopyState:
    """One row of ``_etl.copies``; ``lsn`` is the watermark of its change log.

    ``merged``: the log up to some position is in the staged rows already, and what it holds now comes after.
    """

    copy_id: str
    table: TableId
    lsn: Lsn
    truncated: bool
    finished_rows: int | None
    merged: bool


class Ledger:
    """Watermarks, schemas, copies and chunks, through one session and within the caller's transaction."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def create(self) -> None:
        self._session.run(_CREATE)
        if not self._session.rows(_IS_PRESENT):
            self._renew()

    def _renew(self) -> None:
        """Bring what older versions made to the present form."""
        self._session.run("ALTER TABLE _etl.copies ADD COLUMN merged BOOLEAN")
        self._session.run("ALTER TABLE _etl.chunks ADD COLUMN snapshot VARCHAR")
        for each in self.copies().values():
            if each.finished_rows is None:
                self._session.run(f"ALTER TABLE {log_name(each.copy_id)} ADD COLUMN xid UINTEGER")

    def columns(self, schema: str, name: str) -> list[str]:
        """Names of the columns that a table has, in their order."""
        where = "database_name = current_database() AND schema_name = ? AND table_name = ? ORDER BY column_index"
        found = self._session.rows(f"SELECT column_name FROM duckdb_columns() WHERE {where}", [schema, name])
        return [column for (column,) in found]

    def has(self, table: TableId) -> bool:
        """Whether a table of this name exists, whoever made it."""
        return self._session.has_table(live_name(table))

    def watermark(self, table: TableId) -> Lsn | None:
        """Watermark of a live table; None when it is not there, maybe dropped behind our back."""
        found = self._session.rows(f"SELECT lsn FROM _etl.watermarks {_OF_TABLE}", [table.schema, table.name])
        return Lsn(found[0][0]) if found and self.has(table) else None

    def watermarks(self) -> dict[TableId, Lsn]:
        """Watermarks of the live tables, also of those that were dropped behind our back."""
        found = self._session.rows("SELECT schema_name, table_name, lsn FROM _etl.watermarks")
        return {TableId(schema, name): Lsn(lsn) for schema, name, lsn in found}

    def present_watermarks(self) -> dict[TableId, Lsn]:
        """Watermarks of the live tables that exist."""
        sql = "SELECT schema_name, table_name FROM duckdb_tables() WHERE database_name = current_database()"
        existing = {_folded(TableId(schema, name)) for schema, name in self._session.rows(sql)}
        return {table: lsn for table, lsn in self.watermarks().items() if _folded(table) in existing}

    def set_watermark(self, table: TableId, lsn: Lsn) -> None:
        self.forget_watermark(table)
        self._session.run("INSERT INTO _etl.watermarks VALUES (?, ?, ?)", [table.schema, table.name, int(lsn)])

    def forget_watermark(self, table: TableId) -> None:
        self._session.run(f"DELETE FROM _etl.watermarks {_OF_TABLE}", [table.schema, table.name])

    def raise_watermarks(self, tables: Sequence[TableId], copies: Sequence[str], lsn: Lsn) -> None:
        """Raise the watermarks of live tables and of change logs; never lowers one."""
        names = pa.table({"s": [table.schema for table in tables], "n": [table.name for table in tables]})
        sql = (
            "UPDATE _etl.watermarks SET lsn = $1 FROM etl_tables WHERE schema_name = s AND table_name = n AND lsn < $1"
        )
        with self._session.bound(etl_tables=names):
            self._session.run(sql, [int(lsn)])
        for copy_id in copies:
            sql = "UPDATE _etl.copies SET lsn = ? WHERE copy_id = ? AND lsn < ?"
            self._session.run(sql, [int(lsn), copy_id, int(lsn)])

    def schema(self, table: TableId) -> TableSchema | None:
        """The schema that a live table has; None when an older version made it."""
        sql = f"SELECT definition FROM _etl.schemas {_OF_TABLE}"
        found = self._session.rows(sql, [table.schema, table.name])
        return _read_schema(found[0][0]) if found else None

    def set_schema(self, table: TableSchema) -> None:
        self.forget_schema(table.id)
        values = [table.id.schema, table.id.name, table.model_dump_json()]
        self._session.run("INSERT INTO _etl.schemas VALUES (?, ?, ?)", values)

    def forget_schema(self, table: TableId) -> None:
        self._session.run(f"DELETE FROM _etl.schemas {_OF_TABLE}", [table.schema, table.name])

    def copies(self) -> dict[str, CopyState]:
        """Every copy, finished or not."""
        return {copy.copy_id: copy for copy in self._copies("")}

    def find_copy(self, copy_id: str) -> CopyState | None:
        """One copy, if it has begun here."""
        return next(iter(self._copies("WHERE copy_id = ?", copy_id)), None)

    def copy(self, target: CopyTarget) -> CopyState:
        """The copy of this target, which must have begun."""
        found = self.find_copy(target.copy_id)
        if found is None or found.table != target.table.id:
            raise copy_not_begun(target)
        return found

    def _copies(self, where: str, *parameters: str) -> list[CopyState]:
        columns = "copy_id, schema_name, table_name, lsn, truncated, finished_rows, merged"
        found = self._session.rows(f"SELECT {columns} FROM _etl.copies {where}", parameters)
        return [
            CopyState(copy_id, TableId(schema, name), Lsn(lsn), truncated, rows, bool(merged))
            for copy_id, schema, name, lsn, truncated, rows, merged in found
        ]

    def owners(self) -> dict[TableId, str]:
        """The pipeline that each table belongs to."""
        found = self._session.rows("SELECT schema_name, table_name, pipeline FROM _etl.owners")
        return {TableId(schema, name): pipeline for schema, name, pipeline in found}

    def strangers(self, owner: str) -> set[TableId]:
        """Tables that belong to other pipelines."""
        return {table for table, pipeline in self.owners().items() if pipeline != owner}

    def disown(self, table: TableId) -> None:
        """Let any pipeline have the table."""
        self._session.run(f"DELETE FROM _etl.owners {_OF_TABLE}", [table.schema, table.name])

    def _own(self, table: TableId, owner: str) -> None:
        self.disown(table)
        self._session.run("INSERT INTO _etl.owners VALUES (?, ?, ?)", [table.schema, table.name, owner])

    def begin_copy(self, target: CopyTarget, owner: str) -> None:
        """Create the staging area and the change log of a copy; other copies of the table go."""
        table, copy_id = target.table, target.copy_id
        self.require_admissible(table, owner)
        self._own(table.id, owner)
        self.forget_copies(table.id)
        self._session.run(f"CREATE SCHEMA IF NOT EXISTS {quoted(table.id.schema)}")
        self._create_table(staging_name(target), landed_schema(table))
        self._create_table(log_name(copy_id), change_schema(table))
        self._create_table(reread_name(copy_id), reread_schema(table))
        sql = "INSERT INTO _etl.copies VALUES (?, ?, ?, 0, false, NULL, false)"
        self._session.run(sql, [copy_id, table.id.schema, table.id.name])

    def create_live(self, table: TableSchema, owner: str) -> None:
        """Create an empty live table."""
        self.require_admissible(table, owner)
        self._own(table.id, owner)
        self._session.run(f"CREATE SCHEMA IF NOT EXISTS {quoted(table.id.schema)}")
        self._create_table(live_name(table.id), landed_schema(table))
        self.set_watermark(table.id, Lsn(0))
        self.set_schema(table)

    def require_admissible(self, table: TableSchema, owner: str) -> None:
        """Raise `TableError` for a table that cannot be mirrored here."""
        require_mergeable(table)
        require_column_names(table, fold=fold_ascii)
        if fold_ascii(table.id.schema) == SCHEMA:
            raise _unusable(table.id, f"the schema {SCHEMA} holds the destination's own tables")
        if fold_ascii(table.id.schema) in self._databases():
            raise _unusable(
                table.id, f"DuckDB has a database called {table.id.schema}, as it calls a file by its name", _OTHER_FILE
            )
        if (other_owner := self._owner(table.id)) not in (None, owner):
            raise _unusable(table.id, f"the pipeline {other_owner} replicates into it", _OTHER_PIPELINE)
        known = self._namesakes(table.id)
        if not known and self.has(table.id):
            raise _unusable(table.id, "a table of this name is there that no pipeline made", _STRANGE_TABLE)
        for other in known - {table.id}:
            raise _unusable(table.id, f"DuckDB ignores case and {other} is there already")

    def _namesakes(self, table: TableId) -> set[TableId]:
        """Tables of pipelines, the table itself too, that DuckDB takes for it."""
        same = "lower(schema_name) = lower($1) AND lower(table_name) = lower($2)"
        names = "SELECT schema_name, table_name FROM"
        found = self._session.rows(
            f"{names} _etl.copies WHERE {same} UNION {names} _etl.watermarks WHERE {same}", [table.schema, table.name]
        )
        return {TableId(*name) for name in found if _folded(TableId(*name)) == _folded(table)}

    def _owner(self, table: TableId) -> str | None:
        found = self._session.rows(f"SELECT pipeline FROM _etl.owners {_OF_TABLE}", [table.schema, table.name])
        return str(found[0][0]) if found else None

    def _databases(self) -> set[str]:
        """Folded names that stand for a database when they come first in a qualified name."""
        return {fold_ascii(name) for (name,) in self._session.rows("SELECT database_name FROM duckdb_databases()")}

    def forget_copies(self, table: TableId) -> None:
        """Drop every copy of a table, finished or not."""
        for each in self._copies(_OF_TABLE, table.schema, table.name):
            self._session.run(f"DROP TABLE IF EXISTS {quoted(table.schema, staging_table(table, each.copy_id))}")
            self.drop_log(each.copy_id)
            self._session.run("DELETE FROM _etl.chunks WHERE copy_id = ?", [each.copy_id])
            self._session.run("DELETE FROM _etl.copies WHERE copy_id = ?", [each.copy_id])

    def drop_log(self, copy_id: str) -> None:
        self._session.run(f"DROP TABLE IF EXISTS {log_name(copy_id)}")
        self._session.run(f"DROP TABLE IF EXISTS {reread_name(copy_id)}")

    def truncate_copy(self, copy_id: str) -> None:
        """Forget the log; the staged rows are left out when the copy finishes, also those that are still to come."""
        self._session.run(f"TRUNCATE {log_name(copy_id)}")
        self._session.run("UPDATE _etl.copies SET truncated = true WHERE copy_id = ?", [copy_id])

    def merge_copy(self, copy_id: str) -> None:
        """The log is in the staged rows now."""
        self._session.run(f"TRUNCATE {log_name(copy_id)}")
        self._session.run(f"TRUNCATE {reread_name(copy_id)}")
        self._session.run("UPDATE _etl.copies SET merged = true, truncated = false WHERE copy_id = ?", [copy_id])

    def finish_copy(self, copy_id: str, rows: int) -> None:
        self.drop_log(copy_id)
        self._session.run("UPDATE _etl.copies SET finished_rows = ? WHERE copy_id = ?", [rows, copy_id])

    def chunk_rows(self, copy_id: str, chunk_id: str) -> int | None:
        sql = "SELECT row_count FROM _etl.chunks WHERE copy_id = ? AND chunk_id = ?"
        found = self._session.rows(sql, [copy_id, chunk_id])
        return int(found[0][0]) if found else None

    def add_chunk(self, copy_id: str, chunk: ChunkRows, rows: int) -> None:
        values = [copy_id, chunk.chunk_id, rows, int(chunk.seen_lsn), chunk.reread, chunk.snapshot]
        self._session.run("INSERT INTO _etl.chunks VALUES (?, ?, ?, ?, ?, ?)", values)

    def staged_rows(self, copy_id: str) -> tuple[int, int]:
        """Rows that a copy has staged apart from those that were read again, and how often that was done."""
        counts = "coalesce(sum(row_count) FILTER (WHERE NOT reread), 0)::BIGINT, count(*) FILTER (WHERE reread)"
        rows, rereads = self._session.rows(f"SELECT {counts} FROM _etl.chunks WHERE copy_id = ?", [copy_id])[0]
        return int(rows), int(rereads)

    def snapshot(self, copy_id: str) -> str:
        """What the one chunk of a changelog's copy was read by; empty when nothing is staged."""
        found = self._session.rows("SELECT snapshot FROM _etl.chunks WHERE copy_id = ? AND NOT reread", [copy_id])
        return str(found[0][0] or "") if found else ""

    def _create_table(self, name: str, schema: pa.Schema) -> None:
        columns = ", ".join(f"{quoted(field.name)} {_column_type(field)}" for field in schema)
        self._session.run(f"CREATE TABLE {name} ({columns})")


@lru_cache(maxsize=1024)
def _read_schema(definition: str) -> TableSchema:
    return TableSchema.model_validate_json(definition)


def reread_schema(table: TableSchema) -> pa.Schema:
    """Arrow schema of rows that were read again, by position like the change log."""
    fields = [pa.field(f"c{i}", field.type) for i, field in enumerate(arrow_schema(table))]
    return pa.schema([*fields, pa.field("seen_lsn", pa.uint64())])


def _column_type(field: pa.Field) -> str:
    # Few values for ever: an enum of one byte, where text would be hashed, counted and compressed for each row.
    return _CHANGE_TYPE if field.name == CHANGE_TYPE_COLUMN else duckdb_type(field.type)


def _folded(table: TableId) -> tuple[str, str]:
    return fold_ascii(table.schema), fold_ascii(table.name)


def _unusable(table: TableId, why: str, hint: str = "Rename the table or leave it out") -> TableError:
    return TableError(f"{table} cannot be mirrored: {why}", hint=hint, table=str(table))
