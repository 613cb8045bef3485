"""The publication follows the configuration, and what is not ours is left alone."""

from __future__ import annotations

import pytest
from psycopg import sql

from etl_dagster.errors import ErrorKind, EtlError, PublicationError
from etl_dagster.postgres import PostgresSource
from tests.conftest import Connect
from tests.postgres.conftest import MakeSource, source_config

TABLES = """
create schema sales; create schema hr; create schema "Odd.one";
create table sales.orders(id int primary key); create table sales.items(id int primary key);
create table sales.tmp_x(id int primary key); create table hr.people(id int primary key);
create table public.t(id int primary key); create table "Odd.one"."Ta ble*"(id int primary key);
create view sales.v as select 1 a; create unlogged table sales.u(id int);
create materialized view sales.m as select 1 a;
create table sales.parts(id int primary key) partition by range (id);
create table sales.parts_1 partition of sales.parts for values from (0) to (10);
"""


def names(source: PostgresSource) -> list[str]:
    return [str(table) for table in source.tables()]


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ({"tables": ["t", "sales.orders"]}, ["public.t", "sales.orders"]),
        ({"tables": ["sales.*"]}, ["sales.items", "sales.orders", "sales.parts", "sales.tmp_x"]),
        ({"tables": ["*.o*"]}, ["sales.orders"]),
        (
            {"schemas": ["sales"], "exclude": ["*.tmp_*", "sales.parts"]},
            ["sales.items", "sales.orders", "sales.parts_1"],
        ),
        ({"schemas": ["Odd.one"]}, ["Odd.one.Ta ble*"]),
        ({"tables": ['"Odd.one"."Ta ble*"']}, ["Odd.one.Ta ble*"]),
        ({"tables": ["sales.parts_1"]}, ["sales.parts_1"]),
        ({"all_tables": True, "exclude": ["sales.*", '"Odd.one".*']}, ["hr.people", "public.t"]),
    ],
)
def test_patterns_become_the_tables_of_the_publication(
    connect: Connect, make_source: MakeSource, database: str, wanted: dict[str, object], found: list[str]
) -> None:
    connect().execute(TABLES)
    source = make_source(source_config(database, **wanted))

    source.prepare_publication()

    assert names(source) == found


def test_all_tables_are_all_tables_also_later(connect: Connect, source: PostgresSource) -> None:
    connect().execute(TABLES)
    source.prepare_publication()
    connect().execute("create table later(id int primary key)")

    assert "public.later" in names(source)
    assert "sales.parts" in names(source)
    assert "sales.parts_1" not in names(source)


def test_tables_are_added_and_dropped_as_the_config_changes(
    connect: Connect, make_source: MakeSource, database: str
) -> None:
    admin = connect()
    admin.execute(TABLES)
    make_source(source_config(database, tables=["sales.*"])).prepare_publication()
    admin.execute("create table sales.later(id int primary key)")
    source = make_source(source_config(database, tables=["sales.*"], exclude=["sales.items"]))

    source.prepare_publication()
    source.prepare_publication()

    assert names(source) == ["sales.later", "sales.orders", "sales.parts", "sales.tmp_x"]


@pytest.mark.since(15)
def test_a_column_list_survives_an_alteration(connect: Connect, make_source: MakeSource, database: str) -> None:
    admin = connect()
    admin.execute("create table a(id int primary key, v int); create table b(id int primary key)")
    make_source(source_config(database, tables=["a"])).prepare_publication()
    admin.execute("alter publication p set table a (id) where (id > 1)")
    source = make_source(source_config(database, tables=["a", "b"]))

    source.prepare_publication()

    assert names(source) == ["public.a", "public.b"]
    (table,) = [t for t in source.tables().values() if t.id.name == "a"]
    assert ([c.name for c in table.columns], table.row_filter) == (["id"], "(id > 1)")


def test_anothers_publication_is_used_but_not_altered(connect: Connect, make_source: MakeSource, database: str) -> None:
    admin = connect()
    admin.execute(
        "create table a(id int primary key); create table b(id int primary key); create publication p for table a"
    )
    fitting = make_source(source_config(database, tables=["a"]))
    fitting.prepare_publication()
    lacking = make_source(source_config(database, tables=["a", "b"]))
    with pytest.raises(PublicationError, match=r'ALTER PUBLICATION "p" ADD TABLE "public"\."b"'):
        lacking.prepare_publication()

    assert names(fitting) == ["public.a"]


def test_anothers_publication_of_leaves_satisfies_a_partitioned_table(
    connect: Connect, make_source: MakeSource, database: str
) -> None:
    connect().execute(TABLES + "create publication p for table sales.parts")
    source = make_source(source_config(database, tables=["sales.parts"]))

    source.prepare_publication()

    assert names(source) == ["sales.parts_1"]


def test_a_missing_publication_says_what_to_run(connect: Connect, make_source: MakeSource, database: str) -> None:
    admin = connect()
    admin.execute('create table "A b"(id int primary key)')
    source = make_source(source_config(database, name='od"d', create=False, tables=["A*"]))
    with pytest.raises(PublicationError) as missing:
        source.prepare_publication()

    assert missing.value.kind is ErrorKind.PUBLICATION
    admin.execute(sql.SQL(missing.value.hint.removeprefix("Run: ")))  # type: ignore[arg-type]
    source.prepare_publication()
    assert names(source) == ["public.A b"]


def test_reading_a_missing_publication_says_so(source: PostgresSource) -> None:
    with pytest.raises(PublicationError, match='publication "p" does not exist'):
        source.tables()


def test_an_empty_publication_is_refused(connect: Connect, make_source: MakeSource, database: str) -> None:
    connect().execute("create publication p")
    with pytest.raises(PublicationError, match="holds no table"):
        make_source(source_config(database, create=False)).prepare_publication()


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ({"tables": ["t", "Typo"]}, r"no such table: public\.Typo"),
        ({"tables": ["nothing.*"]}, "no table matches"),
        ({"create": True}, "names no tables"),
    ],
)
def test_a_config_that_names_nothing_is_refused(
    connect: Connect, make_source: MakeSource, database: str, wanted: dict[str, object], words: str
) -> None:
    connect().execute("create table t(id int primary key)")
    with pytest.raises(PublicationError, match=words):
        make_source(source_config(database, **wanted)).prepare_publication()


def test_an_unprivileged_role_is_told_what_to_grant(connect: Connect, make_source: MakeSource, database: str) -> None:
    admin = connect()
    admin.execute("create table t(id int primary key)")
    admin.execute("create role plain_publisher login")
    try:
        dsn = database.replace("postgres@", "plain_publisher@")
        source = make_source(source_config(dsn, tables=["t"]))
        with pytest.raises(EtlError, match="lacks CREATE on the database") as refused:
            source.prepare_publication()
        source.close()
        assert refused.value.kind is ErrorKind.SOURCE_REFUSED
        assert 'CREATE PUBLICATION "p" FOR TABLE "public"."t"' in refused.value.hint
    finally:
        admin.execute("drop role plain_publisher")
