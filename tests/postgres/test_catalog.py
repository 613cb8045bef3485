"""Published tables as the catalogue describes them."""

from __future__ import annotations

import time

import pytest

from etl_dagster.model import ReplicaIdentity, TableId, TypeKind
from etl_dagster.postgres import PostgresSource
from tests.conftest import Connect
from tests.postgres.conftest import MakeSource, source_config


def key(source: PostgresSource, table: str) -> list[str]:
    return [column.name for column in source.tables()[TableId("public", table)].key]


def test_columns_come_in_attnum_order_without_dropped_and_generated_ones(
    connect: Connect, source: PostgresSource
) -> None:
    connect().execute(
        "create table t(a int primary key, b text, c numeric(9,3) not null, g int generated always as (a + 1) stored);"
        "alter table t drop column b; alter table t add d date"
    )
    source.prepare_publication()

    table = source.tables()[TableId("public", "t")]

    assert [(c.attnum, c.name, c.type.name, c.nullable) for c in table.columns] == [
        (1, "a", "integer", False),
        (3, "c", "numeric(9,3)", False),
        (5, "d", "date", True),
    ]


def test_domains_enums_and_arrays_are_resolved(connect: Connect, source: PostgresSource) -> None:
    connect().execute(
        "create type mood as enum ('sad', 'ok'); create domain short as varchar(7); create domain shorter as short;"
        "create domain list as numeric(5,1)[]; create type pair as (a int, b int);"
        "create table t(id int primary key, m mood, ms mood[], s shorter, ss shorter[], l list, v varchar(3)[],"
        " p pair, r int4range, i2 int2vector)"
    )
    source.prepare_publication()

    types = {c.name: c.type for c in source.tables()[TableId("public", "t")].columns}

    assert types["m"].kind is TypeKind.ENUM
    assert (types["ms"].kind, types["ms"].element) == (TypeKind.ARRAY, types["m"].model_copy())
    assert (types["s"].oid, types["s"].typmod, types["s"].name) == (1043, 7 + 4, "public.shorter")
    assert types["s"].declared_oid not in (0, 1043)
    assert types["ss"].element is not None
    assert (types["ss"].element.oid, types["ss"].element.typmod) == (1043, 7 + 4)
    assert types["l"].element is not None
    assert (types["l"].kind, types["l"].element.oid, types["l"].element.typmod) == (TypeKind.ARRAY, 1700, 327685)
    assert types["v"].element is not None
    assert (types["v"].element.oid, types["v"].element.typmod) == (1043, 3 + 4)
    assert types["p"].kind is TypeKind.COMPOSITE
    assert types["r"].kind is TypeKind.RANGE
    assert types["i2"].kind is TypeKind.BASE


def test_the_key_is_what_the_stream_sends(connect: Connect, source: PostgresSource) -> None:
    connect().execute(
        "create table by_pk(a int, b int, c int, primary key (c, a));"
        "create table by_index(a int primary key, b int not null, c int not null);"
        "create unique index other on by_index (c, b); alter table by_index replica identity using index other;"
        "create table fully(a int primary key, b int); alter table fully replica identity full;"
        "create table full_without(a int, b int); alter table full_without replica identity full;"
        "create table without(a int);"
        "create table deferred(a int primary key deferrable);"
        "create table covering(a int, b int, primary key (a) include (b))"
    )
    source.prepare_publication()

    assert key(source, "by_pk") == ["c", "a"]
    assert key(source, "by_index") == ["c", "b"]
    assert key(source, "fully") == ["a"]
    assert key(source, "full_without") == []
    assert key(source, "without") == []
    assert key(source, "deferred") == []
    assert key(source, "covering") == ["a"]
    assert source.tables()[TableId("public", "fully")].replica_identity is ReplicaIdentity.FULL


@pytest.mark.since(18)
def test_generated_columns_are_there_where_they_are_published(connect: Connect, source: PostgresSource) -> None:
    connect().execute(
        "create table t(id int primary key, s int generated always as (id) stored,"
        " v int generated always as (id) virtual);"
        "create publication p for table t with (publish_generated_columns = stored)"
    )

    assert [c.name for c in source.tables()[TableId("public", "t")].columns] == ["id", "s"]


@pytest.mark.since(15)
def test_column_list_and_row_filter_are_honoured(connect: Connect, source: PostgresSource) -> None:
    connect().execute(
        "create table t(id int primary key, a int, secret text); create table u(id int primary key, a int);"
        "create publication p for table t (id, a) where (id > 10), u (a)"
    )

    tables = source.tables()

    assert [c.name for c in tables[TableId("public", "t")].columns] == ["id", "a"]
    assert tables[TableId("public", "t")].row_filter == "(id > 10)"
    assert tables[TableId("public", "u")].key == ()


def test_a_partitioned_table_is_one_table_through_its_root(connect: Connect, make_source: MakeSource) -> None:
    connect().execute(
        "create table r(id int primary key, v text) partition by range (id);"
        "create table r1 partition of r for values from (0) to (10);"
        "create table r2 partition of r for values from (10) to (20);"
        "create publication leaves for table r"
    )
    source = make_source()
    source.prepare_publication()
    leaves = make_source(source_config(source.config.connection.dsn.get_secret_value(), name="leaves"))  # type: ignore[union-attr]

    assert list(source.tables()) == [TableId("public", "r")]
    assert list(leaves.tables()) == [TableId("public", "r1"), TableId("public", "r2")]


def test_odd_names_come_through(connect: Connect, source: PostgresSource) -> None:
    connect().execute(
        'create schema "Odd ""s.x"; create table "Odd ""s.x"."Tab le" ("Ключ %s" int primary key, "a""b" text)'
    )
    source.prepare_publication()

    table = source.tables()[TableId('Odd "s.x', "Tab le")]

    assert [c.name for c in table.columns] == ["Ключ %s", 'a"b']
    assert table.key[0].name == "Ключ %s"


def test_hundreds_of_tables_take_no_query_each(connect: Connect, source: PostgresSource) -> None:
    connect().execute(
        "do $$ begin for i in 1..600 loop execute format('create table t%s(id int primary key, a text)', i);"
        " end loop; end $$"
    )
    source.prepare_publication()
    started = time.monotonic()

    assert len(source.tables()) == 600
    assert time.monotonic() - started < 1
