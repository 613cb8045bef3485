"""Copying in ranges of blocks under snapshots, and reading rows by key."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import psycopg
import pyarrow as pa
import pytest

from etl_dagster.errors import ErrorKind, EtlError
from etl_dagster.model import ChunkPlan, Landing, TableId, TableSchema, ValuePolicy
from etl_dagster.postgres import PostgresSource
from etl_dagster.postgres.chunks import ChunkReader
from tests.conftest import Connect
from tests.postgres.conftest import MakeSource, source_config


def published(source: PostgresSource, name: str = "t", schema: str = "public") -> TableSchema:
    source.prepare_publication()
    return source.tables()[TableId(schema, name)]


def whole(table: TableSchema) -> ChunkPlan:
    """All of a table in one chunk."""
    return ChunkPlan(table.oid, 0, 0, None, 0)


def read_all(source: PostgresSource, table: TableSchema, chunk_bytes: int = 1 << 20) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for plan in source.plan_chunks(table, chunk_bytes):
        with source.read_chunk(table, plan) as reader:
            rows += [row for batch in reader for row in batch.to_pylist()]
    return rows


def test_ranges_cover_the_table_and_rows_come_once(connect: Connect, source: PostgresSource) -> None:
    connect().execute(
        "create table t(id int primary key, v text);"
        "insert into t select i, repeat('x', 200) from generate_series(1, 20000) i; analyze t"
    )
    table = published(source)

    plans = source.plan_chunks(table, 1 << 20)

    assert len(plans) > 3
    assert [plan.last_block for plan in plans].count(None) == 1
    assert sum(plan.rows for plan in plans) == pytest.approx(20000, rel=0.1)
    assert sorted(row["id"] for row in read_all(source, table)) == list(range(1, 20001))


def test_the_last_range_takes_in_what_is_appended_later(connect: Connect, source: PostgresSource) -> None:
    admin = connect()
    admin.execute("create table t(id int primary key, v text); insert into t values (0, '')")
    table = published(source)
    (plan,) = source.plan_chunks(table, 8192)
    admin.execute("insert into t select i, repeat('x', 500) from generate_series(1, 1000) i")

    with source.read_chunk(table, plan) as reader:
        assert sum(batch.num_rows for batch in reader) == 1001


def test_an_empty_table_is_one_range_without_rows(connect: Connect, source: PostgresSource) -> None:
    connect().execute("create table t(id int primary key)")
    table = published(source)

    assert [(p.first_block, p.last_block, p.rows) for p in source.plan_chunks(table, 8192)] == [(0, None, 0)]
    assert read_all(source, table) == []


def test_the_position_covers_what_the_snapshot_sees(connect: Connect, source: PostgresSource) -> None:
    admin = connect()
    admin.execute("create table t(id int primary key); insert into t values (1)")
    table = published(source)
    before = admin.execute("select pg_current_wal_insert_lsn() - '0/0'").fetchone()
    with source.read_chunk(table, source.plan_chunks(table, 1 << 30)[0]) as reader:
        admin.execute("insert into t values (2)")

        assert [row["id"] for batch in reader for row in batch.to_pylist()] == [1]
        assert before is not None
        assert reader.seen_lsn >= before[0]
        assert reader.seen_lsn < source.current_position()
        assert abs((datetime.now(UTC) - reader.taken_at).total_seconds()) < 60


def test_a_rewrite_shows_in_the_filenode(connect: Connect, source: PostgresSource) -> None:
    admin = connect()
    admin.execute("create table t(id int primary key); insert into t select generate_series(1, 100)")
    table = published(source)
    (plan,) = source.plan_chunks(table, 1 << 20)
    with source.read_chunk(table, plan) as reader:
        list(reader)
        assert reader.filenode == plan.filenode != 0
    admin.execute("vacuum full t")
    with source.read_chunk(table, plan) as reader:
        assert sum(batch.num_rows for batch in reader) == 100
        assert reader.filenode != plan.filenode


def test_partitions_of_other_column_order_are_read_by_name(connect: Connect, source: PostgresSource) -> None:
    connect().execute(
        "create table r(id int, v text, w int, primary key (id)) partition by range (id);"
        "create table r1 partition of r for values from (0) to (10);"
        "create table r2(gone int, w int, v text, id int not null); alter table r2 drop column gone;"
        "alter table r attach partition r2 for values from (10) to (20);"
        "create table deep partition of r for values from (20) to (40) partition by range (id);"
        "create table deeper partition of deep for values from (20) to (30);"
        "insert into r select i, 'v' || i, i * 2 from generate_series(0, 29) i"
    )
    table = published(source, "r")

    rows = read_all(source, table)

    assert len(source.plan_chunks(table, 1 << 20)) == 3
    assert sorted(rows, key=lambda row: row["id"]) == [{"id": i, "v": f"v{i}", "w": i * 2} for i in range(30)]


def test_inherited_rows_belong_to_the_child(connect: Connect, source: PostgresSource) -> None:
    connect().execute(
        "create table t(id int primary key); create table child() inherits (t);"
        "insert into t values (1); insert into child values (2)"
    )
    table = published(source)

    assert read_all(source, table) == [{"id": 1}]
    with source.read_keys(table, pa.table({"id": pa.array([1, 2], pa.int32())})) as reader:
        assert [row for batch in reader for row in batch.to_pylist()] == [{"id": 1}]


@pytest.mark.since(15)
def test_row_filter_and_column_list_apply(connect: Connect, source: PostgresSource) -> None:
    connect().execute(
        "create schema f; create function f.big(i int) returns bool immutable language sql as 'select i > 3';"
        "create table t(id int primary key, a text, secret text);"
        "insert into t select i, 'a', 's' from generate_series(1, 5) i;"
        "create publication p for table t (id, a) where (id > 3 and a = 'a')"
    )
    table = published(source)

    assert read_all(source, table) == [{"id": 4, "a": "a"}, {"id": 5, "a": "a"}]
    with source.read_keys(table, pa.table({"id": pa.array([1, 5], pa.int32())})) as reader:
        assert [row for batch in reader for row in batch.to_pylist()] == [{"id": 5, "a": "a"}]


def test_types_without_a_binary_decoder_arrive_as_printed(connect: Connect, source: PostgresSource) -> None:
    connect().execute(
        "create type pair as (a int, b text); create table t(id int primary key, n inet, p pair, h xid);"
        "insert into t values (1, '10.0.0.1', '(1,\"x y\")', '7'), (2, null, null, null), (3, '::1', '(,)', '8')"
    )
    table = published(source)

    assert read_all(source, table) == [
        {"id": 1, "n": "10.0.0.1", "p": '(1,"x y")', "h": "7"},
        {"id": 2, "n": None, "p": None, "h": None},
        {"id": 3, "n": "::1", "p": "(,)", "h": "8"},
    ]


def test_odd_names_are_quoted(connect: Connect, source: PostgresSource) -> None:
    connect().execute(
        'create schema "Sch ""ema"; create table "Sch ""ema"."列 ж % le"'
        ' ("Id ""x"" %s" int primary key, "SELECT" text);'
        'insert into "Sch ""ema"."列 ж % le" values (1, \'a\')'
    )
    table = published(source, "列 ж % le", 'Sch "ema')

    assert read_all(source, table) == [{'Id "x" %s': 1, "SELECT": "a"}]
    with source.read_keys(table, pa.table({"k": pa.array([1], pa.int32())})) as reader:
        assert sum(batch.num_rows for batch in reader) == 1


@pytest.mark.parametrize("through_libpq", [False, True])
def test_keys_of_many_types_find_their_rows(connect: Connect, make_source: MakeSource, through_libpq: bool) -> None:
    connect().execute(
        "create domain code as varchar(20); create type mood as enum ('sad', 'ok');"
        "create table t(c code, n numeric, z timestamptz, u uuid, y bytea, m mood, b bool, d date,"
        " primary key (c, n, z, u, y, m, b, d));"
        "insert into t select 'it''s \"' || i, i / 10.0, timestamptz '2024-01-01' + i * interval '1 us',"
        " lpad(i::text, 32, '0')::uuid, ('\\x' || lpad(i::text, 4, '0'))::bytea, 'ok', i % 2 = 0, 'infinity'"
        " from generate_series(1, 12000) i"
    )
    source = make_source(through_libpq=through_libpq)
    table = published(source)
    everything = pa.Table.from_pylist([])
    with source.read_chunk(table, whole(table)) as reader:
        everything = pa.Table.from_batches(list(reader))
    keys = everything.take(list(range(0, 12000, 2)))

    with source.read_keys(table, keys) as reader:
        found = pa.Table.from_batches(list(reader))
        assert reader.filenode == 0

    assert found.sort_by("n").equals(keys.sort_by("n"))


def test_no_keys_find_nothing(connect: Connect, source: PostgresSource) -> None:
    connect().execute("create table t(id int primary key); insert into t values (1)")
    table = published(source)

    with source.read_keys(table, pa.table({"id": pa.array([], pa.int32())})) as reader:
        assert list(reader) == []
        assert reader.seen_lsn > 0


def test_chunks_are_read_beside_each_other(connect: Connect, source: PostgresSource) -> None:
    connect().execute(
        "create table t(id int primary key, v text);"
        "insert into t select i, repeat('x', 200) from generate_series(1, 30000) i"
    )
    table = published(source)

    def count(plan: Any) -> int:
        with source.read_chunk(table, plan) as reader:
            return sum(batch.num_rows for batch in reader)

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(count, source.plan_chunks(table, 1 << 20))) == 30000


def test_a_chunk_left_early_leaves_nothing_behind(connect: Connect, source: PostgresSource) -> None:
    admin = connect()
    admin.execute(
        "create table t(id int primary key, v text);"
        "insert into t select i, repeat('x', 200) from generate_series(1, 200000) i"
    )
    table = published(source)
    with source.read_chunk(table, whole(table)) as reader:
        next(iter(reader))

    # What was ended or cancelled is gone once the lock can be had.
    admin.execute("set lock_timeout = '10s'; lock table t in access exclusive mode")
    with source.read_chunk(table, whole(table)) as reader:
        assert sum(batch.num_rows for batch in reader) > 0


def test_a_table_dropped_meanwhile_concerns_that_table(connect: Connect, source: PostgresSource) -> None:
    admin = connect()
    admin.execute("create table t(id int primary key, v int)")
    table = published(source)
    admin.execute("alter table t rename v to w")
    with pytest.raises(EtlError) as renamed, source.read_chunk(table, whole(table)) as reader:
        list(reader)
    admin.execute("drop table t")
    with pytest.raises(EtlError) as dropped, source.read_chunk(table, whole(table)) as reader:
        list(reader)

    assert (renamed.value.kind, renamed.value.table) == (ErrorKind.TABLE, "public.t")
    assert (dropped.value.kind, dropped.value.table) == (ErrorKind.TABLE, "public.t")


def test_a_server_that_ends_the_session_is_unavailable(connect: Connect, source: PostgresSource) -> None:
    admin = connect()
    admin.execute(
        "create table t(id int primary key, v text);"
        "insert into t select i, repeat('x', 500) from generate_series(1, 200000) i"
    )
    table = published(source)
    with pytest.raises(EtlError) as ended, source.read_chunk(table, whole(table)) as reader:
        _read_with_end_amid(reader, admin)

    assert ended.value.kind is ErrorKind.SOURCE_UNAVAILABLE
    with source.read_chunk(table, whole(table)) as reader:
        assert sum(batch.num_rows for batch in reader) > 0


def _read_with_end_amid(reader: ChunkReader, admin: psycopg.Connection[Any]) -> None:
    next(iter(reader))
    admin.execute(
        "select pg_terminate_backend(pid, 10000) from pg_stat_activity"
        " where datname = current_database() and pid <> pg_backend_pid()"
    )
    list(reader)


def with_policy(table: TableSchema, policy: ValuePolicy) -> TableSchema:
    columns = tuple(column.model_copy(update={"values": policy}) for column in table.columns)
    return table.model_copy(update={"columns": columns})


def as_changelog(table: TableSchema) -> TableSchema:
    return table.model_copy(update={"landing": Landing.CHANGELOG})


def test_a_value_that_cannot_be_held_names_the_row_by_its_key(connect: Connect, source: PostgresSource) -> None:
    connect().execute(
        'create table t("Id" int, u uuid, b bytea, s text, n numeric(8,2), primary key ("Id", u, b, s));'
        "insert into t select i, lpad(i::text, 32, '0')::uuid, '\\xff', repeat('k', 100), i"
        " from generate_series(1, 50) i; update t set n = 'NaN' where \"Id\" >= 42"
    )
    table = published(source)

    with pytest.raises(EtlError) as failed:
        read_all(source, table)

    assert (failed.value.kind, failed.value.table) == (ErrorKind.VALUE, "public.t")
    shown = f"(row with Id = 42, u = 00000000-0000-0000-0000-000000000042, b = \\xff, s = {'k' * 60}…)"
    assert failed.value.message.endswith(shown)
    assert "NaN" not in failed.value.message.removesuffix(shown).partition(":")[0]


def test_a_table_without_key_has_no_sample(connect: Connect, source: PostgresSource) -> None:
    connect().execute("create table t(a int, n numeric(8,2)); insert into t values (4711, 'NaN')")
    table = published(source)

    with pytest.raises(EtlError) as failed:
        read_all(source, table)

    assert failed.value.table == "public.t"
    assert "4711" not in str(failed.value)


def test_replaced_values_are_counted_by_column(connect: Connect, source: PostgresSource) -> None:
    connect().execute(
        "create table t(id int primary key, n numeric(8,2), m numeric(8,2));"
        "insert into t values (1, 'NaN', 1), (2, 'NaN', 'NaN'), (3, 3, 3)"
    )
    table = with_policy(published(source), ValuePolicy.NULL)

    with source.read_chunk(table, whole(table)) as reader:
        rows = [row for batch in reader for row in batch.to_pylist()]
        assert reader.replaced == {"n": 2, "m": 1}

    assert [row["n"] is None for row in rows] == [True, True, False]


def test_under_the_policy_text_values_come_as_they_are_printed(connect: Connect, source: PostgresSource) -> None:
    connect().execute(
        "create table t(id int primary key, n numeric(8,2), a int[], z timestamptz);"
        "insert into t values (1, 'NaN', '[0:1]={1,2}', 'infinity'), (2, 1.5, '{{1,2},{3,4}}', '2024-01-01 00:00+00')"
    )
    table = with_policy(published(source), ValuePolicy.TEXT)

    rows = [{name: row[name] for name in ("n", "a")} for row in read_all(source, table)]

    assert rows == [{"n": "NaN", "a": "[0:1]={1,2}"}, {"n": "1.50", "a": "{{1,2},{3,4}}"}]


PARTITIONED = """
create table r(id int primary key, v text) partition by range (id);
create table r1 partition of r for values from (0) to (10);
create table r2 partition of r for values from (10) to (30) partition by range (id);
create table r21 partition of r2 for values from (10) to (20);
insert into r select i, 'v' || i from generate_series(0, 19) i;
"""


@pytest.mark.parametrize(
    ("name", "statements"),
    [
        ("t", "create table t(id int, v text); insert into t select i, 'v' || i from generate_series(0, 19) i"),
        ("r", PARTITIONED),
        ("r", PARTITIONED.partition("insert")[0]),
    ],
)
def test_a_changelog_is_copied_in_one_chunk(
    connect: Connect, source: PostgresSource, name: str, statements: str
) -> None:
    admin = connect()
    admin.execute(statements.encode())
    table = as_changelog(published(source, name))
    count = admin.execute(f"select count(*) from {name}".encode()).fetchall()[0][0]

    (plan,) = source.plan_chunks(table, 1)
    with source.read_chunk(table, plan) as reader:
        snapshot = reader.snapshot
        rows = [row for batch in reader for row in batch.to_pylist()]
        assert reader.filenode == plan.filenode == 0

    assert plan == ChunkPlan(table.oid, 0, 0, None, plan.rows, plan.bytes)
    assert sorted(row["id"] for row in rows) == list(range(count))
    assert [int(part) > 0 for part in snapshot.split(":")[:2]] == [True, True]


@pytest.mark.parametrize("name", ["r", "t"])
def test_no_truncate_comes_between_the_snapshot_of_a_changelog_and_its_rows(
    connect: Connect, source: PostgresSource, name: str
) -> None:
    admin = connect()
    admin.execute((PARTITIONED + "create table t as select * from r").encode())
    admin.execute("set lock_timeout = '50ms'")
    table = as_changelog(published(source, name))

    with source.read_chunk(table, whole(table)) as reader:
        with pytest.raises(psycopg.errors.LockNotAvailable):
            admin.execute(f"truncate {'r21' if name == 'r' else 't'}".encode())
        assert sum(batch.num_rows for batch in reader) == 20


def test_a_changelog_sees_what_its_snapshot_sees(connect: Connect, source: PostgresSource) -> None:
    """The snapshot is not older than the lock, for which the copy may have waited."""
    admin, other = connect(), connect()
    admin.execute(PARTITIONED)
    table = as_changelog(published(source, "r"))
    other.execute("begin; truncate r21; insert into r values (15, 'new')")
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(read_all, source, table)
        _await_lock_wait(admin)
        other.execute("commit")
        rows = reading.result(30)

    assert sorted(row["id"] for row in rows) == [*range(10), 15]


def _await_lock_wait(admin: psycopg.Connection[Any]) -> None:
    waiting = (
        "select count(*) from pg_locks where not granted"
        " and database = (select oid from pg_database where datname = current_database())"
    )
    while not admin.execute(waiting.encode()).fetchall()[0][0]:
        pass


@contextmanager
def plain_role(admin: psycopg.Connection[Any]) -> Iterator[str]:
    role = f"reader_{uuid4().hex[:8]}"
    admin.execute(f"create role {role} login; grant select on all tables in schema public to {role}".encode())
    try:
        yield role
    finally:
        admin.execute(f"drop owned by {role}; drop role {role}".encode())


@pytest.mark.parametrize("landing", [Landing.MIRROR, Landing.CHANGELOG])
def test_row_level_security_is_an_error_and_leaves_no_row_out(
    connect: Connect, source: PostgresSource, make_source: MakeSource, database: str, landing: Landing
) -> None:
    admin = connect()
    admin.execute(
        "create table t(id int primary key); insert into t values (1), (2); create table free(id int primary key);"
        "insert into free values (7); alter table t enable row level security;"
        "create policy few on t for select using (id = 1)"
    )
    table, free = (published(source, name).model_copy(update={"landing": landing}) for name in ("t", "free"))
    with plain_role(admin) as role:
        plain = make_source(source_config(database.replace("postgres@", f"{role}@"), name="p"))
        with pytest.raises(EtlError, match="row-level security") as refused:
            read_all(plain, table)
        with (
            pytest.raises(EtlError, match="row-level security"),
            plain.read_keys(table, pa.table({"id": pa.array([1], pa.int32())})) as reader,
        ):
            list(reader)
        assert read_all(plain, free) == [{"id": 7}]
        plain.close()

    assert refused.value.table == "public.t"


@pytest.mark.since(15)
def test_row_filters_with_odd_names_and_functions_hold_for_copy_and_stream(
    connect: Connect, source: PostgresSource
) -> None:
    admin = connect()
    admin.execute(
        'create schema "S ""x"; create table "S ""x"."T b"("I d" int primary key, "SELECT" text, hidden text);'
        'create table "T b"("I d" int primary key, other int);'
        'create publication p for table "S ""x"."T b" ("I d", "SELECT")'
        ' where ("I d" % 2 = 0 and length(lower("SELECT")) > 1 and "SELECT" <> \'%s {}\'),'
        ' "T b" where (other is not null)'
    )
    source.create_slot()
    admin.execute(
        "insert into \"S \"\"x\".\"T b\" values (1, 'odd'), (2, 'even'), (4, 'x'), (6, '%s {}'), (8, 'Ä' || 8);"
        'insert into "T b" values (2, null), (3, 3)'
    )
    tables = source.tables()
    window = source.window({t.oid: t for t in tables.values()}, source.current_position(), 1000)
    streamed: dict[TableId, list[dict[str, Any]]] = {}
    for piece in window:
        for events in piece:
            rows = [row for changes in events.changes for row in changes.rows.to_pylist()]
            streamed.setdefault(events.table.id, []).extend(rows)

    assert {table.id: read_all(source, table) for table in tables.values()} == streamed
    assert streamed == {
        TableId('S "x', "T b"): [{"I d": 2, "SELECT": "even"}, {"I d": 8, "SELECT": "Ä8"}],
        TableId("public", "T b"): [{"I d": 3, "other": 3}],
    }


def test_values_stored_out_of_line_count_for_the_size_of_chunks(connect: Connect, source: PostgresSource) -> None:
    admin = connect()
    admin.execute("create table t(id int primary key, v text); alter table t alter v set storage external")
    admin.execute("insert into t select i, repeat('x', 4000) || i from generate_series(1, 1200) i; analyze t")
    plans = source.plan_chunks(published(source), 1 << 20)
    assert len(plans) >= 5
    assert sum(plan.bytes for plan in plans) >= 1200 * 4000
