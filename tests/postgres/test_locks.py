"""Who writes to a table, and who runs the pipeline."""

from __future__ import annotations

import pytest

from etl_dagster.errors import ErrorKind, StateError
from etl_dagster.model import TableId, TableSchema
from etl_dagster.postgres import PostgresSource
from tests.conftest import Connect
from tests.postgres.conftest import MakeSource


@pytest.fixture
def tables(connect: Connect, source: PostgresSource) -> list[TableSchema]:
    connect().execute(
        "create table t(id int primary key); create table other(id int primary key);"
        "create table r(id int primary key) partition by range (id);"
        "create table r1 partition of r for values from (0) to (10)"
    )
    source.prepare_publication()
    found = source.tables()
    return [found[TableId("public", "t")], found[TableId("public", "r")]]


def test_an_open_transaction_that_wrote_is_a_writer(
    connect: Connect, source: PostgresSource, tables: list[TableSchema]
) -> None:
    writer = connect(application_name="slow job")
    writer.execute("begin; insert into t values (1)")

    (found,) = source.writers(tables)

    assert (found.table, found.pid, found.application) == (TableId("public", "t"), writer.info.backend_pid, "slow job")
    assert found.since is not None
    writer.execute("commit")
    assert source.writers(tables) == []


def test_readers_and_vacuum_and_writers_of_others_are_none(
    connect: Connect, source: PostgresSource, tables: list[TableSchema]
) -> None:
    connect().execute("begin; select * from t; select * from r")
    connect().execute("begin; lock table t in share update exclusive mode")
    connect().execute("begin; insert into other values (1)")

    assert source.writers(tables) == []
    assert source.writers([]) == []


def test_a_prepared_transaction_is_a_writer_without_process(
    connect: Connect, source: PostgresSource, tables: list[TableSchema]
) -> None:
    admin = connect()
    name = f"prepared for {source.config.slot.name}"
    admin.execute(f"begin; delete from t; prepare transaction '{name}'")

    (found,) = source.writers(tables)

    assert (found.table, found.pid) == (TableId("public", "t"), None)
    assert name in found.application
    assert found.since is not None
    again = source.writers(tables)
    assert again[0].virtual_transaction == found.virtual_transaction
    admin.execute(f"rollback prepared '{name}'")
    assert source.writers(tables) == []


def test_who_writes_to_a_partition_writes_to_the_table(
    connect: Connect, source: PostgresSource, tables: list[TableSchema]
) -> None:
    connect().execute("begin; insert into r1 values (1)")

    assert [writer.table for writer in source.writers(tables)] == [TableId("public", "r")]


def test_only_one_holds_the_fence(make_source: MakeSource, database: str) -> None:
    first = make_source()
    second = make_source(first.config)
    with first.fence():
        first.check_fence()
        with pytest.raises(StateError, match=r"server process \d+ of etl-dagster") as refused, second.fence():
            pass
        assert refused.value.kind is ErrorKind.PIPELINE_BUSY
    with second.fence():
        second.check_fence()


def test_pipelines_of_other_slots_have_other_fences(make_source: MakeSource) -> None:
    with make_source().fence(), make_source().fence():
        pass


def test_a_fence_whose_connection_is_gone_is_noticed(connect: Connect, source: PostgresSource) -> None:
    source.create_slot()
    with source.fence():
        connect().execute(
            "select pg_terminate_backend(pid, 10000) from pg_locks where locktype = 'advisory' and granted"
            " and database = (select oid from pg_database where datname = current_database())"
        )
        with pytest.raises(StateError) as lost:
            source.advance_slot(source.current_position())

    assert lost.value.kind is ErrorKind.PIPELINE_BUSY


def test_a_writer_tells_how_long_it_has_been_open_and_what_it_does(
    connect: Connect, source: PostgresSource, tables: list[TableSchema]
) -> None:
    admin = connect()
    connect().execute("begin; select pg_sleep(0.05); insert into t values (1)")
    admin.execute(f"begin; insert into r values (1); prepare transaction 'open for {source.config.slot.name}'")

    idle, prepared = sorted(source.writers(tables), key=lambda writer: writer.state)

    assert (idle.state, prepared.state) == ("idle in transaction", "prepared")
    assert idle.age is not None
    assert prepared.age is not None
    assert idle.age > 0.04
    assert 0 < prepared.age < 60
