"""Proof that a destination holds what the source holds, with PostgreSQL as the judge.

The destination's rows are loaded into a temporary table of the source table's own types, and set differences are taken
both ways in one snapshot; so it is PostgreSQL's idea of equality that counts, not ours.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.csv as pa_csv
from psycopg import sql

from etl_dagster.arrow import column_type, reads_text
from etl_dagster.model import Column, TableSchema, TypeKind, ValuePolicy
from etl_dagster.postgres.chunks import as_text
from etl_dagster.postgres.config import PostgresConfig
from etl_dagster.postgres.errors import translating
from etl_dagster.postgres.sessions import Connection, Purpose, connect, fetch_one
from etl_dagster.postgres.text import to_text

SAMPLE_ROWS = 5
_JSON = 114  # has no equality
# What json may have and jsonb has not is the character of number 0.
_JSON_VALUE = sql.SQL(r"to_jsonb(replace({}::text, '\u0000', '\uFFFD')::{})")
_STAGED = sql.Identifier("pg_temp", "compared_rows")


@dataclass(frozen=True, slots=True)
class Difference:
    """What a destination lacks, what it has too much, and some keys of either.

    Rows that differ count on both sides. Without a key the sample holds whole rows.
    """

    missing: int
    extra: int
    rows: int = 0
    sample_keys: tuple[str, ...] = ()

    @property
    def equal(self) -> bool:
        """Both hold the same rows, each as often."""
        return self.missing == 0 and self.extra == 0


def compare_table(
    config: PostgresConfig, table: TableSchema, rows: Iterable[pa.RecordBatch], *, json_text: bool = True
) -> Difference:
    """Compare a table with rows that have at least its columns, found by name.

    Args:
        json_text: JSON has to be the same to the letter, not only by its value.

    Raises:
        SourceError: The source refuses, or a value is not one that the column could hold.
    """
    name = str(table.id)
    with connect(config, Purpose.COPY) as connection:
        with translating(f"cannot compare table {name}", config.secrets(), table=name):
            connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SET LOCAL row_security = off")
            _stage(connection, table, rows)
            difference = _differ(connection, table, json_text=json_text)
            connection.execute("ROLLBACK")
        return difference


def _stage(connection: Connection, table: TableSchema, rows: Iterable[pa.RecordBatch]) -> None:
    names = sql.SQL(", ").join(sql.Identifier(column.name) for column in table.columns)
    connection.execute(
        sql.SQL("CREATE TEMP TABLE compared_rows ON COMMIT DROP AS SELECT {} FROM {} WHERE false").format(
            sql.SQL(", ").join(map(_staged, table.columns)), sql.Identifier(*table.id)
        )
    )
    copy_in = sql.SQL("COPY {} ({}) FROM STDIN (FORMAT csv)").format(_STAGED, names)
    with connection.cursor() as cursor, cursor.copy(copy_in) as copy:
        for batch in rows:
            copy.write(_csv(batch, table))
    connection.execute(sql.SQL("ANALYZE {}").format(_STAGED))


def _staged(column: Column) -> sql.Composable:
    """A column of the same type, or of text where text is what we hold: not every type reads what it prints."""
    name = sql.Identifier(column.name)
    return sql.SQL("NULL::text AS {}").format(name) if _is_held_as_text(column) else name


def _is_held_as_text(column: Column) -> bool:
    return reads_text(column) or (column.values is ValuePolicy.TEXT and column_type(column) == pa.utf8())


def _csv(batch: pa.RecordBatch, table: TableSchema) -> bytes:
    texts = [to_text(batch.column(column.name)) for column in table.columns]
    sink = io.BytesIO()
    # Every value in quotes, so that an empty string is not taken for NULL.
    options = pa_csv.WriteOptions(include_header=False, quoting_style="all_valid")
    pa_csv.write_csv(pa.RecordBatch.from_arrays(texts, names=[str(n) for n in range(len(texts))]), sink, options)
    return sink.getvalue()


def _differ(connection: Connection, table: TableSchema, *, json_text: bool) -> Difference:
    selected = sql.SQL(", ").join(_comparable(column, json_text=json_text) for column in table.columns)
    condition = sql.SQL(" WHERE {}").format(sql.SQL(table.row_filter)) if table.row_filter else sql.SQL("")
    kind = fetch_one(connection, "SELECT relkind FROM pg_class WHERE oid = %s", [table.oid])[0]
    only = sql.SQL("") if kind == "p" else sql.SQL("ONLY ")
    theirs = sql.SQL("SELECT {} FROM {}{} AS t{}").format(selected, only, sql.Identifier(*table.id), condition)
    ours = sql.SQL("SELECT {} FROM {} AS t").format(selected, _STAGED)
    missing, some = _except(connection, table, theirs, ours)
    extra, others = _except(connection, table, ours, theirs)
    total = connection.execute(sql.SQL("SELECT count(*) FROM {}").format(_STAGED)).fetchone()
    keys = dict.fromkeys([*some, *others])
    return Difference(missing, extra, total[0] if total else 0, tuple(keys)[:SAMPLE_ROWS])


def _except(
    connection: Connection, table: TableSchema, left: sql.Composable, right: sql.Composable
) -> tuple[int, list[str]]:
    shown = sql.SQL(", ").join(sql.Identifier(f"c{column.attnum}") for column in table.key or table.columns)
    query = sql.SQL(
        "WITH d AS MATERIALIZED ({} EXCEPT ALL {}) "
        "SELECT (SELECT count(*) FROM d), array(SELECT ROW({})::text FROM d LIMIT {})"
    ).format(left, right, shown, SAMPLE_ROWS)
    row = connection.execute(query).fetchone()
    assert row is not None
    return row[0], row[1]


def _comparable(column: Column, *, json_text: bool) -> sql.Composed:
    value: sql.Composable = sql.Identifier("t", column.name)
    if _is_held_as_text(column) or (_is_json(column) and json_text):
        value = as_text(value)
    elif _is_json(column):
        is_array = column.type.kind is TypeKind.ARRAY
        value = _JSON_VALUE.format(value, sql.SQL("json[]" if is_array else "json"))
    return sql.SQL("{} AS {}").format(value, sql.Identifier(f"c{column.attnum}"))


def _is_json(column: Column) -> bool:
    """Of the type that has no equality, or an array of it."""
    kind = column.type
    element = kind.element if kind.kind is TypeKind.ARRAY and kind.element else kind
    return element.oid == _JSON
