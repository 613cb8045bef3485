"""Parts of a table by the values of a column: how they are read, and where the ranges of a key are cut."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, LiteralString

import psycopg
import pytest

from etl_dagster.errors import ErrorKind, EtlError
from etl_dagster.model import ChunkPlan, Column, RangePlan, Slice, TableId, TableSchema, TimeWindows, ValuePolicy
from etl_dagster.model.slices import MAX_SLICES, Every, merge_slices
from etl_dagster.postgres import PostgresSource
from etl_dagster.testing.server import PostgresServer
from tests.conftest import SETTINGS, Connect, ExternalServer, fresh_database
from tests.postgres.conftest import MakeSource, source_config

MEGABYTE = 1 << 20


def published(source: PostgresSource, name: str = "t") -> TableSchema:
    """With a policy for values that cannot be held, such as infinite times."""
    source.prepare_publication()
    table = source.tables()[TableId("public", name)]
    columns = tuple(column.model_copy(update={"values": ValuePolicy.NULL}) for column in table.columns)
    return table.model_copy(update={"columns": columns})


def column_of(table: TableSchema, name: str) -> Column:
    return next(column for column in table.columns if column.name == name)


def cut(table: TableSchema, name: str, *bounds: str) -> list[Slice]:
    """All slices of a table between these bounds."""
    column = column_of(table, name)
    return RangePlan(relation=7, attnum=column.attnum, type_oid=column.type.oid, bounds=bounds).slices(column)


def ids_of(source: PostgresSource, table: TableSchema, plans: Sequence[ChunkPlan]) -> list[int]:
    found: list[int] = []
    for plan in plans:
        with source.read_chunk(table, plan) as reader:
            found += [value for batch in reader for value in batch.column("id").to_pylist()]
    return sorted(found)


def ids(
    source: PostgresSource, table: TableSchema, slices: Sequence[Slice], chunk_bytes: int = 64 * MEGABYTE
) -> list[int]:
    return ids_of(source, table, source.plan_chunks(table, chunk_bytes, slices))


def fetch(connection: psycopg.Connection[Any], query: str, *parameters: object) -> list[Any]:
    return [row[0] for row in connection.execute(query.encode(), parameters)]


def by_index(plan: ChunkPlan) -> bool:
    return (plan.filenode, plan.first_block, plan.last_block) == (0, 0, None)


ODD_TEXTS = "'', 'a', 'B', 'b', 'Z', 'é', 'it''s', '\"', '\\', '%s', '{}', 'ж', '列', '🙂', 'a b', 'ab', 'a-b'"
VALUES = {
    "smallint": ("(-32768), (-1), (0), (1), (32767), (null)", ["-1", "0", "5"]),
    "int": ("(-2147483648), (-1), (0), (1), (2147483647), (null)", ["-1", "0", "5"]),
    "bigint": ("(-9223372036854775808), (0), (9223372036854775807), (null)", ["0", "9223372036854775807"]),
    "uuid": (
        "('00000000-0000-0000-0000-000000000000'), ('7fffffff-ffff-ffff-ffff-ffffffffffff'), (null),"  # noqa: ISC004
        " ('80000000-0000-0000-0000-000000000000'), ('ffffffff-ffff-ffff-ffff-ffffffffffff')",
        ["80000000-0000-0000-0000-000000000000", "ffffffff-ffff-ffff-ffff-ffffffffffff"],
    ),
    "text": (", ".join(f"({text})" for text in [*ODD_TEXTS.split(", "), "null"]), ["", '"', "B", "it's", "ж", "🙂"]),
    "varchar(20)": (", ".join(f"({text})" for text in [*ODD_TEXTS.split(", "), "null"]), ["'", "\\", "a", "列"]),
    "date": (
        "('-infinity'), ('0044-03-15 BC'), ('2024-01-01'), ('2024-01-02'), ('infinity'), (null)",
        ["2024-01-01", "2024-01-02", "2024-01-03"],
    ),
    "timestamp": (
        "('-infinity'), ('0044-03-15 BC'), ('2024-01-01 00:00'), ('2024-01-01 23:59:59.999999'), ('infinity'), (null)",
        ["2024-01-01 00:00:00", "2024-01-02 00:00:00"],
    ),
    "timestamptz": (
        "('-infinity'), ('2023-12-31 23:59:59.999999+00'), ('2024-01-01 01:00+01'), ('infinity'), (null)",
        ["2024-01-01 00:00:00+00", "2024-01-02 00:00:00+00"],
    ),
}


@pytest.mark.parametrize("type_name", VALUES)
def test_each_row_lies_in_one_slice(connect: Connect, source: PostgresSource, type_name: str) -> None:
    admin = connect()
    values, bounds = VALUES[type_name]
    admin.execute(
        f"create domain d as {type_name};"
        f"create table t(id int generated always as identity primary key, k {type_name}, d d);"
        f"insert into t(k) values {values}; update t set d = k".encode()
    )
    table = published(source)
    collate = ' collate "C"' if type_name.startswith(("text", "varchar")) else ""

    for column in ("k", "d"):
        slices = cut(table, column, *bounds)
        found = [ids(source, table, [part]) for part in slices]
        for part, rows in zip(slices, found, strict=True):
            wanted = fetch(
                admin,
                f"select id from t where k{collate} >= coalesce(%s, k) and (k{collate} < %s) is not false"
                " or k is null and %s order by 1",
                part.lower,
                part.upper,
                part.nulls,
            )
            assert rows == wanted != []
        everything = fetch(admin, "select id from t order by 1")
        assert sorted(chain.from_iterable(found)) == ids(source, table, slices) == everything


def test_slices_of_windows_hold_the_rows_of_their_time(connect: Connect, source: PostgresSource) -> None:
    admin = connect()
    admin.execute(
        "create table t(id int primary key, at timestamptz); create index on t (at);"
        "insert into t select i, timestamptz '2024-03-30 00:00+00' + i * interval '1 hour' from generate_series(0, 71) i"
    )
    table = published(source)
    rule = TimeWindows.model_validate(
        {"column": "at", "every": Every.DAY, "start": "2024-03-30", "timezone": "Europe/Berlin"}
    )
    slices = rule.slices(column_of(table, "at"), fetch(admin, "select timestamptz '2024-04-02 12:00+00'")[0])

    assert [len(ids(source, table, [part])) for part in slices] == [23, 23, 24, 2]


def test_slices_side_by_side_are_read_as_one(connect: Connect, source: PostgresSource) -> None:
    connect().execute("create table t(id int primary key)")
    table = published(source)
    slices = cut(table, "id", "-5", "9", "10", "20", "100")

    def bounds(chosen: Sequence[Slice]) -> list[tuple[str | None, str | None, bool]]:
        return [(part.lower, part.upper, part.nulls) for part in merge_slices(chosen)]

    assert bounds(slices[::-1]) == [(None, None, True)]
    assert bounds(slices[:2]) == [(None, "9", True)]
    assert bounds([slices[4], slices[1], slices[2]]) == [("-5", "10", False), ("20", "100", False)]
    assert bounds([slices[5], slices[3]]) == [("10", "20", False), ("100", None, False)]
    last_before_it_was_cut = slices[4].model_copy(update={"upper": None})
    assert bounds([slices[5], last_before_it_was_cut, slices[1]]) == [("-5", "9", False), ("20", None, False)]
    assert bounds([slices[3], slices[3].model_copy(update={"upper": "15"})]) == [("10", "20", False)]


BIG = (
    "create table t(id int primary key, k int, v text);"
    "insert into t select i, i, repeat('x', 100) from generate_series(0, 99999) i;"
)


def test_without_an_index_the_table_is_read_once_for_all_slices(connect: Connect, source: PostgresSource) -> None:
    connect().execute(f"{BIG} analyze t".encode())
    table = published(source)
    slices = cut(table, "k", *map(str, range(0, 100_000, 1000)))
    chosen = [slices[5], slices[6], slices[50], slices[90]]

    plans = source.plan_chunks(table, 2 * MEGABYTE, chosen)

    assert len(plans) == len(source.plan_chunks(table, 2 * MEGABYTE)) > 3
    assert not any(map(by_index, plans))
    ranges = sorted((plan.first_block, plan.last_block) for plan in plans)
    assert [after[0] for after in ranges[1:]] == [before[1] for before in ranges[:-1]]
    assert sum(plan.rows for plan in plans) == pytest.approx(4000, rel=0.2)
    wanted = [*range(4000, 6000), *range(49000, 50000), *range(89000, 90000)]
    assert ids_of(source, table, plans) == wanted


@pytest.mark.parametrize("type_name", ["int", "text", "uuid", "timestamptz"])
def test_many_slices_are_searched_not_tried_one_by_one(
    connect: Connect, source: PostgresSource, type_name: str
) -> None:
    values = {
        "int": "i::text",
        "text": "chr(1000 + i)",
        "uuid": "lpad(i::text, 32, '0')::uuid::text",
        "timestamptz": "(timestamptz '2024-01-01 00:00+00' + i * interval '1 hour')::text",
    }
    admin = connect()
    admin.execute("set timezone = 'UTC'")
    admin.execute(
        f"create table t(id int primary key, k {type_name}); insert into t values (-1, null);"
        f"insert into t select i, ({values[type_name]})::{type_name} from generate_series(0, 999) i".encode()
    )
    table = published(source)
    bounds = fetch(admin, f"select {values[type_name]} from generate_series(10, 990, 10) i")
    slices = cut(table, "k", *bounds)

    assert len(merge_slices(slices[1::2])) > 40
    assert ids(source, table, slices[::2]) == [-1, *(i for i in range(1000) if i // 10 % 2 == 0)]
    assert ids(source, table, slices[1::2]) == [i for i in range(1000) if i // 10 % 2 == 1]
    assert ids(source, table, slices[0:60:2] + slices[60:]) == [
        -1,
        *(i for i in range(1000) if i >= 600 or i // 10 % 2 == 0),
    ]


def test_with_an_index_only_the_slice_is_read(connect: Connect, source: PostgresSource) -> None:
    connect().execute(f"{BIG} create index on t (k); analyze t".encode())
    table = published(source)
    slices = cut(table, "k", *map(str, range(1000, 100_000, 1000)))

    (first,) = source.plan_chunks(table, 2 * MEGABYTE, slices[:1])
    apart = source.plan_chunks(table, 2 * MEGABYTE, [slices[7], slices[70]])

    assert by_index(first)
    assert first.rows == pytest.approx(1000, rel=0.3)
    assert first.bytes == pytest.approx(source.plan_chunks(table, 1 << 40)[0].bytes / 100, rel=0.3)
    assert [by_index(plan) for plan in apart] == [True, True]
    assert ids_of(source, table, apart) == [*range(7000, 8000), *range(70000, 71000)]


def test_rows_without_value_are_not_looked_for_where_there_are_none(connect: Connect, source: PostgresSource) -> None:
    connect().execute(f"{BIG} analyze t".encode())
    table = published(source)
    slices = cut(table, "id", *map(str, range(1000, 100_000, 1000)))

    (plan,) = source.plan_chunks(table, 2 * MEGABYTE, slices[:1])

    assert (by_index(plan), plan.slices[0].nulls) == (True, False)
    assert ids(source, table, slices[:1]) == list(range(1000))


@pytest.mark.since(18)
def test_a_constraint_that_nobody_checked_is_not_believed(connect: Connect, source: PostgresSource) -> None:
    admin = connect()
    admin.execute("create table t(id int primary key, k int); insert into t values (1, null), (2, 2)")
    admin.execute("alter table t add constraint never not null k not valid")
    table = published(source)
    first, last = cut(table, "k", "2")
    assert (ids(source, table, [first]), ids(source, table, [last])) == ([1], [2])

    admin.execute("delete from t where k is null; alter table t validate constraint never")
    assert [part.nulls for plan in source.plan_chunks(table, MEGABYTE, [first]) for part in plan.slices] == [False]


def test_slices_that_make_up_most_of_a_table_are_read_block_by_block(connect: Connect, source: PostgresSource) -> None:
    connect().execute(f"{BIG} create index on t (k); analyze t".encode())
    table = published(source)
    slices = cut(table, "k", *map(str, range(1000, 100_000, 1000)))

    plans = source.plan_chunks(table, 2 * MEGABYTE, [part for place, part in enumerate(slices) if place % 10])

    assert not any(map(by_index, plans))
    assert ids_of(source, table, plans) == [i for i in range(100_000) if i // 1000 % 10]


KINDS = {
    "int": "i",
    "bigint": "i * 1000000000000",
    "uuid": "('ffffffff-ffff-ffff-ffff-' || lpad(to_hex(i * 7), 12, '0'))::uuid",
    "date": "date '2000-01-01' + i",
    "timestamp": "timestamp '2024-01-01' + i * interval '7 minutes'",
    "timestamptz": "timestamptz '2024-01-01' + i * interval '7 minutes'",
}


@pytest.mark.parametrize("type_name", KINDS)
def test_a_large_slice_is_cut_into_parts_that_hold_each_row_once(
    connect: Connect, source: PostgresSource, type_name: str
) -> None:
    admin = connect()
    admin.execute(
        f"create table t(id int primary key, k {type_name}, v text);"
        f"insert into t select i, {KINDS[type_name]}, repeat('x', 200) from generate_series(0, 99999) i;"
        f"insert into t select -1 - i, null, repeat('x', 200) from generate_series(0, 99) i;"
        "create index on t (k); analyze t".encode()
    )
    if type_name in ("date", "timestamp", "timestamptz"):
        admin.execute("insert into t values (100000, 'infinity'), (-1000, '-infinity')")
    table = published(source)
    slices = cut(table, "k", *fetch(admin, "select k::text from t where id in (40000, 60000, 80000) order by id"))

    for chosen, (first, last) in ((slices[1], (40000, 60000)), (slices[3], (80000, 200_000))):
        plans = source.plan_chunks(table, MEGABYTE, [chosen])
        assert len(plans) > 3
        assert all(map(by_index, plans))
        found = [ids_of(source, table, [plan]) for plan in plans]
        wanted = fetch(admin, "select id from t where id >= %s and id < %s order by 1", first, last)
        assert sorted(chain.from_iterable(found)) == wanted
        assert max(map(len, found)) < 3 * MEGABYTE / 230
        assert [plan.bytes for plan in plans] == sorted((plan.bytes for plan in plans), reverse=True)
        assert sum(plan.rows for plan in plans) == pytest.approx(len(wanted), rel=0.2)


def test_open_ends_stay_open_and_rows_without_value_come_with_the_first_part(
    connect: Connect, source: PostgresSource
) -> None:
    admin = connect()
    admin.execute(
        "create table t(id int primary key, k int, v text);"
        "insert into t select i, i, repeat('x', 1000) from generate_series(0, 19999) i;"
        "insert into t select 20000 + i, nullif(i, i), repeat('x', 1000) from generate_series(0, 299) i;"
        "create index on t (k); analyze t"
    )
    table = published(source)
    slices = cut(table, "k", "1000", "19000")

    first = source.plan_chunks(table, MEGABYTE // 4, slices[:1])
    last = source.plan_chunks(table, MEGABYTE // 4, slices[2:])
    admin.execute("insert into t values (-1, -1), (-2, null), (99999, 99999)")

    assert len(first) > 2
    assert len(last) > 1
    assert sum(plan.slices[0].nulls for plan in first) == 1
    assert ids_of(source, table, first) == [-2, -1, *range(1000), *range(20000, 20300)]
    assert ids_of(source, table, last) == [*range(19000, 20000), 99999]


def test_parts_of_values_that_lie_far_apart_are_about_as_large(connect: Connect, source: PostgresSource) -> None:
    admin = connect()
    admin.execute(
        "create table t(id int primary key, at timestamptz, v text);"
        "insert into t select i, timestamptz '2024-01-01' + i * interval '1 s', repeat('x', 200)"
        " from generate_series(2, 49999) i;"
        "insert into t values (0, '1970-01-01'), (1, '290000-01-01'), (-1, '4700-01-01 BC');"
        "insert into t select 50000 + i, timestamptz '2025-01-01' + i * interval '1 s', repeat('x', 200)"
        " from generate_series(0, 199999) i; create index on t (at); analyze t"
    )
    table = published(source)
    first, _ = cut(table, "at", "2025-01-01 00:00:00+00")

    plans = source.plan_chunks(table, MEGABYTE, [first])
    found = [len(ids_of(source, table, [plan])) for plan in plans]

    assert sum(found) == 50_000
    assert max(found) < 20_000


def test_partitions_that_cannot_hold_the_slice_are_left_alone(connect: Connect, source: PostgresSource) -> None:
    admin = connect()
    admin.execute(
        "create table t(id int, k date, v text, primary key (id, k)) partition by range (k);"
        "create table t1 partition of t for values from ('2024-01-01') to ('2024-02-01');"
        "create table t2 partition of t for values from ('2024-02-01') to ('2024-03-01') partition by list (id);"
        "create table t21 partition of t2 for values in (1, 2, 3); create table t22 partition of t2 default;"
        "create table t3(v text, k date not null, id int not null);"
        "alter table t attach partition t3 for values from ('2024-03-01') to ('2024-04-01');"
        "insert into t select i, date '2024-01-01' + i, 'v' from generate_series(1, 90) i"
    )
    table = published(source)
    slices = cut(table, "k", "2024-02-01", "2024-03-01", "2024-04-01")
    oid = dict(admin.execute("select relname, oid::int from pg_class").fetchall())

    def relations(chosen: Sequence[Slice]) -> set[int]:
        return {plan.relation for plan in source.plan_chunks(table, MEGABYTE, chosen)}

    assert relations(slices[:1]) == {oid["t1"]}
    assert relations(slices[1:2]) == {oid["t21"], oid["t22"]}
    assert relations([slices[0], slices[2]]) == {oid["t1"], oid["t3"]}
    assert [len(ids(source, table, [part])) for part in slices] == [30, 29, 31, 0]
    nobody = source.plan_chunks(table, MEGABYTE, slices[3:])
    assert [(plan.relation, plan.filenode, plan.rows) for plan in nobody] == [(table.oid, 0, 0)]
    admin.execute("create table t4 partition of t default; insert into t values (1, '2025-01-01', 'late')")
    assert ids_of(source, table, nobody) == [1]


def test_a_table_that_nobody_analysed_is_cut_all_the_same(connect: Connect, source: PostgresSource) -> None:
    connect().execute(f"{BIG} alter table t set (autovacuum_enabled = off); create index on t (k)".encode())
    table = published(source)
    slices = cut(table, "k", "30000", "60000")

    for place, wanted in enumerate([range(30000), range(30000, 60000), range(60000, 100_000)]):
        plans = source.plan_chunks(table, MEGABYTE // 4, [slices[place]])
        assert ids_of(source, table, plans) == list(wanted)
        assert len(plans) < 200


def test_an_empty_table_has_a_part_to_read(connect: Connect, source: PostgresSource) -> None:
    connect().execute("create table t(id int primary key)")
    table = published(source)

    assert len(source.plan_chunks(table, MEGABYTE, cut(table, "id", "10")[:1])) == 1
    assert ids(source, table, cut(table, "id", "10")) == []


@pytest.mark.since(15)
def test_slices_honour_row_filter_and_column_list(connect: Connect, source: PostgresSource) -> None:
    connect().execute(
        "create table t(id int primary key, k int, secret text);"
        "insert into t select i, i, 's' from generate_series(0, 9) i;"
        "create publication p for table t (id, k) where (id > 3 or id < 1)"
    )
    table = published(source)
    slices = cut(table, "k", "5")

    (first,) = source.plan_chunks(table, MEGABYTE, slices[:1])
    with source.read_chunk(table, first) as reader:
        rows = [row for batch in reader for row in batch.to_pylist()]
    assert rows == [{"id": 0, "k": 0}, {"id": 4, "k": 4}]
    assert ids(source, table, slices[1:]) == [5, 6, 7, 8, 9]


CUT_BY_BYTES = ["B2", "a1", "a2", "b", "é", "ж"]


def texts(admin: psycopg.Connection[Any], collation: str) -> None:
    admin.execute(
        f"create table t(id int generated always as identity primary key, k text {collation});"
        f"insert into t(k) select unnest(array[{ODD_TEXTS}]) || i from generate_series(1, 2000) i;"
        "insert into t(k) values (null); create index on t (k); analyze t".encode()
    )


def check_texts(admin: psycopg.Connection[Any], source: PostgresSource, *, by_their_index: bool) -> None:
    table = published(source)
    slices = cut(table, "k", *CUT_BY_BYTES)
    found = [ids(source, table, [part]) for part in slices]
    for part, rows in zip(slices[1:-1], found[1:-1], strict=True):
        wanted = 'select id from t where k collate "C" >= %s and k collate "C" < %s order by 1'
        assert rows == fetch(admin, wanted, part.lower, part.upper)
    assert sorted(chain.from_iterable(found)) == fetch(admin, "select id from t order by 1")
    assert [by_index(plan) for plan in source.plan_chunks(table, 1 << 30, slices[2:3])] == [by_their_index]
    assert source.plan_ranges(table, column_of(table, "k"), 4000)


@pytest.mark.parametrize("collation", ["C", "POSIX", "ucs_basic"])
def test_texts_in_the_order_of_their_bytes_are_found_by_an_index(
    connect: Connect, source: PostgresSource, collation: str
) -> None:
    admin = connect()
    texts(admin, f'collate "{collation}"')

    check_texts(admin, source, by_their_index=True)


DATABASES: dict[LiteralString, bool] = {
    "locale 'C'": True,
    "locale 'C.UTF-8'": False,
    "locale_provider builtin builtin_locale 'C.UTF-8'": True,
}


@pytest.mark.since(17)
@pytest.mark.parametrize("options", DATABASES)
def test_the_order_of_the_database_counts_where_the_column_has_none(
    pg_server: PostgresServer | ExternalServer, connect: Connect, make_source: MakeSource, options: LiteralString
) -> None:
    with fresh_database(pg_server, f"template template0 encoding 'UTF8' {options}") as dsn:
        admin = connect(dsn)
        texts(admin, "")

        check_texts(admin, make_source(source_config(dsn)), by_their_index=DATABASES[options])


@pytest.fixture(scope="module")
def icu_server(tls_bindir: Path) -> Iterator[PostgresServer]:
    """A server as distributions build it: with collations that order texts as people do."""
    with PostgresServer.temporary(bindir=tls_bindir, settings=SETTINGS, die_with_parent=True) as server:
        yield server


ICU_DATABASE: LiteralString = "template template0 encoding 'UTF8' locale_provider icu icu_locale 'en-US' locale 'C'"


@pytest.mark.tls  # the same builds have both
@pytest.mark.parametrize("caseless", [True, False])
@pytest.mark.parametrize("options", ["", ICU_DATABASE])
def test_texts_are_cut_by_their_bytes_whatever_their_order(
    icu_server: PostgresServer, connect: Connect, make_source: MakeSource, options: LiteralString, caseless: bool
) -> None:
    with fresh_database(icu_server, options) as dsn:
        admin = connect(dsn)
        admin.execute(
            "create collation caseless (provider = icu, locale = 'und-u-ks-level2', deterministic = false);"
            "create collation people (provider = icu, locale = 'en-US')"
        )
        texts(admin, "collate caseless" if caseless else "" if options else "collate people")
        assert fetch(admin, "select min(k) || max(k) from t where k in ('b1', 'Z1')") == ["b1Z1"]

        check_texts(admin, make_source(source_config(dsn)), by_their_index=False)


def test_a_column_that_is_gone_says_so(connect: Connect, source: PostgresSource) -> None:
    connect().execute("create table t(id int primary key)")
    table = published(source)
    slices = [Slice(name="start", attnum=7, type_oid=20, lower=None, upper="5", nulls=True)]

    with pytest.raises(EtlError) as failed:
        source.plan_chunks(table, MEGABYTE, slices)

    assert (failed.value.kind, failed.value.table) == (ErrorKind.TABLE, "public.t")


def sizes(connection: psycopg.Connection[Any], bounds: Sequence[str], column: str = "k", table: str = "t") -> list[int]:
    """Rows of each range."""
    collate = (
        ' collate "C"'
        if fetch(connection, f"select pg_typeof({column})::text from {table} limit 1")[0]
        in (
            "text",
            "character varying",
        )
        else ""
    )
    ends = [None, *bounds, None]
    return [
        fetch(
            connection,
            f"select count(*) from {table} where ({column}{collate} >= %s) is not false"
            f" and ({column}{collate} < %s) is not false and {column} is not null"
            + (f" or {column} is null" if lower is None else ""),
            lower,
            upper,
        )[0]
        for lower, upper in pairwise(ends)
    ]


@pytest.mark.parametrize(
    ("type_name", "values"),
    [
        ("smallint", "i / 4"),
        ("int", "i"),
        ("bigint", "i::bigint * i * i"),
        ("uuid", "md5(i::text)::uuid"),
        ("text", "md5(i::text)"),
        ("varchar", "'https://example.org/items/' || i"),
    ],
)
def test_ranges_have_about_as_many_rows(connect: Connect, source: PostgresSource, type_name: str, values: str) -> None:
    admin = connect()
    admin.execute(
        f"create table t(id int primary key, k {type_name}) with (autovacuum_enabled = off);"
        f"insert into t select i, {values} from generate_series(1, 100000) i".encode()
    )
    table = published(source)

    for statement in ("select", "analyze t"):
        admin.execute(statement.encode())
        found = sizes(admin, source.plan_ranges(table, column_of(table, "k"), 5000))
        assert len(found) in (19, 20, 21)
        assert sum(found) == 100_000
        assert max(found) < 9000
        assert min(found) > 2000


def test_ranges_of_few_values_are_as_many_as_can_be(connect: Connect, source: PostgresSource) -> None:
    admin = connect()
    admin.execute(
        "create table t(id int primary key, k int); insert into t select i, i % 3 from generate_series(1, 9000) i"
    )
    table = published(source)

    assert source.plan_ranges(table, column_of(table, "k"), 1000) == ["1", "2"]
    assert source.plan_ranges(table, column_of(table, "id"), 3000) == ["3001", "6001"]
    assert source.plan_ranges(table, column_of(table, "id"), 100_000) == []


def test_ranges_of_skewed_values(connect: Connect, source: PostgresSource) -> None:
    admin = connect()
    admin.execute(
        "create table t(id int primary key, k bigint);"
        "insert into t select i, case when i <= 5000 then null when i <= 30000 then 7 else 1000000000 + i end"
        " from generate_series(1, 50000) i; insert into t values (0, 9000000000000000000); analyze t"
    )
    table = published(source)

    found = sizes(admin, source.plan_ranges(table, column_of(table, "k"), 5000))

    assert found[:2] == [5000, 25000]
    assert found[2:] == [5000, 5000, 5000, 5001]


def test_a_text_bound_shows_no_more_of_a_value_than_it_takes(connect: Connect, source: PostgresSource) -> None:
    admin = connect()
    secret = "secret" * 100
    admin.execute(
        "create table t(id int primary key, k text);"
        f"insert into t select i, chr(96 + i) || '{secret}' from generate_series(1, 26) i;"
        f"insert into t values (27, '列{secret}'), (28, '列x{secret}'), (29, '列x{secret}'), (30, '')".encode()
    )
    table = published(source)

    bounds = source.plan_ranges(table, column_of(table, "k"), 1)

    assert bounds == [*map(chr, range(97, 123)), "列", "列x"]
    assert sizes(admin, bounds) == [1] * 28 + [2]


def test_only_what_lies_behind_the_last_bound_is_cut_again(connect: Connect, source: PostgresSource) -> None:
    admin = connect()
    admin.execute(
        "create table t(id int primary key, k text); insert into t select i, i from generate_series(0, 9999) i"
    )
    table = published(source)
    column = column_of(table, "id")

    assert source.plan_ranges(table, column, 2000) == ["2000", "4000", "6000", "8000"]
    assert source.plan_ranges(table, column, 2000, after="8000") == []
    admin.execute("insert into t select i, i from generate_series(10000, 14999) i")
    assert source.plan_ranges(table, column, 2000, after="8000") == ["10001", "12002"]
    assert source.plan_ranges(table, column, 20000, after="8000") == []
    assert source.plan_ranges(table, column, 1000, after="99999") == []
    by_text = source.plan_ranges(table, column_of(table, "k"), 1000, after="9")
    assert by_text == []
    by_text = source.plan_ranges(table, column_of(table, "k"), 1000, after="5")
    assert by_text == sorted(set(by_text))
    assert all(bound > "5" for bound in by_text)
    assert len(by_text) in (5, 6)


def test_a_bound_behind_which_no_index_leads_is_cut_from_a_sample(connect: Connect, source: PostgresSource) -> None:
    admin = connect()
    admin.execute(
        "create table t(id int primary key, k int); insert into t select i, i from generate_series(0, 9999) i"
    )
    table = published(source)

    bounds = source.plan_ranges(table, column_of(table, "k"), 1000, after="6000")

    assert bounds == ["7001", "8001", "9001"]


def test_ranges_of_a_partitioned_table(connect: Connect, source: PostgresSource) -> None:
    admin = connect()
    admin.execute(
        "create table t(id int, k int, primary key (id, k)) partition by list (k);"
        "create table t0 partition of t for values in (0); create table t1 partition of t for values in (1);"
        "create table empty partition of t default;"
        "insert into t select i, i % 2 from generate_series(0, 9999) i; analyze t"
    )
    table = published(source)

    assert source.plan_ranges(table, column_of(table, "id"), 2500) == ["2500", "5000", "7500"]
    assert source.plan_ranges(table, column_of(table, "id"), 2500, after="5000") == ["7501"]


def test_there_are_no_more_ranges_than_can_be_shown(connect: Connect, source: PostgresSource) -> None:
    admin = connect()
    admin.execute("create table t(id int primary key); insert into t select generate_series(1, 60000); analyze t")
    table = published(source)

    bounds = source.plan_ranges(table, column_of(table, "id"), 1)

    assert MAX_SLICES * 0.95 < len(bounds) < MAX_SLICES
    assert max(Counter(sizes(admin, bounds[:20], "id")[:20])) < 30


def test_an_empty_table_has_one_range(connect: Connect, source: PostgresSource) -> None:
    connect().execute(
        "create table t(id int primary key); create table r(id int primary key) partition by range (id);"
        "create table gone(id int primary key); insert into gone values (1); delete from gone"
    )
    for name in ("t", "r", "gone"):
        table = published(source, name)
        assert source.plan_ranges(table, column_of(table, "id"), 10) == []
