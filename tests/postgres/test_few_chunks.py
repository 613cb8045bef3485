"""Copies of few chunks: larger ones, and small partitions read together, for destinations that count them."""

from __future__ import annotations

import pytest

from etl_dagster.postgres import PostgresSource
from tests.conftest import Connect
from tests.postgres.test_chunks import published
from tests.postgres.test_slices import cut, ids_of

PARTITIONS = 40


def _partitioned(connect: Connect) -> None:
    """Partitions of 1 to 40 pages, and one of some hundred."""
    admin = connect()
    admin.execute("create table t(id int primary key, v text) partition by range (id)")
    for place in range(PARTITIONS):
        first = place * 1000
        last = first + (1000 if place < PARTITIONS - 1 else 100_000)
        admin.execute(f"create table t{place} partition of t for values from ({first}) to ({last})".encode())
    admin.execute(
        "insert into t select p * 1000 + i, repeat('x', 200) from generate_series(0, 38) p, "
        "generate_series(1, (p + 1) * 20) i;"
        "insert into t select 39000 + i, repeat('x', 200) from generate_series(1, 10000) i; analyze t"
    )


@pytest.mark.parametrize("most", [1, 2, 5, 12, 30])
def test_no_more_chunks_than_are_wanted_cover_every_row_once(
    connect: Connect, source: PostgresSource, most: int
) -> None:
    _partitioned(connect)
    table = published(source)
    expected = [row[0] for row in connect().execute("select id from t order by id").fetchall()]

    plans = source.plan_chunks(table, 8192, most=most)

    assert len(plans) <= most
    assert ids_of(source, table, plans) == expected
    assert sum(plan.rows for plan in plans) == pytest.approx(len(expected), rel=0.1)


def test_small_partitions_are_read_together_and_large_ones_in_ranges(connect: Connect, source: PostgresSource) -> None:
    _partitioned(connect)
    table = published(source)

    plans = source.plan_chunks(table, 256 * 1024, most=1000)

    together = [plan for plan in plans if plan.more]
    ranges = [plan for plan in plans if plan.first_block or plan.last_block is not None]
    assert len(plans) < PARTITIONS
    assert sum(1 + len(plan.more) for plan in together) > PARTITIONS // 2
    assert all(plan.bytes <= 256 * 1024 and not plan.filenode for plan in together)
    assert len({plan.relation for plan in ranges}) == 1
    assert all(plan.filenode for plan in ranges)


def test_any_number_of_chunks_leaves_each_partition_to_itself(connect: Connect, source: PostgresSource) -> None:
    _partitioned(connect)
    table = published(source)

    plans = source.plan_chunks(table, 1 << 30)

    assert len(plans) == PARTITIONS
    assert not any(plan.more for plan in plans)


@pytest.mark.parametrize("most", [1, 3, 8])
def test_many_slices_are_read_in_few_chunks(connect: Connect, source: PostgresSource, most: int) -> None:
    _partitioned(connect)
    table = published(source)
    slices = cut(table, "id", *(str(bound) for bound in range(500, 40_000, 500)))[::2]
    expected = connect().execute("select id from t where id < 500 or id / 500 % 2 = 0 order by id").fetchall()

    plans = source.plan_chunks(table, 8192, slices, most)

    assert len(plans) <= most
    last = 39_500
    assert [i for i in ids_of(source, table, plans) if i < last] == [row[0] for row in expected if row[0] < last]


def test_many_slices_of_one_large_table_are_read_in_few_chunks(connect: Connect, source: PostgresSource) -> None:
    connect().execute(
        "create table t(id int primary key, v text);"
        "insert into t select i, repeat('x', 200) from generate_series(1, 40000) i; analyze t"
    )
    table = published(source)
    slices = cut(table, "id", *(str(bound) for bound in range(100, 40_000, 100)))[::20]

    apart, few = source.plan_chunks(table, 1 << 20, slices), source.plan_chunks(table, 1 << 20, slices, 6)

    assert len(apart) > 6 >= len(few)
    assert ids_of(source, table, few) == ids_of(source, table, apart)


def test_tables_are_measured_at_once(connect: Connect, source: PostgresSource) -> None:
    _partitioned(connect)
    connect().execute(
        "create table large(id int primary key, v text); create table none(id int primary key);"
        "alter table large alter v set storage external;"
        "insert into large select i, repeat('x', 10000) from generate_series(1, 50) i;"
    )
    source.prepare_publication()
    tables = source.tables()

    found = {table.name: size for table, size in source.table_bytes(list(tables.values())).items()}

    leaves = "select sum(pg_relation_size(relid)) from pg_partition_tree('t') where isleaf"
    assert found["t"] == connect().execute(leaves).fetchone()[0]  # type: ignore[index]
    assert found["large"] > 500_000
    assert found["none"] == 0
