"""The proof of equality: values of every kind go out and come back, and a difference is found."""

from __future__ import annotations

import time
from uuid import uuid4

import pyarrow as pa
import pytest
from pydantic import SecretStr

from etl_dagster.errors import EtlError, SourceError
from etl_dagster.model import TableId, TableSchema, ValuePolicy
from etl_dagster.postgres import PostgresSource, compare_table
from tests.conftest import Connect

EVERY_TYPE = """
create type mood as enum ('sad', 'it''s "ok", {really}');
create domain price as numeric(12,2);
create table t(
    id int primary key, b bool, i2 int2, i8 int8, o oid, f4 float4, f8 float8, n numeric, n2 numeric(38,10), p price,
    s text, v varchar(10), c char(5), y bytea, d date, ti time, ts timestamp, tz timestamptz, iv interval, u uuid,
    j json, jb jsonb, m mood, "odd "" name" text, net inet, r int4range, pt point,
    ai int[], as_ text[], ad date[], ay bytea[], am mood[], an numeric(8,3)[]
)
"""
ROWS = """
insert into t(id) values (0);
insert into t values
(1, true, -32768, 9223372036854775807, 4294967295, 1.17549435e-38, 1.7976931348623157e308, 1e-20, 12.3456789012, 1.10,
 e'tab\\t "quote" back\\\\slash\\nline, 日本 🎉', '', 'ab', '\\x00ff5c22', '2024-02-29', '23:59:59.999999',
 '2024-02-29 12:34:56.789012', '1969-12-31 23:59:59.999999+00', '-1 year 2 mons -3 days +04:05:06.000007',
 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', '{"a": [1, null, "x"], "a": 2}',
 '{"b": "\\u00e9\\"\\\\"}', 'sad', '', '10.0.0.1',
 '[1,5)', '(1.5,-2)', '{1,NULL,-3}', array['', 'NULL', null, '{x}', 'a"b\\c', ' '],
 array['infinity', '0044-03-15 BC']::date[],
 array['\\x00'::bytea, null], array['sad', 'it''s "ok", {really}']::mood[], '{1.5,-0.001}'),
(2, false, 0, 0, 0, 'NaN', '-Infinity', 123456789012345678901234567890, -0.0000000001, -9999999999.99,
 '\\N', 'NULL', '', '', 'infinity', '24:00:00', 'infinity', '-infinity', '0', 'ffffffff-ffff-ffff-ffff-ffffffffffff',
 'null', 'null', 'it''s "ok", {really}', 'x', '::1/64', 'empty', '(0,0)', '{}', '{}', '{}', '{}', '{}', '{}'),
(3, null, 1, 1, 1, '-0', 0.1, 0, 0, 0, '', '', '     ', '\\x', '-infinity', '00:00:00', '0044-03-15 00:00:00.5 BC',
 '12024-01-01 00:00:00+00', '-00:00:00.5',
 '00000000-0000-0000-0000-000000000000', '""', '{}', 'sad', '', null, null, null,
 null, null, null, null, null, null),
(4, null, 1, 1, 1, 'Infinity', 'NaN', 0, 0, 0, '', '', '', '', '12024-12-31', '12:00', '4713-01-01 00:00 BC',
 '294246-12-31 23:59:59.999999+00', '178956970 years',
 '00000000-0000-0000-0000-000000000001', '[]', '[1.0, 1e3]', 'sad', '',
 null, null, null, null, null, null, null, null, null);
"""


def schema_of(source: PostgresSource, name: str = "t") -> TableSchema:
    return source.tables()[TableId("public", name)]


def copied(source: PostgresSource, table: TableSchema) -> list[pa.RecordBatch]:
    batches: list[pa.RecordBatch] = []
    for plan in source.plan_chunks(table, 64 << 20):
        with source.read_chunk(table, plan) as reader:
            batches += reader
    return batches


def test_a_copy_of_every_type_is_equal(connect: Connect, source: PostgresSource) -> None:
    admin = connect()
    admin.execute(EVERY_TYPE)
    admin.execute(ROWS)
    source.prepare_publication()
    table = schema_of(source)
    batches = copied(source, table)

    difference = compare_table(source.config.connection, table, batches)

    assert difference.equal, difference
    assert difference.rows == 5
    assert compare_table(source.config.connection, table, [b.slice(1, 2) for b in batches]).missing == 3


@pytest.mark.parametrize(
    "change",
    [
        "update t set s = s || ' ' where id = 1",
        "update t set b = not b where id = 2",
        "update t set j = '{}' where id = 1",
        "update t set jb = '{}' where id = 1",
        "update t set net = '10.0.0.2' where id = 1",
        "update t set ts = '-infinity' where id = 2",
        "update t set d = d + 1 where id = 4",
        "update t set as_ = array[null, ''] where id = 2",
        "update t set ai = null where id = 2",
        "update t set v = null where id = 1",
        "update t set iv = iv + interval '1 us' where id = 1",
    ],
)
def test_one_changed_value_is_found(connect: Connect, source: PostgresSource, change: str) -> None:
    admin = connect()
    admin.execute(EVERY_TYPE)
    admin.execute(ROWS)
    source.prepare_publication()
    table = schema_of(source)
    before = copied(source, table)
    admin.execute(change)

    difference = compare_table(source.config.connection, table, before)

    assert (difference.missing, difference.extra) == (1, 1)
    assert difference.sample_keys in {("(1)",), ("(2)",), ("(4)",)}


