"""Copying a table: ranges of heap blocks, each read under a snapshot of its own, and rows read by key."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import datetime

import pyarrow as pa
from psycopg import sql

from etl_dagster.arrow import arrow_schema, read_column, reads_text
from etl_dagster.arrow.sample import tell_row
from etl_dagster.errors import TableError, ValueUnrepresentable
from etl_dagster.model import ChunkPlan, Column, Landing, Lsn, Slice, TableSchema
from etl_dagster.pgwire import Frames, split_copy_rows
from etl_dagster.postgres.copy_out import CopyOut
from etl_dagster.postgres.sessions import Connection, fetch_one
from etl_dagster.postgres.text import to_text

# Keys of one COPY statement: the parser's time grows with the text, and a round trip costs little.
KEYS_PER_STATEMENT = 5000

_RELATIONS = """
SELECT c.oid, coalesce(pg_relation_filenode(c.oid), 0),
       coalesce(pg_relation_size(c.oid), 0) / current_setting('block_size')::int,
       CASE WHEN c.relpages > 0 AND c.reltuples > 0 THEN c.reltuples / c.relpages ELSE 0 END
FROM pg_class c
WHERE c.relkind = 'r' AND (c.oid = %(table)s OR c.oid IN (SELECT relid FROM pg_partition_tree(%(table)s) WHERE isleaf))
"""
_BLOCK_SIZE = "SELECT current_setting('block_size')::int"
# A statement's snapshot is taken before anything in it runs, so the position is not before what the snapshot sees. On a
# standby a commit is visible a moment before it counts as replayed.
_SNAPSHOT = """
SELECT pg_current_snapshot()::text, clock_timestamp(),
       CASE WHEN pg_is_in_recovery() THEN greatest(pg_last_wal_replay_lsn(), pg_last_wal_receive_lsn())
            ELSE pg_current_wal_insert_lsn() END - '0/0'::pg_lsn
"""
_NAME = """
SELECT n.nspname, c.relname, c.relkind = 'p'
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = %s
"""

StartCopy = Callable[[sql.Composable], CopyOut]


def plan_chunks(
    connection: Connection, table: TableSchema, chunk_bytes: int, slices: Sequence[Slice] = ()
) -> list[ChunkPlan]:
    """Ranges that together cover the table, largest first.

    A table that lands as a changelog is one range, read as a whole under one snapshot: which changes are in a row that
    was copied is then known exactly.
    """
    step = max(1, chunk_bytes // fetch_one(connection, _BLOCK_SIZE)[0])
    relations = connection.execute(_RELATIONS, {"table": table.oid}).fetchall()
    if not relations:
        _relation_name(connection, table, table.oid)  # it is there, only without partitions
    if table.landing is Landing.CHANGELOG:
        rows = sum(round(density * blocks) for _, _, blocks, density in relations)
        return [ChunkPlan(table.oid, 0, 0, None, rows)]
    plans = [
        (min(step, blocks - plan.first_block), plan)
        for oid, filenode, blocks, density in relations
        for plan in _ranges((oid, filenode), blocks, density, step)
    ]
    return [plan for _, plan in sorted(plans, key=lambda sized: sized[0], reverse=True)]


def plan_ranges(
    connection: Connection, table: TableSchema, column: Column, rows: int, after: str | None = None
) -> list[str]:
    """See `etl_dagster.replication.ports.Source.plan_ranges`."""
    return []


def _ranges(file: tuple[int, int], blocks: int, density: float, step: int) -> Iterator[ChunkPlan]:
    starts = range(0, max(1, blocks), step)
    for first in starts:
        last = first + step if first != starts[-1] else None
        yield ChunkPlan(*file, first, last, round(density * (min(first + step, blocks) - first)))


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
    """Read one range of blocks of the table or of one of its leaf partitions, or all of a changelog's table."""
    whole = table.landing is Landing.CHANGELOG
    lock = _relation_name(connection, table, plan.relation)[0] if whole else None
    with _transaction(connection, lock):
        name, is_partitioned = _relation_name(connection, table, plan.relation)
        source = name if is_partitioned else sql.SQL("ONLY {}").format(name)
        statement = _copy(table, source, None if whole else _block_range(plan.first_block, plan.last_block))
        with closing(ChunkReader(connection, table, [statement], start, None if whole else plan.relation)) as reader:
            yield reader


@contextmanager
def read_keys(connection: Connection, table: TableSchema, keys: pa.Table, start: StartCopy) -> Iterator[ChunkReader]:
    """Read the rows with these keys, all under one snapshot."""
    with _transaction(connection):
        name, is_partitioned = _relation_name(connection, table, table.oid)
        relation = name if is_partitioned else sql.SQL("ONLY {}").format(name)
        statements = [_copy(table, relation, condition) for condition in _key_conditions(table, keys)]
        with closing(ChunkReader(connection, table, statements, start)) as reader:
            yield reader


@contextmanager
def _transaction(connection: Connection, lock: sql.Composable | None = None) -> Iterator[None]:
    # Row-level security would leave rows out without a word, which the stream does not; so it has to be an error.
    connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET LOCAL row_security = off")
    if lock is not None:
        # A truncate empties the table for older snapshots too. With the lock before the snapshot, none comes between.
        connection.execute(sql.SQL("LOCK TABLE {} IN ACCESS SHARE MODE").format(lock))
    yield
    if not connection.closed:
        connection.execute("COMMIT")


def _relation_name(connection: Connection, table: TableSchema, relation: int) -> tuple[sql.Composable, bool]:
    row = connection.execute(_NAME, [relation]).fetchone()
    if row is None:
        raise TableError(
            f"table {table.id} or a partition of it no longer exists", hint="Copy it again", table=str(table.id)
        )
    return sql.Identifier(str(row[0]), str(row[1])), bool(row[2])


def _copy(table: TableSchema, relation: sql.Composable, condition: sql.Composable | None) -> sql.Composed:
    conditions = [condition or sql.SQL("true")]
    if table.row_filter is not None:
        conditions.append(sql.SQL("({})").format(sql.SQL(table.row_filter)))
    return sql.SQL("COPY (SELECT {} FROM {} AS t WHERE {}) TO STDOUT (FORMAT binary)").format(
        sql.SQL(", ").join(map(select_expression, table.columns)), relation, sql.SQL(" AND ").join(conditions)
    )


def select_expression(column: Column) -> sql.Composable:
    """The column, or its text where we do not read its binary form."""
    name = sql.Identifier("t", column.name)
    return as_text(name) if reads_text(column) else name


def as_text(value: sql.Composable) -> sql.Composed:
    """The text that the type's output function gives, as the stream has it: casts of inet or char(n) differ from it."""
    return sql.SQL("CASE WHEN {0} IS DISTINCT FROM NULL THEN concat({0}) END").format(value)


def _block_range(first: int, last: int | None) -> sql.Composable:
    conditions: list[sql.Composable] = [sql.SQL("ctid >= {}::tid").format(sql.Literal(f"({first},0)"))]
    if last is not None:
        conditions.append(sql.SQL("ctid < {}::tid").format(sql.Literal(f"({last},0)")))
    return sql.SQL(" AND ").join(conditions)


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
