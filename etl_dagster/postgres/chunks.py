"""Copying a table: ranges of heap blocks or slices, each read under a snapshot of its own, and rows read by key."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import datetime

import pyarrow as pa
from psycopg import sql

from etl_dagster.arrow import arrow_schema, read_column, reads_text
from etl_dagster.arrow.sample import tell_row
from etl_dagster.errors import ValueUnrepresentable
from etl_dagster.model import ChunkPlan, Column, Landing, Lsn, TableSchema
from etl_dagster.pgwire import Frames, split_copy_rows
from etl_dagster.postgres.copy_out import CopyOut
from etl_dagster.postgres.heaps import name_of, rows_of
from etl_dagster.postgres.sessions import Connection, fetch_one
from etl_dagster.postgres.slices import condition
from etl_dagster.postgres.text import to_text

# Keys of one COPY statement: the parser's time grows with the text, and a round trip costs little.
KEYS_PER_STATEMENT = 5000

# A statement's snapshot is taken before anything in it runs, so the position is not before what the snapshot sees. On a
# standby a commit is visible a moment before it counts as replayed.
_SNAPSHOT = """
SELECT pg_current_snapshot()::text, clock_timestamp(),
       CASE WHEN pg_is_in_recovery() THEN greatest(pg_last_wal_replay_lsn(), pg_last_wal_receive_lsn())
            ELSE pg_current_wal_insert_lsn() END - '0/0'::pg_lsn
"""
# What is told of an object comes from the newest catalogue, whatever the snapshot, which has the names of its time.
_NAMES_KEPT = """
SELECT coalesce(bool_and(right(known.identity, length(quote_ident(c.name)) + 1) = '.' || quote_ident(c.name)), false)
FROM (SELECT %s::oid AS relation) t CROSS JOIN unnest(%s::int[], %s::text[]) c(attnum, name)
LEFT JOIN LATERAL pg_identify_object('pg_class'::regclass, t.relation, c.attnum) known ON true
"""

StartCopy = Callable[[sql.Composable], CopyOut]


class ChunkReader:
    """The rows of some statements under one snapshot, and when and where it was taken; iterate once."""

    def __init__(
        self,
        connection: Connection,
        table: TableSchema,
        statements: Sequence[sql.Composable],
        start: StartCopy,
        relation: int | None = None,
    ) -> None:
        self.replaced: Counter[str] = Counter()
        self._connection = connection
        self._table = table
        self._relation = relation
        snapshot, taken_at, seen_lsn = fetch_one(connection, _SNAPSHOT)
        self.snapshot: str = snapshot
        self.taken_at: datetime = taken_at
        self.seen_lsn = Lsn(seen_lsn)
        self._batches = _read(table, statements, start, self.replaced)

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        return self._batches

    @property
    def filenode(self) -> int:
        """File that was read, 0 where none matters; asked for while the lock of the read still keeps it as it is."""
        if self._relation is None:
            return 0
        found = fetch_one(self._connection, "SELECT coalesce(pg_relation_filenode(%s::oid), 0)", [self._relation])
        return int(found[0])

    @property
    def has_its_names(self) -> bool:
        """Whether columns were read by names that they had, asked for under the same lock."""
        parameters = [
            [column.attnum for column in self._table.columns],
            [column.name for column in self._table.columns],
        ]
        return bool(fetch_one(self._connection, _NAMES_KEPT, [self._table.oid, *parameters])[0])

    def close(self) -> None:
        """Stop reading."""
        self._batches.close()


def _read(
    table: TableSchema, statements: Sequence[sql.Composable], start: StartCopy, replaced: Counter[str]
) -> Generator[pa.RecordBatch, None, None]:
    schema = arrow_schema(table)
    for statement in statements:
        with start(statement) as frames:
            for block in frames:
                yield _decode(block, table, schema, replaced)


def _decode(frames: Frames, table: TableSchema, schema: pa.Schema, replaced: Counter[str]) -> pa.RecordBatch:
    fields = split_copy_rows(frames, len(table.columns))
    columns = list(zip(table.columns, fields, strict=True))
    try:
        arrays = [read_column(column, values, text=reads_text(column), replaced=replaced) for column, values in columns]
    except ValueUnrepresentable as error:
        tell_row(error, table, lambda key: (fields[table.columns.index(key)], reads_text(key)))
        raise
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


@contextmanager
def read_chunk(
    connection: Connection,
    table: TableSchema,
    plan: ChunkPlan,
    start: StartCopy,
) -> Iterator[ChunkReader]:
    """Read one range of blocks or some slices of the table or of a leaf partition, or all of a changelog's table."""
    whole = table.landing is Landing.CHANGELOG
    with _transaction(connection, name_of(connection, table, plan.relation)[0] if whole else None):
        conditions = list(_block_range(plan))
        if plan.slices:
            conditions.append(condition(connection, table, plan.slices))
        relations = (plan.relation, *plan.more)
        statements = [_copy(table, rows_of(connection, table, each), conditions) for each in relations]
        file = plan.relation if plan.filenode else None
        with closing(ChunkReader(connection, table, statements, start, file)) as reader:
            yield reader