def test_rows_too_many_and_too_few_are_counted_apart(connect: Connect, source: PostgresSource) -> None:
    admin = connect()
    admin.execute(
        "create table t(id int, v text); alter table t replica identity full;"
        "insert into t values (1, 'a'), (1, 'a'), (2, 'b')"
    )
    source.prepare_publication()
    table = schema_of(source)
    before = copied(source, table)
    admin.execute("delete from t where id = 1; insert into t values (3, 'c')")

    difference = compare_table(source.config.connection, table, before)

    assert (difference.missing, difference.extra, difference.equal) == (1, 2, False)
    assert set(difference.sample_keys) == {"(3,c)", "(1,a)"}


@pytest.mark.since(15)
def test_the_row_filter_counts(connect: Connect, source: PostgresSource) -> None:
    connect().execute(
        "create table t(id int primary key); insert into t select generate_series(1, 10);"
        "create publication p for table t where (id > 5)"
    )
    table = schema_of(source)

    assert compare_table(source.config.connection, table, copied(source, table)).equal
    assert compare_table(source.config.connection, table, []).missing == 5


def test_a_value_that_the_column_cannot_hold_is_refused(connect: Connect, source: PostgresSource) -> None:
    connect().execute("create table t(id int primary key, v varchar(3))")
    source.prepare_publication()
    rows = pa.RecordBatch.from_pydict({"id": pa.array([1], pa.int32()), "v": ["too long"]})

    with pytest.raises(SourceError, match=r"cannot compare table public\.t"):
        compare_table(source.config.connection, schema_of(source), [rows])


def test_hundreds_of_thousands_of_rows_take_seconds(connect: Connect, source: PostgresSource) -> None:
    connect().execute(
        "create table t(id bigint primary key, a int, s text, n numeric(12,2), f float8, b bool,"
        " z timestamptz, d date);"
        "insert into t select i, i % 1000, 'name ' || i, i / 100.0, i * 0.5, i % 2 = 0,"
        " timestamptz '2024-01-01' + i * interval '1 s', date '2024-01-01' + i % 1000 from generate_series(1, 200000) i"
    )
    source.prepare_publication()
    table = schema_of(source)
    rows = copied(source, table)
    started = time.monotonic()

    assert compare_table(source.config.connection, table, rows).equal
    assert time.monotonic() - started < 5


def test_columns_that_land_as_text_are_compared_as_text(connect: Connect, source: PostgresSource) -> None:
    admin = connect()
    admin.execute(EVERY_TYPE)
    admin.execute(ROWS)
    admin.execute(
        "update t set ai = '[0:1]={1,2}', as_ = '{{a,b},{c,d}}', p = 'NaN' where id = 2;"
        "update t set n = 'Infinity', iv = iv + interval '1 us' where id = 3"
    )
    source.prepare_publication()
    plain = schema_of(source)
    columns = tuple(column.model_copy(update={"values": ValuePolicy.TEXT}) for column in plain.columns)
    table = plain.model_copy(update={"columns": columns})
    before = copied(source, table)
    equal = compare_table(source.config.connection, table, before)
    admin.execute("update t set ai = '{1,2}' where id = 2")
    other_bounds = compare_table(source.config.connection, table, before)

    assert equal.equal, equal
    assert (other_bounds.missing, other_bounds.extra) == (1, 1)


def test_row_level_security_does_not_hide_rows_from_a_comparison(
    connect: Connect, source: PostgresSource, database: str
) -> None:
    admin = connect()
    admin.execute(
        "create table t(id int primary key); insert into t values (1), (2); alter table t enable row level security;"
        "create policy few on t for select using (id = 1)"
    )
    source.prepare_publication()
    role = f"reader_{uuid4().hex[:8]}"
    admin.execute(f"create role {role} login; grant select on t to {role}".encode())
    try:
        config = source.config.connection.model_copy(
            update={"dsn": SecretStr(database.replace("postgres@", f"{role}@"))}
        )
        with pytest.raises(EtlError, match="row-level security"):
            compare_table(config, schema_of(source), [])
    finally:
        admin.execute(f"drop owned by {role}; drop role {role}".encode())


def test_json_counts_by_its_value_where_its_text_is_not_kept(connect: Connect, source: PostgresSource) -> None:
    connect().execute(
        "create table t(id int primary key, j json, a json[]);"
        """insert into t values (1, '{"b": 1,  "a": [1.0, "x"]}', array['{"b": 1, "a": 2}', null]::json[]),"""
        """(2, 'null', '{}'), (3, null, null), (4, '"\\u0000 \\u00e9"', null)"""
    )
    source.prepare_publication()
    table = schema_of(source)
    kept = {1: '{"a":[1.0,"x"],"b":1}', 2: "null", 3: None, 4: '"\\u0000 é"'}
    arrays = [['{"a":2,"b":1}', None], [], None, None]

    def compared(texts: dict[int, str | None], *, json_text: bool = False) -> tuple[int, int]:
        columns = [pa.array(list(texts), pa.int32()), pa.array(texts.values()), pa.array(arrays)]
        rows = pa.RecordBatch.from_arrays(columns, names=["id", "j", "a"])
        found = compare_table(source.config.connection, table, [rows], json_text=json_text)
        return found.missing, found.extra

    assert compared(kept) == (0, 0)
    assert compared(kept, json_text=True) == (2, 2)
    assert compared(kept | {1: '{"a":[1.0,"y"],"b":1}'}) == (1, 1)
    assert compared(kept | {2: None}) == (1, 1)