@contextmanager
def read_keys(connection: Connection, table: TableSchema, keys: pa.Table, start: StartCopy) -> Iterator[ChunkReader]:
    """Read the rows with these keys, all under one snapshot."""
    with _transaction(connection):
        rows = rows_of(connection, table, table.oid)
        statements = [_copy(table, rows, [wanted]) for wanted in _key_conditions(table, keys)]
        with closing(ChunkReader(connection, table, statements, start)) as reader:
            yield reader


@contextmanager
def _transaction(connection: Connection, lock: sql.Composable | None = None) -> Iterator[None]:
    # Row-level security would leave rows out without a word, which the stream does not; so it has to be an error.
    # How many processes read at once is said by how many chunks are.
    connection.execute(
        "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET LOCAL row_security = off;"
        "SET LOCAL max_parallel_workers_per_gather = 0"
    )
    if lock is not None:
        # A truncate empties the table for older snapshots too. With the lock before the snapshot, none comes between.
        connection.execute(sql.SQL("LOCK TABLE {} IN ACCESS SHARE MODE").format(lock))
    yield
    if not connection.closed:
        connection.execute("COMMIT")


def _copy(table: TableSchema, rows: sql.Composable, conditions: Sequence[sql.Composable]) -> sql.Composed:
    conditions = [*conditions, *([] if table.row_filter is None else [sql.SQL(table.row_filter)])] or [sql.SQL("true")]
    return sql.SQL("COPY (SELECT {} FROM {} AS t WHERE {}) TO STDOUT (FORMAT binary)").format(
        sql.SQL(", ").join(map(select_expression, table.columns)),
        rows,
        sql.SQL(" AND ").join(sql.SQL("({})").format(wanted) for wanted in conditions),
    )


def select_expression(column: Column) -> sql.Composable:
    """The column, or its text where we do not read its binary form."""
    name = sql.Identifier("t", column.name)
    return as_text(name) if reads_text(column) else name


def as_text(value: sql.Composable) -> sql.Composed:
    """The text that the type's output function gives, as the stream has it: casts of inet or char(n) differ from it."""
    return sql.SQL("CASE WHEN {0} IS DISTINCT FROM NULL THEN concat({0}) END").format(value)


def _block_range(plan: ChunkPlan) -> Iterator[sql.Composable]:
    for operator, block in ((">=", plan.first_block or None), ("<", plan.last_block)):
        if block is not None:
            yield sql.SQL("ctid {} {}::tid").format(sql.SQL(operator), sql.Literal(f"({block},0)"))


def _key_conditions(table: TableSchema, keys: pa.Table) -> Iterator[sql.Composable]:
    texts = [to_text(keys.column(place).combine_chunks()) for place in range(len(table.key))]
    for first in range(0, keys.num_rows, KEYS_PER_STATEMENT):
        values = [text.slice(first, KEYS_PER_STATEMENT).to_pylist() for text in texts]
        yield _key_condition(table.key, values)


def _key_condition(key: Sequence[Column], values: Sequence[list[str]]) -> sql.Composed:
    # COPY takes no parameters, so the keys are literals.
    places = [sql.Identifier(f"k{place}") for place in range(len(key))]
    return sql.SQL("({}) IN (SELECT {} FROM unnest({}) AS k({}))").format(
        sql.SQL(", ").join(sql.Identifier("t", column.name) for column in key),
        sql.SQL(", ").join(
            sql.SQL("{}::{}").format(place, sql.SQL(column.type.name))
            for place, column in zip(places, key, strict=True)
        ),
        sql.SQL(", ").join(sql.SQL("{}::text[]").format(sql.Literal(texts)) for texts in values),
        sql.SQL(", ").join(places),
    )
